"""Let consumers take over the channels that are gone: least squares from those that stay."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert.fit.activation_stream import LayerCall
from dsconvert.fit.positions import position_step
from dsconvert.model.call_arguments import in_order
from dsconvert.model.one_dimensional import TransposedTypes
from dsconvert.width.groups import ChannelGroups, Kept

SAMPLES = 40_000
"""Positions that the second moments between two maps are measured at, about."""
_RIDGE = 1e-6
"""Share of the mean energy of a kept channel."""


def channel_rows(value: Tensor, linear: bool) -> Tensor:
    """Return a map as a matrix of positions and channels: (N, C, H, W) -> (N H W, C)."""
    return value.flatten(0, -2) if linear else value.movedim(1, -1).flatten(0, -2)


def second_moments(inputs: Sequence[Tensor], *, linear: bool) -> Tensor:
    """Return ``E[x x^T]`` between the channels of maps ``x``, ``(C, C)``, in double precision.

    Args:
        inputs: maps, batch by batch; about :data:`SAMPLES` positions count, evenly spaced, with
            every column and row alike.
        linear: whether channels are the last dimension.
    """
    step = _step(inputs, linear)
    moment, count = torch.zeros((), device="cpu"), 0
    for x in inputs:
        rows = channel_rows(x, linear)[::step].double()
        moment, count = moment + rows.t() @ rows, count + len(rows)
    return moment / count


def _step(maps: Sequence[Tensor], linear: bool) -> int:
    """Return the step between the positions of maps that count."""
    positions = [x.numel() // x.shape[-1 if linear else 1] for x in maps]
    return position_step(sum(positions), SAMPLES, positions[0] // len(maps[0]))


@contextmanager
def predicting(
    model: nn.Module,
    groups: ChannelGroups,
    consumers: Iterable[str],
    kept: Kept,
    second: Mapping[str, Tensor],
) -> Generator[None, None, None]:
    """Let ``consumers`` read a prediction of the channels that ``kept`` leaves out.

    Args:
        model: a copy; its consumers have hooks inside of the ``with`` block.
        groups: of the model.
        consumers: names of layers; one without second moments reads its input as it is.
        kept: units that stay.
        second: the second moments of each consumer's input, by name.
    """
    removed = groups.removed(kept)
    handles: list[Any] = []
    try:
        for name in consumers:
            labels = groups.channels.columns.get(name)
            staying = None if labels is None else groups.staying(labels, removed)
            if staying is None or name not in second:
                continue
            layer = model.get_submodule(name)
            staying = staying.to(second[name].device)
            rows = second[name][staying]
            matrix = least_squares(rows[:, staying], rows)
            hook = _predicting(matrix, staying, linear=isinstance(layer, nn.Linear))
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _predicting(matrix: Tensor, staying: Tensor, *, linear: bool) -> Any:
    """Return a hook that replaces the removed channels of an input by their prediction."""

    def hook(module: nn.Module, args: Any, named: Any) -> tuple[Any, Any]:
        (x, *others), named = in_order(module, args, named)
        way, kept = matrix.to(x), staying.to(x.device)
        made = x[..., kept] @ way if linear else torch.einsum("nk...,kc->nc...", x[:, kept], way)
        return (made, *others), named

    return hook


class Absorber:
    """The starts of a narrower model's layers, from the original's kernels.

    A consumer's kernel is applied to a prediction of the original's map: with ``x ~ A^T x_kept``
    by least squares, ``W' = W A`` (on the activations of the narrower model, so that the errors of
    earlier layers do not add up).

    Args:
        original: weights as applied (norms folded).
        groups: of the original.
        kept: units that stay.

    Attributes:
        changed: the modules with fewer channels.
        selection: per value of the original's graph, its channels that the narrower model has.
    """

    def __init__(self, original: nn.Module, groups: ChannelGroups, kept: Kept) -> None:
        self._original = original
        self.changed = groups.changed(kept)
        self.selection = groups.narrowed_nodes(kept)
        removed = groups.removed(kept)
        places = groups.channels
        rows = {n: groups.staying(labels, removed) for n, labels in places.rows.items()}
        columns = {n: groups.staying(labels, removed) for n, labels in places.columns.items()}
        self._rows = {n: kept for n, kept in rows.items() if kept is not None}
        self._columns = {n: kept for n, kept in columns.items() if kept is not None}

    def kernel(self, call: LayerCall) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias that the narrower layer starts from; None: it lost no inputs.

        The weight has the layer's own order (a linear layer: ``(O, I)``).
        """
        columns = self._columns.get(call.name)
        if columns is None:
            return None
        layer: Any = self._original.get_submodule(call.name)
        weight: Tensor = layer.weight.detach()
        bias: Tensor | None = None if layer.bias is None else layer.bias.detach()
        transposed = isinstance(layer, TransposedTypes)
        rows = self._rows.get(call.name)
        if rows is not None:
            rows = rows.to(weight.device)
            weight = weight.index_select(1 if transposed else 0, rows)
            bias = None if bias is None else bias[rows]
        student = [a[0] for a in call.student_args[1:]]
        teacher = [a[0] for a in call.teacher_inputs[1:]]
        matrix = predict(student, teacher, linear=isinstance(layer, nn.Linear)).to(weight)
        wide = weight.movedim(0 if transposed else 1, 0)
        made = (matrix @ wide.flatten(1)).reshape(-1, *wide.shape[1:])
        return (made if transposed else made.movedim(0, 1)).contiguous(), bias


def predict(student: list[Tensor], teacher: list[Tensor], *, linear: bool) -> Tensor:
    """Return the least-squares matrix ``(kept, C)`` from the student's channels to the teacher's.

    Args:
        student: maps, batch by batch.
        teacher: maps of the original, for the same inputs.
        linear: whether channels are the last dimension.
    """
    step = _step(student, linear)
    own = cross = torch.zeros((), device="cpu")
    for s, wide in zip(student, teacher, strict=True):
        x = channel_rows(s, linear)[::step].double()
        t = wide
        if not linear and t.shape[2:] != s.shape[2:]:
            # The replacement holds the nearest upsampling that fed the original.
            t = F.interpolate(t, size=s.shape[2:], mode="nearest")
        y = channel_rows(t, linear)[::step].double()
        own, cross = own + x.t() @ x, cross + x.t() @ y
    return least_squares(own, cross)


def least_squares(own: Tensor, cross: Tensor) -> Tensor:
    """Return the matrix ``(kept, C)`` from second moments of the kept channels and with all others.

    Args:
        own: moments between kept channels, ``(kept, kept)``, in double precision; a ridge is added
            in place.
        cross: moments of kept and wanted channels, ``(kept, C)``.
    """
    own.diagonal().add_(_RIDGE * float(own.diagonal().mean()) + 1e-30)
    factor, info = torch.linalg.cholesky_ex(own)
    if int(info) != 0:
        return torch.linalg.lstsq(own, cross).solution
    return torch.cholesky_solve(cross, factor)
