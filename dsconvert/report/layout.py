"""Layout on 80 columns: tables that never cut a number, and folded sentences."""

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
"""The width that all output fits; a wider terminal gets longer names and the same numbers."""
_NAMED = 4
"""The most names that a sentence lists before it counts the rest."""
_SHORTEST = 9


def shortened(name: str, width: int) -> str:
    """Return ``name`` in at most ``width`` characters, without its middle if it is longer."""
    if len(name) <= width:
        return name
    # Keep more of the end, where the names within one block differ.
    tail = max(1, (width - 1) * 3 // 5)
    return f"{name[: max(0, width - 1 - tail)]}…{name[len(name) - tail :]}"


class Name:
    """A name from a file, for a table's cell: one line, shortened in the middle if necessary."""

    def __init__(self, name: object, style: str = "") -> None:
        self._name, self._style = plain(name).plain.replace("\n", r"\n"), style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it for a cell of ``options.max_width`` characters."""
        width = max(1, options.max_width)
        yield Text(shortened(self._name, width), style=self._style, no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width of the shortest form and of the whole name."""
        size = len(self._name)
        return Measurement(min(size, _SHORTEST), size).clamp(max_width=options.max_width)


def compact(name: str, texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """Return a table without frames: a column of names, then texts, then right-aligned numbers.

    If the columns do not fit, only the names become shorter.
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
    """Return lines of left-aligned columns; the last column is folded."""
    cells = [[plain(c).plain for c in row] for row in rows]
    *widths, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
    lines: list[str] = []
    for *first, last in cells:
        head = "  " + "".join(f"{c.ljust(w)}  " for c, w in zip(first, widths, strict=True))
        lines.append(folded(head + last, margin=len(head)).rstrip())
    return lines


def folded(text: str, width: int = WIDTH, *, margin: int | None = None) -> str:
    """Return ``text`` with each line folded at blanks; a word is never split.

    Continuation lines are indented by ``margin`` blanks, or by two more than their line.
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
    """Return names for a sentence: the first few and a count, or all of them if ``whole``."""
    if whole or len(names) <= _NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
