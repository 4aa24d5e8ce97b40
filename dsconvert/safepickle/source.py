"""Read a file piecewise, by offset: never mapped, since mapped pages count as memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dsconvert.errors import CorruptSnapshotError, ForeignFileError, SnapshotError

if TYPE_CHECKING:
    from io import FileIO

WINDOW = 1 << 16


class Source:
    """An open file that is read by offset.

    It stays open as long as the object lives, so that a file that is replaced (also by our own
    writer) can still be read; one that is changed in place is noticed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open ``path``.

        Raises:
            ForeignFileError: there is no such file, it is a folder, or it can't be opened.
        """
        self.path = Path(path)
        try:
            if self.path.is_dir():
                raise ForeignFileError(f"{self.path} is a folder. Name the file inside it.")
            self._file: FileIO = self.path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise ForeignFileError(f"{self.path} does not exist. Check the path.") from error
        except (OSError, ValueError) as error:
            raise ForeignFileError(f"{self.path} can't be opened: {error}.") from error
        status = os.fstat(self._file.fileno())
        self.size = status.st_size
        self._stamp = (status.st_size, status.st_mtime_ns)

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    def check_unchanged(self) -> None:
        """Make sure that the file is still the one that was checked.

        Raises:
            SnapshotError: it was written to since it was opened.
        """
        status = os.fstat(self._file.fileno())
        if (status.st_size, status.st_mtime_ns) != self._stamp:
            raise SnapshotError(
                f"{self.path} was changed while it was being read. Load it again once its "
                "writer is done."
            )

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""
        self._file.seek(offset)
        return self._file.read(length)

    def readinto_at(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` (bytes) from ``offset``.

        Raises:
            CorruptSnapshotError: the file ends before that.
        """
        self._file.seek(offset)
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise CorruptSnapshotError(
                    f"{self.path} ends early, at byte {offset + done}. Copy or download it again."
                )
            done += count


class Cursor:
    """A forward reader over ``[start, end)`` of a source, with its own small window."""

    def __init__(
        self, source: Source, start: int = 0, end: int | None = None, *, window: int = WINDOW
    ) -> None:
        self.source = source
        self.end = source.size if end is None else end
        self._window = window
        self._base = start
        self._data = b""
        self._pos = 0

    @property
    def offset(self) -> int:
        """Where the next byte is, from the start of the file."""
        return self._base + self._pos

    @property
    def remaining(self) -> int:
        """Bytes left."""
        return self.end - self.offset

    def fail(self, what: str) -> CorruptSnapshotError:
        """Return an error that names the current byte of the file."""
        return CorruptSnapshotError(
            f"{self.source.path} is damaged: {what}, at byte {self.offset}. "
            "Copy or download it again."
        )

    def need(self, length: int) -> None:
        """Make sure that ``length`` more bytes exist, before any memory is taken for them.

        Raises:
            CorruptSnapshotError: they don't.
        """
        if length < 0 or length > self.remaining:
            raise CorruptSnapshotError(
                f"{self.source.path} is truncated or damaged: it announces {length} more bytes at "
                f"byte {self.offset} and has {self.remaining}. Copy or download it again."
            )

    def _fill(self, length: int) -> None:
        self.need(length)
        base = self.offset
        size = min(max(length, self._window), self.end - base)
        self._data = self.source.read_at(base, size)
        self._base, self._pos = base, 0
        if len(self._data) < length:
            raise self.fail("it ends early")

    def byte(self) -> int:
        """Return the next byte."""
        if self._pos >= len(self._data):
            self._fill(1)
        value = self._data[self._pos]
        self._pos += 1
        return value

    def read(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        if self._pos + length > len(self._data):
            self._fill(length)
        value = self._data[self._pos : self._pos + length]
        self._pos += length
        return value

    def uint(self, width: int) -> int:
        """Return the next ``width`` bytes as a little-endian number."""
        return int.from_bytes(self.read(width), "little")

    def line(self, limit: int) -> bytes:
        """Return the next line, without its newline."""
        parts: list[bytes] = []
        length = 0
        while True:
            if self._pos >= len(self._data):
                self._fill(1)
            found = self._data.find(b"\n", self._pos)
            stop = found if found >= 0 else len(self._data)
            parts.append(self._data[self._pos : stop])
            length += stop - self._pos
            if length > limit:
                raise self.fail(f"a line is longer than {limit} bytes")
            self._pos = stop
            if found >= 0:
                self._pos += 1
                return b"".join(parts)

    def skip(self, length: int) -> None:
        """Step over ``length`` bytes without reading them."""
        self.need(length)
        if self._pos + length <= len(self._data):
            self._pos += length
        else:
            self._base, self._data, self._pos = self.offset + length, b"", 0
