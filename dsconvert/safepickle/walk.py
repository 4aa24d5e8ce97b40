"""Visit everything below some nodes, with a path to each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconvert.errors import CorruptSnapshotError
from dsconvert.safepickle.nodes import Node, children, is_leaf

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dsconvert.safepickle.source import Source

MAX_DEPTH = 1000
LOOSE = "(not part of the data: dropped from the stack or left in the memo)"


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
                    "honest file is. Copy or download it again."
                )
            self.seen[id(node)] = (parent, label)
            self.nodes.append(node)
            below = [(c, id(node), name, depth + 1) for name, c in children(node)]
            stack.extend(reversed(below))

    def path(self, node: Node) -> str:
        """Return the place of ``node`` as dotted names."""
        labels: list[str] = []
        at = id(node)
        while at in self.seen and len(labels) < 4 * MAX_DEPTH:
            at, label = self.seen[at]
            if label and label not in ("_modules", "<arguments>"):
                labels.append(label)
        return ".".join(reversed(labels[-40:])) or LOOSE
