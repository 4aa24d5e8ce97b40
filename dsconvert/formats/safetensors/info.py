"""The facts about a safetensors export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dsconvert.formats.safetensors.file import open_plain
from dsconvert.formats.safetensors.header import KEY
from dsconvert.rules.recognise import Structure, structure_of


@dataclass(frozen=True, kw_only=True)
class PlainInfo:
    """Facts about a file."""

    path: str
    size: int
    format: str
    writer: str
    version: str | None
    """The version of dsconvert that wrote it, where it says so."""
    adapter: str | None
    config: Mapping[str, Any]
    generators: tuple[str, ...]
    structure: Structure
    safe: bool = True
    """The format holds tensors and text only."""

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain data for JSON."""
        return asdict(self)


def inspect_plain(path: Path) -> PlainInfo:
    """Return the facts about a file.

    Raises:
        DsconvertError: see :func:`dsconvert.formats.safetensors.load_plain`.
    """
    found = open_plain(path)
    with import_module("safetensors").safe_open(str(path), framework="pt") as file:
        header: Any = json.loads((file.metadata() or {})[KEY])
    version = header.get("dsconvert")
    return PlainInfo(
        path=str(path),
        size=path.stat().st_size,
        format="safetensors",
        writer="dsconvert",
        version=version if isinstance(version, str) else None,
        adapter=None if found.adapter is None else found.adapter.name,
        config=dict(found.config),
        generators=found.generators,
        structure=structure_of(found.generator),
    )
