"""Against the official repositories themselves: opt-in, by environment variable.

``STYLEGAN3_ROOT`` and ``STYLEGAN_XL_ROOT`` name checkouts of NVlabs/stylegan3 and
autonomousvision/stylegan-xl.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dsconvert.formats.convert_file import convert_file
from dsconvert.formats.official import load_snapshot, save_snapshot
from tests.adapters.official_stylegan3 import images

SCRIPT = Path(__file__).parent / "official_stylegan3.py"
RADIAL = {"conv_kernel": 1, "use_radial_filters": True}
SG3 = ("STYLEGAN3_ROOT", "training.networks_stylegan3")
XL = ("STYLEGAN_XL_ROOT", "training.networks_stylegan3_resetting")
VARIANTS: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "-t": (SG3, {"img_resolution": 64, "extra": True}),
    "-t, classes, no clamp": (SG3, {"img_resolution": 128, "classes": 3, "conv_clamp": None}),
    "-r": (SG3, {"img_resolution": 64, **RADIAL}),
    "-r, classes": (SG3, {"img_resolution": 128, "classes": 3, **RADIAL}),
    "XL, 3x3, classes": (
        XL,
        {"img_resolution": 16, "classes": 5, "conv_kernel": 3, "use_radial_filters": False},
    ),
    "XL, no classes": (XL, {"img_resolution": 16, **RADIAL}),
    "XL above 16 px": (XL, {"img_resolution": 16, "classes": 5, "up_factor": 2, **RADIAL}),
}


def run(*args: object) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_same_image_here_and_there(variant: str, width: float, tmp_path: Path) -> None:
    (name, module), options = VARIANTS[variant]
    if not os.environ.get(name):
        pytest.skip(f"{name} names no checkout")
    if importlib.util.find_spec("pkg_resources") is None:
        pytest.skip("the original code imports pkg_resources: pip install 'setuptools<81'")
    repo = os.environ[name]
    path, fast = tmp_path / "sg3.pkl", tmp_path / "fast.pkl"
    run("make", repo, path, json.dumps({**options, "module": module}))
    there = torch.load(f"{path}.pt", weights_only=True)
    snap = load_snapshot(path)
    assert snap.config["source"].endswith(f"{module.replace('.', '/')}.py")
    assert there["images"].std() > 0.02
    assert (images(snap.generator, there["z"], there["c"]) - there["images"]).abs().max() < 1e-5
    narrower = width < 1
    result = convert_file(
        snap, preset="fast", width=width, init="svd", calibrate=8 if narrower else 0
    )
    assert bool(result.main[1].kept) == narrower
    save_snapshot(snap, result.models, fast)
    run("load", repo, fast, f"{path}.pt", tmp_path / "there.pt")
    here = images(load_snapshot(fast).generator, there["z"], there["c"])
    shown = torch.load(tmp_path / "there.pt", weights_only=True)
    assert (shown - here).abs().max() < 1e-5
