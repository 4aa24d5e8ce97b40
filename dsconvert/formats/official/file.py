"""An opened snapshot of the official code: its generators on demand, and the way to write it."""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter, adapter_for
from dsconvert.config.choices import Noise
from dsconvert.errors import AdapterError, UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.official.build import Builder
from dsconvert.formats.official.dump import Dumper
from dsconvert.formats.official.parts import Parts
from dsconvert.formats.official.persistence import persistent
from dsconvert.formats.official.read import GENERATOR, GENERATORS, is_module, names_of
from dsconvert.formats.official.state import state_of
from dsconvert.formats.safetensors.write import save_plain
from dsconvert.model.precision import WORKING, stored_copy, widen
from dsconvert.safepickle import DictNode, Node, write_file

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from dsconvert.records import Export
    from dsconvert.safepickle import Source, Storages

MODULES = ("G", "D", "G_ema")
"""Entries that the official loader requires to be modules."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot(GeneratorFile):
    """An official snapshot; ``config`` holds cfg, resolution, ngf, classes, ..."""

    format_name = "official snapshot"
    suffixes = (".pkl", ".pickle", "")

    adapter: Adapter
    source: Source | None = field(repr=False)
    entries: Mapping[str, Node] = field(repr=False)
    foreign: Mapping[tuple[str, str], type[nn.Module]] = field(default_factory=dict, repr=False)
    """Names of live modules' classes in the file, beside the adapter's."""
    storages: Storages | None = field(default=None, repr=False)
    """Of ``source``, their headers read once."""
    _types: dict[str, dict[str, Tensor]] = field(
        default_factory=dict[str, dict[str, Tensor]], repr=False
    )

    def read(self, key: str) -> nn.Module:
        """Build the module under ``key`` anew, in float32.

        Raises:
            UsageError: there is no such entry, or it is no module.
            UnsupportedSnapshotError: its classes are copied unread, never built.
            CorruptSnapshotError: its parts do not fit together.
        """
        if key not in self.entries:
            raise UsageError(f"{self.path} has no entry {key!r}. It has: {names_of(self.keys)}.")
        node = self.entries[key]
        if self.source is None or not is_module(node):
            raise UsageError(f"the entry {key!r} of {self.path} is no module.")
        self.source.check_unchanged()
        made = self._builder(self.source).module(node, key)
        self._types[key] = {k: t.to("meta") for k, t in made.state_dict().items()}
        return widen(made)

    def _builder(self, source: Source, *, meta: bool = False) -> Builder:
        return Builder(source, self.adapter, meta=meta, storages=self.storages)

    def own(self, key: str) -> dict[str, Tensor]:
        """Return the generator's tensors as the file has them, for their types.

        They are on the meta device, unless some are more precise than float32. Empty where ``key``
        is no module of the file.

        Raises:
            CorruptSnapshotError: its parts do not fit together.
        """
        node, source = self.entries.get(key), self.source
        if source is None or not is_module(node):
            return {}
        shapes = self._types.get(key)
        if shapes is None:
            shapes = self._builder(source, meta=True).module(node, key).state_dict()
        wide = any(
            t.is_floating_point() and torch.finfo(t.dtype).bits > torch.finfo(WORKING).bits
            for t in shapes.values()
        )
        return self._builder(source).module(node, key).state_dict() if wide else shapes

    def state(self, key: str) -> dict[str, Tensor]:
        """Return the state dict of the module under ``key``, also of one that is not built (``D``).

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
        return state_of(Parts(self.source, storages=self.storages), node, key)

    def has_module(self, key: str) -> bool:
        """Return whether ``key`` is there and is a module (``G`` may be None in a file)."""
        return key in self.live or is_module(self.entries.get(key))

    def is_private(self, key: str) -> bool:
        """Return whether :meth:`module` builds the module anew, so that nobody else holds it."""
        return key not in self.live

    @property
    def is_drawn_officially(self) -> bool:
        """True: the official code reads the file."""
        return True

    def save(
        self,
        models: Mapping[str, nn.Module],
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
    ) -> None:
        """Write a snapshot that the official code can load; see :func:`save_snapshot`."""
        replaced = dict(models)
        wrong = sorted(set(replaced) - {"G", GENERATOR})
        if wrong or not replaced:
            raise UsageError(
                f"only G and {GENERATOR} can be replaced, not {', '.join(wrong) or 'nothing'}."
            )
        if self.source is not None:
            self.source.check_unchanged()
        dumper = Dumper(self.adapter, self.foreign)
        pairs: list[tuple[Node, Node]] = []
        for key in dict.fromkeys((*self.keys, *MODULES)):
            node = self.entries.get(key)
            if key in replaced:
                node = dumper.module(
                    stored_copy(replaced[key], self.own(key), self._place(key)), key
                )
            elif self.source is None and key in self.live:
                node = dumper.module(self.live[key], key)
            elif key in GENERATORS and persistent(node) is not None:
                # Never its own source text: ours, with its weights.
                own = self.own(key)
                node = dumper.module(stored_copy(self.module(key), own, self._place(key)), key)
            elif node is None and key in MODULES:
                node = dumper.module(nn.Module(), key)
            pairs.append((key, node))
        write_file(Path(path), DictNode(pairs), self.source, overwrite=overwrite)

    def _place(self, key: str) -> str:
        return f"{key} in {self.path}" if self.path is not None else key

    @property
    def is_rebuildable(self) -> bool:
        """Whether the adapter can build the generator from its facts."""
        return self.adapter.can_build

    def save_safetensors(
        self, model: nn.Module, path: Path, *, noise: Noise, overwrite: bool
    ) -> Export:
        """Write ``model`` alone; see :func:`dsconvert.formats.safetensors.save_plain`."""
        return save_plain(model, path, noise=noise, overwrite=overwrite, inputs=self.inputs())


def new_snapshot(
    generator: nn.Module,
    *,
    modules: Mapping[str, nn.Module] | None = None,
    foreign: Mapping[tuple[str, str], type[nn.Module]] | None = None,
    training_set_kwargs: Mapping[str, Any] | None = None,
    adapter: Adapter | None = None,
) -> Snapshot:
    """Make a snapshot in memory around a generator that came from no file.

    Args:
        generator: ``G_ema``, and ``G`` too unless ``modules`` has one.
        modules: other entries (``G``, ``D``).
        foreign: names that the official code knows classes of ``modules`` by, beside the adapter's.
        training_set_kwargs: plain values, as the official metrics want them.
        adapter: the generator's adapter; None: the installed one that knows it.

    Raises:
        AdapterError: no installed adapter knows the generator.
    """
    adapter = adapter or adapter_for(generator)
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
        generators=(GENERATOR, "G"),
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
    requires modules.

    Args:
        snap: the source of everything else.
        generator: the new ``G_ema``, or modules by entry (``G``, ``G_ema``).
        path: the file to write; written beside it first, so that it may be ``snap.path``.
        overwrite: whether ``path`` may exist.

    Raises:
        UsageError: an entry that can't be replaced.
        OutputError: the file can't be written, or a weight overflows in the file's own type.
        SnapshotError: a module holds what the official code could not load.
    """
    models = generator if isinstance(generator, MappingABC) else {GENERATOR: generator}
    snap.save(models, path, overwrite=overwrite)
