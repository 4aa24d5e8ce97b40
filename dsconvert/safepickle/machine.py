"""A pickle machine that builds inert nodes and has nothing to call.

It reads every opcode of protocols 0 to 5 (see `dsconvert.safepickle.opcodes`), keeps its own stack
and memo, and answers each opcode that would import or call with a `Global` or a `Record`. Nothing
is imported, called or hashed by value, so nothing in a file can run here. Afterwards
`dsconvert.safepickle.examine` checks everything that the machine saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconvert.safepickle.nodes import Global, Node, Record
from dsconvert.safepickle.opcodes import STOP, TABLE

if TYPE_CHECKING:
    from dsconvert.errors import CorruptSnapshotError
    from dsconvert.safepickle.source import Cursor

MAX_OPS = 1_000_000
"""A full official file has 63,000 opcodes."""
MAX_TEXT = 1 << 26
"""Bytes of strings kept in memory, in total."""


class Machine:
    """One run over one pickle.

    ``records``, ``globals`` and ``tampered`` keep all that was seen, also what the pickle then
    drops from its stack or leaves in its memo.
    """

    def __init__(
        self,
        cursor: Cursor,
        *,
        max_ops: int = MAX_OPS,
        max_text: int = MAX_TEXT,
        persistent: bool = False,
    ) -> None:
        self.cursor = cursor
        self.persistent = persistent
        """Whether persistent ids are welcome: only in the storages that torch nests."""
        self.protocol = 0
        self.ops = 0
        self.records: list[Record] = []
        self.globals: list[Global] = []
        self.tampered: list[tuple[str, Node]] = []
        """Targets that are no object of the pickle's own, yet get state or items."""
        self.stack: list[Node] = []
        self.marks: list[list[Node]] = []
        self.memo: dict[int, Node] = {}
        self._max_ops, self._max_text = max_ops, max_text
        self._text = 0

    def run(self) -> Node:
        """Read up to and including STOP; the value that the pickle stands for.

        Raises:
            CorruptSnapshotError: malformed, truncated, or beyond the limits.
        """
        cursor = self.cursor
        while True:
            self.ops += 1
            if self.ops > self._max_ops:
                raise self.fail(f"it has more than {self._max_ops} opcodes")
            code = cursor.byte()
            if code == STOP:
                return self.pop()
            handler = TABLE.get(code)
            if handler is None:
                raise self.fail(f"{code:#04x} is no pickle opcode")
            handler(self)

    def fail(self, what: str) -> CorruptSnapshotError:
        """Return an error about the bytes just read."""
        return self.cursor.fail(what)

    def push(self, node: Node) -> None:
        """Put a node on the stack."""
        self.stack.append(node)

    def pop(self) -> Node:
        """Take the topmost node."""
        if not self.stack:
            raise self.fail("an opcode finds the stack empty")
        return self.stack.pop()

    def top(self) -> Node:
        """Return the topmost node without taking it."""
        if not self.stack:
            raise self.fail("an opcode finds the stack empty")
        return self.stack[-1]

    def pop_mark(self) -> list[Node]:
        """Take everything above the last mark."""
        if not self.marks:
            raise self.fail("an opcode finds no mark")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def count_text(self, length: int) -> None:
        """Account for a string that is kept in memory."""
        self._text += length
        if self._text > self._max_text:
            raise self.fail(f"it holds more than {self._max_text} bytes of text")

    def name(self, module: object, name: object) -> Global:
        """Return a global, and remember it even if the pickle drops it."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.fail("a global's name is no string")
        node = Global(module, name)
        self.globals.append(node)
        return node

    def record(self, node: Record) -> None:
        """Push an object, and remember it even if the pickle drops it."""
        self.records.append(node)
        self.push(node)
