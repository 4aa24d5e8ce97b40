"""Against the official repositories themselves: opt-in, by environment variable.

``PROJECTED_GAN_ROOT``, ``STYLEGAN2_ADA_ROOT`` and ``STYLEGAN3_ROOT`` name checkouts of
autonomousvision/projected-gan, NVlabs/stylegan2-ada-pytorch and NVlabs/stylegan3.
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
from tests.adapters.official_stylegan2 import CASES

SCRIPT = Path(__file__).parent / "official_stylegan2.py"
CODES = {
    "projected-gan": ("PROJECTED_GAN_ROOT", "pg_modules.networks_stylegan2"),
    "stylegan2-ada": ("STYLEGAN2_ADA_ROOT", "training.networks"),
    "stylegan3": ("STYLEGAN3_ROOT", "training.networks_stylegan2"),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "skip": {"architecture": "skip"},
    "resnet, classes": {"architecture": "resnet", "classes": 3},
    "orig, clamp, fp16": {"architecture": "orig", "conv_clamp": 2, "num_fp16_res": 2},
}


def root(code: str) -> str:
    name, _ = CODES[code]
    if not os.environ.get(name):
        pytest.skip(f"{name} names no checkout")
    if code == "stylegan3" and importlib.util.find_spec("pkg_resources") is None:
        pytest.skip("StyleGAN3's own code imports pkg_resources: pip install 'setuptools<81'")
    return os.environ[name]


def run(*args: object) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def images(g: Any, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    made = []
    with torch.no_grad():
        for psi, cut, mode in CASES:
            torch.manual_seed(1)
            made.append(g(z, c, truncation_psi=psi, truncation_cutoff=cut, noise_mode=mode))
    return torch.stack(made)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("width", [1.0, 0.5])
@pytest.mark.parametrize("code", sorted(CODES))
def test_same_image_here_and_there(code: str, width: float, variant: str, tmp_path: Path) -> None:
    repo, module = root(code), CODES[code][1]
    path, fast = tmp_path / "sg2.pkl", tmp_path / "fast.pkl"
    # Projected GAN's discriminator is another one, and needs timm.
    options = {**VARIANTS[variant], "extra": code != "projected-gan" and variant == "skip"}
    run("make", repo, module, path, json.dumps(options))
    there = torch.load(f"{path}.pt", weights_only=True)
    snap = load_snapshot(path)
    assert snap.config["source"].endswith(f"{module.replace('.', '/')}.py")
    here = images(snap.generator, there["z"], there["c"])
    assert there["images"].std() > 0.1
    assert (here - there["images"]).abs().max() < 1e-3
    narrower = width < 1
    result = convert_file(
        snap, preset="fast", width=width, init="svd", calibrate=8 if narrower else 0
    )
    assert bool(result.main[1].kept) == narrower
    save_snapshot(snap, result.models, fast)
    run("load", repo, fast, f"{path}.pt", tmp_path / "there.pt")
    here = images(load_snapshot(fast).generator, there["z"], there["c"])
    shown = torch.load(tmp_path / "there.pt", weights_only=True)
    assert (shown - here).abs().max() < 1e-4
