"""What the demo shows: a progress bar, tables and bars, in plain ANSI.

On a terminal there are colours and a line that moves. Anywhere else (a file, a pipe, a
terminal without the codes) there is plain text only.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "cyan": "36"}
# Eighths of a character cell, so that bars differ by less than a cell.
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Screen:
    """Where the demo writes to.

    Parameters
    ----------
    stream : text file
        Where to write; by default, standard output.
    width : int, optional
        Width in characters; by default, the terminal's, at most 100.
    live : bool, optional
        Whether colours and moving lines are wanted; by default, found out.
    """

    def __init__(
        self, stream: TextIO | None = None, width: int | None = None, live: bool | None = None
    ) -> None:
        self.stream = sys.stdout if stream is None else stream
        self._width = width
        if live is None:
            live = self.stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.live = live
        self.coloured = live and not os.environ.get("NO_COLOR")
        self.blocks = can_encode(self.stream, _EIGHTHS)

    @property
    def width(self) -> int:
        """Characters that fit on a line; a terminal may change its size."""
        if self._width is not None:
            return self._width
        return min(shutil.get_terminal_size((80, 24)).columns, 100)

    def write(self, text: str = "") -> None:
        """Write a line; characters that the stream does not have are written as escapes."""
        if not can_encode(self.stream, text):
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        print(text, file=self.stream, flush=True)

    def paint(self, text: str, colour: str) -> str:
        """Return the text in a colour, where there are colours."""
        if not self.coloured:
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


class Progress:
    """One line that says how far an engine has got.

    Use it as a context manager; it leaves no trace, so that a line with the outcome can
    take its place.
    """

    def __init__(self, screen: Screen, label: str, total: int, interval: float = 0.1) -> None:
        self.screen = screen
        self.label = label
        self.total = total
        self.interval = interval
        self.started = time.perf_counter()
        self._next = 0.0

    def __enter__(self) -> "Progress":
        self.update(0)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.screen.live:
            print("\r\x1b[2K", end="", file=self.screen.stream, flush=True)

    def update(self, done: int) -> None:
        """Say that so many are done; writes ten times a second at most."""
        if not self.screen.live:
            return
        now = time.perf_counter()
        if now < self._next:
            return
        self._next = now + self.interval
        line = progress_line(
            self.label,
            done,
            self.total,
            now - self.started,
            self.screen.width,
            self.screen.blocks,
        )
        print("\r\x1b[2K" + line, end="", file=self.screen.stream, flush=True)


def can_encode(stream: TextIO, text: str) -> bool:
    """Tell whether the stream's encoding has these characters; one without any has all."""
    encoding = getattr(stream, "encoding", None)
    try:
        text.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def bar(fraction: float, width: int, blocks: bool = True) -> str:
    """Return a bar that fills this fraction of the width, padded with blanks."""
    fraction = min(max(fraction, 0.0), 1.0)
    if not blocks:
        return ("#" * round(fraction * width)).ljust(width)
    eighths = round(fraction * width * 8)
    full, rest = divmod(eighths, 8)
    return (_EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def progress_line(
    label: str, done: int, total: int, seconds: float, width: int, blocks: bool = True
) -> str:
    """Return the progress line; the bar takes what room there is, and goes if there is none."""
    left = f"  {label:<23} "
    right = f" {done:>{len(f'{total:,}')},}/{total:,}  {seconds:5.1f} s"
    # One column stays free: some terminals wrap a full line.
    room = width - 1 - len(left) - len(right) - 2
    if room < 4:
        return (left + right.strip())[: max(width - 1, 0)]
    edges = "▕▏" if blocks else "[]"
    fraction = done / total if total else 1.0
    return f"{left}{edges[0]}{bar(fraction, room, blocks)}{edges[1]}{right}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first and last column to the left, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    last = len(head) - 1
    return [
        "  ".join(
            cell.ljust(width) if index in (0, last) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def bars(rows: Sequence[tuple[str, float, str]], width: int, blocks: bool = True) -> list[str]:
    """Return the lines of a bar chart.

    Parameters
    ----------
    rows : sequence of (label, value, text)
        The text stands behind the bar; the largest value fills the room there is.
    width : int
        Characters in a line.
    blocks : bool
        Whether block characters can be shown.
    """
    if not rows:
        return []
    left = max(len(label) for label, _, _ in rows)
    right = max(len(text) for _, _, text in rows)
    room = max(width - left - right - 3, 1)
    largest = max(value for _, value, _ in rows) or 1.0
    lines = []
    for label, value, text in rows:
        drawn = bar(value / largest, room, blocks).rstrip()
        lines.append(f"{label:<{left}}  {drawn} {text}")
    return lines
