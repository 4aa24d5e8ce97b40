"""Checkpoints: the states that a run is resumed from, exactly.

A checkpoint is written whole or not at all, and older ones are deleted only afterwards, so that a
crash never leaves a run without one. Checkpoints hold tensors, numbers and strings only, and are
read with ``weights_only``: nothing in them can run.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsconvert.errors import OutputError, TrainingError
from dsconvert.formats.checkpoint.read import refuse_old_torch
from dsconvert.runs.folder import RunFolder
from dsconvert.util.files import remove_stale_parts, stream, whole_file

VERSION = 1
_LOG = logging.getLogger(__name__)


def save_checkpoint(
    folder: RunFolder, images: int, payload: Mapping[str, Any], *, keep: int
) -> Path:
    """Write a checkpoint, whole or not at all, then delete the oldest.

    A checkpoint of more images is one that could not be read when the run was resumed. It is set
    aside under another name, so that it neither counts as one nor is read in place of this one.

    Args:
        folder: of the run.
        images: number of images seen, which names the file.
        payload: state dicts, numbers and strings.
        keep: number of checkpoints that remain; at least one does.

    Raises:
        OutputError: the disk can't take it.
    """
    target = folder.checkpoint(images)
    try:
        with whole_file(target, overwrite=True) as beside, stream(beside) as out:
            torch.save({"dsconvert_checkpoint": VERSION, **payload}, out)
    except OutputError as error:
        raise OutputError(
            f"{error} The checkpoint before it is untouched: resume from that."
        ) from error
    remove_stale_parts(target.parent)
    found = folder.checkpoints()
    at = found.index(target) + 1
    for later in found[at:]:
        _set_aside(later)
    for old in found[: max(0, at - max(keep, 1))]:
        old.unlink(missing_ok=True)
    return target


def _set_aside(path: Path) -> None:
    """Rename a checkpoint so that the run no longer counts it; nothing is deleted.

    Raises:
        OutputError: the disk refuses.
    """
    aside = path.with_name(f"{path.name}.unreadable")
    try:
        path.replace(aside)
    except OSError as error:
        raise OutputError(f"can't rename {path} to {aside}: {error}.") from error
    _LOG.warning("%s could not be read and is now %s", path, aside.name)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint; nothing in it runs.

    Raises:
        TrainingError: it is missing, damaged, or from another version.
        UnsupportedSnapshotError: this torch is too old to read it safely.
    """
    refuse_old_torch(path)
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many types on a damaged file
        raise TrainingError(
            f"the checkpoint {path} can't be read ({type(error).__name__}: {str(error)[:200]}). "
            "Delete it to continue from the one before."
        ) from error
    if not isinstance(data, dict) or data.get("dsconvert_checkpoint") != VERSION:
        raise TrainingError(f"{path} is no checkpoint of this version of dsconvert's training.")
    return data


def load_newest(found: Sequence[Path]) -> dict[str, Any]:
    """Read the newest checkpoint that can be read.

    A crash damages none, but a disk may; the one before it serves then.

    Args:
        found: at least one checkpoint, oldest first.

    Raises:
        TrainingError: none can be read; the message is about the oldest.
    """
    for path in reversed(found[1:]):
        try:
            return load_checkpoint(path)
        except TrainingError as error:
            _LOG.warning("%s", error)
    return load_checkpoint(found[0])


def random_states() -> dict[str, Any]:
    """Return the states of torch's, numpy's and Python's generators as plain data."""
    version, internal, gauss = random.getstate()
    algorithm, keys, at, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(algorithm), [int(k) for k in keys], int(at), int(has_gauss), float(cached)],
        "python": [int(version), list(internal), gauss],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set the generators to the states of :func:`random_states`.

    States of CUDA are restored if this machine has as many GPUs as the one that saved them.
    """
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    algorithm, keys, at, has_gauss, cached = states["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), at, has_gauss, cached))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
