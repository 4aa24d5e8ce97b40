"""The child process that serves one model: ``python -m dsconvert.bench.worker``.

Requests are pickles on stdin, from the parent process alone; answers are lines of JSON on stdout.
Output of the model or of a compiler goes to stderr.
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
from dsconvert.bench.records import Operation, Settings
from dsconvert.bench.subject import LocalSubject
from dsconvert.errors import DsconvertError, MeasureError
from dsconvert.util.allocator import keep_freed_memory


class _Server:
    def __init__(self) -> None:
        self._subject: LocalSubject | None = None
        self._arguments: dict[int, tuple[Any, ...]] = {}

    def load(self, name: str, settings: Settings) -> int:
        """Read the model from stdin, once the empty process is measured; count its parameters."""
        if settings.keep_freed and not keep_freed_memory():
            raise MeasureError(
                "this C library has no setting to keep freed memory (only glibc has); leave "
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
        """Store the arguments of a call with this batch."""
        self._arguments[batch] = args

    def call(self, what: str, operation: Operation) -> float | int | None:
        """Call ``seconds``, ``kept`` or ``peak`` of the subject."""
        if self._subject is None:
            raise RuntimeError("no model was loaded")
        return getattr(self._subject, what)(operation)


def serve(requests: Any, answers: TextIO) -> None:
    """Answer requests until the parent closes the pipe."""
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
    """Reserve stdout for answers, and serve."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(KeyboardInterrupt):
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
