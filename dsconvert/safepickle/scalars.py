"""Scalars of the pickle opcodes: numbers, text, byte strings."""

from __future__ import annotations

import codecs
import struct
from typing import TYPE_CHECKING

from dsconvert.safepickle.nodes import Blob, Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from dsconvert.safepickle.machine import Machine

    Handler = Callable[[Machine], None]

MAX_LINE = 1 << 16
MAX_LONG = 255
INLINE = 64
"""Byte strings up to this length are kept; longer ones stay in the file as a `Blob`."""


def constant(value: Node) -> Handler:
    """Push a constant."""
    return lambda m: m.push(value)


def packed(form: str) -> Handler:
    """Push a number in a `struct` format."""
    size = struct.calcsize(form)
    return lambda m: m.push(struct.unpack(form, m.cursor.read(size))[0])


def uint(width: int) -> Handler:
    """Push a little-endian number of ``width`` bytes."""
    return lambda m: m.push(m.cursor.uint(width))


def number(convert: Callable[[str], object]) -> Handler:
    """Push the number that a line of text spells."""

    def handler(m: Machine) -> None:
        line = m.cursor.line(MAX_LINE)
        try:
            if len(line) > MAX_LONG * 2:
                raise ValueError
            m.push(convert(line.decode("ascii")))
        except ValueError:
            raise m.fail("a number is malformed") from None

    return handler


def integer(text: str) -> int:
    """Return an int or bool of protocol 0."""
    # Protocol 0 spells booleans 00 and 01.
    return text == "01" if text in ("00", "01") else int(text)


def long_line(text: str) -> int:
    """Return a long of protocol 0."""
    return int(text.removesuffix("L"))


def long_integer(width: int) -> Handler:
    """Push a signed number, its length in ``width`` bytes."""

    def handler(m: Machine) -> None:
        length = m.cursor.uint(width)
        if length > MAX_LONG:
            raise m.fail(f"an integer has more than {MAX_LONG} bytes")
        m.push(int.from_bytes(m.cursor.read(length), "little", signed=True))

    return handler


def text_line(decode: Callable[[bytes], str]) -> Handler:
    """Push the text that a line spells."""

    def handler(m: Machine) -> None:
        line = m.cursor.line(MAX_LINE)
        m.count_text(len(line))
        try:
            m.push(decode(line))
        except ValueError:
            raise m.fail("a string is malformed") from None

    return handler


def quoted(line: bytes) -> str:
    """Return a ``str`` of protocol 0, as ``repr`` wrote it."""
    line = line.strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError
    # Undoes repr's backslashes and nothing else.
    decoded: bytes = codecs.escape_decode(line[1:-1])[0]  # type: ignore[attr-defined]
    return decoded.decode("latin-1")


def unicode_string(width: int) -> Handler:
    """Push UTF-8 text, its length in ``width`` bytes."""

    def handler(m: Machine) -> None:
        length = m.cursor.uint(width)
        m.cursor.need(length)
        m.count_text(length)
        try:
            m.push(m.cursor.read(length).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise m.fail("a string is not UTF-8") from None

    return handler


def _blob(m: Machine, length: int, *, mutable: bool = False) -> None:
    m.push(Blob(m.cursor.offset, length, mutable=mutable))
    m.cursor.skip(length)


def byte_string(width: int) -> Handler:
    """Push bytes, or where they are if they are many."""

    def handler(m: Machine) -> None:
        length = m.cursor.uint(width)
        m.cursor.need(length)
        if length > INLINE:
            _blob(m, length)
        else:
            m.count_text(length)
            m.push(m.cursor.read(length))

    return handler


def byte_array(m: Machine) -> None:
    """Push where a bytearray is."""
    length = m.cursor.uint(8)
    m.cursor.need(length)
    _blob(m, length, mutable=True)


def python_2_string(width: int) -> Handler:
    """Push a ``str`` of Python 2: text if short; a long one can only be an array's bytes."""

    def handler(m: Machine) -> None:
        length = m.cursor.uint(width)
        m.cursor.need(length)
        if length > MAX_LINE:
            _blob(m, length)
        else:
            m.count_text(length)
            m.push(m.cursor.read(length).decode("latin-1"))

    return handler
