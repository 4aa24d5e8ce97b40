"""Defer Ctrl-C (and a scheduler's SIGTERM) to the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While active, the first SIGINT or SIGTERM sets :attr:`caught`; the next one interrupts.

    Outside the main thread, where Python delivers no signals, this does nothing.
    """

    def __init__(self) -> None:
        self.caught = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:  # noqa: PYI034 - typing.Self is younger than 3.10
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, _number: int, _frame: FrameType | None) -> None:
        if self.caught:
            raise KeyboardInterrupt
        self.caught = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
