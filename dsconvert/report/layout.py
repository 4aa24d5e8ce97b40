"""Layout on 80 columns: tables whose numbers are never cut, and sentences that are folded."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dsconvert.report.text import plain

WIDTH = 80
"""Columns that everything fits; a wider terminal gets longer names, never other numbers."""
_NAMED = 4
"""Names that a sentence lists before it says how many more there are."""
_SHORTEST = 9


def shortened(name: str, width: int) -> str:
    """``name`` in at most ``width`` characters: its middle is left out, both ends stay."""
    if len(name) <= width:
        return name
    # The end says more: the names of one block differ there.
    tail = max(1, (width - 1) * 3 // 5)
    return f"{name[: max(0, width - 1 - tail)]}…{name[len(name) - tail :]}"


class Name:
    """A name from a file in a table's cell: one line, shortened in the middle where it must be."""

    def __init__(self, name: object, style: str = "") -> None:
        self._name, self._style = plain(name).plain.replace("\n", r"\n"), style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it for a cell of ``options.max_width`` characters."""
        width = max(1, options.max_width)
        yield Text(shortened(self._name, width), style=self._style, no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Between the shortest form and the whole name."""
        size = len(self._name)
        return Measurement(min(size, _SHORTEST), size).clamp(max_width=options.max_width)


def compact(name: str, texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """A table without frames: a column of names, then texts, then numbers at the right.

    Only the names give way where the columns do not fit.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
        header_style="bold",
        show_header=any((name, *texts, *numbers)),
    )
    table.add_column(name)
    for text in texts:
        table.add_column(text, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def pairs(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of columns, each aligned at the left; the last column is folded within itself."""
    cells = [[plain(c).plain for c in row] for row in rows]
    *widths, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
    lines: list[str] = []
    for *first, last in cells:
        head = "  " + "".join(f"{c.ljust(w)}  " for c, w in zip(first, widths, strict=True))
        lines.append(folded(head + last, margin=len(head)).rstrip())
    return lines


def folded(text: str, width: int = WIDTH, *, margin: int | None = None) -> str:
    """``text`` with each line folded at blanks; a word (a path) is never taken apart.

    What is folded is indented by ``margin`` blanks, or by two more than its line.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        blanks = len(line) - len(line.lstrip(" ")) + 2 if margin is None else margin
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * blanks,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def listed(names: Sequence[str], *, whole: bool = False) -> str:
    """Names in a sentence; only the first few of many, unless they are wanted ``whole``."""
    if whole or len(names) <= _NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
