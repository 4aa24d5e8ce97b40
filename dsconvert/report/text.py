"""Text for a terminal: names that can't do harm, and sentences about a cost."""

from __future__ import annotations

import re

from rich.text import Text

from dsconvert.records import Cost
from dsconvert.util.foreign_text import printable


def plain(value: object, style: str = "") -> Text:
    """Return text without markup or control characters.

    Names come from foreign files: rich must not read their brackets as markup, and an escape
    character must not reach the terminal.
    """
    return Text(printable(str(value)), style=style)


def uncounted(*costs: Cost | None, verbose: bool = True) -> list[str]:
    """Return sentences about operators and modules that the MACs of ``costs`` leave out.

    Without ``verbose`` they give the number of operators, not the names.
    """
    notes: list[str] = []
    operators: dict[str, int] = {}
    dead: dict[str, None] = {}
    for cost in costs:
        if cost is None:
            continue
        if cost.note and cost.note not in notes:
            notes.append(cost.note)
        for operator, calls in cost.unsupported.items():
            name = _operator(operator)
            operators[name] = max(calls, operators.get(name, 0))
        dead.update(dict.fromkeys(_roots(cost.uncalled)))
    if operators and verbose:
        shown = ", ".join(f"{name} x{calls}" for name, calls in operators.items())
        notes.append(f"not counted by fvcore: {shown}")
    elif operators:
        notes.append(
            f"MACs leave out {len(operators)} kinds of operators without convolutions or matrix "
            "products (--verbose names them)"
        )
    if dead:
        # A hook records calls of modules only. A layer that is used through its forward() or its
        # weight is counted with the module around it.
        notes.append(f"no call of these modules was seen: {', '.join(dead)}")
    return notes


_BUILT_IN = re.compile(r"<(?:built-in )?(?:function|method) ([\w.]+).*>")


def _operator(name: str) -> str:
    """Return the plain name of an operator, without torch's name space or a ``repr``."""
    found = _BUILT_IN.fullmatch(name)
    return found[1] if found else name.removeprefix("aten::").removeprefix("prim::")


def _roots(names: tuple[str, ...]) -> list[str]:
    """Return ``names`` without those below another of them."""
    known = set(names)

    def below(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:n]) in known for n in range(1, len(parts)))

    return [name for name in names if not below(name)]
