"""The folder of a run: the name of every file in it, and its settings.

This module imports no torch, because the command line needs it after an interruption.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconvert.errors import OutputError, TrainingError
from dsconvert.util.files import whole_file
from dsconvert.util.foreign_text import from_json

SETTINGS = "settings.json"
BEST = "best.pkl"
_CHECKPOINTS = "images-*.pt"
_SNAPSHOTS = "network-*.pkl"
_GRIDS = "*.png"


@dataclass(frozen=True)
class RunFolder:
    """The files of a training or a distillation.

    ::

        .lock               locked by the process that trains (:mod:`dsconvert.runs.lock`)
        settings.json       the settings, the data and the environment
        stats.jsonl         one line of statistics after the other
        grids/              sample images over time; the names are numbers of images seen
        checkpoints/        the states that the run can be resumed from (a distillation has them
                            in the folder itself)
        snapshots/          the networks of a training over time, and ``best.pkl``
        start.pkl           the structure of a training's networks
        reals.png           real images that a training saw
        side_by_side.png    the networks before and after
        layers.json         parameters and MACs of each layer
        results.json        the final figures
        report.html         all of it, for people

    Args:
        path: the folder; it need not exist.
        checkpoints_in: its subfolder with the checkpoints.
        digits: of the number of images in the name of a grid.
    """

    path: Path
    checkpoints_in: str = "checkpoints"
    digits: int = 9

    @classmethod
    def of_distillation(cls, path: Path) -> RunFolder:
        """Return the folder of a distillation, whose checkpoints lie beside its other files."""
        return cls(path, checkpoints_in="", digits=10)

    # --- names ---

    @property
    def settings(self) -> Path:
        """``settings.json``."""
        return self.path / SETTINGS

    @property
    def stats(self) -> Path:
        """``stats.jsonl``."""
        return self.path / "stats.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def start(self) -> Path:
        """``start.pkl``: the structure that the checkpoints of a training are loaded into."""
        return self.path / "start.pkl"

    @property
    def reals(self) -> Path:
        """``reals.png``."""
        return self.path / "reals.png"

    @property
    def side_by_side(self) -> Path:
        """``side_by_side.png``."""
        return self.path / "side_by_side.png"

    @property
    def layers(self) -> Path:
        """``layers.json``; the rows are :func:`dsconvert.report.jsonable.layer_rows`."""
        return self.path / "layers.json"

    @property
    def results(self) -> Path:
        """``results.json``."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """``report.html``."""
        return self.path / "report.html"

    @property
    def best(self) -> Path:
        """The snapshot with the lowest FD-lite0."""
        return self.path / "snapshots" / BEST

    @property
    def grids_folder(self) -> Path:
        """The folder of the grids."""
        return self.path / "grids"

    def grid(self, images: int) -> Path:
        """Return the path of the grid after ``images``."""
        return self.grids_folder / f"{images:0{self.digits}d}.png"

    def snapshot(self, images: int) -> Path:
        """Return the path of the snapshot after ``images``."""
        return self.path / "snapshots" / f"network-{images:09d}.pkl"

    def checkpoint(self, images: int) -> Path:
        """Return the path of the checkpoint after ``images``."""
        return self.checkpoint_folder / f"images-{images:010d}.pt"

    @property
    def checkpoint_folder(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / self.checkpoints_in

    # --- files that exist ---

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.checkpoint_folder.glob(_CHECKPOINTS))

    def snapshots(self) -> list[Path]:
        """Return the snapshots of a training, oldest first, without ``best.pkl``."""
        return sorted((self.path / "snapshots").glob(_SNAPSHOTS))

    def grids(self) -> list[Path]:
        """Return the grids, oldest first."""
        return sorted(self.grids_folder.glob(_GRIDS))

    def images_saved(self) -> int | None:
        """Return the number of images of the newest checkpoint; None: there is none."""
        found = self.checkpoints()
        return int(found[-1].stem.rpartition("-")[2]) if found else None

    # --- writing ---

    def make(self) -> None:
        """Make the folder and the subfolders that the run writes to.

        Raises:
            OutputError: the disk can't take them.
        """
        training = self.checkpoints_in != ""
        names = (self.checkpoints_in, "snapshots", "grids") if training else ("grids",)
        try:
            for name in names:
                (self.path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the run's folder {self.path} can't be made: {error}.") from error

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write ``settings.json``, whole or not at all.

        Raises:
            OutputError: the disk can't take it.
        """
        write_json(self.settings, settings)

    def read_settings(self) -> dict[str, Any]:
        """Return the ``settings.json`` of a training.

        Raises:
            TrainingError: the folder holds no run that can be continued.
        """
        try:
            settings: Any = from_json(self.settings.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TrainingError(
                f"{self.path} is no run that can be continued; name a folder that holds {SETTINGS}."
            ) from None
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{self.path} is no run that can be continued: its {SETTINGS} can't be read "
                f"({error})."
            ) from error
        if not isinstance(settings, dict) or settings.get("dsconvert_run") != 1:
            raise TrainingError(f"{self.settings} is not of a run of this dsconvert.")
        return settings


def new_run_path(out: str | Path, name: str | None, default: str) -> Path:
    """Make an empty folder for a run: ``OUT/NAME``, or ``OUT/00012-DEFAULT`` with the next number.

    The numbered form is the official code's. Of processes that ask at once, each gets a folder of
    its own, and one gets a ``name``, unless an empty folder of that name was there before.

    Raises:
        OutputError: the folder holds something already, or can't be made.
    """
    base = Path(out)
    while True:
        found = base / (_next_name(base, default) if name is None else name)
        try:
            found.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the folder {found.parent} can't be made: {error}.") from error
        try:
            found.mkdir()
        except FileExistsError:
            if name is None:  # another process has taken the number since it was chosen
                continue
            if found.is_dir() and not any(found.iterdir()):
                return found
            raise OutputError(
                f"{found} exists; continue it with --resume {shlex.quote(str(found))}, or give "
                "another --name."
            ) from None
        except OSError as error:
            raise OutputError(f"the run's folder {found} can't be made: {error}.") from error
        return found


def _next_name(base: Path, default: str) -> str:
    """Return the name of the next numbered run in ``base``."""
    names = [p.name for p in base.iterdir()] if base.is_dir() else []
    taken = [int(m[1]) for name in names if (m := re.match(r"(\d{5,})-", name))]
    return f"{max(taken, default=-1) + 1:05d}-{default}"


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON, whole or not at all.

    Raises:
        OutputError: the disk can't take it.
    """
    with whole_file(path, overwrite=True) as beside:
        beside.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; an empty dictionary if it is missing or damaged."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
