"""The child process that serves one model: ``python -m dsconvert.bench.worker``.

Requests come as pickles on stdin, from the parent that started it and from nobody else; answers go
as lines of JSON. What the model or a compiler prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from typing import Any, TextIO

import torch

from dsconvert.bench.memory import resident
from dsconvert.bench.records import Operation
from dsconvert.bench.subject import LocalSubject
from dsconvert.config.measure import Settings
from dsconvert.errors import DsconvertError, MeasureError
from dsconvert.util.allocator import keep_freed_memory


class _Server:
    def __init__(self) -> None:
        self._subject: LocalSubject | None = None
        self._arguments: dict[int, tuple[Any, ...]] = {}

    def load(self, name: str, settings: Settings) -> int:
        """The model itself follows on stdin: it is read here, once memory has been looked at."""
        if settings.keep_freed and not keep_freed_memory():
            raise MeasureError(
                "this C library can't be told to keep freed memory (only glibc can); leave "
                "--keep-freed out."
            )
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        cpu = torch.device(settings.device).type == "cpu"
        base = (resident() or 0) if cpu else 0
        model = pickle.load(sys.stdin.buffer)
        self._subject = LocalSubject(
            name, model, lambda n, _: self._arguments[n], settings, base=base, copy=False
        )
        return self._subject.params

    def arguments(self, batch: int, args: tuple[Any, ...]) -> None:
        """What a call with this batch gets."""
        self._arguments[batch] = args

    def call(self, what: str, operation: Operation) -> float | int | None:
        """``seconds``, ``kept`` or ``peak``."""
        if self._subject is None:
            raise RuntimeError("no model was loaded")
        return getattr(self._subject, what)(operation)


def serve(requests: Any, answers: TextIO) -> None:
    """Answer until the other end closes."""
    server = _Server()
    while True:
        try:
            method, args = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = {"value": getattr(server, method)(*args)}
        except DsconvertError as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Keep stdout for answers and serve."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(KeyboardInterrupt):
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
