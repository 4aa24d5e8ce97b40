"""Log the notes of a conversion where its record is not returned."""

from __future__ import annotations

from dsconvert.records import Conversion
from dsconvert.util.progress import LOGGER


def log_notes(conversion: Conversion) -> None:
    """Log a conversion's warnings, what was not done, its notes and that of its plan.

    Warnings, what was not done, and the note of a plan that achieves little are of level WARNING,
    which Python prints to stderr where logging is not configured; the others are of level INFO.
    """
    plan = conversion.plan
    idle = not plan.changes and plan.preset != "none"
    said = [*([plan.note] if plan.note else []), *["no convolution was rewritten"] * idle]
    loud = plan.missed or idle
    for text in (*conversion.warnings, *conversion.undone, *(said if loud else ())):
        LOGGER.warning("%s", text)
    for text in (*(() if loud else said), *conversion.notes):
        LOGGER.info("%s", text)
