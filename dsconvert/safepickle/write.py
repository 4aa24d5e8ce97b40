"""Write inert nodes as a pickle of protocol 4, as a stream, by our own emitter.

Nothing is pickled by Python's pickler, so nothing but the nodes' own names gets into the file.
Byte strings of the source file are copied in chunks, tensors are written from their memory.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from dsconvert.errors import SnapshotError
from dsconvert.safepickle.encode import bytes_header, integer, storage_header, u32
from dsconvert.safepickle.nodes import (
    Blob,
    DictNode,
    Global,
    Node,
    Record,
    SetNode,
    TensorData,
)
from dsconvert.safepickle.storage import ITEM_SIZES
from dsconvert.util.files import whole_file

if TYPE_CHECKING:
    from typing import BinaryIO

    from dsconvert.safepickle.source import Source

CHUNK = 1 << 22
BATCH = 1000
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Names that unpicklers translate in protocols 0 to 2 only; the writer's is 4."""
_STORAGE_NAMES = {dtype: (name, size) for name, (dtype, size) in ITEM_SIZES.items()}


class _Code:
    """Bytes that are written as they are, in between nodes."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Done:
    """Marks that a node is complete: puts it into the memo."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node


class Writer:
    """Writes one pickle. Iterative, so that depth costs no stack."""

    def __init__(self, out: BinaryIO, source: Source | None) -> None:
        self._out = out
        self._source = source
        self._memo: dict[int, int] = {}
        self._texts: dict[str, int] = {}
        self._globals: dict[tuple[str, str], int] = {}
        self._open: set[int] = set()
        self._count = 0
        self._kept: list[Node] = []
        self._buffer = bytearray(CHUNK)

    def write(self, root: Node) -> None:
        """Write the whole pickle.

        Raises:
            SnapshotError: a node can't be written (a tuple that contains itself, ...).
        """
        self._out.write(b"\x80\x04")
        work: list[Node] = [root]
        while work:
            item = work.pop()
            kind = cast("Any", type(item))
            if kind is _Code:
                self._out.write(item.data)
            elif kind is _Done:
                self._open.discard(id(item.node))
                self._memoize(item.node)
            elif not self._scalar(item):
                work.extend(reversed(self._expand(item)))
        self._out.write(b".")

    # Memo -----------------------------------------------------------------------------------

    def _index(self) -> int:
        self._out.write(b"\x94")
        self._count += 1
        return self._count - 1

    def _memoize(self, node: Node) -> None:
        self._memo[id(node)] = self._index()
        self._kept.append(node)

    def _get(self, index: int) -> None:
        code = b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index)
        self._out.write(code)

    # Leaves ---------------------------------------------------------------------------------

    def _scalar(self, node: Node) -> bool:
        out = self._out
        kind = cast("Any", type(node))
        if node is None:
            out.write(b"N")
        elif kind is bool:
            out.write(b"\x88" if node else b"\x89")
        elif kind is int:
            out.write(integer(node))
        elif kind is float:
            out.write(b"G" + struct.pack(">d", node))
        elif kind is str:
            self._text(node)
        elif kind is bytes:
            out.write(bytes_header(len(node)) + node)
        elif kind is Global:
            self._name(node)
        elif id(node) in self._memo:
            self._get(self._memo[id(node)])
        elif kind is Blob:
            self._blob(node)
        elif kind is TensorData:
            self._tensor(node.tensor)
        else:
            return False
        return True

    def _text(self, text: str) -> None:
        known = self._texts.get(text)
        if known is not None:
            self._get(known)
            return
        data = text.encode("utf-8", "surrogatepass")
        head = b"\x8c" + bytes([len(data)]) if len(data) < 256 else b"X" + u32(len(data))
        self._out.write(head + data)
        self._texts[text] = self._index()

    def _name(self, node: Global) -> None:
        known = self._globals.get(node.key)
        if known is not None:
            self._get(known)
            return
        self._text(_PYTHON_2.get(node.module, node.module))
        self._text(node.name)
        self._out.write(b"\x93")
        self._globals[node.key] = self._index()

    def _blob(self, node: Blob) -> None:
        if self._source is None:
            raise SnapshotError("a byte string belongs to a file that is not open.")
        if node.mutable:
            self._out.write(b"\x96" + struct.pack("<Q", node.length))
        else:
            self._out.write(bytes_header(node.length))
        done, view = 0, memoryview(self._buffer)
        while done < node.length:
            part = view[: min(CHUNK, node.length - done)]
            self._source.readinto_at(node.offset + done, part)
            self._out.write(part)
            done += len(part)
        self._memoize(node)

    def _tensor(self, tensor: torch.Tensor) -> None:
        data = tensor.detach().to("cpu").contiguous()
        dtype = str(data.dtype).removeprefix("torch.")
        if dtype not in _STORAGE_NAMES:
            raise SnapshotError(
                f"a tensor of type {dtype} can't be written. Known are {', '.join(_STORAGE_NAMES)}."
            )
        name, size = _STORAGE_NAMES[dtype]
        head = storage_header(name, data.numel(), str(self._count))
        self._out.write(bytes_header(len(head) + size * data.numel()) + head)
        if data.numel():
            self._out.write(memoryview(cast("Any", data.view(-1).view(torch.uint8).numpy())))

    # Containers -----------------------------------------------------------------------------

    def _expand(self, node: Node) -> list[Node]:
        kind = cast("Any", type(node))
        if id(node) in self._open:
            raise SnapshotError("a tuple or call in the file contains itself; it can't be written.")
        if kind is tuple:
            if not node:
                return [_Code(b")")]
            self._open.add(id(node))
            short = len(node) <= 3
            close = _Code((b"\x85", b"\x86", b"\x87")[len(node) - 1] if short else b"t")
            return [*([] if short else [_Code(b"(")]), *node, close, _Done(node)]
        if kind is list:
            self._out.write(b"]")
            self._memoize(node)
            return _batches(node, b"a", b"e")
        if kind is DictNode:
            self._out.write(b"}")
            self._memoize(node)
            return _pair_batches(node.items)
        if kind is SetNode and not node.frozen:
            self._out.write(b"\x8f")
            self._memoize(node)
            return _batches(node.items, None, b"\x90")
        if kind is SetNode:
            self._open.add(id(node))
            return [_Code(b"("), *node.items, _Code(b"\x91"), _Done(node)]
        if kind is Record:
            self._open.add(id(node))
            return [*_construct(node), _Done(node), *_operations(node)]
        raise SnapshotError(f"a {kind.__name__} can't be written into a pickle.")


def _construct(node: Record) -> list[Node]:
    if node.kind == "call":
        return [node.func, node.args, _Code(b"R")]
    if node.kwargs is None:
        return [node.func, node.args, _Code(b"\x81")]
    return [node.func, node.args, node.kwargs, _Code(b"\x92")]


def _operations(node: Record) -> list[Node]:
    work: list[Node] = []
    for op, value in node.ops:
        if op == "build":
            work += [value, _Code(b"b")]
        elif op == "setitems":
            work += _pair_batches(value)
        elif op == "append":
            work += _batches(value, b"a", b"e")
        else:
            work += _batches(value, None, b"\x90")
    return work


def _batches(items: list[Node], single: bytes | None, many: bytes) -> list[Node]:
    if single is not None and len(items) == 1:
        return [items[0], _Code(single)]
    work: list[Node] = []
    for start in range(0, len(items), BATCH):
        work += [_Code(b"("), *items[start : start + BATCH], _Code(many)]
    return work


def _pair_batches(pairs: list[tuple[Node, Node]]) -> list[Node]:
    work: list[Node] = []
    for start in range(0, len(pairs), BATCH):
        flat = [part for pair in pairs[start : start + BATCH] for part in pair]
        work += [_Code(b"("), *flat, _Code(b"u")]
    return work


def write_file(path: Path, root: Node, source: Source | None, *, overwrite: bool) -> None:
    """Write ``root`` to ``path``, whole or not at all.

    Raises:
        OutputError: the target exists, its folder does not, or writing fails.
        SnapshotError: something can't be written, or the source changed meanwhile.
    """
    with whole_file(path, overwrite=overwrite) as beside:
        with beside.open("wb", buffering=1 << 20) as out:
            Writer(out, source).write(root)
        if source is not None:
            source.check_unchanged()
