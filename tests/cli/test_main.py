"""What all commands share: help, exit statuses, where things are printed, and how little is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from onnxcam import __version__, cli, errors
from onnxcam.cli import COMMANDS, methods


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_name(cli, name):
    ran = cli(name, "--help")
    assert ran.status == 0
    assert f"usage: onnxcam {name}" in ran.out
    assert "exit status:" in ran.out


def test_help_lists_the_commands_and_the_exit_statuses(cli):
    ran = cli("--help")
    assert ran.status == 0
    for name, module in COMMANDS.items():
        assert f"\n    {name} " in ran.out
        assert module.HELP.split()[0] in ran.out
    for status in ("0  ", "1  ", "2  ", "130"):
        assert f"\n  {status}" in ran.out


def test_version(cli):
    assert cli("--version").out == f"onnxcam {__version__}\n"


def test_no_command_is_an_error_that_shows_the_help(cli):
    ran = cli()
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("usage: onnxcam")


def test_an_unknown_command_names_the_nearest(cli):
    ran = cli("explian")
    assert ran.status == 2
    assert (
        ran.err
        == "error: There is no command 'explian'. Nearest: 'explain', 'export'.\nSee `onnxcam --help`.\n"
    )


def test_a_missing_argument(cli):
    ran = cli("rewrite")
    assert ran.status == 2
    assert ran.err == ("error: the following arguments are required: model\nSee `onnxcam rewrite --help`.\n")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (errors.ImageError("no such photo"), 2, "error: no such photo\n"),
        (PermissionError(13, "Permission denied", "x"), 2, "error: [Errno 13] Permission denied: 'x'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            ZeroDivisionError("oh"),
            2,
            "error: ZeroDivisionError: oh\nThis is a defect of onnxcam, or of a package that it uses. Run "
            "again with --debug for the traceback, and please report it.\n",
        ),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else None,
)
@pytest.mark.parametrize("debug", [False, True])
def test_errors_are_one_message_and_a_status(cli, monkeypatch, raised, status, message, debug):
    def run(*_):
        raise raised

    monkeypatch.setattr(methods, "run", run)
    ran = cli("methods", *["--debug"] * debug)
    assert (ran.status, ran.out) == (status, "")
    assert ran.err.endswith(message)
    assert ("Traceback" in ran.err) == debug
    assert debug or ran.err == message


def test_common_options_stand_before_or_after_the_command(cli, monkeypatch):
    seen = []
    monkeypatch.setattr(methods, "run", lambda args, _: seen.append((args.quiet, args.debug)) or 0)
    cli("--quiet", "methods", "--debug")
    cli("--debug", "methods", "-q")
    cli("methods")
    assert seen == [(True, True), (True, True), (False, False)]


def test_a_closed_pipe_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxcam", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_the_module_gives_the_status_back_and_prints_what_the_terminal_cannot_show():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(
        [sys.executable, "-m", "onnxcam", "methods"], capture_output=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert b"gradcam" in ran.stdout
    ran = subprocess.run(
        [sys.executable, "-m", "onnxcam", "layers", "nope.onnx"], capture_output=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith(b"error: There is no file 'nope.onnx'")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import onnxcam", "rich torch onnx onnx_ir onnxruntime onnxscript"),
        ("import onnxcam.cli; onnxcam.cli.make_parser()", "rich torch onnx onnx_ir onnxruntime onnxscript"),
        ("from onnxcam.cli import main; main(['methods', '--json'])", "rich torch onnx onnx_ir onnxruntime"),
        ("from onnxcam.cli import main; main(['methods'])", "torch onnx onnx_ir onnxruntime onnxscript"),
    ],
)
def test_nothing_heavy_is_imported(code, absent):
    check = f"import sys; print(sorted(set({absent.split()!r}) & set(sys.modules)), file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True
    )
    assert ran.stderr == "[]\n"


def test_commands_that_need_the_extra_say_so():
    """Where neither onnx nor torch can be imported."""
    code = """
import sys
sys.modules.update(dict.fromkeys(["onnx", "onnx_ir", "torch", "onnxscript"]))
from onnxcam.cli import main
for words in ("rewrite x.onnx", "layers x.onnx", "strip x -o y", "export a:b -i 1"):
    print(main(words.split()))
print(main(["methods", "-q"]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sentence = (
        "error: Rewriting models needs 'onnx', which is not installed: `pip install \"onnxcam[export]\"`.\n"
    )
    assert ran.stderr == sentence * 4
    assert ran.stdout.startswith("2\n2\n2\n2\n")


def test_exporting_without_torch_says_so():
    code = """
import sys
sys.modules.update(dict.fromkeys(["torch", "onnxscript"]))
from onnxcam.cli import main
sys.exit(main(["export", "a:b", "-i", "1x3x8x8"]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert 'which is not installed: `pip install "onnxcam[torch]"`' in ran.stderr


def test_statuses_are_what_the_help_says():
    assert (cli.OK, cli.REPORTED, cli.ERROR, cli.INTERRUPTED) == (0, 1, 2, 130)
