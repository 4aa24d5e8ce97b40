"""A distillation on the disk: its settings, its checkpoints, and the check of a resumption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsconvert.config.distill import DistillConfig
from dsconvert.data.pictures import save_picture, side_by_side
from dsconvert.data.spectrograms import pictured
from dsconvert.errors import UsageError
from dsconvert.matching.evaluator import HeldOutEvaluation
from dsconvert.runs.checkpoint import load_newest, save_checkpoint
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.stats import StatsWriter

_COMMAND = "distill"


class DistillationRun:
    """The folder of a distillation, and the state that it is resumed from.

    Args:
        path: of the folder; :meth:`begin` makes it.
        config: of the run.
        resume: whether to continue the run in the folder.

    Attributes:
        folder: the folder.
        saved: the content of the newest checkpoint; None: the run is new.

    Raises:
        UsageError: the folder holds a run and ``resume`` is off; or it holds none, or one with
            other settings, and ``resume`` is on.
        TrainingError: none of its checkpoints can be read.
    """

    def __init__(self, path: Path, config: DistillConfig, *, resume: bool) -> None:
        self.folder, self._config = RunFolder.of_distillation(path), config
        found = self.folder.checkpoints()
        if found and not resume:
            raise UsageError(
                f"{path} holds a run already: give --resume to continue it, or another folder "
                "(--run)."
            )
        if resume and not found:
            raise UsageError(f"{path} holds no checkpoint to resume from; leave --resume out.")
        self.saved: dict[str, Any] | None = load_newest(found) if found else None
        if self.saved is not None:
            self._check_settings(self.saved)

    def _check_settings(self, saved: Mapping[str, Any]) -> None:
        if saved.get("kind") != _COMMAND:
            raise UsageError(f"{self.folder.path} holds a training run, not a distillation.")
        changed = self._config.fixed_changes(saved["config"])
        if changed:
            raise UsageError(
                "a resumed run keeps its settings; these differ: "
                + ", ".join(f"{k} ({then!r}, now {now!r})" for k, (then, now) in changed.items())
                + "."
            )

    def begin(self, facts: Mapping[str, Any], *, images: int) -> StatsWriter:
        """Make the folder, write ``settings.json``, and open ``stats.jsonl``.

        Args:
            facts: to store beside the settings.
            images: the run goes on after this many; later lines of ``stats.jsonl`` go.

        Raises:
            OutputError: the disk can't take them.
        """
        self.folder.make()
        settings = self._config.to_dict()
        self.folder.write_settings({"command": _COMMAND, "settings": settings, **facts})
        return StatsWriter(self.folder.path, resume_images=None if self.saved is None else images)

    def show(self, images: int, found: HeldOutEvaluation) -> None:
        """Write the grid of an evaluation.

        Raises:
            OutputError: the disk can't take it.
        """
        rows = {"teacher": pictured(found.teacher), "student": pictured(found.student)}
        sheet = side_by_side(rows, with_psnr=True)
        save_picture(sheet, self.folder.grid(images), overwrite=True)

    def save(self, images: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint and delete the oldest.

        Raises:
            OutputError: the disk can't take it.
        """
        payload = {"kind": _COMMAND, "config": self._config.to_dict(), **state}
        save_checkpoint(self.folder, images, payload, keep=self._config.keep_last)
