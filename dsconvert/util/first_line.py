"""The first line of an error's message, with or without the error's type."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; of one without a message, its type's name.

    Errors of other libraries may have many lines, or none (``AssertionError()``).
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def typed_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message, at most 300 characters."""
    message = str(error).strip()
    name = type(error).__name__
    return f"{name}: {message.splitlines()[0].strip()[:300]}" if message else name
