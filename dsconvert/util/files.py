"""Write files whole or not at all: the one place from which the package writes.

A file is written under a unique name beside its target (``.dsconvert-PID-RANDOM.part``), flushed
to the disk and then given its name in one step, so that neither a crash nor a second writer leaves
half a file. Threads and processes that write into one folder never share a name. The part is
removed on every error and on Ctrl-C; only a killed process leaves one (see
:func:`remove_stale_parts`).

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
    """Refuse an input that can't be read from any place: a pipe, a terminal, a device.

    A path that does not exist, or a folder, is left to the reader, which knows what to suggest.

    Raises:
        ForeignFileError: it is none of a regular file, a folder and nothing.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        what = "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise ForeignFileError(
            f"{path} is {what}, and a model is read from many places of its file. Save it to a "
            "file, and name that."
        )


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The output's path, if it may be written; a symbolic link is judged by what it points to.

    Raises:
        OutputError: it exists (and ``overwrite`` is off), is a folder or a device, or its folder is
            missing or can't be written to.
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
        # Asked before the work: to find out after minutes of it would be late.
        if not os.access(real.parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"the folder {_folder(target, real)} can't be written to; name another."
            )
    except OSError as error:  # a name too long, a folder that one may not enter
        raise OutputError(f"can't write {str(target)!r}: {error}; give another name.") from error
    return target


def _folder(target: Path, real: Path) -> Path:
    """The folder as the user knows it, unless a link leads elsewhere."""
    return real.parent if target.is_symlink() else target.parent


@contextmanager
def whole_file(path: str | os.PathLike[str], *, overwrite: bool) -> Generator[Path, None, None]:
    """A file beside ``path`` to write to; it gets that name if nothing goes wrong.

    Args:
        path: the target. A symbolic link is followed.
        overwrite: whether a file there may be replaced. Where not, one that appears while the
            part is written is not replaced either.

    Raises:
        OutputError: see :func:`check_target`, or the disk refuses.
    """
    target = check_target(path, overwrite=overwrite)
    real = Path(os.path.realpath(target))
    part = _part(real.parent)
    try:
        with _told(target, part):
            part.touch(0o666, exist_ok=False)  # not by tempfile, whose files only we could read
            yield part
            _place(part, target, real, overwrite=overwrite)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def whole_files(path: str | os.PathLike[str], *, overwrite: bool) -> Generator[Path, None, None]:
    """A path in an empty folder to write to, for a format of several files.

    At the end every file in that folder is placed beside ``path``, and the one of its name last,
    since that is what a reader opens. Each name may be a symbolic link, which is followed.

    Raises:
        OutputError: see :func:`whole_file`. Without ``overwrite`` no file is left then.
    """
    target = check_target(path, overwrite=overwrite)
    folder = _part(Path(os.path.realpath(target)).parent)
    placed: list[Path] = []
    try:
        with _told(target, folder):
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
    """Delete what killed processes have left in ``folder``: parts not written to for an hour."""
    for part in Path(folder).glob(PARTS):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _STALE:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


class Stream(FileIO):
    """A file to write to that remembers why the disk refused.

    torch's writer answers a full disk with a ``RuntimeError`` about positions in an archive, and
    loses the reason.
    """

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data``.

        Raises:
            OSError: the disk refuses.
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
def stream(path: str | os.PathLike[str]) -> Generator[Stream, None, None]:
    """A stream into a part, for writers that swallow the reason of a failure.

    Raises:
        OSError: the disk refused; whatever the writer made of that.
    """
    with Stream(os.fspath(path), "wb") as out:
        try:
            yield out
        except Exception as error:
            if out.error is not None:
                raise out.error from error
            raise


@contextmanager
def _told(target: Path, part: Path) -> Generator[None, None, None]:
    """Turn whatever a disk says into one sentence about ``target``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"can't write {target}: {error}; make room or name another.") from error
    except OutputError:
        raise
    except Exception as error:  # some writers have no word for a full disk
        if not _is_full(part):
            raise
        raise OutputError(
            f"can't write {target}: no space is left on that disk, or the file is larger than it "
            "may be (ulimit -f); make room or name another."
        ) from error


def _is_full(part: Path) -> bool:
    """Whether a writer of ``part`` (a file, or a folder of files) can't go on."""
    try:
        made = list(part.iterdir()) if part.is_dir() else [part]
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource is not None else -1
        limited = most >= 0 and any(f.stat().st_size >= most for f in made)
        return limited or shutil.disk_usage(part.parent).free < _FULL
    except OSError:
        return False


def _part(folder: Path) -> Path:
    # The target's name may be as long as the file system allows, so the part has one of its own.
    return folder / f".dsconvert-{os.getpid()}-{secrets.token_hex(6)}.part"


def _place(part: Path, target: Path, real: Path, *, overwrite: bool) -> None:
    """Give a written part its name, in one step and on the disk.

    Raises:
        OutputError: a file of that name has appeared meanwhile and must not be overwritten.
        OSError: the disk refuses.
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
    """Make ``real`` a second name of ``part``, which, unlike a rename, replaces nothing.

    Returns:
        False where the file system knows no hard links; then nothing has that name just now.
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
    """Flush ``path`` to the disk, where the system can."""
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
