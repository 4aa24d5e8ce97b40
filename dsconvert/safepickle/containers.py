"""The opcodes that fill tuples, lists, dicts and sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconvert.safepickle.nodes import DictNode, Node, Record, SetNode, list_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dsconvert.safepickle.machine import Machine

    Handler = Callable[[Machine], None]


def short_tuple(count: int) -> Handler:
    """Make a tuple of the ``count`` topmost nodes."""

    def handler(m: Machine) -> None:
        if len(m.stack) < count:
            raise m.fail("an opcode finds the stack too short")
        items = tuple(m.stack[-count:])
        del m.stack[-count:]
        m.push(items)

    return handler


def pairs(m: Machine, items: list[Node]) -> list[tuple[Node, Node]]:
    """Return keys and values in pairs."""
    if len(items) % 2:
        raise m.fail("a dict has a key without a value")
    return list(zip(items[::2], items[1::2], strict=True))


def append(m: Machine, items: list[Node]) -> None:
    """Append ``items`` to the topmost node."""
    target = m.top()
    known = list_of(target)
    if known is not None:
        known.extend(items)
    elif isinstance(target, Record):
        target.extend("append", items)
    else:
        m.tampered.append(("appends to", target))


def set_items(m: Machine, items: list[Node]) -> None:
    """Set keys and values of the topmost node."""
    found = pairs(m, items)
    target = m.top()
    if isinstance(target, DictNode):
        target.items.extend(found)
    elif isinstance(target, Record):
        target.extend("setitems", found)
    else:
        m.tampered.append(("sets items of", target))


def set_item(m: Machine) -> None:
    """Set one key and value of the node below them."""
    value = m.pop()
    set_items(m, [m.pop(), value])


def add_items(m: Machine) -> None:
    """Add the items above the last mark to the set below it."""
    items = m.pop_mark()
    target = m.top()
    if isinstance(target, SetNode) and not target.frozen:
        target.items.extend(items)
    elif isinstance(target, Record):
        target.extend("additems", items)
    else:
        m.tampered.append(("adds to", target))
