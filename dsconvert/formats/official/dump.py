"""Turn live modules into inert nodes, under the names that the official code knows.

The result equals the pickle of the official classes: plain ``torch.nn``
modules under their own names, an adapter's classes under their foreign ones, spectral norm as its
hook objects. Nothing of dsconvert is named in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from dsconvert.adapter import PERSISTENCE
from dsconvert.errors import SnapshotError
from dsconvert.formats.official.allowed import SPECTRAL
from dsconvert.formats.official.layers import is_layer
from dsconvert.formats.official.persistence import node_of
from dsconvert.safepickle import (
    DictNode,
    Global,
    Node,
    Record,
    SetNode,
    TensorData,
    list_of,
    tuple_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dsconvert.adapter import Adapter

_EMPTY = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Hook tables that the writer leaves empty (a hook of the user's can't be written)."""
_FIRST_HOOK = 1 << 16
"""Key of a module's first hook. torch numbers hooks by a counter of the process, on which a file
must not depend. A process that loads the file counts from 0, and must not reach these keys."""
_INTERNAL = frozenset(vars(nn.Module())) | {*_EMPTY, "_is_full_backward_hook"}


class Dumper:
    """Turns modules into nodes; shared modules, parameters and tensors stay shared."""

    def __init__(
        self,
        adapter: Adapter,
        foreign: Mapping[tuple[str, str], type[nn.Module]] | None = None,
    ) -> None:
        classes = {**adapter.classes, **(foreign or {})}
        self._names = {kind: key for key, kind in classes.items()}
        self._foreign = frozenset(classes)
        self._source = adapter.source()
        self._globals: dict[tuple[str, str], Global] = {}
        self._modules: dict[int, Record] = {}
        self._tensors: dict[int, Record] = {}
        self._kept: list[Any] = []
        """Keeps objects alive whose ``id`` is a key here, so that no id is used twice."""

    def module(self, module: nn.Module, where: str) -> Record:
        """Return the node of ``module``.

        Raises:
            SnapshotError: a class, hook, parametrization or attribute that the official code
                could not load.
        """
        known = self._modules.get(id(module))
        if known is not None:
            return known
        inside = cast("Any", module)
        state: list[tuple[Node, Node]] = []
        kind = self._class(module, where)
        if kind.module == PERSISTENCE and self._source is not None:
            # The official decorator stores the constructor's arguments here; they are not needed.
            state += [("_init_args", ()), ("_init_kwargs", DictNode([]))]
            node = node_of(kind.name, self._source, state)
        else:
            node = Record("new", kind, ())
            node.ops.append(("build", DictNode(state)))
        self._modules[id(module)] = node
        self._kept.append(module)
        pre, state_dict, load = self._hooks(module, where)
        state.append(("training", module.training))
        state.append(("_parameters", self._tensors_of(inside._parameters, where)))
        state.append(("_buffers", self._tensors_of(inside._buffers, where)))
        names = sorted(inside._non_persistent_buffers_set)
        state.append(("_non_persistent_buffers_set", SetNode(names)))
        state.extend((name, self._ordered(())) for name in _EMPTY)
        state.append(("_is_full_backward_hook", None))
        state.append(("_forward_pre_hooks", self._ordered(pre)))
        state.append(("_state_dict_hooks", self._ordered(state_dict)))
        state.append(("_load_state_dict_pre_hooks", self._ordered(load)))
        state.append(
            (
                "_modules",
                self._ordered(
                    (name, None if child is None else self.module(child, f"{where}.{name}"))
                    for name, child in inside._modules.items()
                ),
            )
        )
        for name, value in vars(module).items():
            if name not in _INTERNAL:
                state.append((name, self._attribute(module, name, value, where)))
        return node

    # Parts of a module ----------------------------------------------------------------------

    def _global(self, module: str, name: str) -> Global:
        return self._globals.setdefault((module, name), Global(module, name))

    def _call(self, module: str, name: str, *args: Node) -> Record:
        return Record("call", self._global(module, name), args)

    def _ordered(self, pairs: Iterable[tuple[Node, Node]]) -> Record:
        node = self._call("collections", "OrderedDict")
        items = list(pairs)
        if items:
            node.ops.append(("setitems", items))
        return node

    def _class(self, module: nn.Module, where: str) -> Global:
        kind = type(module)
        key = self._names.get(kind)
        if key is None:
            key = (kind.__module__, kind.__name__)
            if key not in self._foreign and not is_layer(*key):
                hint = (
                    " It is parametrized: fold its norms first (convert does)."
                    if hasattr(module, "parametrizations")
                    else ""
                )
                raise SnapshotError(
                    f"{where} is a {key[0]}.{key[1]}, which a snapshot for the official code can't "
                    f"hold: only the adapter's classes and plain torch.nn layers can.{hint}"
                )
        return self._global(*key)

    def _hooks(
        self, module: nn.Module, where: str
    ) -> tuple[list[tuple[Node, Node]], list[tuple[Node, Node]], list[tuple[Node, Node]]]:
        inside = cast("Any", module)
        pre: list[tuple[Node, Node]] = []
        norms: dict[int, Record] = {}
        tables = {name: cast("dict[int, Any]", vars(module).get(name) or {}) for name in _EMPTY}
        stray = [name for name, table in tables.items() if table]
        for hook in inside._forward_pre_hooks.values():
            if type(hook) is SpectralNorm:
                node = Record("new", self._global(SPECTRAL, "SpectralNorm"), ())
                state = ("name", "dim", "n_power_iterations", "eps")
            elif type(hook) is WeightNorm:
                node = Record("new", self._global("torch.nn.utils.weight_norm", "WeightNorm"), ())
                state = ("name", "dim")
            else:
                stray.append("_forward_pre_hooks")
                continue
            pairs: list[tuple[Node, Node]] = [(n, getattr(hook, n)) for n in state]
            node.ops.append(("build", DictNode(pairs)))
            norms[id(hook)] = node
            pre.append((_FIRST_HOOK + len(pre), node))

        def follow(table: Any, kind: type, name: str) -> list[tuple[Node, Node]]:
            made: list[tuple[Node, Node]] = []
            for hook in table.values():
                inner = getattr(hook, "hook", hook)  # newer torch wraps it
                norm = norms.get(id(getattr(inner, "fn", None)))
                if type(inner) is not kind or norm is None:
                    stray.append(name)
                    continue
                node = Record("new", self._global(SPECTRAL, kind.__name__), ())
                node.ops.append(("build", DictNode([("fn", norm)])))
                made.append((_FIRST_HOOK + len(made), node))
            return made

        state_dict = follow(
            inside._state_dict_hooks, SpectralNormStateDictHook, "_state_dict_hooks"
        )
        # Written bare, without torch's _WrappedHook: that calls it the same way, and torch of
        # before 1.13 does not have the wrapper.
        load = follow(
            inside._load_state_dict_pre_hooks,
            SpectralNormLoadStateDictPreHook,
            "_load_state_dict_pre_hooks",
        )
        if stray:
            raise SnapshotError(
                f"{where} has hooks ({', '.join(sorted(set(stray)))}) that can't be written into a "
                "snapshot. Remove them first."
            )
        return pre, state_dict, load

    def _attribute(self, module: nn.Module, name: str, value: Any, where: str) -> Node:
        if isinstance(value, torch.Tensor):
            original = dict(module.named_parameters(recurse=False)).get(f"{name}_orig")
            if original is not None and original.shape == value.shape:
                # The hook recomputes it before each call: no second copy on disk.
                return self._alias(original)
            return self._tensor(value, f"{where}.{name}")
        return self._plain(value, f"{where}.{name}", 0)

    def _plain(self, value: Any, where: str, depth: int) -> Node:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if depth < 8:
            values = list_of(value) or tuple_of(value)
            if isinstance(value, (list, tuple)):
                items = [self._plain(v, where, depth + 1) for v in values or ()]
                return items if list_of(value) is not None else tuple(items)
            if type(value) is dict:
                pairs = cast("dict[Any, Any]", value).items()
                return DictNode(
                    [
                        (self._plain(k, where, depth + 1), self._plain(v, where, depth + 1))
                        for k, v in pairs
                    ]
                )
        if isinstance(value, torch.dtype):
            return self._global("torch", str(value).removeprefix("torch."))
        raise SnapshotError(
            f"{where} is a {type(value).__name__}, which a snapshot can't hold. Delete the "
            "attribute before saving."
        )

    # Tensors --------------------------------------------------------------------------------

    def _tensors_of(self, store: Any, where: str) -> Record:
        return self._ordered(
            (name, None if value is None else self._tensor(value, f"{where}.{name}"))
            for name, value in store.items()
        )

    def _tensor(self, tensor: torch.Tensor, where: str) -> Record:
        known = self._tensors.get(id(tensor))
        if known is not None:
            return known
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            raise SnapshotError(
                f"{where} is a {'meta' if tensor.is_meta else 'sparse or quantized'} tensor, which "
                "a snapshot can't hold. Give it plain values before saving."
            )
        node = self._rebuild(self._storage(tensor), tensor.shape)
        if isinstance(tensor, nn.Parameter):
            node = self._call(
                "torch._utils", "_rebuild_parameter", node, tensor.requires_grad, self._ordered(())
            )
        self._tensors[id(tensor)] = node
        self._kept.append(tensor)
        return node

    def _alias(self, parameter: torch.Tensor) -> Record:
        node = self._tensor(parameter, "")
        plain: Record = node.args[0]
        return self._rebuild(plain.args[0], parameter.shape)

    def _storage(self, tensor: torch.Tensor) -> Record:
        return self._call("torch.storage", "_load_from_bytes", TensorData(tensor))

    def _rebuild(self, storage: Record, shape: torch.Size) -> Record:
        stride: list[int] = []
        step = 1
        for extent in reversed(shape):
            stride.append(step)
            step *= max(extent, 1)
        return self._call(
            "torch._utils",
            "_rebuild_tensor_v2",
            storage,
            0,
            tuple(shape),
            tuple(reversed(stride)),
            False,
            self._ordered(()),
        )
