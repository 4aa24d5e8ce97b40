"""The end of a run: one HTML report of what came of it, in the run's folder.

It shows what the loop left there (statistics, grids) and what is made here: ``layers.json`` when
the run begins, ``side_by_side.png`` and ``results.json`` when it ends or is interrupted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dsconvert.core.pipeline import cost
from dsconvert.data.images import ImageSet
from dsconvert.data.pictures import save_picture, side_by_side
from dsconvert.data.stream import to_range
from dsconvert.records import Cost
from dsconvert.report.jsonable import finite, layer_rows
from dsconvert.report.text import times_fewer
from dsconvert.runs.folder import read_settings, write_json
from dsconvert.runs.report import write_report
from dsconvert.runs.stats import read_stats
from dsconvert.train.config import TrainConfig
from dsconvert.train.grids import sample_grid
from dsconvert.train.keeper import Keeper
from dsconvert.train.loop import TrainResult, latents_of
from dsconvert.train.setup import NewGenerator, new_generator
from dsconvert.util.processes import Processes

LAYERS = "layers.json"
_SHOWN = 8
_CPU = torch.device("cpu")
_LOG = logging.getLogger(__name__)


def count_layers(folder: Path, generator: nn.Module, *, wanted: NewGenerator | None) -> Cost:
    """Write what each layer costs, beside the dense architecture where it was converted.

    Args:
        folder: of the run.
        generator: what is trained.
        wanted: how it was made; None where it came from a file, with no dense one to compare.

    Returns:
        what ``generator`` costs.

    Raises:
        OutputError: the disk refuses.
    """
    after = before = cost(generator)
    if wanted is not None and wanted.preset != "none":
        before = cost(new_generator(replace(wanted, preset="none"))[0])
    write_json(folder / LAYERS, finite(layer_rows(before, after)))
    return after


def close_run(
    folder: Path, result: TrainResult, images: ImageSet, config: TrainConfig, procs: Processes
) -> Path | None:
    """Write the report. A run is worth more than its report: what goes wrong here is only logged.

    Returns:
        the report's path; None where it could not be written, and in all processes but the first.
    """
    if procs.rank:
        return None
    try:
        settings = read_settings(folder)
        rows = _rows(folder, result, images, config, procs, settings)
        save_picture(side_by_side(rows), folder / "side_by_side.png", overwrite=True)
        write_json(folder / "results.json", finite(_results(folder, result)))
        return write_report(folder)
    except Exception as error:
        _LOG.warning("the run is saved, but its report could not be written: %s", error)
        return None


def _rows(
    folder: Path,
    result: TrainResult,
    images: ImageSet,
    config: TrainConfig,
    procs: Processes,
    settings: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Real images, the start where it was a trained one, and the average as it is now.

    A column of the last two is one latent; its class is that of the real image above.
    """
    count = min(_SHOWN, config.grid)
    real = [images.image(i)[0] for i in range(min(count, len(images)))]
    rows = {"real images": to_range(torch.stack(real), _CPU)}
    # The first grid has the same latents; the file itself may be gone when a run is resumed.
    start = folder / "grids" / f"{0:09d}.png"
    if settings["command"] == "finetune" and start.is_file():
        rows["before"] = _cells(start, images.resolution, config.grid)[:count]
    keeper = Keeper(
        config=config,
        data=images,
        out=folder,
        latents=latents_of(result.ema),
        procs=procs,
        save=None,
    )
    made = sample_grid(result.ema, keeper.grid_inputs()[:1])[:count]
    rows[f"G_ema after {result.images / 1000:g} kimg"] = made
    return rows


def _cells(path: Path, side: int, count: int) -> Tensor:
    """The pictures of a sheet that :func:`dsconvert.data.pictures.grid` made of ``count``."""
    with Image.open(path) as opened:
        sheet = np.asarray(opened.convert("RGB")).astype(np.float32)
    columns = sheet.shape[1] // side
    places = [(i // columns * side, i % columns * side) for i in range(count)]
    cut = np.stack([sheet[y : y + side, x : x + side] for y, x in places])
    return torch.from_numpy((cut - 128) / 127.5).permute(0, 3, 1, 2)


def _results(folder: Path, result: TrainResult) -> dict[str, Any]:
    """Figures of the whole run, with all its calls."""
    stats = read_stats(result.stats)
    found: dict[str, Any] = {
        "ended": "interrupted" if result.interrupted else "complete",
        "kimg": result.images / 1000,
    }
    timed = [row for row in stats if isinstance(row.get("seconds"), int | float)]
    if timed:
        found["minutes"] = timed[-1]["seconds"] / 60
    if timed and isinstance(timed[-1].get("sec_per_kimg"), int | float):
        found["s/kimg, last tick"] = timed[-1]["sec_per_kimg"]
    judged = [row for row in stats if "fd_lite0" in row]
    if judged:
        found[f"FD-lite0, {judged[-1]['fd_images']} images"] = judged[-1]["fd_lite0"]
        found["lowest FD-lite0"] = result.best
    if result.unreadable:
        found["images left out"] = len(result.unreadable)
    path = folder / LAYERS
    if path.is_file():  # not in a run that an older version began
        total = json.loads(path.read_text(encoding="utf-8"))[-1]
        found["parameters"] = total["params_after"]
        if total["macs_after"]:
            found["MACs"] = total["macs_after"]
            if total["macs_before"] != total["macs_after"]:
                found |= times_fewer(total["macs_before"], total["macs_after"], "MACs")
    return found
