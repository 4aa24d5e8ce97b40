"""Read a file into plain containers and tensors, without running anything in it."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dsconvert.errors import (
    CorruptSnapshotError,
    ForeignFileError,
    MissingExtraError,
    UnsafeSnapshotError,
    UnsupportedSnapshotError,
)
from dsconvert.formats.checkpoint import inert
from dsconvert.formats.checkpoint.bounds import check_calls, check_content, holds_object
from dsconvert.util.extras import pip_install
from dsconvert.util.first_line import first_line
from dsconvert.util.foreign_text import from_json

ENTRY = "dsconvert"
"""The entry that a converted checkpoint has beside the original's."""
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P"
_OLDEST = (2, 6)
"""``weights_only`` of older versions can be tricked into running code (CVE-2025-32434)."""


def is_checkpoint(path: Path) -> str | None:
    """Return ``zip`` or ``legacy`` (torch.save), ``safetensors``, or None, by the first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            size = file.seek(0, 2)
    except OSError:
        return None
    if head.startswith(b"PK\x03\x04") and (b"data.pkl" in head or b"/version" in head):
        return "zip"
    if head.startswith(_LEGACY):
        return "legacy"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < size:
        return "safetensors"
    return None


def read(path: Path, form: str) -> dict[str, Any]:
    """Return the content of a file: the dict that was saved.

    Raises:
        UnsupportedSnapshotError: this torch is too old to read it safely, or it holds no dict.
        UnsafeSnapshotError: it names something that would have to run, or that takes memory.
        CorruptSnapshotError: it is damaged, or unfolds to far more than its size.
    """
    content: Any = _safetensors(path) if form == "safetensors" else _torch(path, form)
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        raise UnsupportedSnapshotError(
            f"{path} holds a {type(content).__name__}, not a dict with names. Save the "
            "generator's state_dict()."
        )
    return dict(content)


def refuse_old_torch(path: str | os.PathLike[str]) -> None:
    """Stop before ``path`` is read by a torch whose ``weights_only`` can be tricked.

    Raises:
        UnsupportedSnapshotError: this torch is older than 2.6.
    """
    version = tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2])
    if version < _OLDEST:
        raise UnsupportedSnapshotError(
            f"{path} is a torch.save checkpoint, which torch {torch.__version__} can't read "
            "without a risk (CVE-2025-32434). Install torch 2.6 or newer."
        )


def _torch(path: Path, form: str) -> Any:
    refuse_old_torch(path)
    if form == "zip":
        _check_zip(path)
    check_calls(path, form)
    try:
        content = inert.load(path, mmap=form == "zip")
    except pickle.UnpicklingError as error:
        said = str(error)
        named = said.split("GLOBAL ")[1].split(" ")[0] if "GLOBAL " in said else None
        if named is not None and named.startswith("torch.nn.modules."):
            raise UnsafeSnapshotError(holds_object(path, named)) from error
        if named is not None or "Unsupported" in said or "Weights only load failed" in said:
            what = f"refers to {named}" if named else "holds more than tensors and plain values"
            raise UnsafeSnapshotError(
                f"{path} {what}, which would have to run to be read. Nothing of it has run. Save "
                "the weights alone, by torch.save(model.state_dict(), FILE), with the code that "
                "made the file."
            ) from error
        raise CorruptSnapshotError(f"{path} is damaged ({said}). Copy it again.") from error
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError) as error:
        raise CorruptSnapshotError(
            f"{path} is damaged ({type(error).__name__}: {first_line(error)[:200]}). Copy it again."
        ) from error
    check_content(path, content)
    return content


def _check_zip(path: Path) -> None:
    """Refuse compression: unpacking would take memory before the content could be checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(i.file_size for i in archive.infolist() if i.compress_type)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CorruptSnapshotError(f"{path} is a damaged zip ({error}). Copy it again.") from error
    if inflated > 1 << 20:
        raise CorruptSnapshotError(
            f"{path} is compressed, which torch.save never does. Unpack it and save it again."
        )


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        library = import_module("safetensors")
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is a safetensors file, and safetensors is not installed: "
            f"{pip_install('safetensors')}."
        ) from error
    try:
        with library.safe_open(str(path), framework="pt", device="cpu") as file:
            content: dict[str, Any] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            metadata: Mapping[str, str] = file.metadata() or {}
    except Exception as error:  # the library's own error has no stable home
        raise CorruptSnapshotError(f"{path} is damaged ({error}). Copy it again.") from error
    if ENTRY in metadata:
        try:
            content = {"state_dict": content, ENTRY: from_json(metadata[ENTRY])}
        except ValueError as error:
            raise CorruptSnapshotError(
                f"{path} has a {ENTRY} entry that is no JSON ({error})."
            ) from error
    return content


def is_marked(path: Path) -> bool:
    """Return whether a safetensors file is a checkpoint that dsconvert wrote."""
    try:
        with import_module("safetensors").safe_open(str(path), framework="pt") as file:
            return ENTRY in (file.metadata() or {})
    except Exception:  # the library's own error has no stable home; whoever reads it says more
        return False


def check_exists(path: Path) -> None:
    """Refuse a path that is no file.

    Raises:
        ForeignFileError: it is missing or a folder.
    """
    if path.is_dir():
        raise ForeignFileError(f"{path} is a folder. Name the checkpoint inside it.")
    if not path.is_file():
        raise ForeignFileError(f"{path} does not exist. Check the path.")
