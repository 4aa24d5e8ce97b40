"""Copy shared memory when an operation writes into it in place.

Teacher and student share a value while it is the same on both sides, and all batches share the
tensors of the models. An operation that writes in place would change it for all of them at once, or
twice.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, UntypedStorage, fx
from torch.utils._python_dispatch import TorchDispatchMode

from dsconvert.model.inputs import map_tensors, tensors_of

Values = dict[fx.Node, Any]


def memory_of(values: Iterable[Any]) -> set[int]:
    """Return the addresses of the memory that the tensors in ``values`` lie in."""
    return {_address(t) for value in values for t in tensors_of(value)} - {0}


def _address(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, the same for all of its views; 0 without any."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


class _Watch(TorchDispatchMode):
    """Saves the content of ``shared`` memory before the first operation that writes into it."""

    def __init__(self, shared: AbstractSet[int]) -> None:
        super().__init__()
        self._shared = shared
        self.written: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}
        """By address, the memory and its content before."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[place] if place < len(args) else kwargs.get(argument.name)
                for tensor in tensors_of(given):
                    self._save(tensor)
        return func(*args, **kwargs)

    def _save(self, tensor: Tensor) -> None:
        address = _address(tensor)
        if address in self._shared and address not in self.written:
            memory = tensor.untyped_storage()
            self.written[address] = memory, memory.clone()


@contextmanager
def copy_on_write(
    sides: Sequence[Values], reads: Iterable[Any], shared: AbstractSet[int]
) -> Generator[set[fx.Node], None, None]:
    """Keep ``shared`` memory as it is while a node runs.

    Where an operation inside writes into it, also through a view, the values of ``sides`` that lie
    there get the written memory as their own, and the shared one its content back.

    Args:
        sides: values by node, replaced in place; that of the node that runs is put there inside.
        reads: the values that the node reads; if none is shared, nothing is watched.
        shared: addresses of memory that others than ``sides`` use, too.

    Yields:
        a set that holds, at the end, the nodes whose values have moved to memory of their own.
    """
    moved: set[fx.Node] = set()
    if not shared & memory_of(reads):
        yield moved
        return
    with _Watch(shared) as watch:
        yield moved
    own = {address: memory.clone() for address, (memory, _) in watch.written.items()}

    def separate(tensor: Tensor) -> Tensor:
        memory = own.get(_address(tensor))
        if memory is None:
            return tensor
        made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return made.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())

    for values in sides if own else ():
        for node, value in values.items():
            if memory_of([value]) & own.keys():
                values[node] = map_tensors(separate, value)
                moved.add(node)
    for memory, before in watch.written.values():
        memory.copy_(before)
