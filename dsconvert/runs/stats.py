"""Statistics of a run: ``stats.jsonl``, and TensorBoard events if that package is installed."""

from __future__ import annotations

import json
import math
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from dsconvert.runs.folder import RunFolder
from dsconvert.util.files import whole_file
from dsconvert.util.foreign_text import from_json


class StatsWriter:
    """Appends one JSON object a line to ``stats.jsonl`` and flushes each line at once.

    Every line holds ``images`` (the number of images seen), ``kimg`` and the given values; a value
    that is not finite becomes null. A resumed run drops the lines after the place that it resumes
    from.

    Args:
        folder: of the run; it exists.
        resume_images: keep the lines up to this many images; None: start with an empty file.
        tensorboard: also write TensorBoard events, if that package is installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        resume_images: int | None = None,
        tensorboard: bool = True,
    ) -> None:
        files = RunFolder(Path(folder))
        self.path = files.stats
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
        self._board = _board(files.tensorboard, resume_images) if tensorboard else None

    def write(self, images: int, **values: Any) -> dict[str, Any]:
        """Add one line, and each number in it to TensorBoard; return the line."""
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
    # An event at that very image stays, as its line in the statistics does.
    purge = None if resume_images is None else resume_images + 1
    return writer(str(folder), purge_step=purge)


def read_stats(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a ``stats.jsonl``, without a last line that a crash cut short.

    Raises:
        OSError: there is no such file.
    """
    rows: list[dict[str, Any]] = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            row = from_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
