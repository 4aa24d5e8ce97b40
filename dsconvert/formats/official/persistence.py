"""Objects of the ``torch_utils.persistence`` kind, which embed the source of their class.

NVIDIA's code (StyleGAN2-ADA, StyleGAN3, and code built on them) pickles a module as the call
``torch_utils.persistence._reconstruct_persistent_obj(meta)``; ``meta`` holds the class's name, the
text of the module that defines it, and the object's state. The official loader executes that
text. Here it is data: the name picks one of our own classes, the state is read, and the text is
hashed, never run. It is written back only where its hash is one that an adapter knows.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

from dsconvert.adapter import PERSISTENCE, adapters
from dsconvert.safepickle import DictNode, Global, Node, Record

RECONSTRUCT = (PERSISTENCE, "_reconstruct_persistent_obj")
VERSION = 6
"""The only version that was ever released."""
_FIELDS = {"type": str, "version": int, "module_src": str, "class_name": str, "state": DictNode}
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}", re.ASCII)


@dataclass(frozen=True, kw_only=True, eq=False)
class Persistent:
    """The content of such a call."""

    class_name: str
    source: str
    state: DictNode


def persistent_args(args: tuple[Node, ...]) -> bool:
    """Return whether a call of ``_reconstruct_persistent_obj`` has the arguments it always has."""
    if len(args) != 1 or type(args[0]) is not DictNode:
        return False
    pairs: list[tuple[Node, Node]] = args[0].items
    if len(pairs) != len(_FIELDS) or not all(type(k) is str for k, _ in pairs):
        return False
    meta = dict(pairs)
    return (
        meta.keys() == _FIELDS.keys()
        and all(type(meta[k]) is kind for k, kind in _FIELDS.items())
        and meta["type"] == "class"
        and meta["version"] == VERSION
        and _CLASS.fullmatch(meta["class_name"]) is not None
    )


def persistent(node: Node) -> Persistent | None:
    """Return ``node`` as a persistent object, if it is a well-formed one."""
    if (
        type(node) is not Record
        or node.kind != "call"
        or type(node.func) is not Global
        or node.func.key != RECONSTRUCT
        or node.ops
        or not persistent_args(node.args)
    ):
        return None
    meta = dict(node.args[0].items)
    return Persistent(class_name=meta["class_name"], source=meta["module_src"], state=meta["state"])


def class_key(node: Node) -> tuple[str, str] | None:
    """Return the name by which adapters know the class of an instance; None for other nodes."""
    found = persistent(node)
    if found is not None:
        return PERSISTENCE, found.class_name
    if type(node) is Record and node.kind == "new" and type(node.func) is Global:
        return node.func.key
    return None


@lru_cache(maxsize=64)
def _digest(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def origin(source: str) -> str | None:
    """Return the owner of the released text that equals ``source``; None if no adapter has it."""
    digest = _digest(source)
    for adapter in adapters():
        if source == adapter.source():
            return "dsconvert"
        if digest in adapter.known_sources:
            return adapter.known_sources[digest]
    return None


def node_of(class_name: str, source: str, state: list[tuple[Node, Node]]) -> Record:
    """Return the call that stands for an object of ``class_name``, defined in ``source``."""
    meta: list[tuple[Node, Node]] = [
        ("type", "class"),
        ("version", VERSION),
        ("module_src", source),
        ("class_name", class_name),
        ("state", DictNode(state)),
    ]
    return Record("call", Global(*RECONSTRUCT), (DictNode(meta),))
