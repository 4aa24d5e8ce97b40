"""Our files in the unmodified official repo, without dsconvert.

Opt-in: ``PROJECTED_GAN_ROOT`` names a checkout of autonomousvision/projected-gan, and
``PROJECTED_GAN_TIMM`` a folder with timm 0.4.12 (needed for files with a discriminator).
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dsconvert.formats.convert_file import convert_file
from dsconvert.formats.official import load_snapshot, new_snapshot, save_snapshot
from tests.formats.official.conftest import shared_folder, small_generator

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.environ.get("PROJECTED_GAN_ROOT")
TIMM = os.environ.get("PROJECTED_GAN_TIMM")
pytestmark = pytest.mark.skipif(
    not ROOT, reason="PROJECTED_GAN_ROOT does not name a checkout of the official repo"
)
SHARED = sorted(shared_folder().glob("snapshots/*.pkl"))

SCRIPT = """
import sys
sys.modules["dsconvert"] = None            # an import of it fails
sys.modules["dsconvert_adapters"] = None
import torch, legacy
data_path, latents, out = sys.argv[1:]
with open(data_path, "rb") as f:
    data = legacy.load_network_pkl(f)
z, c = torch.load(latents)
g = data["G_ema"]
assert type(g).__module__ == "pg_modules.networks_fastgan", type(g)
assert not any(type(m).__module__.startswith("dsconvert") for m in g.modules())
torch.manual_seed(0)
with torch.no_grad():
    torch.save(g(z, c), out)
g.load_state_dict(g.state_dict())
torch.manual_seed(0)
with torch.no_grad():
    assert torch.equal(g(z, c), torch.load(out))
g.train().requires_grad_(True)
g(z, c).sum().backward()
assert all(p.grad is None or p.grad.isfinite().all() for p in g.parameters())
"""


def run(*arguments: str | Path) -> None:
    path = os.pathsep.join(p for p in (TIMM, ROOT) if p)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def official_picture(file: Path, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    latents, out = file.with_suffix(".latents"), file.with_suffix(".image")
    torch.save((z, c), latents)
    run("-c", SCRIPT, file, latents, out)
    return torch.load(out)


def our_picture(file: Path, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return load_snapshot(file).generator(z, c)


def replaced(model: nn.Module) -> nn.Module:
    """Some convolutions become plain pairs, as a conversion leaves them."""
    for name, conv in list(model.named_modules()):
        if isinstance(conv, nn.Conv2d) and ".feat_" in name and conv.kernel_size == (3, 3):
            pair = nn.Sequential()
            inputs, outputs = conv.in_channels, conv.out_channels
            pair.add_module("depthwise", nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs))
            pair.add_module("pointwise", nn.Conv2d(inputs, outputs, 1, bias=False))
            model.set_submodule(name, pair)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("cfg", ["fastgan", "fastgan_lite"])
@pytest.mark.parametrize("convert", [False, True])
def test_our_files(tmp_path: Path, classes: int, cfg: str, convert: bool) -> None:
    model = small_generator(classes=classes, cfg=cfg, ngf=4)
    if convert:
        replaced(model)
    file = tmp_path / "ours.pkl"
    save_snapshot(new_snapshot(model), model, file)
    z, c = torch.randn(2, 8), torch.eye(max(classes, 2))[:2, :classes]
    ours = our_picture(file, z, c)
    assert ours.std() > 0
    assert (official_picture(file, z, c) - ours).abs().max() <= 1e-4


@pytest.mark.skipif(not SHARED, reason=f"no snapshots in {shared_folder()}")
@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize("path", SHARED, ids=[p.stem for p in SHARED])
def test_shared_files(path: Path, tmp_path: Path, convert: bool) -> None:
    if "full" in path.stem and not TIMM:
        pytest.skip("PROJECTED_GAN_TIMM does not name a folder with timm 0.4.12")
    expected = torch.load(path.with_suffix(".expected.pt"), weights_only=True)
    z, c = expected["z"], expected["c"]
    snap = load_snapshot(path)
    model = replaced(snap.generator) if convert else snap.generator
    file = tmp_path / "again.pkl"
    save_snapshot(snap, model, file)
    official = official_picture(file, z, c)
    assert (official - our_picture(file, z, c)).abs().max() <= 1e-4
    if not convert:
        assert (official - expected["image"].float()).abs().max() <= 1e-3


@pytest.mark.skipif(not SHARED, reason=f"no snapshots in {shared_folder()}")
@pytest.mark.parametrize("preset", ["exact", "paper", "balanced", "fast"])
@pytest.mark.parametrize("path", SHARED, ids=[p.stem for p in SHARED])
def test_converted_files(path: Path, tmp_path: Path, preset: str) -> None:
    """The main job's output, by every preset, makes the same picture there as here."""
    if "full" in path.stem and not TIMM:
        pytest.skip("PROJECTED_GAN_TIMM does not name a folder with timm 0.4.12")
    expected = torch.load(path.with_suffix(".expected.pt"), weights_only=True)
    z, c = expected["z"], expected["c"]
    snap = load_snapshot(path)
    result = convert_file(snap, preset=preset, init="svd", calibrate=8)
    file = tmp_path / "fast.pkl"
    save_snapshot(snap, result.models, file)
    official = official_picture(file, z, c)
    assert (official - our_picture(file, z, c)).abs().max() <= 1e-4
    if preset == "exact":
        assert (official - expected["image"].float()).abs().max() <= 1e-3


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("cfg", ["fastgan", "fastgan_lite"])
def test_narrower_files(tmp_path: Path, classes: int, cfg: str) -> None:
    """Blocks of fewer channels than the official classes would build run there as here."""
    model = small_generator(classes=classes, cfg=cfg, ngf=8)
    snap = new_snapshot(model)
    result = convert_file(snap, preset="balanced", width=0.5, init="svd", calibrate=8)
    assert len(result.main[1].kept) >= 5  # every free map but the first
    file = tmp_path / "narrower.pkl"
    save_snapshot(snap, result.models, file)
    z, c = torch.randn(2, 8), torch.eye(max(classes, 2))[:2, :classes]
    ours = our_picture(file, z, c)
    assert ours.std() > 0
    assert (official_picture(file, z, c) - ours).abs().max() <= 1e-4
    if cfg == "fastgan_lite" and not classes:
        run("gen_images.py", f"--network={file}", "--seeds=0", f"--outdir={tmp_path / 'out'}")
        assert (tmp_path / "out" / "seed0000.png").is_file()


def test_gen_images(tmp_path: Path) -> None:
    """The official command line makes the same picture, to the byte (lite draws no noise)."""
    model = replaced(small_generator(cfg="fastgan_lite", ngf=4))
    file = tmp_path / "lite.pkl"
    save_snapshot(new_snapshot(model), model, file)
    run("gen_images.py", f"--network={file}", "--seeds=0-1", f"--outdir={tmp_path / 'out'}")
    for seed in (0, 1):
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, 8)).float()
        image = our_picture(file, z, torch.zeros(1, 0))[0].permute(1, 2, 0)
        wanted = (image * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy()
        made = np.asarray(Image.open(tmp_path / "out" / f"seed{seed:04d}.png"))
        assert np.abs(made.astype(int) - wanted.astype(int)).max() <= 1
