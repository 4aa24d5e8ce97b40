"""Kinds of files, behind one door: what a path holds, by its first bytes.

A kind says whether a file is its own, and loads, saves and inspects it. What it loads has at least
the members of :class:`Opened`; commands need no more. :func:`register` adds a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import nn

from dsconvert.adapter import Adapter
from dsconvert.errors import UsageError
from dsconvert.export.api import SUFFIXES, check_export, export_model
from dsconvert.formats.checkpoint import (
    Checkpoint,
    ModuleSource,
    inspect_checkpoint,
    is_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from dsconvert.formats.official import Snapshot, inspect_snapshot, load_snapshot, save_snapshot
from dsconvert.formats.safetensors.file import PlainFile, is_plain, open_plain, save_plain
from dsconvert.formats.safetensors.info import inspect_plain
from dsconvert.util.files import check_regular, check_target

if TYPE_CHECKING:
    import os

    from dsconvert.adapter import Sampler
    from dsconvert.records import Export


class Opened(Protocol):
    """A file with generators in it."""

    @property
    def path(self) -> Path | None:
        """Where it is."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """Facts about the generator."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Entries, without those that were dropped."""
        ...

    @property
    def generators(self) -> tuple[str, ...]:
        """Names of the generators, the one that makes the images first."""
        ...

    @property
    def generator(self) -> nn.Module:
        """The one that makes the images; the same object every time."""
        ...

    def module(self, key: str) -> nn.Module:
        """The generator of that name."""
        ...

    def has_module(self, key: str) -> bool:
        """Whether there is one."""
        ...


class Facts(Protocol):
    """What ``inspect`` tells."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        ...


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file.

    Attributes:
        name: for people, for example ``official snapshot``.
        recognises: whether a path is of this kind; looks at a few bytes and runs nothing.
        load: ``load(path, drop, module)``.
        save: ``save(opened, models, path, overwrite)``; whole or not at all.
        inspect: ``inspect(path, module)``.
        opened: the type that ``load`` returns.
        suffixes: of the files that ``save`` writes, the usual one first; the input's own is always
            one of them. None: any.
    """

    name: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path, Collection[str], ModuleSource | None], Opened]
    save: Callable[[Any, Mapping[str, nn.Module], str | os.PathLike[str], bool], None]
    inspect: Callable[[Path, ModuleSource | None], Facts]
    opened: type
    suffixes: tuple[str, ...] | None = None


def _load_snapshot(path: Path, drop: Collection[str], module: ModuleSource | None) -> Opened:
    _no_module(path, module)
    return load_snapshot(path, drop=drop)


def _no_module(path: Path, module: ModuleSource | None) -> None:
    if module is not None:
        raise UsageError(
            f"--module is for state dicts; {path} is an official snapshot, or none that is known, "
            "and says by itself how it is built. Leave the option out."
        )


def _inspect_snapshot(path: Path, module: ModuleSource | None) -> Facts:
    _no_module(path, module)
    return inspect_snapshot(path)


_SNAPSHOT = Kind(
    name="official snapshot",
    recognises=lambda _: True,  # the last one asked; its reader says what is wrong with a file
    load=_load_snapshot,
    save=lambda opened, models, path, overwrite: save_snapshot(
        opened, models, path, overwrite=overwrite
    ),
    inspect=_inspect_snapshot,
    opened=Snapshot,
    suffixes=(".pkl", ".pickle", ""),
)
_CHECKPOINT = Kind(
    name="checkpoint",
    recognises=lambda path: is_checkpoint(path) is not None,
    load=lambda path, drop, module: load_checkpoint(path, drop=drop, module=module),
    save=lambda opened, models, path, overwrite: save_checkpoint(
        opened, models, path, overwrite=overwrite
    ),
    inspect=lambda path, module: inspect_checkpoint(path, module=module),
    opened=Checkpoint,
    suffixes=(".pth", ".pt", ".ckpt", ".bin", ".tar", ".th", "", ".safetensors"),
)


def _load_plain(path: Path, drop: Collection[str], module: ModuleSource | None) -> Opened:
    _no_module(path, module)
    if drop:
        raise UsageError(f"{path} holds one generator and nothing else; there is nothing to drop.")
    return open_plain(path)


def _inspect_plain(path: Path, module: ModuleSource | None) -> Facts:
    _no_module(path, module)
    return inspect_plain(path)


def _save_plain(
    opened: Any, models: Mapping[str, nn.Module], path: str | os.PathLike[str], overwrite: bool
) -> None:
    check_export(path, "safetensors", noise="random", overwrite=overwrite)
    model = models[opened.keys[0]]
    save_plain(model, Path(path), noise="random", overwrite=overwrite, own=opened.own)


_PLAIN = Kind(
    name="safetensors export",
    recognises=is_plain,
    load=_load_plain,
    save=_save_plain,
    inspect=_inspect_plain,
    opened=PlainFile,
    suffixes=(".safetensors",),
)
_KINDS: list[Kind] = [_PLAIN, _CHECKPOINT, _SNAPSHOT]


def register(kind: Kind) -> None:
    """Ask ``kind`` before the built-in ones.

    Raises:
        UsageError: there is one of that name; nothing has changed.
    """
    if any(kind.name == k.name for k in _KINDS):
        raise UsageError(f"a kind of file called {kind.name!r} is registered; name it differently.")
    _KINDS.insert(0, kind)


def kinds() -> tuple[Kind, ...]:
    """All kinds, in the order in which they are asked."""
    return tuple(_KINDS)


def _kind_of(path: Path) -> Kind:
    return next(k for k in _KINDS if k.recognises(path))


def open_file(
    path: str | os.PathLike[str],
    *,
    drop: Collection[str] = (),
    module: ModuleSource | None = None,
) -> Opened:
    """Open any file that is known, without running anything in it.

    Args:
        path: an official snapshot, or a checkpoint of another codebase, also a converted one.
        drop: entries to leave out.
        module: how to build the generator of a codebase that no adapter knows.

    Raises:
        DsconvertError: it is no such file, is damaged, or an option does not fit it.
    """
    where = Path(path)
    check_regular(where)
    return _kind_of(where).load(where, drop, module)


def save_file(
    opened: Opened,
    models: Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Export | None:
    """Write converted generators, in the format that the suffix of ``path`` names.

    That is a file of the same kind as ``opened``, with all that is in it; or, for a suffix of an
    export format (``.safetensors``, ``.onnx``, ``.pt2``, ``.xml``), the main generator alone.

    Returns:
        what was exported, or None where the file is of the same kind.

    Raises:
        UsageError: the suffix is neither.
        DsconvertError: see the kind's own function, and :func:`dsconvert.export_model`.
    """
    name = export_format(opened, path)
    if name is None:
        _kind(opened).save(opened, models, path, overwrite)
        return None
    model = models[opened.generators[0]]
    return export_model(model, path, format=name, overwrite=overwrite, inputs=inputs_of(opened))


def _kind(opened: Opened) -> Kind:
    return next(k for k in _KINDS if isinstance(opened, k.opened))


def export_format(opened: Opened, path: str | os.PathLike[str]) -> str | None:
    """The export format that the suffix of an output names; None: the same kind as ``opened``.

    Raises:
        UsageError: it is neither a suffix of that kind nor of an export format.
    """
    kind, suffix = _kind(opened), Path(path).suffix.lower()
    if kind.suffixes is None or suffix in kind.suffixes:
        return None
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if opened.path is not None and suffix and suffix == opened.path.suffix.lower():
        return None
    ends = f"ends in {suffix}" if suffix else "has no suffix"
    exports = ", ".join(s for s in SUFFIXES if s != kind.suffixes[0])
    raise UsageError(
        f"{path} {ends}, and {opened.path} can't be written as that; end it in {kind.suffixes[0]} "
        f"({kind.name}, as the input is), or in {exports} (the generator alone)."
    )


def check_output(opened: Opened, path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse, before any work, an output that :func:`save_file` could not write.

    Raises:
        UsageError: its suffix names no format, or one that this generator has no way into.
        MissingExtraError: what the format needs is not installed.
        OutputError: it may not be written.
    """
    name = export_format(opened, path)
    if name is None:
        check_target(path, overwrite=overwrite)
        return
    check_export(path, name, noise="random", overwrite=overwrite)
    adapter: object = getattr(opened, "adapter", None)
    if name == "safetensors" and not (isinstance(adapter, Adapter) and adapter.can_build):
        raise UsageError(
            f"{path}: safetensors is no format for the generator of {opened.path}, since no "
            f"adapter can rebuild it; end it in {(_kind(opened).suffixes or ('',))[0]}, .onnx, "
            ".pt2 or .xml."
        )


def generators_in(opened: Opened, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the generators that :func:`save_file` writes to ``path``, the main one first."""
    alone = export_format(opened, path) is not None or Path(path).suffix.lower() == ".safetensors"
    return opened.generators[:1] if alone else opened.generators


def inspect_file(path: str | os.PathLike[str], *, module: ModuleSource | None = None) -> Facts:
    """Look into any file that is known.

    Raises:
        DsconvertError: it is none.
    """
    where = Path(path)
    check_regular(where)
    return _kind_of(where).inspect(where, module)


def inputs_of(opened: Opened) -> Sampler | None:
    """A sampler of inputs for the file's generators, where anyone knows one."""
    if isinstance(opened, Checkpoint):
        return opened.inputs()
    adapter = cast("Adapter | None", getattr(opened, "adapter", None))
    return adapter.sampler(opened.generator) if adapter is not None else None


def picture_of(opened: Opened, model: nn.Module | None = None) -> nn.Module:
    """``model`` (or the file's generator) as one that returns image tensors in [-1, 1]."""
    model = opened.generator if model is None else model
    adapter: Any = getattr(opened, "adapter", None)
    if isinstance(opened, Checkpoint) or isinstance(adapter, Adapter):
        return adapter.picture(model)
    return model
