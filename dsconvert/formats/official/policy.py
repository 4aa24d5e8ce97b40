"""Apply the allow-list to a snapshot, and make the error for one that it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsconvert.adapter import PERSISTENCE, Adapter, adapters
from dsconvert.errors import UnsafeSnapshotError
from dsconvert.formats.official.allowed import (
    BEHAVIOUR,
    CALLS,
    DATA,
    HOOK_CLASSES,
    class_allowed,
)
from dsconvert.formats.official.persistence import origin, persistent
from dsconvert.formats.official.read import GENERATOR, GENERATORS
from dsconvert.safepickle import (
    AllowList,
    Objection,
    Offence,
    Pickle,
    Record,
    Source,
    Storages,
    Walk,
    clean,
    judge_state,
)
from dsconvert.safepickle import examine as examine_pickle

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_LISTED = 20
"""Offences in an error's message."""


def examine(
    parsed: Pickle, drop: Collection[str] = (), given: Sequence[Adapter] = ()
) -> tuple[list[Offence], Storages]:
    """Return everything in a snapshot that is not on the allow-list, and the storages.

    Args:
        parsed: the file.
        drop: entries that are left out, and not judged.
        given: adapters beside the installed ones.

    Raises:
        CorruptSnapshotError: too deep, or a tensor is malformed.
        UnsafeSnapshotError: a call hides inside a tensor's storage.
    """
    # By installing an adapter a user trusts the classes that it names.
    known = frozenset(
        key for adapter in adapters(given) for key in adapter.classes if key[0] != PERSISTENCE
    )
    carried = _carried(parsed, drop)

    def object_to(node: Record) -> list[Objection]:
        if (instance := persistent(node)) is None:
            return []
        found = judge_state(instance.state, allow)
        return [*found, *(_judge_source(node) if id(node) in carried else [])]

    allow = AllowList(
        classes=lambda key: class_allowed(key) or key in known,
        calls=CALLS,
        data=DATA,
        hooks=HOOK_CLASSES,
        attributes=BEHAVIOUR,
        object_to=object_to,
    )
    return examine_pickle(parsed, allow, drop=drop)


def _carried(parsed: Pickle, drop: Collection[str]) -> set[int]:
    """Return the ids of the objects that would be written back: those outside of the generators.

    An object that is no part of the data is one of them: it is in no generator either.
    """
    read, carried = Walk(parsed.source), Walk(parsed.source)
    family = any(k == GENERATOR and persistent(v) is not None for k, v in parsed.entries)
    for key, value in parsed.entries:
        dropped = type(key) is str and key in drop
        rebuilt = (
            family and type(key) is str and key in GENERATORS and persistent(value) is not None
        )
        (read if dropped or rebuilt else carried).add([("", value)])
    return {
        id(r) for r in parsed.machine.records if id(r) in carried.seen or id(r) not in read.seen
    }


def _judge_source(node: Record) -> list[Objection]:
    instance = persistent(node)
    if instance is None or origin(instance.source) is not None:
        return []
    name = f"{PERSISTENCE} object of class {clean(instance.class_name)}"
    return [(name, "brings source text that the official loader would run, and nobody knows it")]


def refuse(source: Source, offences: list[Offence], keys: Collection[str]) -> UnsafeSnapshotError:
    """Return the error for a file with ``offences``: all of them, with the remedy."""
    lines = [f"  {o.name} at {o.path}: {o.why}" for o in offences[:MAX_LISTED]]
    if len(offences) > MAX_LISTED:
        lines.append(f"  and {len(offences) - MAX_LISTED} more")
    places = {o.path.split(".")[0].split("[")[0] for o in offences}
    if places and places <= set(keys) and "G_ema" not in places:
        names = ", ".join(repr(p) for p in sorted(places))
        remedy = (
            f"If you can do without {names}, leave it out: --drop KEY when converting, or "
            f"load_snapshot(path, drop=({names},))."
        )
    else:
        remedy = (
            "Don't use this file unless you know its author; ask for one that the official "
            "training code wrote."
        )
    return UnsafeSnapshotError(
        f"{source.path} refers to what is not on dsconvert's allow-list "
        f"({len(offences)} in all). Nothing of it has run.\n" + "\n".join(lines) + f"\n{remedy}"
    )
