"""Folders written whole or not at all, and the digests of files.

A folder is written under a unique name beside its target and renamed, as
:mod:`dsconvert.util.files` does with a file. It is replaced only if its writer has made all of it:
any other file in it is the user's.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from dsconvert.errors import OutputError
from dsconvert.util.files import check_target, new_part

_REPLACED = ".replaced-"
"""Between the name of a folder that is being replaced and a random one."""


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """How a writer recognises a folder that it made, and may therefore replace."""

    mark: str
    """The name of a JSON file that each folder of this kind holds."""
    key: str
    """A key of the object in that file."""
    value: str | None = None
    """The value of that key; None: any."""
    names: tuple[str, ...]
    """Patterns of the relative paths (with slashes) of all files that the writer makes."""

    def made(self, folder: Path) -> bool:
        """Return whether the mark in ``folder`` is this writer's, not a file of the same name."""
        try:
            found = json.loads((folder / self.mark).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        if not isinstance(found, dict) or self.key not in found:
            return False
        return self.value is None or found[self.key] == self.value

    def foreign(self, folder: Path) -> str | None:
        """Return the relative path of a file in ``folder`` that the writer does not make."""
        for root, folders, files in os.walk(folder):
            links = [name for name in folders if (Path(root) / name).is_symlink()]
            for name in sorted([*files, *links]):
                path = (Path(root) / name).relative_to(folder).as_posix()
                if not any(fnmatchcase(path, pattern) for pattern in self.names):
                    return path
        return None


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; of no content if it can't be read."""
    digest = hashlib.sha256()
    with suppress(OSError, ValueError), Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_new_folder(path: str | os.PathLike[str], *, kind: FolderKind, overwrite: bool) -> Path:
    """Return the path of a folder if :func:`whole_folder` may write it.

    Args:
        path: the folder.
        kind: of the folder.
        overwrite: whether a folder of this kind may be replaced.

    Raises:
        OutputError: there is a file; or a folder, and ``overwrite`` is off or not all of it is of
            that kind; or the folder above is missing or not writable; or a killed process has left
            the former content of the folder under another name.
    """
    target = Path(path)
    if not target.is_dir():
        if os.path.lexists(target):
            raise OutputError(f"{target} is a file, not a folder; name another.")
        check_target(target, overwrite=False)
        # Killed between the two renames of whole_folder: only these files hold the old content.
        if left := sorted(target.parent.glob(f"{glob.escape(target.name)}{_REPLACED}*")):
            raise OutputError(
                f"{left[0]} holds the former content of {target}, which a process that was killed "
                "did not replace: rename it back, or delete it."
            )
        return target
    if not any(target.iterdir()):
        return target
    if not kind.made(target):
        raise OutputError(f"{target} holds other files; name a new folder.")
    if not overwrite:
        raise OutputError(f"{target} exists; give --overwrite to replace it, or another name.")
    if (other := kind.foreign(target)) is not None:
        raise OutputError(
            f"{target} can't be replaced: it also holds {other}, which this command did not write "
            "and would delete; move that away, or name a new folder."
        )
    return target


@contextmanager
def whole_folder(
    path: str | os.PathLike[str], *, kind: FolderKind, overwrite: bool
) -> Generator[Path, None, None]:
    """Yield a new folder beside ``path`` to write in, and rename it to ``path`` at the end.

    The arguments and errors are those of :func:`check_new_folder`.

    Raises:
        OutputError: also where the disk can't take the files.
    """
    target = check_new_folder(path, kind=kind, overwrite=overwrite)
    real = Path(os.path.realpath(target))
    part = new_part(real.parent)
    # A name that tells whose content it is, should this process be killed between the renames.
    old = real.with_name(f"{real.name}{_REPLACED}{secrets.token_hex(4)}")
    try:
        try:
            part.mkdir()
            yield part
            check_new_folder(target, kind=kind, overwrite=overwrite)
            if real.is_dir():
                real.rename(old)
            part.rename(real)
        except OSError as error:
            raise OutputError(
                f"can't write {target}: {error}; make room or name another."
            ) from error
    finally:
        if old.is_dir() and not real.exists():  # interrupted between the two renames
            with suppress(OSError):
                old.rename(real)
        shutil.rmtree(part, ignore_errors=True)
        if real.exists():  # else the former content has no other copy
            shutil.rmtree(old, ignore_errors=True)
