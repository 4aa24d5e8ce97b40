"""Numbers and names as a person reads them."""

from __future__ import annotations

import re

from rich.text import Text

from dsconvert.records import Cost


def amount(value: int | None, unit: str = "") -> str:
    """``12_345_678`` -> ``12.3 M``; a dash for None."""
    if value is None:
        return "-"
    if abs(value) < 1000:
        return f"{value} {unit}".rstrip()
    scaled, prefix = value / 1000, "K"
    for larger in ("M", "G", "T"):
        # 999.96 would be rounded to 1000: that is the next prefix's 1.00.
        if abs(scaled) < 999.5:
            break
        scaled, prefix = scaled / 1000, larger
    return f"{three_digits(scaled)} {prefix}{unit}".rstrip()


def three_digits(value: float) -> str:
    """Three significant digits, never in exponent form above 0.001."""
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    if 0 < size < 0.995:
        return f"{value:.3g}"
    return f"{value:.{digits}f}"


def factor(
    before: float | None, after: float | None, *, less: str = "fewer", more: str = "more"
) -> str:
    """``5.10x fewer`` or ``1.25x more``, always a factor above 1; empty where one is unknown.

    ``less`` and ``more`` are the words for it (``faster``, ``slower``, ...).
    """
    if before is not None and before == after:
        return "the same"
    if not before or not after:
        return ""
    smaller = after < before
    times = before / after if smaller else after / before
    return "the same" if times < 1.005 else f"{times:.2f}x {less if smaller else more}"


def times_fewer(before: int, after: int, what: str) -> dict[str, float]:
    """``{"times fewer MACs": 5.1}``, or ``{"times more MACs": 1.25}``: a factor of 1 or more."""
    if after <= before:
        return {f"times fewer {what}": before / after}
    return {f"times more {what}": after / before}


def percent(value: float | None) -> str:
    """An error share as a percentage; a dash for None."""
    if value is None:
        return "-"
    share = 100 * value
    if 0 < abs(share) < 0.001:  # beyond what a table needs; the JSON has every digit
        return "<0.001 %"
    return f"{three_digits(share)} %"


def change(before: int | None, after: int | None) -> str:
    """``before > after``, or one number where nothing changed."""
    if before == after:
        return amount(before)
    return f"{amount(before)} > {amount(after)}"


def plain(value: object, style: str = "") -> Text:
    """Text that a terminal shows and never obeys.

    Names come out of foreign files: square brackets are no markup here, and an escape character
    can't reach the terminal.
    """
    shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(value))
    return Text(shown, style=style)


def uncounted(*costs: Cost | None, verbose: bool = True) -> list[str]:
    """Sentences about what the MACs leave out, over all given costs.

    Without ``verbose`` the operators are counted, not named.
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
        # A hook sees calls of modules only; a layer used through its forward() or its weight is
        # counted with the module around it.
        notes.append(f"no call of these modules was seen: {', '.join(dead)}")
    return notes


_BUILT_IN = re.compile(r"<(?:built-in )?(?:function|method) ([\w.]+).*>")


def _operator(name: str) -> str:
    """An operator as a person calls it: no name space of torch, no ``repr`` of a function."""
    found = _BUILT_IN.fullmatch(name)
    return found[1] if found else name.removeprefix("aten::").removeprefix("prim::")


def _roots(names: tuple[str, ...]) -> list[str]:
    """``names`` without those below another of them."""
    known = set(names)

    def below(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:n]) in known for n in range(1, len(parts)))

    return [name for name in names if not below(name)]
