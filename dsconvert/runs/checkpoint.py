"""Checkpoints that a run can be continued from exactly, and that no crash can spoil.

A file is written whole or not at all; the one before goes only then.
They hold tensors, numbers and strings only, and are read with ``weights_only``: nothing in one can
run.
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
from dsconvert.util.files import remove_stale_parts, stream, whole_file

VERSION = 1
_LOG = logging.getLogger(__name__)


def save_checkpoint(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> Path:
    """Write ``payload`` (state dicts, numbers, strings) to ``path``, whole or not at all.

    Raises:
        OutputError: the disk refuses.
    """
    target = Path(path)
    try:
        with whole_file(target, overwrite=True) as beside, stream(beside) as out:
            torch.save({"dsconvert_checkpoint": VERSION, **payload}, out)
    except OutputError as error:
        raise OutputError(
            f"{error} The checkpoint before it is untouched: resume from that."
        ) from error
    return target


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint; nothing in it runs.

    Raises:
        TrainingError: it is missing, damaged, or from another version.
        UnsupportedSnapshotError: this torch is too old to read it safely.
    """
    refuse_old_torch(path)
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a damaged file
        raise TrainingError(
            f"the checkpoint {path} can't be read ({type(error).__name__}: {str(error)[:200]}). "
            "Delete it to continue from the one before."
        ) from error
    if not isinstance(data, dict) or data.get("dsconvert_checkpoint") != VERSION:
        raise TrainingError(f"{path} is no checkpoint of this version of dsconvert's training.")
    return data


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    return sorted(Path(folder).glob("images-*.pt"))


def newest(found: Sequence[Path]) -> dict[str, Any]:
    """The newest of ``found`` (oldest first) that can be read.

    A crash leaves none damaged, but a disk may; then the one before serves.

    Raises:
        TrainingError: none can be read; about the oldest.
    """
    for path in reversed(found[1:]):
        try:
            return load_checkpoint(path)
        except TrainingError as error:
            _LOG.warning("%s", error)
    return load_checkpoint(found[0])


def checkpoint_name(images: int) -> str:
    """File name of the checkpoint after ``images``."""
    return f"images-{images:010d}.pt"


def prune(folder: str | os.PathLike[str], keep: int) -> None:
    """Delete all but the newest ``keep`` (at least one), and what a killed writer left."""
    remove_stale_parts(folder)
    for old in checkpoints(folder)[: -max(keep, 1)]:
        old.unlink(missing_ok=True)


def random_states() -> dict[str, Any]:
    """The states of torch's, numpy's and Python's generators, as plain data."""
    version, internal, gauss = random.getstate()
    kind, keys, at, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), [int(k) for k in keys], int(at), int(has_gauss), float(cached)],
        "python": [int(version), list(internal), gauss],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Back from :func:`random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, at, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), at, has_gauss, cached))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
