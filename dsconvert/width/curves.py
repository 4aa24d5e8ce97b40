"""Measure, for every channel group of a model, the loss of each number of channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsconvert.fit.activation_stream import ActivationStream, LayerCall
from dsconvert.model.copying import isolated_copy
from dsconvert.model.graph import TracedGraph
from dsconvert.model.inputs import Inputs, like
from dsconvert.model.one_dimensional import TransposedTypes
from dsconvert.width.absorb import second_moments
from dsconvert.width.calibrate import TRIALS, calibrated
from dsconvert.width.choose import Curve, Reading, choose
from dsconvert.width.groups import ChannelGroups, folded_copy
from dsconvert.width.labels import Ids
from dsconvert.width.sensitivity import sensitivities

LATENTS = 64
"""Number of samples for the second moments; large maps use fewer."""
_BATCH = 8
_DIFFERENTIATED = 8
"""Number of samples for the gradients and the trials."""
_TRIAL_MACS = 3e12
"""Multiply-accumulates that the trials may take, a minute on two CPU cores."""
_BUDGET = 256 << 20
"""Bytes of one map over all samples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """The curve of each group that may lose channels, by the group's name.

    Attributes:
        by_group: the curves.
        samples: the fewest samples that the second moments of a layer's input come from.
        seed: of the samples and every other draw.
    """

    by_group: dict[str, Curve]
    samples: int
    seed: int


def measure_curves(
    model: nn.Module,
    traced: TracedGraph,
    groups: ChannelGroups,
    sampler: Inputs,
    *,
    seed: int = 0,
    latents: int = LATENTS,
    macs: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Curves:
    """Measure the curves of all free groups; ``model`` does not change.

    Args:
        model: the original.
        traced: its graph.
        groups: its channel groups.
        sampler: of its inputs.
        seed: of the samples and every other draw.
        latents: number of samples, rounded up to whole batches; large maps use fewer.
        macs: of one sample; a large model is differentiated and tried on fewer of them.
        progress: called with (steps done, steps in all, name).
    """
    free = groups.free()
    names = frozenset(n for g in free for n in g.consumers)
    if not free:
        return Curves(by_group={}, samples=0, seed=seed)
    twin = folded_copy(model).eval()
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in twin.parameters()):
        twin.float()
    twin.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    batches = [like(sampler(_BATCH, generator), twin) for _ in range(max(2, -(-latents // _BATCH)))]
    second: dict[str, Tensor] = {}
    used = [len(batches)]

    def collect(call: LayerCall) -> None:
        used.append(len(call.student_args))
        linear = isinstance(call.student, nn.Linear)
        found = second_moments([a[0] for a in call.student_args], linear=linear)
        second[call.name] = second.get(call.name, 0) + found

    with torch.no_grad(), torch.random.fork_rng():
        ActivationStream(
            traced, twin, twin, batches, visit=collect, observe=names, budget=_BUDGET, seed=seed,
            progress=progress,
        ).run()  # fmt: skip
    pairs = _DIFFERENTIATED // 2
    if macs:
        pairs = max(1, min(pairs, int(_TRIAL_MACS / (2 * macs * TRIALS * len(free)))))
    small = [like(sampler(2, generator), twin) for _ in range(pairs)]
    weights, spread = sensitivities(isolated_copy(twin), names, small, seed=seed)
    curves: dict[str, Curve] = {}
    for group in free:
        readings = [
            _reading(groups, group.name, name, twin, second[name], weights.get(name))
            for name in group.consumers
            if name in second
        ]
        if readings:
            curves[group.name] = choose(readings, spread)
    tried = calibrated(twin, groups, curves, second, small, seed=seed, progress=progress)
    return Curves(by_group=tried, samples=_BATCH * min(used), seed=seed)


def _reading(
    groups: ChannelGroups,
    group: str,
    name: str,
    model: nn.Module,
    second: Tensor,
    weight: Tensor | None,
) -> Reading:
    """Return one consumer's moments and weights by unit; a unit may be several columns."""
    layer: Any = model.get_submodule(name)
    kernel: Tensor = layer.weight.detach().double()
    if isinstance(layer, TransposedTypes):
        kernel = kernel.transpose(0, 1)
    if weight is not None:
        shape = [-1] + [1] * (kernel.ndim - 1)
        kernel = kernel * weight.to(kernel).sqrt().reshape(shape)
    flat = kernel.movedim(1, 0).flatten(1)
    columns = groups.channels.labels.roots(groups.channels.columns[name])
    places = _places(columns, groups.units[group])
    return _by_unit(second, flat, places)


def _by_unit(second: Tensor, flat: Tensor, places: list[Tensor]) -> Reading:
    """Return the sums over the columns of each unit, on the CPU.

    The choice takes one small step after the other, each of which depends on the last.
    """
    size = len(places[0])
    own = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    use = torch.zeros_like(own)
    for place in places:
        here = place.to(flat.device)
        own += second[here][:, here].double().cpu()
        use += (flat[here] @ flat[here].t()).double().cpu()
    return Reading(own, use / len(places))


def _places(columns: Ids, units: Ids) -> list[Tensor]:
    """Return the columns of the units, in their order; once for each time that they occur."""
    # All units of a group occur equally often (see :mod:`dsconvert.width.discover`).
    found = np.stack([np.flatnonzero(columns == unit) for unit in units.tolist()], 1)
    return list(torch.from_numpy(found))
