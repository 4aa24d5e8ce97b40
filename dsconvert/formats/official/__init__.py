"""The official snapshot: a pickle of modules, read without running anything in it.

``load_snapshot`` and ``save_snapshot`` read and write one; ``inspect_snapshot`` reads no tensor;
``new_snapshot`` wraps a generator that came from no file. The allow-list is in ``allowed``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from dsconvert.adapter import Adapter
from dsconvert.formats.base import FileFormat, ModuleSource, refuse_module
from dsconvert.formats.official.file import Snapshot, new_snapshot, save_snapshot
from dsconvert.formats.official.info import EntryInfo, SnapshotInfo, inspect_snapshot
from dsconvert.formats.official.load import load_snapshot
from dsconvert.safepickle import Offence

__all__ = [
    "FORMAT",
    "EntryInfo",
    "Offence",
    "Snapshot",
    "SnapshotInfo",
    "inspect_snapshot",
    "load_snapshot",
    "new_snapshot",
    "save_snapshot",
]


_WHAT = "an official snapshot, or none that is known"


def _open(
    path: Path,
    drop: Collection[str],
    module: ModuleSource | None,
    adapters: Sequence[Adapter],
) -> Snapshot:
    refuse_module(path, module, _WHAT)
    return load_snapshot(path, drop=drop, adapters=adapters)


def _inspect(path: Path, module: ModuleSource | None, adapters: Sequence[Adapter]) -> SnapshotInfo:
    refuse_module(path, module, _WHAT)
    return inspect_snapshot(path, adapters=adapters)


FORMAT = FileFormat(file=Snapshot, detects=lambda _: True, open=_open, inspect=_inspect)
"""Detects every file; the reader explains the defect of one that is no snapshot."""
