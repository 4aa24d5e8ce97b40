"""The opcodes of pickle protocols 0 to 5, as functions on a `Machine`.

``pickletools.opcodes`` in the standard library documents each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsconvert.safepickle.containers import (
    add_items,
    append,
    pairs,
    set_item,
    set_items,
    short_tuple,
)
from dsconvert.safepickle.nodes import (
    DictNode,
    Global,
    Node,
    Persistent,
    Record,
    SetNode,
    tuple_of,
)
from dsconvert.safepickle.scalars import (
    MAX_LINE,
    byte_array,
    byte_string,
    constant,
    integer,
    long_integer,
    long_line,
    number,
    packed,
    python_2_string,
    quoted,
    text_line,
    uint,
    unicode_string,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dsconvert.safepickle.machine import Machine

    Handler = Callable[[Machine], None]

STOP = 0x2E
_MISSING: Any = object()

# Objects ------------------------------------------------------------------------------------


def _global(m: Machine) -> Global:
    try:
        module = m.cursor.line(MAX_LINE).decode("utf-8")
        name = m.cursor.line(MAX_LINE).decode("utf-8")
    except UnicodeDecodeError:
        raise m.fail("a global's name is not UTF-8") from None
    m.count_text(len(module) + len(name))
    return m.name(module, name)


def _stack_global(m: Machine) -> None:
    name = m.pop()
    m.push(m.name(m.pop(), name))


def _reduce(m: Machine) -> None:
    args = tuple_of(m.pop())
    func = m.pop()
    if args is None:
        raise m.fail("a call's arguments are no tuple")
    m.record(Record("call", func, args))


def _new(m: Machine, kwargs: Node = None) -> None:
    args = tuple_of(m.pop())
    func = m.pop()
    if args is None:
        raise m.fail("a constructor's arguments are no tuple")
    m.record(Record("new", func, args, kwargs))


def _new_ex(m: Machine) -> None:
    kwargs = m.pop()
    if not isinstance(kwargs, DictNode):
        raise m.fail("a constructor's keywords are no dict")
    _new(m, kwargs)


def _inst(m: Machine) -> None:
    func = _global(m)
    m.record(Record("call", func, tuple(m.pop_mark())))


def _obj(m: Machine) -> None:
    items = m.pop_mark()
    if not items:
        raise m.fail("OBJ finds no class")
    m.record(Record("call", items[0], tuple(items[1:])))


def _build(m: Machine) -> None:
    state = m.pop()
    target = m.top()
    if isinstance(target, Record):
        target.ops.append(("build", state))
    else:
        m.tampered.append(("sets the state of", target))


def _extension(width: int) -> Handler:
    # Only the writer's own copyreg registry knows the class of the code.
    return lambda m: m.push(m.name("copyreg extension", str(m.cursor.uint(width))))


def _persistent(m: Machine, value: Node) -> None:
    if not m.persistent:
        raise m.fail("it holds a persistent id, which only the program that wrote it can resolve")
    m.push(Persistent(value))


def _persistent_line(m: Machine) -> None:
    _persistent(m, m.cursor.line(MAX_LINE).decode("latin-1"))


# Memo and control ---------------------------------------------------------------------------


def _index(m: Machine) -> int:
    line = m.cursor.line(MAX_LINE)
    try:
        if len(line) > 20:
            raise ValueError
        return int(line)
    except ValueError:
        raise m.fail("a memo index is malformed") from None


def _get(m: Machine, index: int) -> None:
    node = m.memo.get(index, _MISSING)
    if node is _MISSING:
        raise m.fail(f"memo entry {index} does not exist")
    m.push(node)


def _put(m: Machine, index: int) -> None:
    if index < 0:
        raise m.fail("a memo index is negative")
    m.memo[index] = m.top()


def _mark(m: Machine) -> None:
    m.marks.append(m.stack)
    m.stack = []


def _drop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


def _drop_mark(m: Machine) -> None:
    m.pop_mark()


def _proto(m: Machine) -> None:
    m.protocol = m.cursor.byte()
    if m.protocol > 5:
        raise m.fail(f"pickle protocol {m.protocol} is unknown")


def _buffer(m: Machine) -> None:
    raise m.fail("it wants out-of-band buffers, which a file can't have")


_OPS: dict[str, Handler] = {
    "(": _mark,
    "0": _drop,
    "1": _drop_mark,
    "2": lambda m: m.push(m.top()),
    "F": number(float),
    "I": number(integer),
    "L": number(long_line),
    "J": packed("<i"),
    "K": uint(1),
    "M": uint(2),
    "G": packed(">d"),
    "N": constant(None),
    "\x88": constant(True),
    "\x89": constant(False),
    "\x8a": long_integer(1),
    "\x8b": long_integer(4),
    "S": text_line(quoted),
    "T": python_2_string(4),
    "U": python_2_string(1),
    "B": byte_string(4),
    "C": byte_string(1),
    "\x8e": byte_string(8),
    "\x96": byte_array,
    "V": text_line(lambda line: line.decode("raw-unicode-escape")),
    "X": unicode_string(4),
    "\x8c": unicode_string(1),
    "\x8d": unicode_string(8),
    ")": constant(()),
    "t": lambda m: m.push(tuple(m.pop_mark())),
    "\x85": short_tuple(1),
    "\x86": short_tuple(2),
    "\x87": short_tuple(3),
    "]": lambda m: m.push([]),
    "l": lambda m: m.push(m.pop_mark()),
    "a": lambda m: append(m, [m.pop()]),
    "e": lambda m: append(m, m.pop_mark()),
    "}": lambda m: m.push(DictNode()),
    "d": lambda m: m.push(DictNode(pairs(m, m.pop_mark()))),
    "s": set_item,
    "u": lambda m: set_items(m, m.pop_mark()),
    "\x8f": lambda m: m.push(SetNode()),
    "\x90": add_items,
    "\x91": lambda m: m.push(SetNode(m.pop_mark(), frozen=True)),
    "c": lambda m: m.push(_global(m)),
    "\x93": _stack_global,
    "R": _reduce,
    "\x81": _new,
    "\x92": _new_ex,
    "i": _inst,
    "o": _obj,
    "b": _build,
    "\x82": _extension(1),
    "\x83": _extension(2),
    "\x84": _extension(4),
    "P": _persistent_line,
    "Q": lambda m: _persistent(m, m.pop()),
    "g": lambda m: _get(m, _index(m)),
    "h": lambda m: _get(m, m.cursor.byte()),
    "j": lambda m: _get(m, m.cursor.uint(4)),
    "p": lambda m: _put(m, _index(m)),
    "q": lambda m: _put(m, m.cursor.byte()),
    "r": lambda m: _put(m, m.cursor.uint(4)),
    "\x94": lambda m: _put(m, len(m.memo)),
    "\x80": _proto,
    "\x95": lambda m: m.cursor.need(m.cursor.uint(8)),
    "\x97": _buffer,
    "\x98": _buffer,
}
TABLE: dict[int, Handler] = {ord(code): handler for code, handler in _OPS.items()}
"""Opcode byte to handler; STOP is the machine's own."""
