"""A run's folder: its name, what it says of itself, and how it is found again."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dsconvert.errors import OutputError, TrainingError
from dsconvert.util.files import whole_file
from dsconvert.util.processes import Processes

SETTINGS = "settings.json"
START = "start.pkl"


def new_folder(out: str | Path, name: str | None, default: str, procs: Processes) -> Path:
    """``OUT/NAME``, or the next number with what the run is, as the official code names runs.

    Raises:
        OutputError: it holds something already, or can't be made.
    """
    found: Path | str | None = None
    if procs.rank == 0:
        base = Path(out)
        if name is None:
            taken = [
                int(m[1])
                for p in (base.iterdir() if base.is_dir() else ())
                if (m := re.match(r"(\d{5})-", p.name))
            ]
            found = base / f"{max(taken, default=-1) + 1:05d}-{default}"
        else:
            found = base / name
        if found.exists() and (not found.is_dir() or any(found.iterdir())):
            found = f"{found} exists; continue it with --resume {found}, or give another --name."
        else:
            try:
                found.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                found = f"the run's folder {found} can't be made: {error}."
    shared = procs.share(found)
    if isinstance(shared, str):
        raise OutputError(shared)
    return Path(shared)


def write_json(path: Path, data: Any) -> None:
    """Write ``data``, whole or not at all.

    Raises:
        OutputError: the disk refuses.
    """
    with whole_file(path, overwrite=True) as beside:
        beside.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """What :func:`read_settings` reads.

    Raises:
        OutputError: the disk refuses.
    """
    write_json(folder / SETTINGS, settings)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """A run's ``settings.json``.

    Raises:
        TrainingError: there is no run in ``folder``.
    """
    try:
        settings: Any = json.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{folder} is no run that can be continued ({error}); name a folder that holds "
            f"{SETTINGS}."
        ) from error
    if not isinstance(settings, dict) or settings.get("dsconvert_run") != 1:
        raise TrainingError(f"{Path(folder) / SETTINGS} is not of a run of this dsconvert.")
    return settings


def newest_snapshot(folder: Path) -> Path | None:
    """The last snapshot that a run has written, whichever call it was."""
    found = sorted((folder / "snapshots").glob("network-*.pkl"))
    return found[-1] if found else None


def environment(procs: Processes) -> dict[str, Any]:
    """What the run runs on."""
    device = procs.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": f"{device} {name}".strip(),
        "processes": procs.world,
    }
