"""Weights of other types than float32: computed in float32, kept in a file in their own type.

Half precision (float16, bfloat16) is a way to store weights: many CPU operators lack it, normal
equations need more range, and a mixture of types is refused by most operators. So a generator that
comes out of a file is made float32 in memory (:func:`widen`), and its tensors get the types of the
file's own on the way back (:func:`as_stored`), with a check that none overflows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsconvert.errors import OutputError

WORKING = torch.float32
"""What everything is computed in."""


def widen(model: nn.Module) -> nn.Module:
    """Make every floating parameter and buffer of ``model`` float32, in place.

    What is shared stays shared; a model that is float32 already is left as it is.
    """
    made: dict[int, Tensor] = {}
    changed = False
    for module in model.modules():
        inside = cast("Any", module)
        for parameter in inside._parameters.values():
            if _other(parameter):
                parameter.data = parameter.data.to(WORKING)
                changed = True
        for name, buffer in inside._buffers.items():
            if _other(buffer):
                inside._buffers[name] = made.setdefault(id(buffer), buffer.to(WORKING))
                changed = True
    if changed:
        for module in model.modules():
            _renew(module)
    return model


def _other(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point() and tensor.dtype != WORKING


def _renew(module: nn.Module) -> None:
    """The plain ``weight`` that a norm's hook leaves on its module, from its new parameters."""
    for hook in cast("dict[int, Any]", module._forward_pre_hooks).values():
        kind, name = type(hook).__name__, getattr(hook, "name", None)
        if name not in module.__dict__:
            continue
        if kind == "SpectralNorm":
            module.__dict__[name] = module.get_parameter(f"{name}_orig").detach()
        elif kind == "WeightNorm":
            module.__dict__[name] = hook.compute_weight(module).detach()


class _Types:
    """Which type a tensor has in a file, by its name; also of one that a conversion has made."""

    def __init__(self, own: Mapping[str, Tensor]) -> None:
        self._own = own
        # The largest floating tensor below each module's name.
        self._largest: dict[str, Tensor] = {}
        for name, tensor in own.items():
            if not tensor.is_floating_point():
                continue
            above = name
            while above:
                above = above.rpartition(".")[0]
                known = self._largest.get(above)
                if known is None or tensor.numel() > known.numel():
                    self._largest[above] = tensor

    def of(self, name: str) -> torch.dtype | None:
        """The tensor's own; else that of the nearest module around it, of a namesake first."""
        if (own := self._own.get(name)) is not None:
            return own.dtype if own.is_floating_point() else None
        above, _, leaf = name.rpartition(".")
        while True:
            namesake = self._own.get(f"{above}.{leaf}" if above else leaf)
            if namesake is not None and namesake.is_floating_point():
                return namesake.dtype
            if (largest := self._largest.get(above)) is not None:
                return largest.dtype
            if not above:
                return None
            above = above.rpartition(".")[0]


def narrowed(value: Tensor, dtype: torch.dtype, name: str, where: str) -> Tensor:
    """``value`` in ``dtype``.

    Args:
        value: a floating tensor.
        dtype: a floating type.
        name: of the tensor, for the message.
        where: what it belongs to, for the message.

    Raises:
        OutputError: a finite value is beyond the range of ``dtype``.
    """
    if value.dtype == dtype:
        return value
    made = value.to(dtype)
    if not made.is_meta:
        reached = value[value.isfinite() & ~made.isfinite()]
        if reached.numel():
            kind = str(dtype).removeprefix("torch.")
            raise OutputError(
                f"{name} of {where} reaches {float(reached.abs().max()):.6g}, and {kind}, the type "
                f"in which it is stored, ends at {torch.finfo(dtype).max:.6g}. Nothing was "
                "written. Save the original in float32 or bfloat16 and convert that."
            )
    return made


def as_stored(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """``state`` in the types of a file's own tensors.

    A tensor that has not changed is the file's own, to the last bit (float64 is not rounded). One
    that a conversion has made gets the type of what it replaces.

    Args:
        state: tensors by name, floating ones in float32.
        own: the file's tensors by name; on the meta device where only their types are known.
        where: the file, for messages.

    Raises:
        OutputError: a tensor overflows in its own type.
    """
    types = _Types(own)
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        wanted = types.of(name) if value.is_floating_point() else None
        if wanted is None or wanted == value.dtype:
            made[name] = value
            continue
        given = own.get(name)
        if given is not None and not given.is_meta and given.shape == value.shape:
            given = given.to(value.device)
            if torch.equal(given.to(value.dtype), value):
                made[name] = given.detach()
                continue
        made[name] = narrowed(value, wanted, name, where)
    return made


def stored_copy(model: nn.Module, own: Mapping[str, Tensor], where: str) -> nn.Module:
    """A copy of ``model`` with its tensors in the types of a file's own (see :func:`as_stored`).

    ``model`` itself where no type differs. Tensors that keep their type are shared with it.

    Raises:
        OutputError: a tensor overflows in its own type.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    stored = as_stored({k: v.detach() for k, v in tensors.items()}, own, where)
    if all(v.dtype == tensors[k].dtype for k, v in stored.items()):
        return model
    memo: dict[int, Any] = {}
    for name, value in stored.items():
        old = tensors[name]
        if value.dtype == old.dtype:
            memo[id(old)] = old
        elif isinstance(old, nn.Parameter):
            memo[id(old)] = nn.Parameter(value, requires_grad=old.requires_grad)
        else:
            memo[id(old)] = value
    for module in model.modules():
        # A norm's hook computes the plain weight anew; after a step it can't be deep-copied.
        stale = module.__dict__.get("weight")
        if isinstance(stale, Tensor):
            memo.setdefault(id(stale), stale.detach())
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        _renew(module)
    return made
