"""Recognise the architecture of a state dict, and the names of its tensors in spandrel's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .library import Facts, described, library, undisturbed

State = Mapping[str, torch.Tensor]
_SMALL = 16
"""Tensors of up to so many elements may say by their values how a model is built."""
_KEPT = 8
"""Architectures whose facts are kept in memory."""


def detected(state: State) -> Any:
    """Return spandrel's architecture of a state dict; None where it knows none."""
    registry = library("this file").MAIN_REGISTRY
    for support in registry.architectures("detection"):
        if support.detect(dict(state)):
            return support.architecture
    return None


def recognised(state: State) -> tuple[Facts, dict[str, str]] | None:
    """Recognise a state dict.

    Returns:
        the facts about its architecture, and the name in ``state`` of each of the model's tensors
        (spandrel renames the tensors of some files); None where spandrel does not know it.

    Raises:
        AdapterError: the architecture is one that dsconvert can't run.
    """
    key = _fingerprint(state)
    if key not in _recognised:
        while len(_recognised) >= _KEPT:
            _recognised.pop(next(iter(_recognised)))
        _recognised[key] = _recognise(state)
    return _recognised[key]


_recognised: dict[Any, tuple[Facts, dict[str, str]] | None] = {}


def _fingerprint(state: State) -> Any:
    """Return names, shapes and the values of small tensors."""
    return tuple(
        (name, tuple(t.shape), tuple(t.flatten().tolist()) if t.numel() <= _SMALL else ())
        for name, t in state.items()
    )


def _recognise(state: State) -> tuple[Facts, dict[str, str]] | None:
    architecture = detected(state)
    if architecture is None:
        return None
    with undisturbed():
        try:
            descriptor = architecture.load(dict(state))
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"spandrel's {architecture.id} can't load it ({' '.join(str(error).split())[:200]})"
            ) from error
        facts = described(architecture.id, descriptor)
        shapes = {name: t.shape for name, t in descriptor.model.state_dict().items()}
        if all(name in state and state[name].shape == shape for name, shape in shapes.items()):
            return facts, {name: name for name in shapes}
        return facts, _renamed(architecture, state, shapes)


def _renamed(architecture: Any, state: State, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Return the name in the file of each tensor of a model that spandrel has renamed.

    Each tensor of the file is replaced by a constant of its own, which tells where it went.

    Raises:
        ValueError: the model's tensors are not those of the file under other names.
    """
    names = list(state)
    marked = {
        name: state[name] if state[name].numel() <= 1 else _constant(i, state[name].shape)
        for i, name in enumerate(names)
    }
    made = architecture.load(marked).model.state_dict()
    found: dict[str, str] = {}
    for name, shape in shapes.items():
        value = made[name]
        number = float(value.flatten()[0]) if value.numel() else -1.0
        source = names[int(number)] if number.is_integer() and 0 <= number < len(names) else name
        if source not in state or state[source].shape != shape or not bool((value == number).all()):
            raise ValueError(
                f"spandrel's {architecture.id} makes {name} of other tensors, which dsconvert "
                "can't write back"
            )
        found[name] = source
    return found


def _constant(value: int, shape: Any) -> torch.Tensor:
    return torch.full((), float(value)).expand(shape)
