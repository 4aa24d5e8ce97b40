"""Check every operation of a pickle against an allow-list, before anything else happens.

Reachable or not: a call whose result is popped off, kept in the memo only, or used as a key is
judged like any other, since it would run in a plain unpickler all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsconvert.errors import CorruptSnapshotError
from dsconvert.safepickle.nodes import (
    DictNode,
    Global,
    Node,
    Record,
    children,
    clean,
    dict_pairs,
    tuple_of,
)
from dsconvert.safepickle.storage import (
    Storages,
    is_parameter,
    is_storage,
    is_tensor,
    parse_tensor,
)
from dsconvert.safepickle.walk import LOOSE, Walk

if TYPE_CHECKING:
    from collections.abc import Collection

    from dsconvert.safepickle.allow import AllowList, Objection
    from dsconvert.safepickle.read import Pickle

MAX_REPORTED = 1000
"""Offences that are looked for; a file with more is no better understood by more."""


@dataclass(frozen=True, kw_only=True)
class Offence:
    """One thing that is not on the allow-list, and where it sits."""

    name: str
    path: str
    why: str


def _describe(node: Node) -> str:
    if type(node) is Global:
        return str(node)
    if type(node) is Record:
        inner = node.func
        return f"the result of {inner}" if type(inner) is Global else "the result of a call"
    return f"a {type(node).__name__}"


def judge_state(state: Node, allow: AllowList) -> list[Objection]:
    """Return the objections to the state that an object of an allowed class is given."""
    both = tuple_of(state)
    if both is not None and len(both) == 2:
        # An object with slots has a pair: its dict and its slots. An unpickler sets these by
        # setattr, so that they may also be properties of the class, whose setters would run.
        state, slots = both
        if slots is not None:
            return [(_describe(slots), "is state for slots, which no allowed class has")]
    if state is None:
        return []
    pairs = dict_pairs(state)
    if pairs is None:
        return [(_describe(state), "is state that is not a dict")]
    found: list[Objection] = []
    for key, value in pairs:
        if allow.forbids_attribute(key):
            name = clean(key) if type(key) is str else type(key).__name__
            found.append((f"attribute {name!r}", "would be overridden by the state"))
        elif key.endswith("_hooks") and value is not None:
            found.extend(_judge_hooks(value, allow))
    return found


def _judge_hooks(value: Node, allow: AllowList) -> list[Objection]:
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
            and hook.func.key in allow.hooks
        )
    ]


def _judge_record(node: Record, allow: AllowList) -> list[Objection]:
    func = node.func
    if type(func) is not Global:
        return [(_describe(func), "is called, though it is not a name")]
    is_object = True
    if node.kind == "call":
        rule = allow.calls.get(func.key)
        if rule is None:
            return [(str(func), "would be called")]
        if not rule.check(node.args):
            return [(str(func), "would be called with arguments it never has")]
        found = [(str(func), f"is followed by {op}") for op, _ in node.ops if op not in rule.follow]
        if rule.state is not None:
            for op, value in node.ops:
                if op == "build" and not rule.state(value):
                    found.append((str(func), "is given state that it never has"))
        is_object = rule.makes_object
    else:
        if not allow.classes(func.key):
            return [(str(func), "would be instantiated")]
        if node.args or (type(node.kwargs) is DictNode and node.kwargs.items):
            return [(str(func), "would be constructed with arguments")]
        found = []
    if is_object:
        for op, value in node.ops:
            if op == "build":
                found.extend(judge_state(value, allow))
    return [*found, *allow.object_to(node)]


def _judge_children(node: Node, allow: AllowList) -> list[tuple[Global, str]]:
    """Return the globals that ``node`` holds as plain data although they are not allowed there."""
    held = [c for _, c in children(node) if type(c) is Global]
    if type(node) is Record:
        held = [c for c in held if c is not node.func]
    return [(c, "stands where data belongs") for c in held if c.key not in allow.data]


def examine(
    pickle: Pickle, allow: AllowList, *, drop: Collection[str] = ()
) -> tuple[list[Offence], Storages]:
    """Return everything in a pickled dict that is not on the allow-list, and the storages.

    Args:
        pickle: the pickle; its root is a dict.
        allow: the allow-list.
        drop: keys of the dict that are left out, and not judged.

    Raises:
        CorruptSnapshotError: too deep, or a tensor is malformed.
        UnsafeSnapshotError: a call hides inside a tensor's storage.
    """
    source, machine = pickle.source, pickle.machine
    kept, dropped = Walk(source), Walk(source)
    for key, value in pickle.entries:
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

    checked: set[int] = set()
    storages = Storages(source)
    for node in kept.nodes:
        if type(node) is Record:
            for name, why in _judge_record(node, allow):
                report(name, node, why)
            if type(node.func) is Global:
                checked.add(id(node.func))
                rule = allow.calls.get(node.func.key)
                if rule is not None and rule.takes_classes:
                    checked.update(id(a) for a in node.args if type(a) is Global)
                    checked.add(id(node.args))
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
            if id(node) not in checked and node.key not in allow.data:
                report(str(node), node, "would be imported")
        elif id(node) not in checked:
            for name, why in _judge_children(node, allow):
                report(str(name), node, why)
    for what, target in machine.tampered:
        if id(target) not in dropped.seen:
            report(_describe(target), target, f"is tampered with: the pickle {what} it")
    return list(found.values()), storages
