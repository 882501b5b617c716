"""Printing: results to stdout, messages and progress to stderr. The only module that imports rich."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..contract import Layout

_PIPE_WIDTH = 200  #: columns where stdout is no terminal: long names stay whole


class Terminal:
    """Where a command prints.

    Args:
        quiet: no messages and no progress; results and errors only.
        as_json: results are JSON, printed with :meth:`json`; tables and text are not printed.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json

    def say(self, message: str = "") -> None:
        """A message."""
        if not self.quiet:
            print(message, file=sys.stderr)

    def warn(self, message: str) -> None:
        """A message that --quiet leaves."""
        print(message, file=sys.stderr)

    def print(self, text: str = "") -> None:
        """Text that is a result."""
        print(text)

    def json(self, data: Any) -> None:
        """A result for programs."""
        print(json.dumps(data, indent=2, ensure_ascii=False))

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        right: Sequence[str] = (),
        whole: Sequence[str] = (),
    ) -> None:
        """A table that is a result.

        Args:
            columns: their heads.
            rows: one cell per column.
            right: columns to align to the right.
            whole: columns that keep their width; the others wrap.
        """
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(
                name,
                justify="right" if name in right else "left",
                no_wrap=name in whole,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*map(str, row))
        self._draw(table)

    def facts(self, pairs: Sequence[tuple[str, Any]]) -> None:
        """Names and values, one pair per line; long values wrap under themselves."""
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, value in pairs:
            table.add_row(name, str(value))
        self._draw(table)

    @contextlib.contextmanager
    def progress(self, doing: str) -> Iterator[Callable[[int, int], None]]:
        """A bar on stderr, where that is a terminal; what is yielded is called with (done, total)."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=self.quiet or not console.is_terminal,
        )
        with bar:
            task = bar.add_task(doing, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextlib.contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """A sign of life on stderr, where that is a terminal."""
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True)
        if self.quiet or not console.is_terminal:
            yield
            return
        with console.status(Text(doing)):
            yield

    @staticmethod
    def _draw(table: Any) -> None:
        from rich.console import Console

        width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
        # Names and labels hold brackets and colons: they are text, not markup.
        console = Console(width=width, markup=False, highlight=False, emoji=False)
        with console.capture() as drawn:
            console.print(table)
        lines = [line.rstrip() for line in drawn.get().splitlines()]
        print("\n".join(lines[1:] if lines and not lines[0] else lines))


def shape_text(shape: Sequence[Any]) -> str:
    """A shape as people write it: N×320×8×8."""
    return "×".join("?" if n is None else str(n) for n in shape) or "scalar"


def layout_text(layout: Layout) -> str:
    """A layout by its letters, or as tokens between others: 1+tokens."""
    return f"{layout.prefix}+" * bool(layout.prefix) + layout.kind + f"+{layout.suffix}" * bool(layout.suffix)


def size_text(count: float) -> str:
    """Bytes as people write them: 14.0 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
