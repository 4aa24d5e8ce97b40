"""The first line of an error's message."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; of one without a message, its type's name.

    Errors of other libraries may have many lines, or none (``AssertionError()``).
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
