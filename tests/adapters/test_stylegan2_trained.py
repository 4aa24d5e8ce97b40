"""A conversion of StyleGAN2 on trained weights: examples/teachers/faces-64-stylegan2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsconvert import apply, load_generator, plan
from dsconvert.metrics import sample_images
from dsconvert.model.inputs import sampler_of

TEACHER = Path(__file__).resolve().parents[2] / "examples/teachers/faces-64-stylegan2.safetensors"


@pytest.fixture(scope="module")
def teacher() -> Any:
    pytest.importorskip("safetensors")
    if not TEACHER.is_file():
        pytest.skip("the trained StyleGAN2 is in the repository, not in the source package")
    return load_generator(TEACHER)  # in float32: the file holds half precision


def images(g: Any) -> torch.Tensor:
    return sample_images(g, sampler_of(g), samples=8, seed=5)


@pytest.mark.slow
def test_a_fit_keeps_the_pictures_and_the_svd_does_not(teacher: Any) -> None:
    made = plan(teacher, preset="balanced")
    wanted = images(teacher)
    psnr: dict[str, float] = {}
    for init in ("svd", "fit"):
        model = apply(teacher, made, init=init, calibrate=16).model
        error = (images(model) - wanted).square().mean()
        psnr[init] = float(10 * torch.log10(4 / error))
    assert psnr["fit"] > 20, psnr
    assert psnr["fit"] > psnr["svd"] + 8, psnr


def test_training_moved_the_mean_that_truncation_pulls_towards(teacher: Any) -> None:
    mapping = teacher.mapping
    z = torch.randn(500, teacher.z_dim, generator=torch.Generator().manual_seed(0))
    mean = mapping(z, torch.zeros(500, 0))[:, 0].mean(0)
    near = torch.nn.functional.cosine_similarity(mapping.w_avg, mean, dim=0)
    assert near > 0.9
