"""A copy of a model that shares nothing with it: neither tensors, nor attributes, nor classes.

``copy.deepcopy`` alone is not enough. ``torch.nn.utils.parametrize`` keeps what it does on a class
that it makes for one module, and a deep copy takes that class over: whoever removes the
parametrization from the copy breaks the original. And a tensor with a gradient history, which a
forward pass in training may leave on a module, can't be deep-copied at all.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dsconvert.errors import UsageError
from dsconvert.norms import norm_kind


def owned_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of ``model`` that can be changed in any way without an effect on it.

    Tensors that are no leaves (of a forward pass in training) are detached. The plain ``weight``
    that the norm hooks leave behind is shared: the hook puts another tensor in its place before
    each use, and nobody writes into it.

    Args:
        model: left as it was.
        memo: as for ``copy.deepcopy``: objects by their id, and what stands for them in the copy.
            A tensor that stands for itself is shared.

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
        text = str(error).strip()
        raise UsageError(
            f"this {type(model).__name__} can't be copied: "
            f"{text.splitlines()[0] if text else type(error).__name__}. Take the attribute that "
            "can't be copied off the model first (an open file, a lock, a handle)."
        ) from error
    own_classes(made)
    return made


def own_classes(model: nn.Module) -> None:
    """Give each parametrized module of ``model`` a class that no other module has, in place."""
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        kind = type(module)
        tables = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        # The same bases: torch takes the first of them for the class without parametrizations.
        module.__class__ = type(kind)(kind.__name__, kind.__bases__, tables)


def _detach(value: Any, known: dict[int, Any], seen: set[int]) -> None:
    """Enter into ``known`` what stands for the tensors in ``value`` that can't be deep-copied."""
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
