"""What of a file may be carried: checked over all that the pickle did, before anything else.

Reachable or not: a call whose result is popped off, kept in the memo only, or used as a key is
judged like any other, since it would run in a plain unpickler all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsconvert.adapter import PERSISTENCE, adapters
from dsconvert.errors import CorruptSnapshotError, UnsafeSnapshotError
from dsconvert.formats.official.allowed import (
    BARE,
    CALLS,
    CLASS_ARGUMENTS,
    HOOK_CLASSES,
    STATES,
    Key,
    class_allowed,
    forbidden_attribute,
)
from dsconvert.formats.official.persistence import origin, persistent
from dsconvert.safepickle.nodes import (
    DictNode,
    Global,
    Node,
    Record,
    children,
    clean,
    dict_pairs,
    is_leaf,
    tuple_of,
)
from dsconvert.safepickle.storage import (
    Storages,
    is_parameter,
    is_storage,
    is_tensor,
    parse_tensor,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from dsconvert.safepickle.machine import Machine
    from dsconvert.safepickle.source import Source

MAX_DEPTH = 1000
MAX_LISTED = 20
"""Offences in an error's message."""
MAX_REPORTED = 1000
"""Offences that are looked for; a file with more is no better understood by more."""
GENERATOR = "G_ema"
GENERATORS = ("G", GENERATOR)
"""Entries that are built anew where they are persistent objects, and never written back as they
were: so they may bring any source text."""
LOOSE = "(not part of the data: dropped from the stack or left in the memo)"


@dataclass(frozen=True, kw_only=True)
class Offence:
    """One thing that is not on the allow-list, and where it sits."""

    name: str
    path: str
    why: str


class Walk:
    """Everything below some named nodes, with a path to each; iterative, cycles are fine."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.seen: dict[int, tuple[int, str]] = {}
        self.nodes: list[Node] = []

    def add(self, roots: Iterable[tuple[str, Node]]) -> None:
        """Walk from ``roots``.

        Raises:
            CorruptSnapshotError: nested deeper than ``MAX_DEPTH``.
        """
        stack: list[tuple[Node, int, str, int]] = [(n, 0, label, 0) for label, n in roots][::-1]
        while stack:
            node, parent, label, depth = stack.pop()
            if is_leaf(node) or id(node) in self.seen:
                continue
            if depth > MAX_DEPTH:
                raise CorruptSnapshotError(
                    f"{self._source.path} is nested more than {MAX_DEPTH} levels deep, which no "
                    "snapshot is. Copy or download it again."
                )
            self.seen[id(node)] = (parent, label)
            self.nodes.append(node)
            below = [(c, id(node), name, depth + 1) for name, c in children(node)]
            stack.extend(reversed(below))

    def path(self, node: Node) -> str:
        """Where ``node`` sits, as dotted names."""
        labels: list[str] = []
        at = id(node)
        while at in self.seen and len(labels) < 4 * MAX_DEPTH:
            at, label = self.seen[at]
            if label and label not in ("_modules", "<arguments>"):
                labels.append(label)
        return ".".join(reversed(labels[-40:])) or LOOSE


def _describe(node: Node) -> str:
    if type(node) is Global:
        return str(node)
    if type(node) is Record:
        inner = node.func
        return f"the result of {inner}" if type(inner) is Global else "the result of a call"
    return f"a {type(node).__name__}"


def _judge_state(state: Node) -> list[tuple[str, str]]:
    """What is wrong with the state that an object of an allowed class is given."""
    both = tuple_of(state)
    # An object with slots has a pair: its dict and its slots.
    parts: tuple[Node, ...] = both if both is not None and len(both) == 2 else (state,)
    found: list[tuple[str, str]] = []
    for part in parts:
        if part is None:
            continue
        pairs = dict_pairs(part)
        if pairs is None:
            found.append((_describe(part), "is state that is not a dict"))
            continue
        for key, value in pairs:
            if forbidden_attribute(key):
                name = clean(key) if type(key) is str else type(key).__name__
                found.append((f"attribute {name!r}", "would be overridden by the state"))
            elif key.endswith("_hooks") and value is not None:
                found.extend(_judge_hooks(value))
    return found


def _judge_hooks(value: Node) -> list[tuple[str, str]]:
    pairs = dict_pairs(value)
    if pairs is None:
        return [(_describe(value), "stands where a module's hooks belong")]
    return [
        (_describe(hook), "is no hook that dsconvert knows")
        for _, hook in pairs
        if not (
            type(hook) is Record
            and hook.kind == "new"
            and type(hook.func) is Global
            and hook.func.key in HOOK_CLASSES
        )
    ]


def _judge_record(node: Record, known: frozenset[Key]) -> list[tuple[str, str]]:
    func = node.func
    if type(func) is not Global:
        return [(_describe(func), "is called, though it is not a name")]
    if node.kind == "call":
        rule = CALLS.get(func.key)
        if rule is None:
            return [(str(func), "would be called")]
        check, follow = rule
        if not check(node.args):
            return [(str(func), "would be called with arguments it never has")]
        found = [(str(func), f"is followed by {op}") for op, _ in node.ops if op not in follow]
        state_check = STATES.get(func.key)
        if state_check is not None:
            for op, value in node.ops:
                if op == "build" and not state_check(value):
                    found.append((str(func), "is given state that it never has"))
    else:
        if not class_allowed(func.key) and func.key not in known:
            return [(str(func), "would be instantiated")]
        if node.args or (type(node.kwargs) is DictNode and node.kwargs.items):
            return [(str(func), "would be constructed with arguments")]
        found = []
    if node.kind == "new" or func.name in ("OrderedDict", "_reconstructor"):
        for op, value in node.ops:
            if op == "build":
                found.extend(_judge_state(value))
    if (instance := persistent(node)) is not None:
        found.extend(_judge_state(instance.state))
    return found


def _carried(source: Source, machine: Machine, root: DictNode, drop: Collection[str]) -> set[int]:
    """Persistent objects that would be written back: in other entries than the generators.

    One that hangs loose belongs to them: it is in no generator either.
    """
    read, carried = Walk(source), Walk(source)
    family = any(k == GENERATOR and persistent(v) is not None for k, v in root.items)
    for key, value in root.items:
        dropped = type(key) is str and key in drop
        rebuilt = (
            family and type(key) is str and key in GENERATORS and persistent(value) is not None
        )
        (read if dropped or rebuilt else carried).add([("", value)])
    return {id(r) for r in machine.records if id(r) in carried.seen or id(r) not in read.seen}


def _judge_source(node: Record) -> list[tuple[str, str]]:
    instance = persistent(node)
    if instance is None or origin(instance.source) is not None:
        return []
    name = f"{PERSISTENCE} object of class {clean(instance.class_name)}"
    return [(name, "brings source text that the official loader would run, and nobody knows it")]


def _judge_children(node: Node) -> list[tuple[Global, str]]:
    """Globals that ``node`` holds as plain data although they may not be."""
    held = [c for _, c in children(node) if type(c) is Global]
    if type(node) is Record:
        held = [c for c in held if c is not node.func]
    return [(c, "stands where data belongs") for c in held if c.key not in BARE]


def examine(
    source: Source, machine: Machine, root: DictNode, drop: Collection[str] = ()
) -> tuple[list[Offence], Storages]:
    """Everything in the file that is not on the allow-list, and the storages that are fine.

    Args:
        source: the file.
        machine: the finished machine, with all that it saw.
        root: the snapshot's dict.
        drop: entries that are left out, and not judged.

    Raises:
        CorruptSnapshotError: too deep, or a tensor is malformed.
        UnsafeSnapshotError: a call hides inside a tensor's storage.
    """
    kept, dropped = Walk(source), Walk(source)
    for key, value in root.items:
        name = key if type(key) is str else "<key>"
        (dropped if name in drop else kept).add([("<key>", key), (clean(name), value)])
    loose = [
        *machine.records,
        *machine.globals,
        *(target for _, target in machine.tampered),
    ]
    kept.add((LOOSE, n) for n in loose if id(n) not in dropped.seen)

    found: dict[tuple[str, str], Offence] = {}

    def report(name: str, node: Node, why: str) -> None:
        if len(found) < MAX_REPORTED:
            path = kept.path(node)
            found.setdefault((name, path), Offence(name=name, path=path, why=why))

    # Whoever installs an adapter vouches for the classes that it names.
    known = frozenset(
        key for adapter in adapters() for key in adapter.classes if key[0] != PERSISTENCE
    )
    carried = _carried(source, machine, root, drop)
    vouched: set[int] = set()
    storages = Storages(source)
    for node in kept.nodes:
        if type(node) is Record:
            for name, why in _judge_record(node, known):
                report(name, node, why)
            if id(node) in carried:
                for name, why in _judge_source(node):
                    report(name, node, why)
            if type(node.func) is Global:
                vouched.add(id(node.func))
                if node.func.key in CLASS_ARGUMENTS:
                    vouched.update(id(a) for a in node.args if type(a) is Global)
                    vouched.add(id(node.args))
            if is_storage(node):
                storages.get(node)
            elif is_tensor(node):
                parse_tensor(node, storages)
            elif is_parameter(node) and not (node.args and is_tensor(node.args[0])):
                raise CorruptSnapshotError(
                    f"{source.path} is damaged: {kept.path(node)} is a parameter without a tensor."
                )
    for node in kept.nodes:
        if type(node) is Global:
            if id(node) not in vouched and node.key not in BARE:
                report(str(node), node, "would be imported")
        elif id(node) not in vouched:
            for name, why in _judge_children(node):
                report(str(name), node, why)
    for what, target in machine.tampered:
        if id(target) not in dropped.seen:
            report(_describe(target), target, f"is tampered with: the pickle {what} it")
    return list(found.values()), storages


def refuse(source: Source, offences: list[Offence], keys: Collection[str]) -> UnsafeSnapshotError:
    """The error for a file with ``offences``, all of them, with the remedy."""
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
