"""The folder of a distillation: settings, checkpoints, and what may change when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsconvert.distill.config import DistillConfig
from dsconvert.errors import UsageError
from dsconvert.runs.checkpoint import (
    checkpoint_name,
    checkpoints,
    newest,
    prune,
    save_checkpoint,
)
from dsconvert.util.files import whole_file

_KIND = "distill"


class Folder:
    """Where a run keeps what it needs to be continued, and what a report is made from.

    Args:
        path: of the folder; :meth:`make` makes it.
        config: of the run.
        resume: whether the run is to be continued.

    Raises:
        UsageError: it holds a run although none is to be continued, or none although one is, or
            one with other settings.
        TrainingError: none of its checkpoints can be read.
    """

    def __init__(self, path: Path, config: DistillConfig, *, resume: bool) -> None:
        self.path, self.config = path, config
        found = checkpoints(path) if path.is_dir() else []
        if found and not resume:
            raise UsageError(
                f"{path} holds a run already: give --resume to continue it, or another folder "
                "(--run)."
            )
        if resume and not found:
            raise UsageError(f"{path} holds no checkpoint to resume from; leave --resume out.")
        self.found: dict[str, Any] | None = newest(found) if found else None
        if self.found is not None:
            self._same_run(self.found)

    def make(self) -> None:
        """Make it, once nothing else can be refused.

        Raises:
            UsageError: the disk refuses.
        """
        try:
            (self.path / "grids").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the run's folder {self.path} can't be made ({error}); name another (--run)."
            ) from error

    def _same_run(self, data: Mapping[str, Any]) -> None:
        if data.get("kind") != _KIND:
            raise UsageError(f"{self.path} holds a training run, not a distillation.")
        fixed = self.config.fixed_changes(data["config"])
        if fixed:
            raise UsageError(
                "a resumed run keeps its settings; these differ: "
                + ", ".join(f"{k} ({then!r}, now {now!r})" for k, (then, now) in fixed.items())
                + "."
            )

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write ``settings.json``."""
        everything = {"command": _KIND, "settings": self.config.to_dict(), **facts}
        with whole_file(self.path / "settings.json", overwrite=True) as beside:
            beside.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")

    def save(self, images: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint and delete the oldest."""
        payload = {"kind": _KIND, "config": self.config.to_dict(), **state}
        save_checkpoint(self.path / checkpoint_name(images), payload)
        prune(self.path, self.config.keep_last)
