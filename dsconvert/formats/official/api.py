"""Loading and saving snapshots: what the rest of dsconvert uses."""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import adapter_for
from dsconvert.errors import (
    AdapterError,
    CorruptSnapshotError,
    UnsupportedSnapshotError,
    UsageError,
)
from dsconvert.formats.official.build import Builder
from dsconvert.formats.official.dump import Dumper
from dsconvert.formats.official.parse import GENERATOR, find_adapter, is_module, parse
from dsconvert.formats.official.persistence import origin, persistent
from dsconvert.formats.official.policy import GENERATORS, examine, refuse
from dsconvert.formats.official.state import state_of
from dsconvert.model.precision import WORKING, stored_copy, widen
from dsconvert.safepickle.nodes import DictNode, Node, clean
from dsconvert.safepickle.write import write_file

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Mapping

    from dsconvert.adapter import Adapter
    from dsconvert.safepickle.source import Source

UNKNOWN_SOURCE = "unknown text (read by class names; compare the images)"
"""Said of a file whose embedded source is none of the released ones."""
MODULES = ("G", "D", "G_ema")
"""Entries that the official loader wants to be modules."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """An official snapshot: what is in it, and its generator on demand."""

    path: Path | None
    adapter: Adapter
    config: Mapping[str, Any]
    """Facts about the generator: cfg, resolution, ngf, classes, ..."""
    keys: tuple[str, ...]
    """The file's entries, in its order, without those that were dropped."""
    source: Source | None = field(repr=False)
    entries: Mapping[str, Node] = field(repr=False)
    live: dict[str, nn.Module] = field(repr=False)
    foreign: Mapping[tuple[str, str], type[nn.Module]] = field(default_factory=dict, repr=False)
    """Names of live modules' classes in the file, beside the adapter's."""

    @property
    def generator(self) -> nn.Module:
        """``G_ema``, read from the file on first use; the same object from then on."""
        if GENERATOR not in self.live:
            self.live[GENERATOR] = self.module(GENERATOR)
        return self.live[GENERATOR]

    @property
    def generators(self) -> tuple[str, ...]:
        """Entries that are generators, the one that makes the images first."""
        return tuple(key for key in (GENERATOR, "G") if self.has_module(key))

    def module(self, key: str) -> nn.Module:
        """The module under ``key``, read anew (``G_ema`` is kept by `generator`), in float32.

        Raises:
            UsageError: there is no such entry, or it is no module.
            UnsupportedSnapshotError: its classes are only carried, never built.
            CorruptSnapshotError: its parts do not fit together.
        """
        if key in self.live:
            return self.live[key]
        if key not in self.entries:
            raise UsageError(f"{self.path} has no entry {key!r}. It has: {_names(self.keys)}.")
        node = self.entries[key]
        if self.source is None or not is_module(node):
            raise UsageError(f"the entry {key!r} of {self.path} is no module.")
        self.source.check_unchanged()
        return widen(Builder(self.source, self.adapter).module(node, key))

    def own(self, key: str) -> dict[str, Tensor]:
        """The generator's tensors as the file has them, for their types; on the meta device.

        With their values where some are more precise than float32. Empty for what is no module of
        the file.

        Raises:
            CorruptSnapshotError: its parts do not fit together.
        """
        node, source = self.entries.get(key), self.source
        if source is None or not is_module(node):
            return {}
        shapes = Builder(source, self.adapter, meta=True).module(node, key).state_dict()
        wide = any(
            t.is_floating_point() and torch.finfo(t.dtype).bits > torch.finfo(WORKING).bits
            for t in shapes.values()
        )
        return Builder(source, self.adapter).module(node, key).state_dict() if wide else shapes

    def state(self, key: str) -> dict[str, Tensor]:
        """The state dict of the module under ``key``, also of one that is only carried (``D``).

        Raises:
            UsageError: there is no such entry, or it is no module.
            CorruptSnapshotError: its parts do not fit together.
        """
        if key in self.live:
            return self.live[key].state_dict()
        node = self.entries.get(key)
        if self.source is None or not is_module(node):
            raise UsageError(f"the entry {key!r} of {self.path} is no module.")
        self.source.check_unchanged()
        return state_of(Builder(self.source, self.adapter), node, key)

    def has_module(self, key: str) -> bool:
        """Whether ``key`` is there and is a module (``G`` may be None in a file)."""
        return key in self.live or is_module(self.entries.get(key))


def describe(
    source: Source, adapter: Adapter, node: Node, shapes: nn.Module | None = None
) -> Mapping[str, Any]:
    """What the adapter says of a generator in a file, from shapes alone.

    ``shapes`` is the generator without data, where somebody has built it already.

    Raises:
        CorruptSnapshotError: its parts do not fit together.
    """
    if shapes is None:
        shapes = Builder(source, adapter, meta=True).module(node, GENERATOR)
    try:
        facts = adapter.describe(shapes)
        if (instance := persistent(node)) is not None:
            facts = {**facts, "source": origin(instance.source) or UNKNOWN_SOURCE}
        return facts
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise CorruptSnapshotError(
            f"{GENERATOR} in {source.path} does not have the parts that the adapter "
            f"{adapter.name!r} expects ({error}). It was not written by the official code."
        ) from error


def _names(keys: Iterable[str]) -> str:
    shown = [clean(key) for key in keys]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "") or "none"


def _place(snap: Snapshot, key: str) -> str:
    return f"{key} in {snap.path}" if snap.path is not None else key


def load_snapshot(path: str | os.PathLike[str], *, drop: Collection[str] = ()) -> Snapshot:
    """Open a snapshot of the official code without running anything in it.

    The whole file is checked; tensors are read when a module is asked for.

    Args:
        path: the file.
        drop: entries to leave out (for example ``("D",)``); an empty module is written for a
            dropped ``G`` or ``D``, so that the official loader stays content.

    Raises:
        ForeignFileError: the file is missing, or something else altogether.
        CorruptSnapshotError: it is truncated or malformed.
        UnsafeSnapshotError: it refers to what is not on the allow-list.
        UnsupportedSnapshotError: a known format that dsconvert does not convert.
        UsageError: ``drop`` names ``G_ema``, or an entry that is not there.
    """
    dropped = {drop} if isinstance(drop, str) else set(drop)
    if GENERATOR in dropped:
        raise UsageError(f"{GENERATOR} is what gets converted; it can't be dropped.")
    parsed = parse(path)
    source, root = parsed.source, parsed.root
    entries = dict(root.items)
    unknown = sorted(dropped - set(entries))
    if unknown:
        raise UsageError(
            f"{source.path} has no entry {', '.join(unknown)} to drop. It has: {_names(entries)}."
        )
    offences, _ = examine(source, parsed.machine, root, dropped)
    if offences:
        raise refuse(source, offences, [k for k in entries if k not in dropped])
    for key in dropped:
        if key in MODULES:
            entries[key] = None  # save_snapshot puts an empty module there
        else:
            del entries[key]
    node = entries.get(GENERATOR)
    if not is_module(node):
        raise UnsupportedSnapshotError(
            f"{source.path} has no module {GENERATOR} (its entries: {_names(entries)}). Name a "
            "snapshot that the official training code wrote."
        )
    adapter = find_adapter(source, node)
    config = describe(source, adapter, node)
    return Snapshot(
        path=source.path,
        adapter=adapter,
        config=config,
        keys=tuple(entries),
        source=source,
        entries=entries,
        live={},
    )


def new_snapshot(
    generator: nn.Module,
    *,
    modules: Mapping[str, nn.Module] | None = None,
    foreign: Mapping[tuple[str, str], type[nn.Module]] | None = None,
    training_set_kwargs: Mapping[str, Any] | None = None,
) -> Snapshot:
    """A snapshot in memory around a generator that came from no file.

    Args:
        generator: ``G_ema``, and ``G`` too unless ``modules`` has one.
        modules: other entries (``G``, ``D``).
        foreign: names that the official code knows classes of ``modules`` by, beside the adapter's.
        training_set_kwargs: plain values, as the official metrics want them.

    Raises:
        AdapterError: no installed adapter knows the generator.
    """
    adapter = adapter_for(generator)
    if adapter is None:
        raise AdapterError(
            f"no installed adapter knows {type(generator).__name__}, so there is no file format "
            "to write it in."
        )
    about = None if training_set_kwargs is None else DictNode(list(training_set_kwargs.items()))
    entries = {"G": None, "D": None, GENERATOR: None, "training_set_kwargs": about}
    return Snapshot(
        path=None,
        adapter=adapter,
        config=adapter.describe(generator),
        keys=tuple(entries),
        source=None,
        entries=entries,
        live={"G": generator, **(modules or {}), GENERATOR: generator},
        foreign=foreign or {},
    )


def save_snapshot(
    snap: Snapshot,
    generator: nn.Module | Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a snapshot that the official code can load, with some of its modules replaced.

    Entries that are not replaced are written back as they were; only a ``G`` or ``D`` that is
    None, missing or dropped becomes an empty ``torch.nn.Module``, since the official loader
    insists on modules.

    Args:
        snap: where everything else comes from.
        generator: the new ``G_ema``, or modules by entry (``G``, ``G_ema``).
        path: the file to write; written beside it first, so that it may be ``snap.path``.
        overwrite: whether ``path`` may exist.

    Raises:
        UsageError: an entry that can't be replaced.
        OutputError: the file can't be written, or a weight overflows in the file's own type.
        SnapshotError: a module holds what the official code could not load.
    """
    replaced: dict[str, nn.Module] = (
        dict(generator) if isinstance(generator, MappingABC) else {GENERATOR: generator}
    )
    wrong = sorted(set(replaced) - {"G", GENERATOR})
    if wrong or not replaced:
        raise UsageError(
            f"only G and {GENERATOR} can be replaced, not {', '.join(wrong) or 'nothing'}."
        )
    if snap.source is not None:
        snap.source.check_unchanged()
    dumper = Dumper(snap.adapter, snap.foreign)
    pairs: list[tuple[Node, Node]] = []
    for key in dict.fromkeys((*snap.keys, *MODULES)):
        node = snap.entries.get(key)
        if key in replaced:
            node = dumper.module(stored_copy(replaced[key], snap.own(key), _place(snap, key)), key)
        elif snap.source is None and key in snap.live:
            node = dumper.module(snap.live[key], key)
        elif key in GENERATORS and persistent(node) is not None:
            # Never its own source text: ours, with its weights.
            own = snap.own(key)
            node = dumper.module(stored_copy(snap.module(key), own, _place(snap, key)), key)
        elif node is None and key in MODULES:
            node = dumper.module(nn.Module(), key)
        pairs.append((key, node))
    write_file(Path(path), DictNode(pairs), snap.source, overwrite=overwrite)
