"""Download a file once, whole or not at all, and only if its SHA-256 is the expected one."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from dsconvert.errors import DsconvertError
from dsconvert.util.files import whole_file

TIMEOUT = 20.0
"""Seconds without an answer after which a server counts as unreachable."""


def download(url: str, target: Path, *, sha256: str, timeout: float = TIMEOUT) -> None:
    """Download ``url`` to ``target``, whose folder is made if it is missing.

    Two processes may download the same file at once; either copy is kept then.

    Args:
        url: address of the file.
        target: path to write.
        sha256: expected hash of the content, 64 hexadecimal digits.
        timeout: seconds to wait for the server.

    Raises:
        DsconvertError: the network or the disk fails, or the server sends another file. Nothing is
            left at ``target`` then.
    """
    from torch import hub  # here, because util is imported without torch

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target, overwrite=True) as beside, _socket_timeout(timeout):
            try:
                hub.download_url_to_file(url, str(beside), hash_prefix=sha256, progress=False)
            except RuntimeError as error:  # the message of torch names both hashes
                raise DsconvertError(
                    f"the server sent another file, or broke off: its SHA-256 is wrong: {error}"
                ) from error
            except (OSError, HTTPException) as error:
                raise DsconvertError(str(error)) from error
    except OSError as error:
        raise DsconvertError(str(error)) from error


@contextmanager
def _socket_timeout(seconds: float) -> Generator[None, None, None]:
    """Set the timeout of new sockets, which ``torch.hub`` has no argument for."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
