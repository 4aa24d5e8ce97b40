"""Text that comes from a file: shown on a terminal, or read as JSON."""

from __future__ import annotations

import json
from typing import Any


def printable(text: str) -> str:
    """Return ``text`` with control characters other than line ends as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def from_json(text: str | bytes) -> Any:
    """Return the value that a text in JSON stands for.

    Raises:
        ValueError: it is no JSON, or is nested too deeply for Python's reader.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
