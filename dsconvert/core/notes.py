"""Log the notes of a conversion where its record is not returned."""

from __future__ import annotations

from dsconvert.records import Conversion
from dsconvert.util.progress import LOGGER


def log_notes(conversion: Conversion) -> None:
    """Log a conversion's warnings, what was not done, its notes and that of its plan.

    Warnings and what was not done are of level WARNING, which Python prints to stderr where
    logging is not configured; the others are of level INFO.
    """
    for text in (*conversion.warnings, *conversion.undone):
        LOGGER.warning("%s", text)
    for text in (conversion.plan.note, *conversion.notes):
        if text:
            LOGGER.info("%s", text)
