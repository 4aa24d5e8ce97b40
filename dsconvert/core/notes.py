"""Log the notes of a conversion where its record is not returned."""

from __future__ import annotations

from dsconvert.records import Conversion
from dsconvert.util.progress import LOGGER

_UNDONE = ("not ", "polish: ")
"""The beginnings of notes about something that was not done as it was asked for."""


def log_notes(conversion: Conversion) -> None:
    """Log a conversion's warnings, its notes and that of its plan.

    Warnings, and notes about something that was not done, are of level WARNING, which Python
    prints to stderr where logging is not configured; the others are of level INFO.
    """
    notes = conversion.notes
    for text in (*conversion.warnings, *(n for n in notes if n.startswith(_UNDONE))):
        LOGGER.warning("%s", text)
    for text in (conversion.plan.note, *(n for n in notes if not n.startswith(_UNDONE))):
        if text:
            LOGGER.info("%s", text)
