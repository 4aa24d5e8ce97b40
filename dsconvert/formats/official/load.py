"""Open an official snapshot without running anything in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dsconvert.adapter import Adapter
from dsconvert.errors import CorruptSnapshotError, UnsupportedSnapshotError, UsageError
from dsconvert.formats.official.build import Builder
from dsconvert.formats.official.file import MODULES, Snapshot
from dsconvert.formats.official.persistence import origin, persistent
from dsconvert.formats.official.policy import examine, refuse
from dsconvert.formats.official.read import (
    GENERATOR,
    find_adapter,
    is_module,
    names_of,
    parse,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping

    from torch import nn

    from dsconvert.adapter import Adapter
    from dsconvert.safepickle import Node, Source

UNKNOWN_SOURCE = "unknown text (read by class names; compare the images)"
"""The fact ``source`` of a file whose embedded source text is none of the released ones."""


def load_snapshot(
    path: str | os.PathLike[str],
    *,
    drop: Collection[str] = (),
    adapters: Sequence[Adapter] = (),
) -> Snapshot:
    """Open a snapshot of the official code without running anything in it.

    The whole file is checked; tensors are read when a module is asked for.

    Args:
        path: the file.
        drop: entries to leave out (for example ``("D",)``); an empty module is written for a
            dropped ``G`` or ``D``, as the official loader requires.
        adapters: further adapters, which need not be installed.

    Raises:
        ForeignFileError: the file is missing, or something else altogether.
        CorruptSnapshotError: it is truncated or malformed.
        UnsafeSnapshotError: it refers to names that are not on the allow-list.
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
            f"{source.path} has no entry {', '.join(unknown)} to drop. It has: {names_of(entries)}."
        )
    offences, storages = examine(parsed, dropped, adapters)
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
            f"{source.path} has no module {GENERATOR} (its entries: {names_of(entries)}). Name a "
            "snapshot that the official training code wrote."
        )
    adapter = find_adapter(source, node, adapters)
    shapes = Builder(source, adapter, meta=True, storages=storages).module(node, GENERATOR)
    config = describe(source, adapter, node, shapes)
    return Snapshot(
        path=source.path,
        adapter=adapter,
        config=config,
        keys=tuple(entries),
        generators=tuple(k for k in (GENERATOR, "G") if is_module(entries.get(k))),
        source=source,
        entries=entries,
        storages=storages,
    )


def describe(source: Source, adapter: Adapter, node: Node, shapes: nn.Module) -> Mapping[str, Any]:
    """Return the adapter's facts about a generator in a file, from shapes alone.

    ``shapes`` is the generator without data.

    Raises:
        CorruptSnapshotError: its parts do not fit together.
    """
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
