"""The parts of a module in a file: its state, its tables of names, and its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from dsconvert.errors import CorruptSnapshotError
from dsconvert.formats.official.persistence import persistent
from dsconvert.safepickle import (
    Node,
    Record,
    Storages,
    TensorRef,
    dict_pairs,
    is_parameter,
    is_tensor,
    parse_tensor,
)

if TYPE_CHECKING:
    from dsconvert.safepickle import Source

_SLACK = 1 << 24


class Parts:
    """Reads parts of one file's modules. Shared tensors stay shared.

    With ``meta=True`` no tensor is read: everything is on the meta device, shapes only.
    ``storages`` are those of the file, if their headers have been read already.
    """

    def __init__(
        self, source: Source, *, meta: bool = False, storages: Storages | None = None
    ) -> None:
        self._source = source
        self.meta = meta
        self._storages = storages or Storages(source)
        self._bytes: dict[int, torch.Tensor] = {}
        self._budget = source.size + _SLACK
        self._tensors: dict[int, torch.Tensor] = {}

    def state(self, node: Record, where: str) -> dict[str, Node]:
        """Return the attributes that ``node`` is given.

        Raises:
            CorruptSnapshotError: it is changed by anything else than a state.
        """
        state: dict[str, Node] = {}
        if (instance := persistent(node)) is not None:
            state.update(self.mapping(instance.state, where))
        for op, value in node.ops:
            if op != "build":
                raise self.fail(where, f"is changed by {op}")
            state.update(self.mapping(value, where))
        return state

    def mapping(self, node: Node, where: str, *, text: bool = True) -> dict[Any, Node]:
        """Return a dict of names (or of numbers too, unless ``text``); empty for None.

        Raises:
            CorruptSnapshotError: it is none.
        """
        pairs = [] if node is None else dict_pairs(node)
        kinds = (str,) if text else (str, int)
        if pairs is None or not all(type(k) in kinds for k, _ in pairs):
            raise self.fail(where, "has state that is no dict of names")
        return dict(pairs)

    def fail(self, where: str, what: str) -> CorruptSnapshotError:
        """Return an error about the part at ``where``."""
        return CorruptSnapshotError(
            f"{where} in {self._source.path} {what}. The file is damaged or was not written by "
            "the official code."
        )

    def tensor(self, node: Record, path: str) -> torch.Tensor:
        """Return the tensor or parameter that ``node`` describes.

        Raises:
            CorruptSnapshotError: it is none, or reaches beyond its storage.
        """
        known = self._tensors.get(id(node))
        if known is not None:
            return known
        if is_parameter(node):
            if len(node.args) not in (2, 3) or type(node.args[1]) is not bool:
                raise self.fail(path, "is a malformed parameter")
            data = self.tensor(node.args[0], path)
            if node.args[1] and not (data.is_floating_point() or data.is_complex()):
                raise self.fail(path, "wants gradients of whole numbers")
            made: torch.Tensor = nn.Parameter(data, requires_grad=node.args[1])
        elif is_tensor(node):
            made = self._view(parse_tensor(node, self._storages))
        else:
            raise self.fail(path, "is no tensor")
        self._tensors[id(node)] = made
        return made

    def _view(self, ref: TensorRef) -> torch.Tensor:
        dtype: torch.dtype = getattr(torch, ref.storage.dtype)
        if self.meta:
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
