"""Clocks of our own: a time is what a test says it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from dsconvert.model.inputs import Inputs
from dsconvert.search.records import Probe


def weight(module: nn.Module) -> float:
    """What a module takes by our clock: a second a thousand parameters."""
    return sum(p.numel() for p in module.parameters()) / 1000


def whole(model: nn.Module) -> float:
    """The same of a whole model: what is called twice takes twice as long."""
    return weight(model) + weight(getattr(model, "shared", nn.Identity()))


class ByWeight:
    """Seconds by parameters; counts how often it was asked."""

    def __init__(self) -> None:
        self.parts = 0
        self.wholes = 0

    def seconds(self, module: nn.Module, probe: Probe) -> float:
        """Of one convolution."""
        return weight(module)

    def of_whole(self, name: str, model: nn.Module, probe: Probe) -> float:
        """Of a whole model."""
        return whole(model)

    def part(
        self, module: nn.Module, shape: tuple[int, ...], probe: Probe, *, metric: str
    ) -> Sequence[float]:
        self.parts += 1
        return [self.seconds(module, probe)] * probe.repeats

    def whole(
        self, models: Mapping[str, nn.Module], inputs: Inputs, probe: Probe, *, metric: str
    ) -> Mapping[str, Sequence[float]]:
        self.wholes += 1
        return {n: [self.of_whole(n, m, probe)] * probe.repeats for n, m in models.items()}
