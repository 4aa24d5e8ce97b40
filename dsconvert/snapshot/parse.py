"""From a file to its inert nodes, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsconvert.adapter import adapters
from dsconvert.errors import CorruptSnapshotError, UnsupportedSnapshotError
from dsconvert.snapshot.machine import Machine
from dsconvert.snapshot.nodes import DictNode, Global, Node, Record
from dsconvert.snapshot.policy import Walk
from dsconvert.snapshot.sniff import check_is_pickle
from dsconvert.snapshot.source import Cursor, Source

if TYPE_CHECKING:
    import os

    from dsconvert.adapter import Adapter

GENERATOR = "G_ema"
_PERSISTENCE = ("torch_utils.persistence", "_reconstruct_persistent_obj")
_TENSORFLOW = ("dnnlib.tflib.network", "Network")


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A file as the machine left it: nothing of it judged, built or read."""

    source: Source
    machine: Machine
    root: DictNode


def is_module(node: Node) -> bool:
    """Whether a node is an instance of some class with state."""
    return type(node) is Record and node.kind == "new" and type(node.func) is Global


def parse(path: str | os.PathLike[str]) -> Parsed:
    """Read a file's structure; tensors stay where they are, and nothing is judged yet.

    Raises:
        ForeignFileError: it is no pickle.
        CorruptSnapshotError: it is malformed, or goes on behind its end.
        UnsupportedSnapshotError: a known format of other code.
    """
    source = Source(path)
    check_is_pickle(source)
    cursor = Cursor(source)
    machine = Machine(cursor)
    root = machine.run()
    check_foreign(source, machine, root)
    if cursor.remaining:
        raise CorruptSnapshotError(
            f"{source.path} goes on for {cursor.remaining} bytes behind the end of its pickle, "
            "which no snapshot does. It is damaged, or somebody appended to it."
        )
    if type(root) is not DictNode or not all(type(k) is str for k, _ in root.items):
        raise UnsupportedSnapshotError(
            f"{source.path} is a pickle, but not of a dict with G_ema in it. Name the "
            "network-snapshot.pkl or best_model.pkl that the official training code wrote."
        )
    names = [k for k, _ in root.items]
    if len(set(names)) < len(names):
        raise CorruptSnapshotError(
            f"{source.path} has an entry twice. It was not written by the official code."
        )
    return Parsed(source=source, machine=machine, root=root)


def check_foreign(source: Source, machine: Machine, root: Node) -> None:
    """Recognise the snapshots of related code.

    Raises:
        UnsupportedSnapshotError: StyleGAN (persistence) or TensorFlow.
    """
    named = {g.key for g in machine.globals}
    if _TENSORFLOW in named:
        raise UnsupportedSnapshotError(
            f"{source.path} is a TensorFlow pickle of StyleGAN or StyleGAN2. dsconvert converts "
            "Projected GAN snapshots with cfg=fastgan or cfg=fastgan_lite."
        )
    if _PERSISTENCE not in named:
        return
    entry = (
        next((v for k, v in root.items if k == GENERATOR), root)
        if (type(root) is DictNode)
        else root
    )
    walk = Walk(source)
    walk.add([(GENERATOR, entry)])
    if any(type(n) is Global and n.key == _PERSISTENCE for n in walk.nodes):
        raise UnsupportedSnapshotError(
            f"{source.path} holds a generator of the StyleGAN family (cfg=stylegan2, StyleGAN3 or "
            "StyleGAN-XL), which brings its source text along for the loader to execute. "
            "dsconvert does not run it, and does not convert such files yet; it converts "
            "cfg=fastgan and cfg=fastgan_lite."
        )


def find_adapter(source: Source, node: Node) -> Adapter:
    """The installed adapter that knows the class of ``node``.

    Raises:
        UnsupportedSnapshotError: none does.
    """
    for adapter in adapters():
        if node.func.key in adapter.classes:
            return adapter
    raise UnsupportedSnapshotError(
        f"{GENERATOR} in {source.path} is a {node.func}, which no installed adapter knows "
        f"(installed: {', '.join(a.name for a in adapters()) or 'none'})."
    )
