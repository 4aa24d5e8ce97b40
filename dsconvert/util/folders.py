"""Folders written whole or not at all, and the digests of files.

A folder is written under a unique name beside its target and renamed, as
:mod:`dsconvert.util.files` does with a file. It is replaced only if it holds the file by which
its writer knows it: another one is the user's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from dsconvert.errors import OutputError
from dsconvert.util.files import check_target, new_part


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content in hexadecimal; of no content if it can't be read."""
    digest = hashlib.sha256()
    with suppress(OSError, ValueError), Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_new_folder(path: str | os.PathLike[str], *, mark: str, overwrite: bool) -> Path:
    """Return the path of a folder if :func:`whole_folder` may write it.

    Args:
        path: the folder.
        mark: the name of a file that each folder of this kind holds.
        overwrite: whether a folder of this kind may be replaced.

    Raises:
        OutputError: there is a file; or a folder, and ``overwrite`` is off or ``mark`` is not in
            it; or the folder above is missing or not writable.
    """
    target = Path(path)
    if not target.is_dir():
        if os.path.lexists(target):
            raise OutputError(f"{target} is a file, not a folder; name another.")
        return check_target(target, overwrite=False)
    if not any(target.iterdir()):
        return target
    if not (target / mark).is_file():
        raise OutputError(f"{target} holds other files; name a new folder.")
    if not overwrite:
        raise OutputError(f"{target} exists; give --overwrite to replace it, or another name.")
    return target


@contextmanager
def whole_folder(
    path: str | os.PathLike[str], *, mark: str, overwrite: bool
) -> Generator[Path, None, None]:
    """Yield a new folder beside ``path`` to write in, and rename it to ``path`` at the end.

    The arguments and errors are those of :func:`check_new_folder`.

    Raises:
        OutputError: also where the disk can't take the files.
    """
    target = check_new_folder(path, mark=mark, overwrite=overwrite)
    real = Path(os.path.realpath(target))
    part, old = new_part(real.parent), new_part(real.parent)
    try:
        try:
            part.mkdir()
            yield part
            check_new_folder(target, mark=mark, overwrite=overwrite)
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
        for rest in (part, old):
            shutil.rmtree(rest, ignore_errors=True)
