"""From a snapshot's file to its inert nodes, and to the adapter that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsconvert.adapter import PERSISTENCE, Adapter, adapters
from dsconvert.errors import CorruptSnapshotError, UnsupportedSnapshotError
from dsconvert.formats.official.foreign import check_first_bytes, check_relatives
from dsconvert.formats.official.persistence import class_key, persistent
from dsconvert.safepickle import DictNode, Node, Pickle, Source, Walk, clean, read_pickle

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from dsconvert.adapter import Adapter

GENERATOR = "G_ema"
GENERATORS = (GENERATOR, "G")
"""Entries that hold generators, the main one first. Where they are persistent objects, they are
built anew and never written back as they were, so they may bring any source text."""


def is_module(node: Node) -> bool:
    """Return whether a node is an instance of some class with state."""
    return class_key(node) is not None


def names_of(keys: Iterable[str]) -> str:
    """Return entries' names for a message."""
    shown = [clean(key) for key in keys]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "") or "none"


def parse(path: str | os.PathLike[str]) -> Pickle:
    """Read a file's structure; tensors stay where they are, and nothing is judged yet.

    Raises:
        ForeignFileError: it is no pickle.
        CorruptSnapshotError: it is malformed, or continues behind its end.
        UnsupportedSnapshotError: a known format of other code.
    """
    source = Source(path)
    check_first_bytes(source)
    parsed = read_pickle(source)
    check_relatives(parsed, GENERATOR)
    if parsed.rest:
        raise CorruptSnapshotError(
            f"{source.path} goes on for {parsed.rest} bytes behind the end of its pickle, "
            "which no snapshot does. It is damaged, or somebody appended to it."
        )
    names = [k for k, _ in parsed.entries]
    if type(parsed.root) is not DictNode or not all(type(k) is str for k in names):
        raise UnsupportedSnapshotError(
            f"{source.path} is a pickle, but not of a dict with G_ema in it. Name the "
            "network-snapshot.pkl or best_model.pkl that the official training code wrote."
        )
    if len(set(names)) < len(names):
        raise CorruptSnapshotError(
            f"{source.path} has an entry twice. It was not written by the official code."
        )
    return parsed


def find_adapter(source: Source, node: Node, given: Sequence[Adapter] = ()) -> Adapter:
    """Return the adapter, one of ``given`` first, that knows the class of ``node``.

    Raises:
        UnsupportedSnapshotError: none does.
    """
    key = class_key(node)
    knowing = [adapter for adapter in adapters(given) if key in adapter.classes]
    if persistent(node) is not None and len(knowing) > 1:
        # Codebases share names (Generator, SynthesisLayer); only one knows all that are inside.
        walk = Walk(source)
        walk.add([(GENERATOR, node)])
        inside = {(PERSISTENCE, p.class_name) for n in walk.nodes if (p := persistent(n))}
        knowing.sort(key=lambda adapter: len(inside - adapter.classes.keys()))
    if knowing:
        return knowing[0]
    name = clean(".".join(key), 160) if key else "no module"
    raise UnsupportedSnapshotError(
        f"{GENERATOR} in {source.path} is a {name}, which no installed adapter knows "
        f"(installed: {', '.join(a.name for a in adapters()) or 'none'})."
    )
