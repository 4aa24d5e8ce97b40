"""Choose the number of channels of every group by loss against cost.

The cost of a model is the multiply-accumulates of its convolutions, and the bytes of its maps as so
many of them: element-wise work (noise, normalisation, gate) takes the time of its memory. From the
full widths, the group whose next channels save most cost for the least loss gives them up, until
the next step would exceed the loss that is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconvert.records import Group, Sites
from dsconvert.width.choose import Curve
from dsconvert.width.groups import ChannelGroups
from dsconvert.width.labels import Ids

MACS_A_BYTE = 10.0
"""Multiply-accumulates in the time of one byte of a map: about 50 GMAC/s and 5 GB/s on two CPU
cores (FP32); on an H200 about 60 TFLOP/s and 4 TB/s, that is 8."""
_STEPS = 32
"""A group gives up its channels in at most this many steps."""
_SMALLEST_SHARE = 1 / 8
"""No group keeps a smaller share of its channels."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CostModel:
    """The cost of a model as a function of the channels in each group.

    A convolution has ``a + A k`` inputs and ``b + B k`` outputs where k counts the channels kept of
    every group, and costs their product times ``macs`` per pair; a map costs ``M k``.
    """

    groups: tuple[str, ...]
    inputs: Vector
    inputs_fixed: Vector
    outputs: Vector
    outputs_fixed: Vector
    pairs: Vector
    maps: Vector

    def __call__(self, counts: Vector) -> float:
        """Return the cost, in multiply-accumulates of one sample."""
        ins = self.inputs_fixed + self.inputs @ counts
        outs = self.outputs_fixed + self.outputs @ counts
        return float((ins * outs * self.pairs).sum() + self.maps @ counts)


def cost_model(groups: ChannelGroups, sites: Sites) -> CostModel:
    """Return the cost of a model at every width.

    Args:
        groups: of the model.
        sites: its convolutions, with shapes known.
    """
    free = groups.free()
    names = tuple(g.name for g in free)
    places = groups.channels
    convolutions = [s for s in sites.convolutions if s.macs and s.groups == 1]

    def counts(labels: Ids | None, whole: int) -> tuple[Vector, float]:
        if labels is None:
            return np.zeros(len(names)), float(whole)
        roots = places.labels.roots(labels)
        each = [
            np.isin(roots, groups.units[n]).sum() / g.channels
            for n, g in zip(names, free, strict=True)
        ]
        fixed = whole - sum(e * g.channels for e, g in zip(each, free, strict=True))
        return np.array(each, dtype=np.float64), float(fixed)

    ins = [counts(places.columns.get(s.name), s.in_channels) for s in convolutions]
    outs = [counts(places.rows.get(s.name), s.out_channels) for s in convolutions]
    pairs = [(s.macs or 0) / (s.in_channels * s.out_channels) for s in convolutions]
    maps = np.zeros(len(names))
    for node, axis in places.values.items():
        roots = places.labels.roots(axis.labels)
        size = places.sizes[node]
        for i, (name, group) in enumerate(zip(names, free, strict=True)):
            share = np.isin(roots, groups.units[name]).sum() / len(roots)
            maps[i] += 4 * MACS_A_BYTE * size * share / group.channels
    return CostModel(
        groups=names,
        inputs=np.array([i[0] for i in ins]),
        inputs_fixed=np.array([i[1] for i in ins]),
        outputs=np.array([o[0] for o in outs]),
        outputs_fixed=np.array([o[1] for o in outs]),
        pairs=np.array(pairs),
        maps=maps,
    )


def share_out(
    free: Sequence[Group],
    curves: Mapping[str, Curve],
    model: CostModel,
    *,
    loss: float,
    multiple: int = 4,
) -> dict[str, int]:
    """Return the channels of each group at least cost for a loss of at most ``loss``.

    Args:
        free: the groups that may get narrower.
        curves: loss of each count, by group.
        model: cost at every width.
        loss: the most that the sum of the losses may be.
        multiple: channels are counts of this, which vector units like.
    """
    known = {g.name: g for g in free if g.name in curves}
    counts = {name: g.channels for name, g in known.items()}
    whole = {g.name: g.channels for g in free}
    index = {name: i for i, name in enumerate(model.groups)}

    def vector() -> Vector:
        return np.array([counts.get(n, whole.get(n, 0)) for n in model.groups], dtype=np.float64)

    spent, cost = 0.0, model(vector())
    while True:
        best: tuple[float, str, int, float, float] | None = None
        for name, group in known.items():
            low = max(min(group.channels, 2 * multiple), int(group.channels * _SMALLEST_SHARE))
            step = max(multiple, group.channels // _STEPS // multiple * multiple)
            fewer = (counts[name] - 1) // step * step
            if fewer < low:
                continue
            more = curves[name].loss[fewer] - curves[name].loss[counts[name]]
            if spent + more > loss:
                continue
            trial = vector()
            trial[index[name]] = fewer
            saved = cost - model(trial)
            rate = saved / max(more, 1e-15)
            if saved > 0 and (best is None or rate > best[0]):
                best = (rate, name, fewer, more, saved)
        if best is None:
            return counts
        _, name, fewer, more, saved = best
        counts[name], spent, cost = fewer, spent + more, cost - saved
