"""Refuse a ``torch.save`` file whose content takes far more memory or time than its size suggests.

``torch.load(weights_only=True)`` runs no code of a file, but a few bytes may still ask it for any
amount of memory (``bytearray(1 << 40)``), or make a value that is small in the file and endless for
a program that walks it: a list whose items are one list, many levels deep, or a tensor that repeats
one element.
"""

from __future__ import annotations

import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dsconvert.errors import CorruptSnapshotError, UnsafeSnapshotError
from dsconvert.safepickle import DictNode, Global, Node, Record, SetNode, Source, plain_calls
from dsconvert.safepickle.machine import Machine
from dsconvert.safepickle.nodes import Blob
from dsconvert.safepickle.source import Cursor

_REPEATED = 1_000_000
"""Values that a walk may meet again through shared containers; honest files share a few."""
_SLACK = 1 << 24
_LEGACY_PICKLES = 5
"""A magic number, a version, facts about the machine, the content, the keys of its storages."""
_REBUILDS = frozenset(
    {
        ("torch._utils", name)
        for name in (
            "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
            "_rebuild_parameter_with_state", "_rebuild_sparse_tensor",
            "_rebuild_device_tensor_from_numpy",
        )
    }
)  # fmt: skip
"""Functions of torch that take memory for what the file holds only."""


def _from_type(args: tuple[Node, ...]) -> bool:
    # The first argument is called with the third.
    return len(args) == 4 and type(args[0]) is Global and args[0].key in _REBUILDS


def _anything(_: object) -> bool:
    return True


_PLAIN = {
    key: call.check
    for key, call in plain_calls(lambda _: False).items()
    if key[0] in ("builtins", "collections", "_codecs", "torch")
}
_CHECKS: dict[tuple[str, str], Callable[[tuple[Node, ...]], bool]] = {
    **_PLAIN,
    **dict.fromkeys(_REBUILDS, _anything),
    ("collections", "Counter"): _PLAIN["collections", "OrderedDict"],
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.nn.parameter", "Parameter"): _anything,
    ("torch.serialization", "_get_layout"): _anything,
}
"""The calls that torch's reader makes by itself, and that a file may ask for."""


def check_calls(path: Path, form: str) -> None:
    """Check the calls that a file asks torch's reader for, before torch reads it.

    Args:
        path: a ``torch.save`` file.
        form: ``zip`` or ``legacy``.

    Raises:
        CorruptSnapshotError: it is damaged, or compressed.
        UnsafeSnapshotError: it holds a whole module or optimiser of torch, or a call of torch or of
            a builtin may take any amount of memory.
    """
    source = Source(path)
    for start, end in _pickles(path) if form == "zip" else ((0, source.size),):
        cursor = Cursor(source, start, end)
        for _ in range(1 if form == "zip" else _LEGACY_PICKLES):
            # torch keeps as much of it anyway: no limit but the file itself.
            size = source.size
            machine = Machine(cursor, max_ops=size, max_text=size, persistent=True)
            machine.run()
            for record in machine.records:
                _check(path, record)
            # Each call copies its arguments, and all calls may have the same.
            copied = sum(_size(a) for record in machine.records for a in record.args)
            if copied > 4 * size + _SLACK:
                raise UnsafeSnapshotError(
                    f"{path} has {size} bytes, and its calls copy {copied}: many have the same "
                    "argument. Nothing of it has run. Save the generator's state_dict() alone."
                )


def _size(node: Node) -> int:
    """Return the length of an argument of a call; of another call's result that of its own ones."""
    if type(node) is Record:
        return sum(_size(a) for a in node.args if type(a) is not Record)
    if type(node) is Blob:
        return node.length
    if type(node) is DictNode or type(node) is SetNode:
        return len(node.items)
    return len(node) if isinstance(node, str | bytes | list | tuple) else 0


def _check(path: Path, record: Record) -> None:
    func = record.func
    if type(func) is not Global:
        return  # torch refuses it
    # torch reads names of Python 2 (as protocol 2 spells them) as those of today.
    modern = (IMPORT_MAPPING.get(func.module, func.module), func.name)
    key = NAME_MAPPING.get(func.key, modern)
    check = _CHECKS.get(key)
    # Other names have a stand-in (see inert.py), or are unknown to torch, which then names them.
    known = check is not None or key[0].split(".")[0] == "torch"
    if known and check is None and record.kind == "new" and not record.args:
        raise UnsafeSnapshotError(holds_object(path, str(func)))
    if known and (check is None or not check(record.args)):
        raise UnsafeSnapshotError(
            f"{path} calls {func} in a way that no trained generator needs, and that could take "
            "any amount of memory. Nothing of it has run. Save the generator's state_dict() alone, "
            "with the code that made the file."
        )


def holds_object(path: Path, name: str) -> str:
    """Return the message for a file that holds an object of the class ``name`` of torch."""
    what = "model" if name.startswith("torch.nn.") else "object"
    return (
        f"{path} holds a whole pickled {what} ({name}), which would have to run to be read. "
        "Nothing of it has run. Save the weights alone, by torch.save(model.state_dict(), FILE), "
        "and name the code that builds the model: --module package.path:factory."
    )


def _pickles(path: Path) -> list[tuple[int, int]]:
    """Return the first byte and the end of every pickle in a zip.

    All of them are read, since it depends on the reader which of two equal names counts.
    """
    found: list[tuple[int, int]] = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            if not entry.filename.lower().endswith(".pkl"):
                continue
            if entry.compress_type:
                raise CorruptSnapshotError(
                    f"{path} is compressed, which torch.save never does. Unpack it and save it "
                    "again."
                )
            file.seek(entry.header_offset)
            header = file.read(30)
            lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:], "little")
            start = entry.header_offset + len(header) + sum(lengths)
            found.append((start, start + entry.file_size))
    return found


def check_content(path: Path, content: Any) -> None:
    """Check what torch has read.

    Raises:
        CorruptSnapshotError: a container holds itself, containers are shared so often that a walk
            would not end, or the tensors are larger than the file can be.
    """
    counts: dict[int, int] = {}
    open_ones: set[int] = set()
    stored = nbytes = 0
    stack: list[tuple[Any, bool]] = [(content, False)]
    while stack:
        value, done = stack.pop()
        below = _below(value)
        if done:
            open_ones.discard(id(value))
            count = 1 + sum(counts.get(id(v), 1) for v in below)
            counts[id(value)] = min(count, 1 << 60)  # it may double at every level
            continue
        if id(value) in open_ones:
            raise CorruptSnapshotError(
                f"{path} holds a list or dict that holds itself, which no state dict does. Save "
                "the generator's state_dict() alone."
            )
        if id(value) in counts:
            continue
        if isinstance(value, torch.Tensor):
            counts[id(value)] = 1
            nbytes += value.numel() * value.element_size()
        if not below:
            continue
        stored += len(below)
        open_ones.add(id(value))
        stack.append((value, True))
        stack += [(v, False) for v in below]
    if counts.get(id(content), 1) > stored + 1 + _REPEATED:
        raise CorruptSnapshotError(
            f"{path} holds lists or dicts that share their items so often that reading it would "
            "take for ever. Save the generator's state_dict() alone."
        )
    if nbytes > 4 * path.stat().st_size + _SLACK:
        raise CorruptSnapshotError(
            f"{path} has {path.stat().st_size} bytes and tensors of {nbytes}: they repeat their "
            "elements. Save the generator's state_dict() with clone() of each tensor."
        )


def _below(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list | tuple) else ()
