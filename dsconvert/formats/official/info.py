"""The facts about a snapshot, found without reading a tensor or running anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dsconvert.adapter import Adapter
from dsconvert.errors import CorruptSnapshotError, SnapshotError
from dsconvert.formats.official.build import Builder
from dsconvert.formats.official.load import describe
from dsconvert.formats.official.persistence import persistent
from dsconvert.formats.official.policy import examine
from dsconvert.formats.official.read import GENERATOR, find_adapter, is_module, parse
from dsconvert.rules.recognise import Structure, structure_of
from dsconvert.safepickle import (
    Global,
    Node,
    Offence,
    Pickle,
    Record,
    Storages,
    Walk,
    clean,
    is_parameter,
    is_storage,
    is_tensor,
    parse_tensor,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


_MAX_WALKED = 5_000_000
"""Objects of all entries, each counted once an entry; a pickle has up to 1,000,000."""
_OURS = 4
_FRAME = b"\x95"


@dataclass(frozen=True, kw_only=True)
class EntryInfo:
    """One entry of the file's dict."""

    key: str
    type: str
    parameters: int
    """Elements of all parameters below it."""
    tensors: int
    nbytes: int
    """Bytes of tensor storage below it."""


@dataclass(frozen=True, kw_only=True)
class SnapshotInfo:
    """Facts about a file. ``problems`` are names that are not on the allow-list."""

    path: str
    size: int
    protocol: int
    opcodes: int
    writer: str
    """``pickle``, ``dill`` or ``dsconvert``, as far as its opcodes show."""
    adapter: str | None
    config: Mapping[str, Any]
    entries: tuple[EntryInfo, ...]
    problems: tuple[Offence, ...]
    safe: bool
    note: str | None = None
    """Why there is no config, where there is none."""
    structure: Structure | None = None
    """The generator's convolutions, and by which rules they were rewritten."""

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain data for JSON."""
        return asdict(self)


def _type_name(node: Node) -> str:
    if (instance := persistent(node)) is not None:
        return f"{clean(instance.class_name)} (persistent)"
    if type(node) is Record and type(node.func) is Global:
        return str(node.func)
    return {"NoneType": "None", "DictNode": "dict", "SetNode": "set"}.get(
        type(node).__name__, type(node).__name__
    )


def _entries(parsed: Pickle, storages: Storages) -> tuple[EntryInfo, ...]:
    """Return the facts about every entry.

    Raises:
        CorruptSnapshotError: the entries share so much that counting it would take for ever.
    """
    found: list[EntryInfo] = []
    left = _MAX_WALKED
    for key, node in parsed.entries:
        walk = Walk(parsed.source)
        walk.add([(key, node)])
        left -= len(walk.nodes)
        if left < 0:
            raise CorruptSnapshotError(
                f"{parsed.source.path} is damaged: its {len(parsed.entries)} entries all refer to "
                "the same objects. Copy or download it again."
            )
        found.append(_entry(key, node, walk, storages))
    return tuple(found)


def _entry(key: str, node: Node, walk: Walk, storages: Storages) -> EntryInfo:
    parameters = tensors = nbytes = 0
    for item in walk.nodes:
        if is_parameter(item) and item.args and is_tensor(item.args[0]):
            parameters += parse_tensor(item.args[0], storages).numel
        elif is_tensor(item):
            tensors += 1
        elif is_storage(item):
            nbytes += storages.get(item).nbytes
    return EntryInfo(
        key=key, type=_type_name(node), parameters=parameters, tensors=tensors, nbytes=nbytes
    )


def _writer(parsed: Pickle) -> str:
    # Python's pickler puts protocol 4 and younger into frames, at once; our writer does not.
    head = parsed.source.read_at(0, 3)
    if parsed.machine.protocol == _OURS and head[2:] != _FRAME:
        return "dsconvert"
    # dill writes the same opcodes; it differs only where it has a reconstructor of its own.
    if any(g.module.startswith("dill") for g in parsed.machine.globals):
        return "dill"
    return "pickle or dill" if parsed.machine.protocol >= 4 else "pickle"


def inspect_snapshot(
    path: str | os.PathLike[str], *, adapters: Sequence[Adapter] = ()
) -> SnapshotInfo:
    """Return the facts about a file; nothing is run or imported. Unknown globals are reported.

    Raises:
        ForeignFileError: the file is missing, or something else altogether.
        CorruptSnapshotError: it is truncated or malformed.
        UnsupportedSnapshotError: a known format of other code.
        UnsafeSnapshotError: a tensor's storage hides a call.
    """
    parsed = parse(path)
    offences, storages = examine(parsed, (), adapters)
    entries = _entries(parsed, storages)
    node = dict(parsed.entries).get(GENERATOR)
    adapter, config, note, structure = None, {}, None, None
    if not is_module(node):
        note = f"there is no module {GENERATOR}"
    elif offences:
        note = "the file refers to names that are not on the allow-list"
    else:
        try:
            found = find_adapter(parsed.source, node, adapters)
            builder = Builder(parsed.source, found, meta=True, storages=storages)
            shapes = builder.module(node, GENERATOR)
            adapter = found.name
            config = dict(describe(parsed.source, found, node, shapes))
            structure = structure_of(shapes)
        except CorruptSnapshotError:
            raise
        except SnapshotError as error:
            note = str(error)
    return SnapshotInfo(
        path=str(parsed.source.path),
        size=parsed.source.size,
        protocol=parsed.machine.protocol,
        opcodes=parsed.machine.ops,
        writer=_writer(parsed),
        adapter=adapter,
        config=config,
        entries=entries,
        problems=tuple(offences),
        safe=not offences,
        note=note,
        structure=structure,
    )
