"""The files of a data set: a folder of any depth, or a zip."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

from dsconvert.errors import DataError


class DataFiles:
    """The files of a folder or zip by their names, with ``/`` between the parts of a name.

    Hidden files and folders (``.*``, ``__MACOSX``) are left out. The object can be sent to worker
    processes, each of which opens the zip for itself.

    Raises:
        DataError: there is nothing at the path, or it is neither a folder nor a zip.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._zip: tuple[int, zipfile.ZipFile] | None = None
        try:
            if self.path.is_dir():
                found = (p for p in self.path.rglob("*") if p.is_file())
                names = [p.relative_to(self.path).as_posix() for p in found]
            elif self.path.is_file():
                names = [n for n in self._archive().namelist() if not n.endswith("/")]
            else:
                raise DataError(
                    f"there is no data at {self.path}; name a folder or a zip of images."
                )
        except DataError:
            raise
        except Exception as error:  # a damaged list of a zip raises errors of many types
            raise DataError(
                f"{self.path} can't be read as a folder or zip of images ({error}); name another, "
                "or copy it again."
            ) from error
        hidden = (".", "__MACOSX")
        self.names = tuple(
            sorted(n for n in names if not any(p.startswith(hidden) for p in n.split("/")))
        )

    def _archive(self) -> zipfile.ZipFile:
        # A worker process must not share the parent's file position.
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.path))
        return self._zip[1]

    def read(self, name: str) -> bytes:
        """Return the content of one file."""
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        return self._archive().read(name)

    def size(self, name: str) -> int:
        """Return the size of one file in bytes, without reading it."""
        if self.path.is_dir():
            return (self.path / name).stat().st_size
        return self._archive().getinfo(name).file_size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}


def why_unreadable(error: Exception) -> str:
    """Return the reason why a file of a data set is left out: the error that a reader raised."""
    shown = str(error).split(" <")[0][:120]  # without the address of a buffer
    return f"{type(error).__name__}: {shown}"
