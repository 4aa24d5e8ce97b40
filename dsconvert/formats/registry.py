"""Detect a file's format by its first bytes; open and inspect it. :func:`register` adds one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from dsconvert.adapter import Adapter
from dsconvert.errors import UsageError
from dsconvert.formats.base import FileFacts, FileFormat, GeneratorFile, ModuleSource
from dsconvert.formats.checkpoint import FORMAT as CHECKPOINT
from dsconvert.formats.checkpoint import load_checkpoint
from dsconvert.formats.checkpoint.read import is_marked
from dsconvert.formats.given_inputs import with_inputs
from dsconvert.formats.official import FORMAT as OFFICIAL
from dsconvert.formats.safetensors import FORMAT as SAFETENSORS
from dsconvert.formats.safetensors import load_plain
from dsconvert.model.precision import widen
from dsconvert.util.files import check_regular

if TYPE_CHECKING:
    import os

    from dsconvert.model.inputs import Inputs


class Registry:
    """File formats, in the order in which they are asked."""

    def __init__(self, formats: Sequence[FileFormat] = ()) -> None:
        self._formats = list(formats)

    @property
    def formats(self) -> tuple[FileFormat, ...]:
        """All formats, in the order in which they are asked."""
        return tuple(self._formats)

    def register(self, format: FileFormat, *, before: str | None = None) -> None:  # noqa: A002
        """Add a format.

        Args:
            format: the format; its name must be new.
            before: name of the format that is asked after it; None: all of them.

        Raises:
            UsageError: a format of that name is registered, or none is called ``before``. The
                registry is unchanged then.
        """
        names = [f.name for f in self._formats]
        if format.name in names:
            raise UsageError(
                f"a file format called {format.name!r} is registered; name this one differently."
            )
        if before is not None and before not in names:
            raise UsageError(f"no file format is called {before!r}; there are {', '.join(names)}.")
        self._formats.insert(0 if before is None else names.index(before), format)

    def format_of(self, path: str | os.PathLike[str]) -> FileFormat:
        """Return the first format that detects ``path`` as its own; nothing in the file runs.

        Raises:
            ForeignFileError: ``path`` is no regular file (a pipe, a device).
        """
        where = Path(path)
        check_regular(where)
        return next(f for f in self._formats if f.detects(where))


FORMATS = Registry((SAFETENSORS, CHECKPOINT, OFFICIAL))
"""The formats that :func:`open_file` knows. The official snapshot comes last: it takes every file,
and its reader says what is wrong with one that is none."""
register = FORMATS.register


def open_file(
    path: str | os.PathLike[str],
    *,
    drop: Collection[str] = (),
    module: ModuleSource | None = None,
    adapters: Sequence[Adapter] = (),
    inputs: Inputs | None = None,
) -> GeneratorFile:
    """Open a file of any known format, without running anything in it.

    Args:
        path: an official snapshot, a checkpoint of another codebase (also a converted one), or a
            safetensors export.
        drop: entries to leave out.
        module: how to build the generator of a codebase that no adapter knows.
        adapters: further adapters, which need not be installed; they come first.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n, in place of
            the adapter's own: :func:`dsconvert.picture_inputs` where the generator reads pictures.

    Raises:
        DsconvertError: it is no such file, is damaged, or an option does not fit it.
    """
    file = FORMATS.format_of(path).open(Path(path), drop, module, adapters)
    return file if inputs is None else with_inputs(file, inputs)


def load_safetensors(path: Path, *, adapters: Sequence[Adapter] = ()) -> nn.Module:
    """Load the generator of a safetensors file that dsconvert wrote, of any codebase.

    Returns:
        a plain module, in eval mode, without gradients, in float32. Nothing in the file is
        executed.

    Raises:
        MissingExtraError: safetensors is not installed.
        SnapshotError: the file can't be read.
    """
    if not is_marked(path):
        return widen(load_plain(path, adapters=adapters))
    return load_checkpoint(path, adapters=adapters).generator.eval().requires_grad_(False)


def inspect_file(
    path: str | os.PathLike[str],
    *,
    module: ModuleSource | None = None,
    adapters: Sequence[Adapter] = (),
) -> FileFacts:
    """Return the facts about a file of any known format, without running anything in it.

    Raises:
        DsconvertError: it is no such file, or ``module`` does not fit it.
    """
    return FORMATS.format_of(path).inspect(Path(path), module, adapters)
