"""The report at the end of a run, and the figures and pictures that it needs.

The run itself writes statistics and grids. This module adds ``layers.json`` when a run begins, and
``side_by_side.png``, ``results.json`` and ``report.html`` when it ends or is interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dsconvert.config.train import TrainConfig
from dsconvert.core.pipeline import cost
from dsconvert.data.images import ImageSet
from dsconvert.data.pictures import save_picture, side_by_side
from dsconvert.data.stream import to_range
from dsconvert.records import Cost
from dsconvert.report.jsonable import finite, layer_rows
from dsconvert.runs.folder import RunFolder, read_json, write_json
from dsconvert.runs.report import write_report
from dsconvert.runs.stats import read_stats
from dsconvert.train.loop import TrainResult
from dsconvert.train.outputs import grid_inputs, sample_images_of
from dsconvert.train.setup import NewGenerator, new_generator
from dsconvert.train.state import latents_of
from dsconvert.util.numbers import times_fewer
from dsconvert.util.processes import Processes

_SHOWN = 8
_LOG = logging.getLogger(__name__)


def write_layer_costs(
    folder: RunFolder, generator: nn.Module, *, wanted: NewGenerator | None
) -> Cost:
    """Write the cost of each layer, beside that of the dense architecture if it differs.

    Args:
        folder: of the run.
        generator: the network to train.
        wanted: the settings it was made with; None: it came from a file, and there is no dense
            architecture to compare with.

    Returns:
        the cost of ``generator``.

    Raises:
        OutputError: the disk can't take the file.
    """
    after = before = cost(generator)
    if wanted is not None and (wanted.preset != "none" or wanted.width != 1):
        dense = replace(wanted, preset="none", rank=None, width=1.0, spectral="keep")
        before = cost(new_generator(dense)[0])
    write_json(folder.layers, finite(layer_rows(before, after)))
    return after


def write_run_report(
    folder: RunFolder, result: TrainResult, images: ImageSet, config: TrainConfig, procs: Processes
) -> Path | None:
    """Write the report. An error here is logged, not raised, because the run itself is saved.

    Returns:
        the report's path; None if it could not be written, and in every process but the first.
    """
    if procs.rank:
        return None
    try:
        settings = folder.read_settings()
        rows = _rows(folder, result, images, config, procs, settings)
        save_picture(side_by_side(rows), folder.side_by_side, overwrite=True)
        write_json(folder.results, finite(_results(folder, result)))
        return write_report(folder.path)
    except Exception as error:
        _LOG.warning("the run is saved, but its report could not be written: %s", error)
        return None


def _rows(
    folder: RunFolder,
    result: TrainResult,
    images: ImageSet,
    config: TrainConfig,
    procs: Processes,
    settings: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Return real images, the start if it was a trained network, and the moving average now.

    A column of the last two has one latent; its class is that of the real image above.
    """
    count = min(_SHOWN, config.grid)
    real = [images.image(i)[0] for i in range(min(count, len(images)))]
    rows = {"real images": to_range(torch.stack(real), torch.device("cpu"))}
    # The first grid has the same latents. The file that a resumed run began with may be gone.
    start = folder.grid(0)
    if settings["command"] == "finetune" and start.is_file():
        rows["before"] = _cells(start, images.resolution, config.grid)[:count]
    inputs = grid_inputs(images, config, latents_of(result.ema), procs.device)
    made = sample_images_of(result.ema, inputs[:1])[:count]
    rows[f"G_ema after {result.images / 1000:g} kimg"] = made
    return rows


def _cells(path: Path, side: int, count: int) -> Tensor:
    """Cut a sheet of :func:`dsconvert.data.pictures.grid` into its ``count`` images."""
    with Image.open(path) as opened:
        sheet = np.asarray(opened.convert("RGB")).astype(np.float32)
    columns = sheet.shape[1] // side
    places = [(i // columns * side, i % columns * side) for i in range(count)]
    cut = np.stack([sheet[y : y + side, x : x + side] for y, x in places])
    return torch.from_numpy((cut - 128) / 127.5).permute(0, 3, 1, 2)


def _results(folder: RunFolder, result: TrainResult) -> dict[str, Any]:
    """Return the figures of the whole run, over all its calls."""
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
    evaluated = [row for row in stats if "fd_lite0" in row]
    if evaluated:
        found[f"FD-lite0, {evaluated[-1]['fd_images']} images"] = evaluated[-1]["fd_lite0"]
        found["lowest FD-lite0"] = result.best
    if result.unreadable:
        found["images left out"] = len(result.unreadable)
    rows = read_json(folder.layers)  # an older version wrote none
    total = rows[-1] if isinstance(rows, list) and rows else None
    if isinstance(total, dict) and {"params_after", "macs_before", "macs_after"} <= total.keys():
        found["parameters"] = total["params_after"]
        if total["macs_after"]:
            found["MACs"] = total["macs_after"]
            if total["macs_before"] != total["macs_after"]:
                found |= times_fewer(total["macs_before"], total["macs_after"], "MACs")
    return found
