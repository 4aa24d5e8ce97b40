"""What a conversion has changed in an architecture, as JSON, and back.

A changed part consists of ``torch.nn`` modules only, each given by its class and its plain
attributes. They are read by the same checked constructors as the parts of a foreign snapshot
(:mod:`dsconvert.formats.official.layers`): a class by name from an allow-list, every number within
bounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsconvert.adapter import Adapter
from dsconvert.errors import CorruptSnapshotError, ExportError
from dsconvert.formats.official.layers import CONTAINERS, LAYERS, Attributes, is_layer

_DEPTH = 32
_MODULE = frozenset(vars(nn.Module()))


def changes(model: nn.Module, blank: nn.Module, adapter: Adapter) -> dict[str, Any]:
    """What to do to ``blank`` (what the adapter builds) so that it has the structure of ``model``.

    Raises:
        ExportError: a changed part is not made of ``torch.nn`` modules that can be described.
    """
    found: dict[str, Any] = {"replace": {}, "remove": [], "attributes": {}}
    _compare(model, blank, "", {k: v for v, k in _names(adapter).items()}, found)
    return found


def _names(adapter: Adapter) -> dict[tuple[str, str], type[nn.Module]]:
    return dict(adapter.classes)


def _same(a: nn.Module, b: nn.Module, names: dict[type[nn.Module], tuple[str, str]]) -> bool:
    def key(module: nn.Module) -> tuple[str, str]:
        kind = type(module)
        return names.get(kind, (kind.__module__, kind.__qualname__))

    if key(a) != key(b):
        return False
    if is_layer(*key(a)) and a.extra_repr() != b.extra_repr():
        return False
    shapes = [
        {
            k: tuple(t.shape)
            for k, t in (*m._parameters.items(), *m._buffers.items())
            if t is not None
        }
        for m in (a, b)
    ]
    return shapes[0] == shapes[1]


def _compare(
    model: nn.Module,
    blank: nn.Module,
    name: str,
    names: dict[type[nn.Module], tuple[str, str]],
    found: dict[str, Any],
) -> None:
    if not _same(model, blank, names):
        found["replace"][name] = _described(model, name)
        return
    if not is_layer(type(model).__module__, type(model).__name__):
        changed = {
            k: v
            for k, v in vars(model).items()
            if k not in _MODULE
            and isinstance(v, int | float | str)
            and type(vars(blank).get(k)) is type(v)
            and vars(blank)[k] != v
        }
        if changed:
            found["attributes"][name] = changed
    ours, theirs = dict(model.named_children()), dict(blank.named_children())
    for child in theirs:
        path = f"{name}.{child}" if name else child
        if child not in ours:
            found["remove"].append(path)
        else:
            _compare(ours[child], theirs[child], path, names, found)
    for child in ours:
        if child not in theirs:
            path = f"{name}.{child}" if name else child
            found["replace"][path] = _described(ours[child], path)


def _described(module: nn.Module, name: str) -> dict[str, Any]:
    kind = type(module)
    if not is_layer(kind.__module__, kind.__name__):
        raise ExportError(
            f"{name or 'the generator'} is a {kind.__name__}, which safetensors has no description "
            "of; only torch.nn modules can stand where a conversion has changed something."
        )
    values = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in vars(module).items()
        if k not in _MODULE
        and not k.startswith("_")
        and (v is None or isinstance(v, bool | int | float | str | tuple))
    }
    tensors = [
        k for k, t in (*module._parameters.items(), *module._buffers.items()) if t is not None
    ]
    return {
        "type": kind.__name__,
        "attributes": values,
        "tensors": tensors,
        "children": {
            k: _described(c, f"{name}.{k}" if name else k) for k, c in module.named_children()
        },
    }


def apply_changes(model: nn.Module, altered: Any, path: str) -> None:
    """Undo :func:`changes`: bring a freshly built ``model`` into the described structure.

    Raises:
        CorruptSnapshotError: the description is malformed, or names what is not there.
    """
    try:
        replaced, removed = dict(altered["replace"]), list(altered["remove"])
        attributes = dict(altered["attributes"])
        for name in removed:
            parent, _, child = str(name).rpartition(".")
            if child not in model.get_submodule(parent)._modules:
                raise KeyError(name)
            delattr(model.get_submodule(parent), child)
        for name, described in replaced.items():
            parent, _, child = str(name).rpartition(".")
            owner = model.get_submodule(parent)
            if not child or (child not in owner._modules and not isinstance(owner, nn.Sequential)):
                raise KeyError(name)
            owner.add_module(child, _made(described, f"{path}: {name}", _DEPTH))
        for name, values in attributes.items():
            owner = model.get_submodule(name)
            for key, value in dict(values).items():
                # An attribute keeps its type; nothing new is made, and nothing of torch's touched.
                if key in _MODULE or type(vars(owner).get(key)) is not type(value):
                    raise KeyError(f"{name}.{key}")
                setattr(owner, key, value)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptSnapshotError(
            f"{path} describes changes that do not fit its architecture ({error!r}). Export it "
            "again."
        ) from error
    model.eval().requires_grad_(False)


def _made(described: Any, where: str, depth: int) -> nn.Module:
    if depth == 0:
        raise ValueError("nested too deeply")
    kind = described["type"]
    if kind not in LAYERS:
        raise KeyError(f"{where}: the class {kind!r}")
    values = {
        k: tuple(v) if isinstance(v, list) else v for k, v in dict(described["attributes"]).items()
    }
    with torch.device("meta"):
        made = LAYERS[kind](Attributes(values, frozenset(described["tensors"]), where))
    children = dict(described["children"])
    if children and kind not in CONTAINERS:
        raise ValueError(f"{where}: {kind} has no children")
    for name, child in children.items():
        made.add_module(str(name), _made(child, f"{where}.{name}", depth - 1))
    return made
