"""safetensors with the architecture in the header: a generator to share, without a pickle.

``save_plain`` writes a model and compares the result with it, ``load_plain`` reads one back;
``open_plain`` opens a file for the commands. Nothing in a file is ever executed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from dsconvert.adapter import Adapter
from dsconvert.errors import UsageError
from dsconvert.formats.base import FileFormat, ModuleSource, refuse_module
from dsconvert.formats.safetensors.file import PlainFile, is_plain, open_plain
from dsconvert.formats.safetensors.info import PlainInfo, inspect_plain
from dsconvert.formats.safetensors.read import load_plain
from dsconvert.formats.safetensors.write import save_plain

__all__ = ["FORMAT", "PlainFile", "PlainInfo", "load_plain", "open_plain", "save_plain"]


def _open(
    path: Path,
    drop: Collection[str],
    module: ModuleSource | None,
    adapters: Sequence[Adapter],
) -> PlainFile:
    refuse_module(path, module, "a safetensors export")
    if drop:
        raise UsageError(f"{path} holds one generator and nothing else; there is nothing to drop.")
    return open_plain(path, adapters=adapters)


def _inspect(
    path: Path,
    module: ModuleSource | None,
    adapters: Sequence[Adapter],  # noqa: ARG001 - the header alone is read
) -> PlainInfo:
    refuse_module(path, module, "a safetensors export")
    return inspect_plain(path)


FORMAT = FileFormat(file=PlainFile, detects=is_plain, open=_open, inspect=_inspect)
