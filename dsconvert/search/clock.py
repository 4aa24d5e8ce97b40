"""Measure the time of single convolutions and of whole models on this machine.

Planning takes every time from a :class:`Clock`, so that a test can replace the machine.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from dsconvert.bench import LocalSubject, Operation, compare
from dsconvert.bench.machine import running, seconds_of, threads, weight_type
from dsconvert.model.editing import trainable
from dsconvert.model.inputs import Inputs
from dsconvert.search.records import Probe
from dsconvert.util.memory_format import in_channels_last

ORIGINAL = "original"
"""The name of the model that the others are compared with."""
_SHORTEST = 4e-3
"""Seconds of one timed run; shorter modules are called several times in it."""
_PATIENCE = 0.6
"""Seconds after which a slow module is not timed again (but three times at least)."""


class Clock(Protocol):
    """Times parts and whole models."""

    def part(
        self, module: nn.Module, shape: tuple[int, ...], probe: Probe, *, metric: str
    ) -> Sequence[float]:
        """Time one module by itself.

        Args:
            module: does not change.
            shape: of its input, ``(N, C, H, W)``.
            probe: layout, device, type, threads, repeats.
            metric: ``latency`` (forward) or ``train-time`` (forward + backward).

        Returns:
            Seconds of a call, one figure for each timed run.
        """
        ...

    def whole(
        self, models: Mapping[str, nn.Module], inputs: Inputs, probe: Probe, *, metric: str
    ) -> Mapping[str, Sequence[float]]:
        """Time whole models in turn, so that a slow period of the machine affects all of them.

        The model called :data:`ORIGINAL` runs contiguous, the others in the probe's layout.

        Returns:
            By name, the seconds of each timed run.
        """
        ...


class MachineClock:
    """Times on the device of the probe, by the wall clock."""

    def part(
        self, module: nn.Module, shape: tuple[int, ...], probe: Probe, *, metric: str
    ) -> Sequence[float]:
        """See :class:`Clock`."""
        s, train = probe.settings, metric == "train-time"
        kind = weight_type(s)
        module = copy.deepcopy(module).to(s.device, kind).train(train)
        trainable(module, train)
        x = torch.randn(shape, device=s.device, dtype=kind)
        if probe.channels_last:
            module = in_channels_last(module)
            x = x.to(memory_format=torch.channels_last)
        with threads(s):
            call = _step(module, x, probe) if train else _forward(module, x, probe)
            return repeated(call, s.device, probe.repeats)

    def whole(
        self, models: Mapping[str, nn.Module], inputs: Inputs, probe: Probe, *, metric: str
    ) -> Mapping[str, Sequence[float]]:
        """See :class:`Clock`."""
        done = operation(metric, probe)
        plain = dataclasses.replace(probe, channels_last=False)
        subjects = [
            subject(name, m, inputs, plain if name == ORIGINAL else probe)
            for name, m in models.items()
        ]
        try:
            with threads(probe.settings):
                found = compare(subjects, [done], repeats=probe.repeats, memory=False)
        finally:
            for s in subjects:
                s.close()
        return {m.name: m.times[done].seconds for m in found}


def _forward(module: nn.Module, x: torch.Tensor, probe: Probe) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad(), running(probe.settings):
            module(x)

    return run


def _step(module: nn.Module, x: torch.Tensor, probe: Probe) -> Callable[[], None]:
    x.requires_grad_(True)
    with running(probe.settings):
        weight = torch.ones_like(module(x))

    def run() -> None:
        x.grad = None
        for parameter in module.parameters():
            parameter.grad = None
        with running(probe.settings):
            out = module(x)
        out.backward(weight)

    return run


def repeated(run: Callable[[], Any], device: str, repeats: int) -> Sequence[float]:
    """Return the seconds of one call in several runs that are each long enough for the clock."""
    run()
    once = seconds_of(run, device)
    calls = max(1, min(1000, round(_SHORTEST / max(once, 1e-7))))

    def several() -> None:
        for _ in range(calls):
            run()

    runs: list[float] = []
    began = time.perf_counter()
    while len(runs) < repeats:
        runs.append(seconds_of(several, device) / calls)
        if len(runs) >= 3 and time.perf_counter() - began > _PATIENCE:
            break
    return runs


def subject(name: str, model: nn.Module, inputs: Inputs, probe: Probe) -> LocalSubject:
    """Return a whole model as a bench subject, with the probe's settings and layout."""
    settings = dataclasses.replace(probe.settings, channels_last=probe.channels_last)
    return LocalSubject(name, model, inputs, settings)


def operation(metric: str, probe: Probe) -> Operation:
    """Return the operation of a metric: a forward pass for ``latency``, a step otherwise."""
    if metric == "latency":
        return Operation(kind="forward", batch=probe.batch)
    return Operation(kind="step", batch=probe.train_batch)
