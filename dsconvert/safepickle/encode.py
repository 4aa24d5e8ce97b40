"""Single values as pickle opcodes of protocol 4."""

from __future__ import annotations

import struct


def u32(value: int) -> bytes:
    """Return four little-endian bytes."""
    return struct.pack("<I", value)


def integer(value: int) -> bytes:
    """Return an int as an opcode."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    size = (value.bit_length() >> 3) + 1
    head = b"\x8a" + bytes([size]) if size < 256 else b"\x8b" + struct.pack("<i", size)
    return head + value.to_bytes(size, "little", signed=True)


def bytes_header(length: int) -> bytes:
    """Return the opcode in front of ``length`` bytes."""
    if length < 256:
        return b"C" + bytes([length])
    if length < 1 << 32:
        return b"B" + u32(length)
    return b"\x8e" + struct.pack("<Q", length)


def storage_header(storage: str, numel: int, key: str) -> bytes:
    """Return the front of a storage in torch's legacy file format; raw elements follow.

    Every torch from 1.0 on reads it (``torch.serialization._legacy_load``).
    """

    def text(value: str) -> bytes:
        return b"X" + u32(len(value)) + value.encode("ascii")

    sizes = b"}(" + text("short") + b"K\x02" + text("int") + b"K\x04" + text("long") + b"K\x04u"
    info = text("protocol_version") + b"M\xe9\x03" + text("little_endian") + b"\x88"
    return b"".join(
        (
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
            b"\x80\x02M\xe9\x03.",
            b"\x80\x02}(" + info + text("type_sizes") + sizes + b"u.",
            b"\x80\x02(" + text("storage") + b"ctorch\n" + storage.encode("ascii") + b"\n",
            text(key) + text("cpu") + integer(numel) + b"NtQ.",
            b"\x80\x02]" + text(key) + b"a.",
            struct.pack("<q", numel),
        )
    )
