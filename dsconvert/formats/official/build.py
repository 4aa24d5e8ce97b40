"""Build live modules from inert nodes: our own classes, and torch.nn's by their constructors."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.utils import weight_norm
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from dsconvert.errors import SnapshotError, UnsupportedSnapshotError
from dsconvert.formats.official.allowed import HOOK_CLASSES
from dsconvert.formats.official.layers import CONTAINERS, LAYERS, Attributes, is_layer
from dsconvert.formats.official.parts import Parts
from dsconvert.formats.official.persistence import class_key
from dsconvert.safepickle import Node, Record, clean, is_parameter, is_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dsconvert.adapter import Adapter
    from dsconvert.safepickle import Source, Storages

MAX_MODULE_DEPTH = 60


class Builder:
    """Builds modules from one file. Shared tensors and shared modules stay shared.

    With ``meta=True`` no tensor is read: everything is on the meta device, shapes only.
    ``storages`` are those of the file, if their headers have been read already.
    """

    def __init__(
        self,
        source: Source,
        adapter: Adapter,
        *,
        meta: bool = False,
        storages: Storages | None = None,
    ) -> None:
        self._source = source
        self._classes = adapter.classes
        self._adapter = adapter
        self.parts = Parts(source, meta=meta, storages=storages)
        self._modules: dict[int, nn.Module] = {}

    def module(self, node: Node, where: str) -> nn.Module:
        """Build the live module that ``node`` describes.

        Args:
            node: a record of ``new`` kind.
            where: its path, for messages.

        Raises:
            UnsupportedSnapshotError: a class that no adapter knows.
            CorruptSnapshotError: attributes, shapes or children that do not fit the class.
        """
        return self._module(node, where, 0)

    def _module(self, node: Node, where: str, depth: int) -> nn.Module:
        key = class_key(node)
        if key is None:
            raise self.parts.fail(where, "is no module")
        known = self._modules.get(id(node))
        if known is not None:
            return known
        if depth > MAX_MODULE_DEPTH:
            raise self.parts.fail(where, "is nested too deep")
        state = self.parts.state(node, where)
        parameters = self.parts.mapping(state.get("_parameters"), where)
        buffers = self.parts.mapping(state.get("_buffers"), where)
        children = self.parts.mapping(state.get("_modules"), where)
        module, name = key
        ours = self._classes.get(key)
        if ours is not None:
            made = self._blank(ours, state, where)
            strict = False
        elif is_layer(module, name):
            made = self._layer(name, state, parameters, buffers, where)
            strict = name not in CONTAINERS
            if strict and children:
                raise self.parts.fail(where, "is a layer with children")
        else:
            raise UnsupportedSnapshotError(
                f"{where} in {self._source.path} is a {clean('.'.join(key), 160)}, a class "
                "that no installed adapter knows. Install or write an adapter for it."
            )
        self._modules[id(node)] = made
        inside = cast("Any", made)
        self._load(made, parameters, buffers, where, strict=strict)
        for child, value in children.items():
            path = f"{where}.{child}"
            if not child or "." in child or (child not in inside._modules and hasattr(made, child)):
                raise self.parts.fail(path, "has a name that a child can't have")
            inside._modules[child] = None if value is None else self._module(value, path, depth + 1)
        if ours is not None:
            check = getattr(made, "check_restored", None)
            problem = check() if check is not None else None
            problem = problem or self._adapter.restored(made)
            if problem:
                raise self.parts.fail(where, str(problem))
        training = state.get("training", True)
        if type(training) is not bool:
            raise self.parts.fail(where, "has a training flag that is no bool")
        made.training = training
        return made

    def _blank(self, cls: type[nn.Module], state: Mapping[str, Node], where: str) -> nn.Module:
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        fields = cast("dict[str, type]", getattr(cls, "FIELDS", {}))
        values = Attributes(state, frozenset(), where)
        for name, kind in cast("dict[str, tuple[type, ...]]", getattr(cls, "OPTIONS", {})).items():
            value = values.value(name, kind, "number") if name in state else None
            setattr(made, name, value)
        for name, kind in fields.items():
            if isinstance(kind, tuple):
                setattr(made, name, values.real(name))
            elif kind is int:
                setattr(made, name, values.integer(name, low=0))
            elif kind is float:
                setattr(made, name, values.real(name))
            else:
                setattr(made, name, values.value(name, (kind,), kind.__name__))
        return made

    def _layer(
        self,
        name: str,
        state: Mapping[str, Node],
        parameters: dict[str, Node],
        buffers: dict[str, Node],
        where: str,
    ) -> nn.Module:
        present = frozenset(k for k, v in (parameters | buffers).items() if v is not None)
        attributes = Attributes(state, present, where)
        with warnings.catch_warnings():
            # Torch warns of zero-sized layers and of weight_norm's age; neither is the user's.
            warnings.simplefilter("ignore")
            try:
                made = LAYERS[name](attributes)
                for key in parameters:
                    if key.endswith("_orig"):
                        hook = self._hook(state, "SpectralNorm", where)
                        norm = SpectralNorm(
                            key.removesuffix("_orig"),
                            n_power_iterations=hook.integer("n_power_iterations", high=1000),
                            dim=hook.integer("dim", low=0, high=3),
                            eps=hook.real("eps"),
                        )
                        _apply_spectral_norm(made, norm)
                    elif key.endswith("_g") and key.removesuffix("_g") in dict(
                        made.named_parameters()
                    ):
                        hook = self._hook(state, "WeightNorm", where)
                        weight_norm(
                            made, key.removesuffix("_g"), hook.integer("dim", low=-1, high=3)
                        )
            except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as error:
                if isinstance(error, SnapshotError):
                    raise
                raise self.parts.fail(where, f"can't be built ({error})") from error
        return made

    def _hook(self, state: Mapping[str, Node], name: str, where: str) -> Attributes:
        for hook in self.parts.mapping(state.get("_forward_pre_hooks"), where, text=False).values():
            if type(hook) is Record and hook.func.key in HOOK_CLASSES and hook.func.name == name:
                return Attributes(self.parts.state(hook, where), frozenset(), where)
        raise self.parts.fail(where, f"has normalised weights but no {name} hook")

    def _load(
        self,
        made: nn.Module,
        parameters: dict[str, Node],
        buffers: dict[str, Node],
        where: str,
        *,
        strict: bool,
    ) -> None:
        inside = cast("Any", made)
        for store, given, wanted in (
            (inside._parameters, parameters, is_parameter),
            (inside._buffers, buffers, is_tensor),
        ):
            given = {k: v for k, v in given.items() if v is not None}
            missing = {k for k, v in store.items() if v is not None} - set(given)
            if "num_batches_tracked" in missing:
                # Files of before torch 0.4.1 lack the counter of batch normalisation.
                missing.discard("num_batches_tracked")
                device = "meta" if self.parts.meta else None
                store["num_batches_tracked"] = torch.tensor(0, device=device)
            if missing:
                raise self.parts.fail(where, f"lacks {', '.join(sorted(missing))}")
            for key, node in given.items():
                path = f"{where}.{key}"
                old = store.get(key)
                if old is None and (strict or not key.isidentifier() or hasattr(made, key)):
                    raise self.parts.fail(path, "is a tensor that its class does not have")
                if not wanted(node):
                    raise self.parts.fail(path, "is not the kind of tensor it should be")
                value = self.parts.tensor(node, path)
                if old is not None and old.shape != value.shape:
                    shapes = f"{tuple(value.shape)} instead of {tuple(old.shape)}"
                    raise self.parts.fail(path, f"has shape {shapes}")
                store[key] = value
        _refresh(made)


def _apply_spectral_norm(made: nn.Module, norm: SpectralNorm) -> None:
    """Do as ``torch.nn.utils.spectral_norm`` does, without drawing vectors that the file has.

    (Drawing them on the meta device would also import a second's worth of torch.)
    """
    inside = cast("Any", made)
    weight: nn.Parameter = inside._parameters.pop(norm.name)
    rows = weight.shape[norm.dim]
    made.register_parameter(f"{norm.name}_orig", weight)
    setattr(made, norm.name, weight.data)
    columns = weight.numel() // max(rows, 1)
    for name, length in (("u", rows), ("v", columns)):
        made.register_buffer(f"{norm.name}_{name}", torch.empty(length, device="meta"))
    made.register_forward_pre_hook(norm)
    inside._register_state_dict_hook(SpectralNormStateDictHook(norm))
    inside._register_load_state_dict_pre_hook(SpectralNormLoadStateDictPreHook(norm))


def _refresh(made: nn.Module) -> None:
    """Renew the plain ``weight`` that a norm's hook recomputes before each forward call."""
    for hook in cast("dict[int, Any]", cast("Any", made)._forward_pre_hooks).values():
        if isinstance(hook, SpectralNorm):
            # As torch does it: the same memory, no second copy.
            setattr(made, hook.name, getattr(made, f"{hook.name}_orig").data)
        elif isinstance(hook, WeightNorm):
            setattr(made, hook.name, hook.compute_weight(made).detach())
