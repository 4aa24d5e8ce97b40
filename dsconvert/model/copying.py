"""Copy a model so that the copy shares nothing with it: no tensors, attributes or classes.

``copy.deepcopy`` alone is not enough. ``torch.nn.utils.parametrize`` makes a class for one module,
and a deep copy has the same class: to remove the parametrization from the copy would break the
original. And a tensor with a gradient history, which a forward pass in training may store on a
module, can't be deep-copied at all.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dsconvert.errors import UsageError
from dsconvert.model.norms import norm_kind
from dsconvert.util.first_line import first_line


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of ``model``, detached, by their own names.

    A class may define a ``state_dict`` that leaves some out, or renames them.
    """
    passing = {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        for buffer in module._non_persistent_buffers_set
    }
    found: dict[str, Tensor] = dict(model.named_parameters())
    found |= {n: b for n, b in model.named_buffers() if n not in passing}
    return {name: tensor.detach() for name, tensor in found.items()}


def copy_tensors(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Write ``state``, from :func:`tensors_by_name` of a copy of ``model``, into ``model``.

    Raises:
        ValueError: a tensor is missing, or has another shape.
    """
    own = tensors_by_name(model)
    wrong = [n for n, t in own.items() if n not in state or state[n].shape != t.shape]
    if wrong:
        raise ValueError(f"no tensor of the right shape for {', '.join(wrong)}")
    for name, tensor in own.items():
        tensor.copy_(state[name])


def epsilons_of(model: nn.Module) -> dict[str, float]:
    """Return the ``eps`` of every module that has one, by name.

    No state dict holds them, and a conversion changes those of normalisations by the weights.
    """
    found = {name: vars(module).get("eps") for name, module in model.named_modules()}
    return {name: eps for name, eps in found.items() if isinstance(eps, float)}


def set_epsilons(epsilons: Mapping[str, float], model: nn.Module) -> None:
    """Give ``model`` the ``epsilons``, from :func:`epsilons_of` of a copy of it.

    Raises:
        ValueError: they belong to other modules.
    """
    if epsilons.keys() != epsilons_of(model).keys():
        raise ValueError("the epsilons are of other modules")
    for name, eps in epsilons.items():
        module: Any = model.get_submodule(name)
        module.eps = eps


def owned_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of ``model``; no change of the copy affects the model.

    Tensors that are no leaves (of a forward pass in training) are detached. The plain ``weight``
    that norm hooks store is shared: the hook replaces it before each use, and no code writes into
    it.

    Args:
        model: does not change.
        memo: as for ``copy.deepcopy``: objects by their id, and their replacements in the copy. A
            tensor that is its own replacement is shared.

    Raises:
        UsageError: an attribute of the model can't be copied.
    """
    known: dict[int, Any] = {} if memo is None else memo
    seen: set[int] = set()
    for module in model.modules():
        hooked = norm_kind(module).endswith("hook")
        for name, value in vars(module).items():
            if hooked and name == "weight" and isinstance(value, Tensor):
                known.setdefault(id(value), value.detach())
            elif name not in ("_parameters", "_modules"):
                _detach(value, known, seen)
    try:
        made = copy.deepcopy(model, known)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise UsageError(
            f"this {type(model).__name__} can't be copied: {first_line(error)}. Take the attribute "
            "that can't be copied off the model first (an open file, a lock, a handle)."
        ) from error
    own_classes(made)
    return made


HOOKS: dict[str, tuple[str, ...]] = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_backward_hooks": (),
    "_backward_pre_hooks": (),
}
"""The tables of a module that hold hooks of calls, each with the tables of their options."""


def isolated_copy(model: nn.Module, *, share_parameters: bool = False) -> nn.Module:
    """Return a copy that can be *run* without an effect on ``model``, its hooks included.

    Hooks are functions, and a deep copy shares functions with all objects that they refer to: a
    hook that collects features would also collect those of the copy's runs.

    Args:
        model: does not change.
        share_parameters: the copy holds the parameters themselves (of a large model, one set is
            enough); for runs that write into none.

    Raises:
        UsageError: an attribute of the model can't be copied.
    """
    memo: dict[int, Any] = {}
    if share_parameters:
        memo = {id(p): p for p in model.parameters()}
    made = owned_copy(model, memo)
    isolate_hooks(made, memo)
    return made


def isolate_hooks(model: nn.Module, memo: dict[int, Any] | None = None) -> None:
    """Give the hooks of ``model`` copies of what they refer to, in place."""
    memo = {} if memo is None else memo
    for module in model.modules():
        for table in HOOKS:
            hooks: dict[int, Any] = getattr(module, table)
            for key, hook in hooks.items():
                hooks[key] = _isolated(hook, memo)


def _isolated(hook: Any, memo: dict[int, Any]) -> Any:
    """Return ``hook`` with its own closure and defaults, if these can be copied."""
    if not isinstance(hook, types.FunctionType) or not (hook.__closure__ or hook.__defaults__):
        return hook
    cell: Any = types.CellType
    try:
        for value in (*(c.cell_contents for c in hook.__closure__ or ()), hook.__defaults__):
            _detach(value, memo, set())  # features that it has collected in training, say
        held = [copy.deepcopy(c.cell_contents, memo) for c in hook.__closure__ or ()]
        defaults = copy.deepcopy(hook.__defaults__, memo)
    except (TypeError, ValueError, RuntimeError):
        return hook
    cells = tuple(cell(value) for value in held)
    made = types.FunctionType(hook.__code__, hook.__globals__, hook.__name__, defaults, cells)
    made.__kwdefaults__ = hook.__kwdefaults__
    return made


def own_classes(model: nn.Module) -> None:
    """Give each parametrized module of ``model`` its own class, in place."""
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        kind: Any = type(module)
        make: Any = type(kind)
        tables = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        # The same bases: torch assumes that the first one is the class without parametrizations.
        module.__class__ = make(kind.__name__, kind.__bases__, tables)


def _detach(value: Any, known: dict[int, Any], seen: set[int]) -> None:
    """Add to ``known`` replacements for the tensors in ``value`` that can't be deep-copied."""
    if id(value) in known or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf:
            known[id(value)] = value.detach().clone()
    elif isinstance(value, torch.Generator):
        known[id(value)] = torch.Generator(value.device).set_state(value.get_state())
    elif isinstance(value, dict):
        for each in value.values():
            _detach(each, known, seen)
    elif isinstance(value, list | tuple):
        for each in value:
            _detach(each, known, seen)
