"""A distillation on the disk: its settings, its checkpoints, and the check of a resumption."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsconvert.config.distill import DistillConfig
from dsconvert.data.pictures import save_picture, side_by_side
from dsconvert.data.spectrograms import pictured
from dsconvert.errors import TrainingError, UsageError
from dsconvert.matching.evaluator import HeldOutEvaluation
from dsconvert.runs.checkpoint import load_newest, save_checkpoint
from dsconvert.runs.folder import RunFolder, read_json
from dsconvert.runs.lock import locked
from dsconvert.runs.stats import StatsWriter

_COMMAND = "distill"


class DistillationRun:
    """The folder of a distillation, and the state that it is resumed from.

    Args:
        path: of the folder; :meth:`begin` makes it.
        config: of the run.
        resume: whether to continue the run in the folder.
        files: SHA-256 of the files that the run is made of, by role.

    Attributes:
        folder: the folder.
        saved: the content of the newest checkpoint; None: the run is new.

    Raises:
        UsageError: the folder holds a run, also a training's, and ``resume`` is off; or it holds
            none, or one with other settings or of other files, and ``resume`` is on.
        TrainingError: none of its checkpoints can be read.
    """

    def __init__(
        self,
        path: Path,
        config: DistillConfig,
        *,
        resume: bool,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self._config = RunFolder.of_distillation(path), config
        self._files = dict(files or {})
        self._found = found = self.folder.checkpoints()
        if found and not resume:
            raise UsageError(
                f"{path} holds a run already: give --resume to continue it, or another folder "
                "(--run)."
            )
        if resume and not found:
            raise UsageError(f"{path} holds no checkpoint to resume from; leave --resume out.")
        if not found:
            self._check_new()
        self.saved: dict[str, Any] | None = load_newest(found) if found else None
        if self.saved is not None:
            self._check_settings(self.saved)
            self._check_files()

    def _check_new(self) -> None:
        """Check that a new run would replace no file but those of a run without a checkpoint."""
        files = self.folder
        stored = read_json(files.settings)
        if isinstance(stored, dict) and stored.get("command") == _COMMAND:
            return
        training = RunFolder(files.path)
        replaced = (files.settings, files.stats, files.grids_folder, files.tensorboard)
        results = (files.side_by_side, files.layers, files.results, files.report)
        for path in (*replaced, *results, training.checkpoint_folder, training.best.parent):
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise UsageError(
                    f"{files.path} holds a run already, not a distillation's: {path.name} would be "
                    "lost or mixed up; name another folder (--run)."
                )

    def _check_files(self) -> None:
        stored = read_json(self.folder.settings)
        before: Any = stored.get("sha256") if isinstance(stored, dict) else None
        for role, digest in self._files.items():
            # A run of an older version has none.
            if isinstance(before, dict) and before.get(role, digest) != digest:
                raise UsageError(
                    f"the {role} is not the file that the run in {self.folder.path} began with "
                    f"({stored.get(role)}): its content differs; name that file, or begin another "
                    "run (--run)."
                )

    @contextmanager
    def alone(self) -> Generator[None, None, None]:
        """Hold the lock of the folder.

        Raises:
            TrainingError: another process trains there, or has since the folder was read.
            OutputError: the disk can't take the folder.
        """
        with locked(self.folder.path):
            if self.folder.checkpoints() != self._found:
                raise TrainingError(
                    f"another process has trained in {self.folder.path} meanwhile; begin again."
                )
            yield

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
        about = {"sha256": self._files} if self._files else {}
        self.folder.write_settings({"command": _COMMAND, "settings": settings, **facts, **about})
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
