"""Inert nodes to live modules: our own classes, torch.nn's by their constructors, and tensors."""

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

from dsconvert.errors import CorruptSnapshotError, SnapshotError, UnsupportedSnapshotError
from dsconvert.formats.official.allowed import HOOK_CLASSES
from dsconvert.formats.official.layers import CONTAINERS, LAYERS, Attributes, is_layer
from dsconvert.formats.official.persistence import class_key, persistent
from dsconvert.safepickle.nodes import Node, Record, clean, dict_pairs
from dsconvert.safepickle.storage import Storages, TensorRef, is_parameter, is_tensor, parse_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dsconvert.adapter import Adapter
    from dsconvert.safepickle.source import Source

MAX_MODULE_DEPTH = 60
_SLACK = 1 << 24


class Builder:
    """Builds modules from one file. Shared tensors and shared modules stay shared.

    With ``meta=True`` no tensor is read: everything is on the meta device, shapes only.
    """

    def __init__(
        self,
        source: Source,
        adapter: Adapter,
        *,
        meta: bool = False,
    ) -> None:
        self._source = source
        self._classes = adapter.classes
        self._adapter = adapter
        self._meta = meta
        self._storages = Storages(source)
        self._bytes: dict[int, torch.Tensor] = {}
        self._budget = source.size + _SLACK
        self._tensors: dict[int, torch.Tensor] = {}
        self._modules: dict[int, nn.Module] = {}

    def module(self, node: Node, where: str) -> nn.Module:
        """The live module that ``node`` describes.

        Args:
            node: a record of ``new`` kind.
            where: its path, for messages.

        Raises:
            UnsupportedSnapshotError: a class that no adapter knows.
            CorruptSnapshotError: attributes, shapes or children that do not fit the class.
        """
        return self._module(node, where, 0)

    # Modules --------------------------------------------------------------------------------

    def _module(self, node: Node, where: str, depth: int) -> nn.Module:
        key = class_key(node)
        if key is None:
            raise self._fail(where, "is no module")
        known = self._modules.get(id(node))
        if known is not None:
            return known
        if depth > MAX_MODULE_DEPTH:
            raise self._fail(where, "is nested too deep")
        state = self._state(node, where)
        parameters = self._mapping(state.get("_parameters"), where)
        buffers = self._mapping(state.get("_buffers"), where)
        children = self._mapping(state.get("_modules"), where)
        module, name = key
        ours = self._classes.get(key)
        if ours is not None:
            made = self._blank(ours, state, where)
            strict = False
        elif is_layer(module, name):
            made = self._layer(name, state, parameters, buffers, where)
            strict = name not in CONTAINERS
            if strict and children:
                raise self._fail(where, "is a layer with children")
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
                raise self._fail(path, "has a name that a child can't have")
            inside._modules[child] = None if value is None else self._module(value, path, depth + 1)
        if ours is not None:
            check = getattr(made, "check_restored", None)
            problem = check() if check is not None else None
            problem = problem or self._adapter.restored(made)
            if problem:
                raise self._fail(where, str(problem))
        training = state.get("training", True)
        if type(training) is not bool:
            raise self._fail(where, "has a training flag that is no bool")
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
                raise self._fail(where, f"can't be built ({error})") from error
        return made

    def _hook(self, state: Mapping[str, Node], name: str, where: str) -> Attributes:
        for hook in self._mapping(state.get("_forward_pre_hooks"), where, text=False).values():
            if type(hook) is Record and hook.func.key in HOOK_CLASSES and hook.func.name == name:
                return Attributes(self._state(hook, where), frozenset(), where)
        raise self._fail(where, f"has normalised weights but no {name} hook")

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
                device = "meta" if self._meta else None
                store["num_batches_tracked"] = torch.tensor(0, device=device)
            if missing:
                raise self._fail(where, f"lacks {', '.join(sorted(missing))}")
            for key, node in given.items():
                path = f"{where}.{key}"
                old = store.get(key)
                if old is None and (strict or not key.isidentifier() or hasattr(made, key)):
                    raise self._fail(path, "is a tensor that its class does not have")
                if not wanted(node):
                    raise self._fail(path, "is not the kind of tensor it should be")
                value = self._tensor(node, path)
                if old is not None and old.shape != value.shape:
                    shapes = f"{tuple(value.shape)} instead of {tuple(old.shape)}"
                    raise self._fail(path, f"has shape {shapes}")
                store[key] = value
        _refresh(made)

    # Tensors --------------------------------------------------------------------------------

    def _tensor(self, node: Record, path: str) -> torch.Tensor:
        known = self._tensors.get(id(node))
        if known is not None:
            return known
        if is_parameter(node):
            if len(node.args) not in (2, 3) or type(node.args[1]) is not bool:
                raise self._fail(path, "is a malformed parameter")
            data = self._tensor(node.args[0], path)
            if node.args[1] and not (data.is_floating_point() or data.is_complex()):
                raise self._fail(path, "wants gradients of whole numbers")
            made: torch.Tensor = nn.Parameter(data, requires_grad=node.args[1])
        elif is_tensor(node):
            made = self._view(parse_tensor(node, self._storages))
        else:
            raise self._fail(path, "is no tensor")
        self._tensors[id(node)] = made
        return made

    def _view(self, ref: TensorRef) -> torch.Tensor:
        dtype: torch.dtype = getattr(torch, ref.storage.dtype)
        if self._meta:
            return torch.empty_strided(ref.size, ref.stride, dtype=dtype, device="meta")
        raw = self._bytes.get(id(ref.storage_node))
        if raw is None:
            self._budget -= ref.storage.nbytes
            if self._budget < 0:
                raise CorruptSnapshotError(
                    f"{self._source.path} uses one tensor's bytes for many tensors, more than the "
                    "whole file holds. It was not written by the official code."
                )
            raw = torch.empty(ref.storage.numel, dtype=dtype)
            if ref.storage.numel:
                view = memoryview(cast("Any", raw.view(torch.uint8).numpy()))
                self._source.readinto_at(ref.storage.offset, view)
            self._bytes[id(ref.storage_node)] = raw
        return raw.as_strided(ref.size, ref.stride, ref.offset)

    # Helpers --------------------------------------------------------------------------------

    def _state(self, node: Record, where: str) -> dict[str, Node]:
        state: dict[str, Node] = {}
        if (instance := persistent(node)) is not None:
            state.update(self._mapping(instance.state, where))
        for op, value in node.ops:
            if op != "build":
                raise self._fail(where, f"is changed by {op}")
            state.update(self._mapping(value, where))
        return state

    def _mapping(self, node: Node, where: str, *, text: bool = True) -> dict[Any, Node]:
        pairs = [] if node is None else dict_pairs(node)
        kinds = (str,) if text else (str, int)
        if pairs is None or not all(type(k) in kinds for k, _ in pairs):
            raise self._fail(where, "has state that is no dict of names")
        return dict(pairs)

    def _fail(self, where: str, what: str) -> CorruptSnapshotError:
        return CorruptSnapshotError(
            f"{where} in {self._source.path} {what}. The file is damaged or was not written by "
            "the official code."
        )


def _apply_spectral_norm(made: nn.Module, norm: SpectralNorm) -> None:
    """What ``torch.nn.utils.spectral_norm`` does, without drawing vectors that the file has.

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
