"""What a run reports: ``stats.jsonl``, and TensorBoard's files where that is installed."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dsconvert.util.files import whole_file

FILE = "stats.jsonl"


class StatsWriter:
    """Appends one JSON object a line to ``FOLDER/stats.jsonl``, each line flushed at once.

    Every line holds ``images`` (seen so far) and whatever else it is given; what is not finite
    becomes null. A resumed run drops the lines beyond the place that it resumes from.

    Args:
        folder: where to write; it exists.
        resume_images: keep the lines up to this many images; None: start afresh.
        tensorboard: also write TensorBoard events, if that package is there.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        resume_images: int | None = None,
        tensorboard: bool = True,
    ) -> None:
        self.path = Path(folder) / FILE
        kept: list[str] = []
        if resume_images is not None and self.path.is_file():
            kept = [
                json.dumps(row) + "\n"
                for row in read_stats(self.path)
                if row.get("images", 0) <= resume_images
            ]
        with whole_file(self.path, overwrite=True) as beside:
            beside.write_text("".join(kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _board(Path(folder), resume_images) if tensorboard else None

    def write(self, images: int, **values: Any) -> dict[str, Any]:
        """Add one line, and each number in it to TensorBoard."""
        row = {"images": images, "kimg": images / 1000, **values}
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in clean.items():
                if type(value) in (int, float):
                    self._board.add_scalar(name, value, images)
            self._board.flush()
        return clean

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, resume_images: int | None) -> Any:
    try:
        writer: Any = import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError:
        return None
    # The line at that very image stays, as it does in the statistics.
    purge = None if resume_images is None else resume_images + 1
    return writer(str(folder / "tensorboard"), purge_step=purge)


def read_stats(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a ``stats.jsonl``; a last line that a crash cut short is left out."""
    rows: list[dict[str, Any]] = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def peak_memory(device: torch.device) -> int:
    """Peak bytes: torch's allocations on a GPU, the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
