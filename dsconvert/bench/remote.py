"""Measure a model in a child process, with its own memory and threads."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from typing import Any

from torch import nn

from dsconvert.bench.machine import settle
from dsconvert.bench.records import Operation, Settings
from dsconvert.bench.subject import Inputs, LocalSubject, Subject, arguments
from dsconvert.errors import MeasureError


class RemoteSubject:
    """A model served by a child process; see :class:`~dsconvert.bench.subject.Subject`.

    Raises:
        MeasureError: the model can't be pickled, or its class can't be imported in the child.
    """

    def __init__(self, name: str, model: nn.Module, inputs: Inputs, settings: Settings) -> None:
        self.name = name
        self.notes: tuple[str, ...] = ()
        self._inputs = inputs
        self._sent: set[int] = set()
        self._settings = settle(settings)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._child = subprocess.Popen(
            [sys.executable, "-m", "dsconvert.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # The child must find the model's class where this process found it.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        try:
            self.params = int(self._ask("load", name, self._settings, then=model))
        except BaseException:
            self.close()
            raise

    def _ask(self, method: str, *args: Any, then: Any = None) -> Any:
        requests, answers = self._child.stdin, self._child.stdout
        if requests is None or answers is None or requests.closed:
            raise MeasureError(f"{self.name}: its process has been closed; make a new subject.")
        try:
            pickle.dump((method, args), requests, protocol=pickle.HIGHEST_PROTOCOL)
            if then is not None:
                pickle.dump(then, requests, protocol=pickle.HIGHEST_PROTOCOL)
            requests.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = b""
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise MeasureError(
                f"{self.name} can't be sent to a process of its own: {error}."
            ) from error
        if not line:
            raise MeasureError(self._end_of_process())
        answer = json.loads(line)
        if "error" in answer:
            raise MeasureError(answer["error"])
        return answer["value"]

    def _end_of_process(self) -> str:
        code = self._child.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = f"killed by signal {-code}, perhaps for lack of memory" if code < 0 else "ended"
        last = f": {said[-1]}" if said else ""
        return f"the process that ran {self.name} was {reason}{last}. Try a smaller batch."

    def _send(self, batch: int) -> None:
        if batch not in self._sent:
            self._ask("arguments", batch, arguments(self._inputs, batch))
            self._sent.add(batch)

    def seconds(self, operation: Operation) -> float:
        """See :class:`~dsconvert.bench.subject.Subject`."""
        self._send(operation.batch)
        return float(self._ask("call", "seconds", operation))

    def kept(self, operation: Operation) -> int:
        """See :class:`~dsconvert.bench.subject.Subject`."""
        self._send(operation.batch)
        return int(self._ask("call", "kept", operation))

    def peak(self, operation: Operation) -> int | None:
        """See :class:`~dsconvert.bench.subject.Subject`."""
        self._send(operation.batch)
        value = self._ask("call", "peak", operation)
        return None if value is None else int(value)

    def close(self) -> None:
        """End the child process."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._child.poll() is None:
            try:
                self._child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._stderr.close()


def remote(name: str, model: nn.Module, inputs: Inputs, settings: Settings) -> Subject:
    """Return a subject in a child process if that works, or else in this process.

    A child process can't import a class that is defined in a notebook or in a function. In this
    process the peak memory can't be measured.
    """
    try:
        return RemoteSubject(name, model, inputs, settings)
    except MeasureError as error:
        here = LocalSubject(name, model, inputs, settings)
        here.notes = (f"{name}: timed in this process, without its peak memory ({error})",)
        return here
