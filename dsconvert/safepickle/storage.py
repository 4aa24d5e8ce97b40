"""The tensors in a pickle: the places of their bytes, without reading them.

A tensor is ``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``, and a storage
is ``torch.storage._load_from_bytes(b)``, where ``b`` is a whole file of torch's legacy format: a
magic number, a protocol number, facts about the writer's machine, a persistent id
``("storage", type, key, location, numel, view)``, the list of keys, then the number of elements
in eight bytes and the raw data (``torch.serialization._legacy_save``). Unpickling that nested
file could run code as well, so it is read here by the same inert machine and must have exactly this
form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsconvert.errors import CorruptSnapshotError, UnsafeSnapshotError
from dsconvert.safepickle.machine import Machine
from dsconvert.safepickle.nodes import (
    Blob,
    DictNode,
    Global,
    Node,
    Persistent,
    Record,
    dict_pairs,
    list_of,
    tuple_of,
)
from dsconvert.safepickle.source import Cursor

if TYPE_CHECKING:
    from dsconvert.safepickle.source import Source

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
LOAD_FROM_BYTES = ("torch.storage", "_load_from_bytes")
REBUILD_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = ("torch._utils", "_rebuild_parameter")
MAX_DIMS = 16
_HEADER_OPS = 200
_WINDOW = 1024

ITEM_SIZES: dict[str, tuple[str, int]] = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
"""Storage classes to torch's dtype names and bytes an element."""


@dataclass(frozen=True, kw_only=True)
class StorageRef:
    """Raw little-endian elements in the file; whichever device they came from."""

    dtype: str
    numel: int
    nbytes: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class TensorRef:
    """A view of a storage. Sizes, strides and offset count elements."""

    storage: StorageRef
    storage_node: Record
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the view."""
        count = 1
        for extent in self.size:
            count *= extent
        return count


def _is_call(node: Node, key: tuple[str, str]) -> bool:
    return (
        type(node) is Record
        and node.kind == "call"
        and type(node.func) is Global
        and node.func.key == key
    )


def is_storage(node: Node) -> bool:
    """Return whether ``node`` is a call of ``torch.storage._load_from_bytes``."""
    return _is_call(node, LOAD_FROM_BYTES)


def is_tensor(node: Node) -> bool:
    """Return whether ``node`` is a plain tensor."""
    return _is_call(node, REBUILD_TENSOR)


def is_parameter(node: Node) -> bool:
    """Return whether ``node`` is a parameter around a tensor."""
    return _is_call(node, REBUILD_PARAMETER)


def parse_storage(source: Source, node: Record) -> StorageRef:
    """Read the header of a nested storage file.

    Raises:
        CorruptSnapshotError: it is malformed or truncated.
        UnsafeSnapshotError: it is a valid pickle that asks for anything but a plain storage.
    """
    blob = node.args[0] if len(node.args) == 1 else None
    if node.ops or type(blob) is not Blob:
        raise CorruptSnapshotError(
            f"{source.path} is damaged: a tensor's storage is not a string of bytes. "
            "Copy or download it again."
        )
    cursor = Cursor(source, blob.offset, blob.offset + blob.length, window=_WINDOW)
    if source.read_at(blob.offset, 2) == b"PK":
        raise UnsafeSnapshotError(
            f"{source.path} holds a tensor in torch's zip format at byte {blob.offset}, which "
            "pickling a module never writes. Save the snapshot again with the official code."
        )

    def load(*, persistent: bool = False) -> Node:
        machine = Machine(cursor, max_ops=_HEADER_OPS, persistent=persistent)
        value = machine.run()
        allowed = 1 if persistent else 0
        if machine.records or machine.tampered or len(machine.globals) > allowed:
            names = sorted({str(g) for g in machine.globals})
            raise UnsafeSnapshotError(
                f"{source.path} hides a call inside a tensor's storage, at byte {blob.offset}: "
                f"{', '.join(names) or 'a constructor'}. Nothing of it has run. No program that "
                "saves tensors writes such a file; do not use it."
            )
        return value

    if load() != MAGIC or load() != PROTOCOL:
        raise cursor.fail("a tensor's storage is not in torch's legacy format")
    info = load()
    facts = (
        {k: v for k, v in info.items if type(k) is str and type(v) in (bool, int)}
        if type(info) is DictNode
        else {}
    )
    if facts.get("little_endian") is not True:
        raise cursor.fail("a tensor's storage was not written on a little-endian machine")
    root = load(persistent=True)
    keys = load()
    return _check_header(cursor, root, keys)


def _check_header(cursor: Cursor, root: Node, keys: Node) -> StorageRef:
    fields = tuple_of(root.value) if isinstance(root, Persistent) else None
    if fields is None or len(fields) != 6:
        raise cursor.fail("a tensor's storage has no usable persistent id")
    kind, key, location, numel, view = fields[1:]
    if type(fields[0]) is not str or fields[0] != "storage":
        raise cursor.fail("a tensor's storage has no usable persistent id")
    if type(kind) is not Global or type(key) is not str or type(location) is not str:
        raise cursor.fail("a tensor's storage has no usable persistent id")
    if kind.module not in ("torch", "torch.storage") or kind.name not in ITEM_SIZES:
        raise UnsafeSnapshotError(
            f"{cursor.source.path} holds a storage of type {kind}, at byte {cursor.offset}. "
            f"Known are {', '.join(ITEM_SIZES)}."
        )
    if type(numel) is not int or numel < 0 or view is not None:
        raise cursor.fail("a tensor's storage has an unusable size")
    names = list_of(keys)
    if names is None or len(names) != 1 or type(names[0]) is not str or names[0] != key:
        raise cursor.fail("a tensor's storage names the wrong keys")
    dtype, itemsize = ITEM_SIZES[kind.name]
    if cursor.uint(8) != numel or cursor.remaining != numel * itemsize:
        raise cursor.fail("a tensor's storage is not as long as it says")
    return StorageRef(dtype=dtype, numel=numel, nbytes=numel * itemsize, offset=cursor.offset)


def _ints(node: Node) -> tuple[int, ...] | None:
    if isinstance(node, Record) and _is_call(node, ("torch", "Size")) and len(node.args) == 1:
        node = node.args[0]
    values = tuple_of(node)
    if values is None or len(values) > MAX_DIMS:
        return None
    return values if all(type(v) is int and 0 <= v < 1 << 48 for v in values) else None


def _no_hooks(node: Node) -> bool:
    return node is None or dict_pairs(node) == []


class Storages:
    """The storages of one file, each header read once however often it is referred to."""

    def __init__(self, source: Source) -> None:
        self.source = source
        # With the node, which must not be freed: its id would be that of another.
        self._by_node: dict[int, tuple[Record, StorageRef]] = {}
        self._by_blob: dict[int, StorageRef] = {}

    def get(self, node: Record) -> StorageRef:
        """Return the storage that ``node`` (see `is_storage`) stands for.

        Raises:
            CorruptSnapshotError, UnsafeSnapshotError: see `parse_storage`.
        """
        known = self._by_node.get(id(node))
        if known is not None:
            return known[1]
        blob = id(node.args[0]) if len(node.args) == 1 else 0
        found = self._by_blob.get(blob)
        if found is None or node.ops:
            found = parse_storage(self.source, node)
        self._by_node[id(node)], self._by_blob[blob] = (node, found), found
        return found


def parse_tensor(node: Record, storages: Storages) -> TensorRef:
    """Read a tensor's geometry and check that it lies inside its storage.

    Args:
        node: a call of ``_rebuild_tensor_v2``.
        storages: the file's storages.

    Raises:
        CorruptSnapshotError: malformed, or larger than its storage.
        UnsafeSnapshotError: see `parse_storage`.
    """

    def fail(what: str) -> CorruptSnapshotError:
        return CorruptSnapshotError(
            f"{storages.source.path} is damaged: a tensor {what}. Copy or download it again."
        )

    args = node.args
    if len(args) < 6 or len(args) > 7 or not is_storage(args[0]):
        raise fail("has no storage")
    storage_node: Record = args[0]
    storage = storages.get(storage_node)
    offset, size, stride = args[1], _ints(args[2]), _ints(args[3])
    if type(offset) is not int or offset < 0 or size is None or stride is None:
        raise fail("has a malformed size, stride or offset")
    if type(args[4]) is not bool or not all(_no_hooks(a) for a in args[5:]):
        raise fail("carries hooks or malformed flags")
    if len(size) != len(stride):
        raise fail("has more sizes than strides, or fewer")
    ref = TensorRef(
        storage=storage, storage_node=storage_node, offset=offset, size=size, stride=stride
    )
    if ref.numel:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # The second condition refuses tensors expanded by a stride of zero.
        if last >= storage.numel or ref.numel > storage.numel:
            raise fail("reaches beyond the end of its storage")
    return ref
