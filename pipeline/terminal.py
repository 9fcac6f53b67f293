"""Progress on stderr: a bar on a terminal, a plain line elsewhere."""

import logging
import sys
from collections.abc import Iterable, Sequence, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")
log = logging.getLogger("nightjar")


def console() -> Console:
    """Where people read: stderr, so that stdout carries results only."""
    return Console(stderr=True)


def track(things: Iterable[T], what: str, number: int | None = None) -> Iterable[T]:
    """Go through things with a progress bar; a short or silent loop shows none. `number` is needed without a `len`."""
    number = len(things) if isinstance(things, Sized) else number
    if (number or 0) < 2 or not sys.stderr.isatty():
        return things
    return rich_track(things, description=what, total=number, console=console(), transient=True)


def align(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells as aligned columns: the first `left` columns flush left, numbers flush right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def place(column: int, cell: str) -> str:
        return cell.ljust(widths[column]) if column < left else cell.rjust(widths[column])

    return "\n".join("  ".join(place(n, cell) for n, cell in enumerate(line)).rstrip() for line in lines)
