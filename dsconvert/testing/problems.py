"""Collect the problems of one check and report them together."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class ConformanceError(AssertionError):
    """An adapter or a rule breaks its contract; the message lists every problem."""


class Problems:
    """Collects problems, so that one run reports all of them."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._found: list[str] = []

    def expect(self, holds: bool, problem: str) -> None:
        """Add ``problem``, once, unless the condition ``holds``."""
        if not holds and problem not in self._found:
            self._found.append(problem)

    @contextmanager
    def during(self, action: str) -> Generator[None, None, None]:
        """Report an exception of the block as a problem of ``action``."""
        try:
            yield
        except Exception as error:
            self.expect(False, f"{action} fails: {type(error).__name__}: {error}")

    def report(self) -> None:
        """Raise ConformanceError if there is a problem."""
        if self._found:
            listed = "".join(f"\n- {problem}" for problem in self._found)
            raise ConformanceError(f"{self._subject} breaks its contract:{listed}")
