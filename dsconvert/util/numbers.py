"""Numbers as text for people: the one place that rounds, scales and adds units."""

from __future__ import annotations


def three_digits(value: float) -> str:
    """Return three significant digits, never in exponent form above 0.001."""
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    if 0 < size < 0.995:
        return f"{value:.3g}"
    return f"{value:.{digits}f}"


def amount(value: int | None, unit: str = "") -> str:
    """Return a count with a decimal prefix: ``12_345_678`` -> ``12.3 M``; a dash for None."""
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


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which takes an s in the plural: ``1 image``, ``2 images``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def compact_number(value: float, digits: int = 3) -> str:
    """Return ``digits`` significant digits, with k, M or G where the number is large: ``1.5k``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """Return a share as a percentage: ``0.123`` -> ``12.3 %``; a dash for None."""
    if value is None:
        return "-"
    share = 100 * value
    if 0 < abs(share) < 0.001:  # a table needs no more digits; the JSON has every one
        return "<0.001 %"
    return f"{three_digits(share)} %"


def change(before: int | None, after: int | None) -> str:
    """Return ``before > after``, or one count where nothing changed."""
    if before == after:
        return amount(before)
    return f"{amount(before)} > {amount(after)}"


def factor(
    before: float | None, after: float | None, *, less: str = "fewer", more: str = "more"
) -> str:
    """Return ``5.10x fewer`` or ``1.25x more``: always a factor above 1.

    Args:
        before: None or 0 where it is unknown; the result is empty then.
        after: likewise.
        less: the word for a smaller number ("faster", say).
        more: the word for a larger number ("slower", say).
    """
    if before is not None and before == after:
        return "the same"
    if not before or not after:
        return ""
    smaller = after < before
    times = before / after if smaller else after / before
    return "the same" if times < 1.005 else f"{times:.2f}x {less if smaller else more}"


def times_fewer(before: int, after: int, unit: str) -> dict[str, float]:
    """Return ``{"times fewer MACs": 5.1}`` or ``{"times more MACs": 1.25}``, for JSON."""
    if after <= before:
        return {f"times fewer {unit}": before / after}
    return {f"times more {unit}": after / before}


def seconds_text(value: float | None) -> str:
    """Return a duration: ``0.0123`` -> ``12.3 ms``; a dash for None."""
    if value is None:
        return "-"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= 0.9995 * scale:
            return f"{three_digits(value / scale)} {unit}"
    return f"{three_digits(value / 1e-6)} us"


def bytes_text(value: float | None) -> str:
    """Return a size in memory: ``1_048_576`` -> ``1.00 MiB``; a dash for None."""
    if value is None:
        return "-"
    mebi = value / 2**20
    return f"{three_digits(mebi)} MiB" if mebi < 9999.5 else f"{three_digits(mebi / 1024)} GiB"


def clock_text(seconds: float) -> str:
    """Return hours, minutes and seconds: ``3725.4`` -> ``1:02:05``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
