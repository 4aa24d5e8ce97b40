"""Write files whole or not at all: the only module that the package writes files with.

A file is written under a unique name beside its target (``.dsconvert-PID-RANDOM.part``), flushed
to the disk and renamed in one step, so that neither a crash nor a second writer leaves half a file.
Threads and processes that write into one folder never share a name. The part is removed on every
error and on Ctrl-C; only a killed process leaves one (see :func:`remove_stale_parts`).

A target that is a symbolic link stays a link: the file that it points to is replaced, or created.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from dsconvert.errors import ForeignFileError, OutputError

try:
    import resource
except ImportError:  # Windows
    resource = None

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PARTS = ".dsconvert-*.part"
"""Names of files (and folders) that are not finished, as a glob."""
_FULL = 1 << 20
"""Bytes of free space below which a disk counts as full."""
_STALE = 3600.0
"""Seconds without a write after which a part belongs to no living process."""


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse an input without random access: a pipe, a terminal, a device.

    This accepts a folder and a path that does not exist; the reader of the format reports those.

    Raises:
        ForeignFileError: the path is a pipe, a socket or a device, or no path at all.
    """
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    except ValueError as error:  # a NUL
        raise ForeignFileError(f"{str(path)!r} names no file ({error}). Check the path.") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        what = "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise ForeignFileError(
            f"{path} is {what}, and reading a model needs random access to its file. Save it to a "
            "file, and name that."
        )


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the output's path if it may be written; a symbolic link stands for its target.

    Raises:
        OutputError: the path exists (and ``overwrite`` is off), is a folder or a device, or its
            folder is missing or not writable.
    """
    target = Path(path)
    if "\0" in str(target):
        raise OutputError(f"can't write {str(target)!r}: no name may hold a NUL; give another.")
    try:
        real = Path(os.path.realpath(target))
        shown = str(target) if not target.is_symlink() else f"{target} (a link to {real})"
        if real.is_symlink():  # realpath gives up on a loop
            raise OutputError(f"{target} is a symbolic link to itself; name a file.")
        if real.is_dir():
            raise OutputError(f"{shown} is a folder; name a file in it.")
        if real.exists() and not real.is_file():
            # A file renamed to /dev/null would take that away from the whole system.
            raise OutputError(f"{shown} is a device or pipe; name a file.")
        if real.exists() and not overwrite:
            raise OutputError(f"{shown} exists; give --overwrite to replace it, or another name.")
        if not real.parent.is_dir():
            raise OutputError(f"the folder {_folder(target, real)} does not exist; make it first.")
        # Checked here so that a command fails before its work, not after it.
        if not os.access(real.parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"the folder {_folder(target, real)} can't be written to; name another."
            )
    except OSError as error:  # a name too long, a folder that one may not enter
        raise OutputError(f"can't write {str(target)!r}: {error}; give another name.") from error
    return target


def _folder(target: Path, real: Path) -> Path:
    """Return the folder as the user wrote it, unless a link leads elsewhere."""
    return real.parent if target.is_symlink() else target.parent


@contextmanager
def whole_file(path: str | os.PathLike[str], *, overwrite: bool) -> Generator[Path, None, None]:
    """Yield a file beside ``path`` to write to, and rename it to ``path`` at the end.

    Args:
        path: the target. A symbolic link is followed.
        overwrite: whether an existing file may be replaced. If not, a file that appears while the
            part is written is not replaced either.

    Raises:
        OutputError: see :func:`check_target`, or the disk can't take the file.
    """
    target = check_target(path, overwrite=overwrite)
    real = Path(os.path.realpath(target))
    part = new_part(real.parent)
    try:
        with _disk_errors(target, part):
            part.touch(0o666, exist_ok=False)  # not by tempfile, whose files only we could read
            yield part
            _place(part, target, real, overwrite=overwrite)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def whole_files(path: str | os.PathLike[str], *, overwrite: bool) -> Generator[Path, None, None]:
    """Yield a path in an empty folder to write to, for a format of several files.

    At the end every file in that folder moves beside ``path``. The file of that name moves last,
    because a reader opens it first. Each name may be a symbolic link, which is followed.

    Raises:
        OutputError: see :func:`whole_file`. Without ``overwrite`` this leaves no file then.
    """
    target = check_target(path, overwrite=overwrite)
    folder = new_part(Path(os.path.realpath(target)).parent)
    placed: list[Path] = []
    try:
        with _disk_errors(target, folder):
            folder.mkdir()
            yield folder / target.name
            for made in sorted(folder.iterdir(), key=lambda f: (f.name == target.name, f.name)):
                place = check_target(target.with_name(made.name), overwrite=True)
                real = Path(os.path.realpath(place))
                if real.parent == folder.parent:
                    _place(made, place, real, overwrite=overwrite)
                else:  # a link leads to another folder, perhaps on another disk
                    with whole_file(place, overwrite=overwrite) as part:
                        shutil.copyfile(made, part)
                placed.append(real)
            placed.clear()
    finally:
        if not overwrite:
            for real in placed:
                with suppress(OSError):
                    real.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale_parts(folder: str | os.PathLike[str]) -> None:
    """Delete the parts of killed processes in ``folder``: those not written to for an hour."""
    for part in Path(folder).glob(PARTS):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _STALE:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


class ErrorRecordingFile(FileIO):
    """A writable file that remembers the error of a failed write.

    On a full disk torch's writer raises a ``RuntimeError`` about positions in an archive, without
    the cause.
    """

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data``.

        Raises:
            OSError: the disk can't take the data.
        """
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.error = error
            raise
        return done


@contextmanager
def stream(path: str | os.PathLike[str]) -> Generator[ErrorRecordingFile, None, None]:
    """Open a part for a writer that hides the cause of a failed write.

    Raises:
        OSError: the disk can't take the data, whatever exception the writer raised.
    """
    with ErrorRecordingFile(os.fspath(path), "wb") as out:
        try:
            yield out
        except Exception as error:
            if out.error is not None:
                raise out.error from error
            raise


@contextmanager
def _disk_errors(target: Path, part: Path) -> Generator[None, None, None]:
    """Turn every error of a disk into an ``OutputError`` of one sentence about ``target``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"can't write {target}: {error}; make room or name another.") from error
    except OutputError:
        raise
    except Exception as error:  # some writers do not report a full disk as such
        if not _is_full(part):
            raise
        raise OutputError(
            f"can't write {target}: no space is left on that disk, or the file is larger than it "
            "may be (ulimit -f); make room or name another."
        ) from error


def _is_full(part: Path) -> bool:
    """Return whether the disk has no room for more of ``part`` (a file, or a folder of files)."""
    try:
        made = list(part.iterdir()) if part.is_dir() else [part]
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource is not None else -1
        limited = most >= 0 and any(f.stat().st_size >= most for f in made)
        return limited or shutil.disk_usage(part.parent).free < _FULL
    except OSError:
        return False


def new_part(folder: Path) -> Path:
    """Return a unique name in ``folder`` for a file or folder that is not finished."""
    # The target's name may be as long as the file system allows, so the part's is not made of it.
    return folder / f".dsconvert-{os.getpid()}-{secrets.token_hex(6)}.part"


def _place(part: Path, target: Path, real: Path, *, overwrite: bool) -> None:
    """Flush a written part to the disk and rename it in one step.

    Raises:
        OutputError: a file of that name has appeared meanwhile and must not be overwritten.
        OSError: the disk can't take the file.
    """
    check_target(target, overwrite=True)  # a folder or a device may have appeared
    if overwrite:
        with suppress(FileNotFoundError):
            part.chmod(stat.S_IMODE(real.stat().st_mode) & 0o777)
    _sync(part, os.O_RDWR)
    if overwrite or not _linked(part, target, real):
        part.replace(real)
    _sync(real.parent, os.O_RDONLY)


def _linked(part: Path, target: Path, real: Path) -> bool:
    """Make ``real`` a second name of ``part``; unlike a rename, this never replaces a file.

    Returns:
        False if the file system has no hard links and no file has that name yet.
    """
    try:
        os.link(part, real)
    except (OSError, NotImplementedError, AttributeError):
        if os.path.lexists(real):
            raise OutputError(
                f"{target} has appeared meanwhile and is left as it is; give --overwrite to "
                "replace it, or another name."
            ) from None
        return False
    return True


def _sync(path: Path, flags: int) -> None:
    """Flush ``path`` to the disk, if the system supports that."""
    try:
        handle = os.open(path, flags)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:
        # Some file systems can't flush a folder; a file that can't be flushed is not written.
        if flags != os.O_RDONLY:
            raise
    finally:
        os.close(handle)
