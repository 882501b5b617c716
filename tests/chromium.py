"""The page of ``examples/web`` in a headless Chromium, driven through its ``test/browser.mjs``."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WEB = Path(__file__).parents[1] / "examples" / "web"
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def missing() -> str | None:
    """What the page's tests need and is not there; None: nothing."""
    if shutil.which("node") is None:
        return "Node.js is not installed (`apt-get install nodejs npm`)"
    for package in ("onnxruntime-web", "playwright-core"):
        if not (WEB / "node_modules" / package).is_dir():
            return f"{package} is not installed (`make web-test` runs `npm ci` in examples/web)"
    if CHROMIUM is None:
        return "Chromium is not installed (`apt-get install chromium`, or name it in CHROMIUM)"
    return None


class Browser:
    """One Chromium with one page; every call waits for its result, at most ``LIMIT`` seconds."""

    LIMIT = 90

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["node", "test/browser.mjs"],
            cwd=WEB,
            env={**os.environ, "CHROMIUM": str(CHROMIUM)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._answer()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def _answer(self) -> Any:
        answer = json.loads(self._lines.get(timeout=self.LIMIT))
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer.get("result")

    def __call__(self, command: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def open(self, **options: Any) -> dict[str, Any]:
        """A fresh page, once it shows the demo."""
        self("open", options)
        return self.settled()

    def settled(self) -> dict[str, Any]:
        found: dict[str, Any] = self("settled")
        return found

    def click(self, selector: str) -> dict[str, Any]:
        self("click", selector)
        return self.settled()

    def drop(self, *paths: Path) -> dict[str, Any]:
        self("drop", [str(path) for path in paths])
        return self.settled()

    def choose(self, selector: str, paths: Sequence[Path]) -> dict[str, Any]:
        self("choose", selector, [str(path) for path in paths])
        return self.settled()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
