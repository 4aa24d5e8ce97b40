"""The facts about a checkpoint, found without running anything in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dsconvert.adapter import Adapter, image_tensor
from dsconvert.errors import AdapterError, ForeignFileError, SnapshotError
from dsconvert.formats.base import ModuleSource
from dsconvert.formats.checkpoint.file import Checkpoint
from dsconvert.formats.checkpoint.load import load_checkpoint
from dsconvert.formats.checkpoint.read import ENTRY, check_exists, is_checkpoint, read
from dsconvert.model.inputs import examples_of
from dsconvert.model.observe import evaluating
from dsconvert.rules.recognise import Structure, structure_of

if TYPE_CHECKING:
    import os


@dataclass(frozen=True, kw_only=True)
class EntryInfo:
    """One entry of the file's dict."""

    key: str
    type: str
    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """Facts about a file."""

    path: str
    size: int
    writer: str
    adapter: str | None
    config: Mapping[str, Any]
    generators: tuple[str, ...]
    converted: bool
    entries: tuple[EntryInfo, ...]
    safe: bool = True
    """It was read, so it holds tensors and plain values only."""
    note: str | None = None
    """Why there is no config, where there is none."""
    version: str | None = None
    """The version of dsconvert that converted it, where it says so."""
    structure: Structure | None = None
    """The generator's convolutions, and by which rules they were rewritten."""

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain data for JSON."""
        return asdict(self)


_WRITERS = {
    "zip": "torch.save",
    "legacy": "torch.save (format before 1.6)",
    "safetensors": "safetensors",
}


def _tensors(value: Any, depth: int = 0) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if depth > 20:
        return []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _tensors(v, depth + 1)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v, depth + 1)]
    return []


def inspect_checkpoint(
    path: str | os.PathLike[str],
    *,
    module: ModuleSource | None = None,
    adapters: Sequence[Adapter] = (),
) -> CheckpointInfo:
    """Return the facts about a file.

    Raises:
        ForeignFileError: it is missing or something else.
        CorruptSnapshotError: it is damaged.
        UnsafeSnapshotError: it refers to code that would have to run.
    """
    where = Path(path)
    check_exists(where)
    form = is_checkpoint(where)
    if form is None:
        raise ForeignFileError(f"{where} is no torch.save or safetensors file.")
    content = read(where, form)
    entries: list[EntryInfo] = []
    for key, value in content.items():
        tensors = _tensors(value)
        entries.append(
            EntryInfo(
                key=key,
                type=type(value).__name__,
                tensors=len(tensors),
                elements=sum(t.numel() for t in tensors),
                nbytes=sum(t.numel() * t.element_size() for t in tensors),
            )
        )
    adapter, config, generators, note, structure = None, {}, (), None, None
    try:
        found = load_checkpoint(where, module=module, adapters=adapters)
        adapter, config, generators = found.codebase.name, dict(found.config), found.generators
        structure = structure_of(found.generator)
        if found.adapter is not None:
            config = {**found.adapter.describe(found.generator), **config}
        else:
            config = {**_seen(found), **config}
    except (SnapshotError, AdapterError) as error:
        note = str(error)
    return CheckpointInfo(
        path=str(where),
        size=where.stat().st_size,
        writer=_WRITERS[form],
        adapter=adapter,
        config=config,
        generators=tuple(generators),
        converted=ENTRY in content,
        entries=tuple(entries),
        note=note,
        version=_version(content.get(ENTRY)),
        structure=structure,
    )


def _seen(file: Checkpoint) -> dict[str, Any]:
    """Return what one call of the user's own module shows; nothing where its inputs are unknown."""
    inputs = file.inputs()
    if inputs is None:
        return {}
    model = file.generator
    try:
        args = examples_of(model, inputs)
        with evaluating(model):
            image = image_tensor(model(*args))
    except Exception:  # the user's own code may raise any; a command that needs images says it
        return {}
    facts: dict[str, Any] = {"img_channels": image.shape[1]}
    if image.shape[2] == image.shape[3]:
        facts["resolution"] = image.shape[2]
    if args[0].dim() == 2:
        facts["z_dim"] = args[0].shape[1]
    return {**facts, "classes": int(getattr(inputs, "classes", 0))}


def _version(mark: Any) -> str | None:
    """Return the writer's version from the entry of a converted file, which may hold anything."""
    found = mark.get("dsconvert") if isinstance(mark, Mapping) else None
    return found if isinstance(found, str) else None
