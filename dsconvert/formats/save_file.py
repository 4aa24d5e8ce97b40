"""Write converted generators, in the format that the output's suffix names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from dsconvert.config.choices import SUFFIXES
from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.export_file import PLAIN, check_export, export_file
from dsconvert.util.files import check_target

if TYPE_CHECKING:
    import os

    from dsconvert.records import Export


def save_file(
    file: GeneratorFile,
    models: Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Export | None:
    """Write converted generators, in the format that the suffix of ``path`` names.

    That is a file of the same format as ``file``, with all its content; or, for a suffix of an
    export format (``.safetensors``, ``.onnx``, ``.pt2``, ``.xml``), the main generator alone.

    Returns:
        the export, or None where the file is of the same format.

    Raises:
        UsageError: the suffix is neither.
        DsconvertError: as for :meth:`GeneratorFile.save` and :func:`dsconvert.export_model`.
    """
    if _export_format(file, path) is None:
        file.save(models, path, overwrite=overwrite)
        return None
    return export_file(file, path, model=models[file.generators[0]], overwrite=overwrite)


def check_output(file: GeneratorFile, path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse, before any work, an output that :func:`save_file` could not write.

    Raises:
        UsageError: its suffix names no format, or one that can't hold this generator.
        MissingExtraError: a library that the format needs is not installed.
        OutputError: it may not be written.
    """
    name = _export_format(file, path)
    if name is None:
        check_target(path, overwrite=overwrite)
        return
    check_export(path, name, noise="random", overwrite=overwrite)
    if name == PLAIN and not file.is_rebuildable:
        raise UsageError(
            f"{path}: safetensors is no format for the generator of {file.path}, since no "
            f"adapter can rebuild it; end it in {file.suffixes[0]}, .onnx, .pt2 or .xml."
        )


def generators_in(file: GeneratorFile, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the generators that :func:`save_file` writes to ``path``, main first."""
    alone = _export_format(file, path) is not None or Path(path).suffix.lower() == ".safetensors"
    return file.generators[:1] if alone else file.generators


def _export_format(file: GeneratorFile, path: str | os.PathLike[str]) -> str | None:
    """Return the export format that the suffix of ``path`` names; None: that of ``file``.

    Raises:
        UsageError: it is neither a suffix of the file's format nor of an export format.
    """
    suffix = Path(path).suffix.lower()
    if suffix in file.suffixes:
        return None
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if file.path is not None and suffix and suffix == file.path.suffix.lower():
        return None
    ends = f"ends in {suffix}" if suffix else "has no suffix"
    exports = ", ".join(s for s in SUFFIXES if s != file.suffixes[0])
    raise UsageError(
        f"{path} {ends}, and {file.path} can't be written as that; end it in {file.suffixes[0]} "
        f"({file.format_name}, as the input is), or in {exports} (the generator alone)."
    )
