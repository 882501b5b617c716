"""The static server of ``examples/web``, as ``npm start`` runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

NODE = shutil.which("node")
WEB = Path(__file__).parents[2] / "examples" / "web"

pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed (`apt-get install nodejs`)")


def start(port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(NODE), str(WEB / "serve.js")],
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def port() -> Iterator[int]:
    with start(0) as server:
        assert server.stdout is not None
        told = re.fullmatch(r"http://localhost:(\d+)/  \(Ctrl-C ends it\)\n", server.stdout.readline())
        assert told is not None
        yield int(told[1])
        server.terminate()


def test_serves_the_page_isolated(port: int) -> None:
    with urllib.request.urlopen(f"http://localhost:{port}/", timeout=20) as answer:
        headers = dict(answer.headers)
        assert answer.read() == (WEB / "index.html").read_bytes()
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")


def test_says_how_to_take_another_port(port: int) -> None:
    with start(port) as second:
        _, told = second.communicate(timeout=20)
    assert second.returncode == 1
    assert told.startswith(f"Port {port} cannot be opened: ")
    assert told.endswith(". Choose another one: PORT=8081 npm start\n")
