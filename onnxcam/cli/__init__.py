"""The command line: arguments in, library calls, printing out. One module per command.

The modules import nothing heavy when they are loaded, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from .._version import __version__
from ..errors import OnnxcamError, nearest
from . import (
    compare,
    concepts,
    culprit,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    inspect,
    layers,
    methods,
    record,
    rewrite,
    strip,
)
from .terminal import Terminal

#: Each has HELP, add_arguments(parser) and run(args, terminal), which returns the exit status.
COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "export": export,
    "rewrite": rewrite,
    "layers": layers,
    "explain": explain,
    "concepts": concepts,
    "evaluate": evaluate,
    "record": record,
    "compare": compare,
    "culprit": culprit,
    "inspect": inspect,
    "strip": strip,
    "methods": methods,
    "doctor": doctor,
}

OK, REPORTED, ERROR, INTERRUPTED = 0, 1, 2, 130

EXIT_STATUS = """exit status:
  0    done
  1    done, but something is reported: images were skipped, a provider does not work
  2    an error; its message is on stderr
  130  interrupted with Ctrl-C

Results go to stdout, as JSON with --json; messages and progress go to stderr."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None: the process's own.

    Returns:
        The exit status; see :data:`EXIT_STATUS`. ``--help``, ``--version`` and unusable arguments
        leave through SystemExit, as argparse does it.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a label that the terminal has no characters for is no error
            stream.reconfigure(errors="replace")
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return ERROR
    terminal = Terminal(quiet=args.quiet, as_json=getattr(args, "json", False))
    try:
        status = int(COMMANDS[args.command].run(args, terminal))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _failed("interrupted", args.debug, INTERRUPTED)
    except BrokenPipeError:  # `onnxcam layers model.onnx | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OnnxcamError as e:
        return _failed(f"error: {e}", args.debug, ERROR)
    except OSError as e:
        return _failed(f"error: {e}", args.debug, ERROR)
    except Exception as e:
        return _failed(
            f"error: {type(e).__name__}: {e}\nThis is a defect of onnxcam, or of a package that it uses. "
            "Run again with --debug for the traceback, and please report it.",
            args.debug,
            ERROR,
        )


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="onnxcam",
        description="Class activation maps from one ONNX Runtime session.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onnxcam {__version__}")
    _add_common(parser, quiet=False, debug=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, module in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=module.HELP,
            description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            epilog=getattr(module, "EPILOG", "") + getattr(module, "EXIT_STATUS", EXIT_STATUS),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(own)
        # Not given here, what stood before the command holds.
        _add_common(own, quiet=argparse.SUPPRESS, debug=argparse.SUPPRESS)
    return parser


def _add_common(parser: argparse.ArgumentParser, quiet: bool | str, debug: bool | str) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", default=quiet, help="no messages, no progress")
    parser.add_argument("--debug", action="store_true", default=debug, help="a traceback with every error")


def _failed(message: str, debug: bool, status: int) -> int:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """argparse, with errors in one line and the nearest command."""

    def error(self, message: str) -> NoReturn:
        unknown = message.split("invalid choice: '")
        if "COMMAND" in message and len(unknown) == 2:
            name = unknown[1].split("'")[0]
            message = f"There is no command {name!r}.{nearest(name, list(COMMANDS))}"
        self.exit(ERROR, f"error: {message}\nSee `{self.prog} --help`.\n")
