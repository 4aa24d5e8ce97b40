"""Read the structure of a pickle: nothing in it is judged, built or run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsconvert.safepickle.machine import Machine
from dsconvert.safepickle.nodes import DictNode, Node
from dsconvert.safepickle.source import Cursor, Source

if TYPE_CHECKING:
    import os


@dataclass(frozen=True, kw_only=True)
class Pickle:
    """A pickle as inert nodes.

    Attributes:
        source: the open file; byte strings stay in it.
        machine: the finished machine, with all objects and names that it saw.
        root: the value that the pickle stands for.
        rest: bytes of the file behind the end of the pickle.
    """

    source: Source
    machine: Machine
    root: Node
    rest: int

    @property
    def entries(self) -> list[tuple[Node, Node]]:
        """The pairs of the dict that the pickle stands for; empty where it is no dict."""
        return self.root.items if type(self.root) is DictNode else []


def read_pickle(source: Source | str | os.PathLike[str]) -> Pickle:
    """Read a pickle up to its end; long byte strings stay in the file.

    Raises:
        ForeignFileError: there is no such file.
        CorruptSnapshotError: it is malformed, truncated, or beyond the reader's limits.
    """
    source = source if isinstance(source, Source) else Source(source)
    cursor = Cursor(source)
    machine = Machine(cursor)
    root = machine.run()
    return Pickle(source=source, machine=machine, root=root, rest=cursor.remaining)
