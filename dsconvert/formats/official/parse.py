"""From a file to its inert nodes, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsconvert.adapter import adapters
from dsconvert.errors import CorruptSnapshotError, UnsupportedSnapshotError
from dsconvert.formats.official.persistence import class_key, persistent
from dsconvert.formats.official.policy import Walk
from dsconvert.safepickle.machine import Machine
from dsconvert.safepickle.nodes import DictNode, Node, clean
from dsconvert.safepickle.sniff import check_is_pickle
from dsconvert.safepickle.source import Cursor, Source

if TYPE_CHECKING:
    import os

    from dsconvert.adapter import Adapter

GENERATOR = "G_ema"
_TENSORFLOW = ("dnnlib.tflib.network", "Network")
_RELATIVES: tuple[tuple[set[str], str], ...] = (
    ({"SuperresGenerator"}, "StyleGAN-XL"),
    ({"SynthesisInput"}, "StyleGAN3 (cfg stylegan3-t or stylegan3-r) or StyleGAN-XL"),
    ({"TriPlaneGenerator", "DualDiscriminator"}, "EG3D"),
)
"""Persistent classes that tell other generators of the family."""


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A file as the machine left it: nothing of it judged, built or read."""

    source: Source
    machine: Machine
    root: DictNode


def is_module(node: Node) -> bool:
    """Whether a node is an instance of some class with state."""
    return class_key(node) is not None


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
        UnsupportedSnapshotError: TensorFlow, StyleGAN3, StyleGAN-XL.
    """
    named = {g.key for g in machine.globals}
    if _TENSORFLOW in named:
        raise UnsupportedSnapshotError(
            f"{source.path} is a TensorFlow pickle of StyleGAN or StyleGAN2. Convert it with "
            "legacy.py of NVlabs/stylegan2-ada-pytorch or NVlabs/stylegan3 first; dsconvert reads "
            "what that writes."
        )
    entry = dict(root.items).get(GENERATOR) if type(root) is DictNode else None
    if entry is None or persistent(entry) is None:
        return
    walk = Walk(source)
    walk.add([(GENERATOR, entry)])
    classes = {p.class_name for n in walk.nodes if (p := persistent(n)) is not None}
    for telling, name in _RELATIVES:
        if telling & classes:
            raise UnsupportedSnapshotError(
                f"{source.path} holds a generator of {name}, which dsconvert does not convert: "
                "its layers filter and resample differently. Of this family dsconvert converts "
                "StyleGAN2 (cfg=stylegan2 of Projected GAN, StyleGAN2-ADA-PyTorch and StyleGAN3)."
            )


def find_adapter(source: Source, node: Node) -> Adapter:
    """The installed adapter that knows the class of ``node``.

    Raises:
        UnsupportedSnapshotError: none does.
    """
    key = class_key(node)
    for adapter in adapters():
        if key in adapter.classes:
            return adapter
    name = clean(".".join(key), 160) if key else "no module"
    raise UnsupportedSnapshotError(
        f"{GENERATOR} in {source.path} is a {name}, which no installed adapter knows "
        f"(installed: {', '.join(a.name for a in adapters()) or 'none'})."
    )
