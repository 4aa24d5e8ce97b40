"""Files that an early version wrote (commit 2643d00) open, with the same images.

They were made from a generator with random weights (ngf 2) by that version's own commands:
``dsconvert original.pkl --preset fast --plan-only --out plan.json``, the same without
``--plan-only`` and with ``--calibrate 8`` (``converted.pkl``, and ``converted.pth`` of a
FastGAN-pytorch checkpoint), ``dsconvert export`` (``converted.safetensors``),
``torch.save(dsconvert.deploy(generator))``, ``dsconvert distill --steps 2 --run distill_run``, and
four steps of ``dsconvert.train.train``. ``expected.pt`` holds latents and the images of
``converted.pkl``, averaged over squares of 8 x 8 pixels.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import dsconvert
from dsconvert.cli import main
from dsconvert.data.images import open_images
from dsconvert.matching.optim import has_muon
from dsconvert.train import train as train_networks
from tests.train.parts import tiny_zip
from tests.train.test_loop import config, plain_pair

FILES = Path(__file__).parent / "files"


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return torch.load(FILES / "expected.pt", weights_only=True)


def image(model: nn.Module, expected: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return avg_pool2d(model.eval()(expected["z"], expected["c"]), 8)


def same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(image(model, expected), expected["image"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_plan_is_read_and_converts(tmp_path: Path) -> None:
    plan = dsconvert.Plan.from_json((FILES / "plan.json").read_text())
    assert sum(d.action == "rewrite" for d in plan.decisions) == 5
    out = tmp_path / "fast.pkl"
    command = [str(FILES / "original.pkl"), "--plan", str(FILES / "plan.json"), "--out", str(out)]
    assert main([*command, "--calibrate", "8", "--polish", "0", "--quiet"]) == 0
    made = dsconvert.open_file(out).generator
    assert sum(p.numel() for p in made.parameters()) == sum(
        p.numel() for p in dsconvert.open_file(FILES / "converted.pkl").generator.parameters()
    )


def test_a_converted_snapshot_opens(expected: dict[str, Tensor]) -> None:
    same(dsconvert.open_file(FILES / "converted.pkl").generator, expected)


@pytest.mark.slow
def test_a_safetensors_export_opens(expected: dict[str, Tensor]) -> None:
    pytest.importorskip("safetensors")
    same(dsconvert.load_generator(FILES / "converted.safetensors"), expected)


def test_a_converted_checkpoint_opens_by_its_recipe() -> None:
    opened = dsconvert.open_file(FILES / "converted.pth")
    layers = [m for m in opened.generator.modules() if isinstance(m, nn.Conv2d)]
    assert any(m.groups > 1 for m in layers)
    made = opened.generator(torch.zeros(1, 4))
    assert all(torch.isfinite(part).all() for part in made)


def test_a_deployed_generator_is_unpickled(expected: dict[str, Tensor]) -> None:
    same(torch.load(FILES / "deployed.pt", weights_only=False), expected)


@pytest.mark.slow
def test_a_distillation_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(FILES / "distill_run", tmp_path / "run")
    command = ["distill", str(FILES / "original.pkl"), str(FILES / "converted.pkl"), "--resume"]
    options = ["--steps", "3", "--batch", "2", "--features", "0", "--run", str(run)]
    done = main([*command, *options, "--out", str(tmp_path / "out.pkl"), "--quiet"])
    if not has_muon():  # the run used it
        assert done == 2
        error = capsys.readouterr().err
        assert "optimiser ('muon', now 'adam')" in error
        assert error.count("\n") == 1
        return
    assert done == 0
    steps = [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()]
    assert steps[-1] == 3
    assert steps.count(2) == 1  # the run went on from its second step


@pytest.mark.slow
def test_a_training_goes_on(tmp_path: Path) -> None:
    run = shutil.copytree(FILES / "train_run", tmp_path / "run")
    generator, discriminator = plain_pair()
    images = open_images(tiny_zip(tmp_path), resolution=128)
    result = train_networks(generator, discriminator, images, config(6), out=run, resume=True)
    assert result.images == 12
    assert len((run / "stats.jsonl").read_text().splitlines()) > 2
