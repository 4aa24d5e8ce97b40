"""Log the notes of a conversion where its record is not returned."""

from __future__ import annotations

from dsconvert.records import Conversion
from dsconvert.util.progress import LOGGER


def log_notes(conversion: Conversion) -> None:
    """Log a conversion's warnings, what was not done, its notes and that of its plan.

    Warnings, what was not done, and that a plan achieves little or nothing are of level WARNING,
    which Python prints to stderr where logging is not configured; the others are of level INFO.
    """
    plan = conversion.plan
    loud, quiet = [*conversion.warnings, *conversion.undone], [*conversion.notes]
    if plan.note:
        (loud if plan.missed else quiet).insert(0, plan.note)
    if not plan.changes and not plan.missed and plan.preset != "none":
        loud.append("no convolution was rewritten")
    for text in loud:
        LOGGER.warning("%s", text)
    for text in quiet:
        LOGGER.info("%s", text)
