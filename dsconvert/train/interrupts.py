"""Ctrl-C between two steps, not within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While active, the first SIGINT only sets :attr:`caught`; a second one interrupts at once.

    Outside the main thread (where Python delivers no signals) it does nothing.
    """

    def __init__(self) -> None:
        self.caught = False
        self._old: Any = None

    def __enter__(self) -> Interrupts:  # noqa: PYI034 - typing.Self is younger than 3.10
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, self._catch)
        return self

    def _catch(self, _number: int, _frame: FrameType | None) -> None:
        if self.caught:
            raise KeyboardInterrupt
        self.caught = True

    def __exit__(self, *_: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)
