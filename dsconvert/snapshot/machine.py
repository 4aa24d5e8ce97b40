"""A pickle machine that builds inert nodes and has nothing to call.

It reads every opcode of protocols 0 to 5 (``pickletools.opcodes`` documents them), keeps its own
stack and memo, and answers each opcode that would import or call with a `Global` or a `Record`.
Nothing is imported, called or hashed by value, so nothing in a file can run here; what may be
*carried* is decided afterwards, by `dsconvert.snapshot.policy`, over everything the machine saw.
"""

from __future__ import annotations

import codecs
import struct
from typing import TYPE_CHECKING, Any

from dsconvert.snapshot.nodes import (
    Blob,
    DictNode,
    Global,
    Node,
    Persistent,
    Record,
    SetNode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dsconvert.snapshot.source import Cursor

MAX_OPS = 2_000_000
"""A full official file has 63,000 opcodes."""
MAX_TEXT = 1 << 26
"""Bytes of strings kept in memory, in total."""
MAX_LINE = 1 << 16
MAX_LONG = 255
INLINE = 64
"""Byte strings up to this length are kept; longer ones stay in the file as a `Blob`."""
_MISSING: Any = object()


class Machine:
    """One run over one pickle. ``records``, ``globals`` and ``tampered`` keep all that was seen,
    also what the pickle then drops from its stack or leaves in its memo."""

    def __init__(self, cursor: Cursor, *, max_ops: int = MAX_OPS, persistent: bool = False) -> None:
        self.cursor = cursor
        self.persistent = persistent
        self.protocol = 0
        self.ops = 0
        self.records: list[Record] = []
        self.globals: list[Global] = []
        self.tampered: list[tuple[str, Node]] = []
        """Targets that are no object of the pickle's own, yet get state or items."""
        self._max_ops = max_ops
        self._text = 0
        self._stack: list[Node] = []
        self._marks: list[list[Node]] = []
        self._memo: dict[int, Node] = {}

    def run(self) -> Node:
        """Read up to and including STOP; the value that the pickle stands for.

        Raises:
            CorruptSnapshotError: malformed, truncated, or beyond the limits.
        """
        table, cursor = _TABLE, self.cursor
        while True:
            self.ops += 1
            if self.ops > self._max_ops:
                raise cursor.fail(f"it has more than {self._max_ops} opcodes")
            code = cursor.byte()
            if code == 0x2E:  # STOP
                return self._pop()
            handler = table.get(code)
            if handler is None:
                raise cursor.fail(f"{code:#04x} is no pickle opcode")
            handler(self)

    # The stack ------------------------------------------------------------------------------

    def _pop(self) -> Node:
        if not self._stack:
            raise self.cursor.fail("an opcode finds the stack empty")
        return self._stack.pop()

    def _top(self) -> Node:
        if not self._stack:
            raise self.cursor.fail("an opcode finds the stack empty")
        return self._stack[-1]

    def _pop_mark(self) -> list[Node]:
        if not self._marks:
            raise self.cursor.fail("an opcode finds no mark")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _push(self, node: Node) -> None:
        self._stack.append(node)

    def _count_text(self, length: int) -> None:
        self.cursor.need(length)
        self._text += length
        if self._text > MAX_TEXT:
            raise self.cursor.fail(f"it holds more than {MAX_TEXT} bytes of text")

    # Scalars --------------------------------------------------------------------------------

    def _number(self, convert: Callable[[str], Any]) -> None:
        line = self.cursor.line(MAX_LINE)
        try:
            if len(line) > MAX_LONG * 2:
                raise ValueError
            self._push(convert(line.decode("ascii")))
        except ValueError:
            raise self.cursor.fail("a number is malformed") from None

    def _long(self, width: int) -> None:
        length = self.cursor.uint(width)
        if length > MAX_LONG:
            raise self.cursor.fail(f"an integer has more than {MAX_LONG} bytes")
        self._push(int.from_bytes(self.cursor.read(length), "little", signed=True))

    def _text_line(self, decode: Callable[[bytes], Any]) -> None:
        line = self.cursor.line(MAX_LINE)
        self._text += len(line)
        try:
            if self._text > MAX_TEXT:
                raise ValueError
            self._push(decode(line))
        except (ValueError, TypeError):
            raise self.cursor.fail("a string is malformed") from None

    def _unicode(self, width: int) -> None:
        length = self.cursor.uint(width)
        self._count_text(length)
        try:
            self._push(self.cursor.read(length).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise self.cursor.fail("a string is not UTF-8") from None

    def _bytes(self, width: int, *, mutable: bool = False) -> None:
        length = self.cursor.uint(width)
        self.cursor.need(length)
        if length <= INLINE and not mutable:
            self._count_text(length)
            self._push(self.cursor.read(length))
        else:
            self._push(Blob(self.cursor.offset, length, mutable=mutable))
            self.cursor.skip(length)

    def _string(self, width: int) -> None:
        """Read a ``str`` of Python 2: text if short; a long one can only be an array's bytes."""
        length = self.cursor.uint(width)
        self.cursor.need(length)
        if length > MAX_LINE:
            self._push(Blob(self.cursor.offset, length))
            self.cursor.skip(length)
        else:
            self._count_text(length)
            self._push(self.cursor.read(length).decode("latin-1"))

    # Containers -----------------------------------------------------------------------------

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise self.cursor.fail("an opcode finds the stack too short")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._push(items)

    def _pairs(self, items: list[Node]) -> list[tuple[Node, Node]]:
        if len(items) % 2:
            raise self.cursor.fail("a dict has a key without a value")
        return list(zip(items[::2], items[1::2], strict=True))

    def _append(self, items: list[Node]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif type(target) is Record:
            target.extend("append", items)
        else:
            self.tampered.append(("appends to", target))

    def _set_items(self, items: list[Node]) -> None:
        pairs = self._pairs(items)
        target = self._top()
        if type(target) is DictNode:
            target.items.extend(pairs)
        elif type(target) is Record:
            target.extend("setitems", pairs)
        else:
            self.tampered.append(("sets items of", target))

    def _add_items(self) -> None:
        items = self._pop_mark()
        target = self._top()
        if type(target) is SetNode and not target.frozen:
            target.items.extend(items)
        elif type(target) is Record:
            target.extend("additems", items)
        else:
            self.tampered.append(("adds to", target))

    # Objects --------------------------------------------------------------------------------

    def _global(self, module: Any, name: Any) -> Global:
        if type(module) is not str or type(name) is not str:
            raise self.cursor.fail("a global's name is no string")
        node = Global(module, name)
        self.globals.append(node)
        return node

    def _global_lines(self) -> Global:
        try:
            module = self.cursor.line(MAX_LINE).decode("utf-8")
            name = self.cursor.line(MAX_LINE).decode("utf-8")
        except UnicodeDecodeError:
            raise self.cursor.fail("a global's name is not UTF-8") from None
        self._count_text(0)
        self._text += len(module) + len(name)
        return self._global(module, name)

    def _stack_global(self) -> None:
        name = self._pop()
        module = self._pop()
        self._push(self._global(module, name))

    def _record(self, node: Record) -> None:
        self.records.append(node)
        self._push(node)

    def _reduce(self) -> None:
        args = self._pop()
        func = self._pop()
        if type(args) is not tuple:
            raise self.cursor.fail("a call's arguments are no tuple")
        self._record(Record("call", func, args))

    def _new(self, *, keywords: bool) -> None:
        kwargs = self._pop() if keywords else None
        args = self._pop()
        func = self._pop()
        if type(args) is not tuple or (keywords and type(kwargs) is not DictNode):
            raise self.cursor.fail("a constructor's arguments are malformed")
        self._record(Record("new", func, args, kwargs))

    def _inst(self) -> None:
        func = self._global_lines()
        self._record(Record("call", func, tuple(self._pop_mark())))

    def _obj(self) -> None:
        items = self._pop_mark()
        if not items:
            raise self.cursor.fail("OBJ finds no class")
        self._record(Record("call", items[0], tuple(items[1:])))

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if type(target) is Record:
            target.ops.append(("build", state))
        else:
            self.tampered.append(("sets the state of", target))

    def _extension(self, width: int) -> None:
        code = self.cursor.uint(width)
        # Only the writer's own copyreg registry knows what it stands for.
        self._push(self._global("copyreg extension", str(code)))

    def _persid(self, value: Any) -> None:
        if not self.persistent:
            raise self.cursor.fail(
                "it holds a persistent id, which only the program that wrote it can resolve"
            )
        self._push(Persistent(value))

    # Memo and control -----------------------------------------------------------------------

    def _get(self, index: int) -> None:
        node = self._memo.get(index, _MISSING)
        if node is _MISSING:
            raise self.cursor.fail(f"memo entry {index} does not exist")
        self._push(node)

    def _put(self, index: int) -> None:
        if index < 0:
            raise self.cursor.fail("a memo index is negative")
        self._memo[index] = self._top()

    def _index_line(self) -> int:
        try:
            line = self.cursor.line(MAX_LINE)
            if len(line) > 20:
                raise ValueError
            return int(line)
        except ValueError:
            raise self.cursor.fail("a memo index is malformed") from None

    def _pop_op(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _proto(self) -> None:
        self.protocol = self.cursor.byte()
        if self.protocol > 5:
            raise self.cursor.fail(f"pickle protocol {self.protocol} is unknown")

    def _frame(self) -> None:
        self.cursor.need(self.cursor.uint(8))

    def _buffer(self) -> None:
        raise self.cursor.fail("it wants out-of-band buffers, which a file can't have")


def _integer(text: str) -> Any:
    # Protocol 0 spells booleans 00 and 01.
    return text == "01" if text in ("00", "01") else int(text)


def _quoted(line: bytes) -> str:
    line = line.strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


_TABLE: dict[int, Callable[[Machine], None]] = {
    ord(code): handler
    for code, handler in {
        "(": lambda m: m._mark(),
        "0": lambda m: m._pop_op(),
        "1": lambda m: m._pop_mark() and None,
        "2": lambda m: m._push(m._top()),
        "F": lambda m: m._number(float),
        "I": lambda m: m._number(_integer),
        "L": lambda m: m._number(lambda t: int(t[:-1] if t[-1:] == "L" else t)),
        "J": lambda m: m._push(struct.unpack("<i", m.cursor.read(4))[0]),
        "K": lambda m: m._push(m.cursor.byte()),
        "M": lambda m: m._push(m.cursor.uint(2)),
        "G": lambda m: m._push(struct.unpack(">d", m.cursor.read(8))[0]),
        "N": lambda m: m._push(None),
        "\x88": lambda m: m._push(True),
        "\x89": lambda m: m._push(False),
        "\x8a": lambda m: m._long(1),
        "\x8b": lambda m: m._long(4),
        "S": lambda m: m._text_line(_quoted),
        "T": lambda m: m._string(4),
        "U": lambda m: m._string(1),
        "B": lambda m: m._bytes(4),
        "C": lambda m: m._bytes(1),
        "\x8e": lambda m: m._bytes(8),
        "\x96": lambda m: m._bytes(8, mutable=True),
        "V": lambda m: m._text_line(lambda line: line.decode("raw-unicode-escape")),
        "X": lambda m: m._unicode(4),
        "\x8c": lambda m: m._unicode(1),
        "\x8d": lambda m: m._unicode(8),
        ")": lambda m: m._push(()),
        "t": lambda m: m._push(tuple(m._pop_mark())),
        "\x85": lambda m: m._tuple(1),
        "\x86": lambda m: m._tuple(2),
        "\x87": lambda m: m._tuple(3),
        "]": lambda m: m._push([]),
        "l": lambda m: m._push(m._pop_mark()),
        "a": lambda m: m._append([m._pop()]),
        "e": lambda m: m._append(m._pop_mark()),
        "}": lambda m: m._push(DictNode()),
        "d": lambda m: m._push(DictNode(m._pairs(m._pop_mark()))),
        "s": lambda m: m._set_items([m._pop(), m._pop()][::-1]),
        "u": lambda m: m._set_items(m._pop_mark()),
        "\x8f": lambda m: m._push(SetNode()),
        "\x90": lambda m: m._add_items(),
        "\x91": lambda m: m._push(SetNode(m._pop_mark(), frozen=True)),
        "c": lambda m: m._push(m._global_lines()),
        "\x93": lambda m: m._stack_global(),
        "R": lambda m: m._reduce(),
        "\x81": lambda m: m._new(keywords=False),
        "\x92": lambda m: m._new(keywords=True),
        "i": lambda m: m._inst(),
        "o": lambda m: m._obj(),
        "b": lambda m: m._build(),
        "\x82": lambda m: m._extension(1),
        "\x83": lambda m: m._extension(2),
        "\x84": lambda m: m._extension(4),
        "P": lambda m: m._text_line(lambda line: m._persid(line.decode("ascii")) or m._pop()),
        "Q": lambda m: m._persid(m._pop()),
        "g": lambda m: m._get(m._index_line()),
        "h": lambda m: m._get(m.cursor.byte()),
        "j": lambda m: m._get(m.cursor.uint(4)),
        "p": lambda m: m._put(m._index_line()),
        "q": lambda m: m._put(m.cursor.byte()),
        "r": lambda m: m._put(m.cursor.uint(4)),
        "\x94": lambda m: m._put(len(m._memo)),
        "\x80": lambda m: m._proto(),
        "\x95": lambda m: m._frame(),
        "\x97": lambda m: m._buffer(),
        "\x98": lambda m: m._buffer(),
    }.items()
}
