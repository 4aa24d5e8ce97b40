"""Noise is drawn where the model is, or as the official code draws it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from dsconvert_adapters.projected_gan import Generator
from torch import nn

import dsconvert
from dsconvert.config.choices import NoiseSource
from dsconvert.errors import UsageError
from dsconvert.model.noise_source import noise_from, set_noise_source
from tests.fake_cuda import fake_cuda
from tests.made_models import moved_generator


@pytest.fixture(scope="module")
def forms() -> dict[str, nn.Module]:
    plain: Any = moved_generator(resolution=64, ngf=2)
    fast = dsconvert.apply(
        plain, dsconvert.plan(plain, preset="fast"), init="svd", calibrate=0
    ).model
    return {
        "plain": plain,
        "fast": fast,
        "deployed": dsconvert.deploy(fast),
        # Not in train mode: torch has no fake kernel of its batch statistics.
        "lean": dsconvert.lean(fast).eval(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["plain", "fast", "deployed", "lean"])
def test_on_a_gpu_nothing_is_drawn_or_copied_on_the_cpu(
    form: str, dtype: torch.dtype, forms: dict[str, nn.Module]
) -> None:
    with fake_cuda() as fake:
        model = fake.model(copy.deepcopy(forms[form]).to(dtype))
        args = fake.args((torch.randn(2, 16), torch.zeros(2, 0)), dtype)
        with fake.running() as seen:
            images = model(*args)
    assert (images.device.type, images.dtype) == ("cuda", dtype)
    assert {d.type for d in seen.draws} == {"cuda"}
    assert seen.copies == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "fast", "deployed", "lean"])
def test_the_official_noise_is_drawn_on_the_cpu(form: str, forms: dict[str, nn.Module]) -> None:
    with fake_cuda() as fake:
        model = fake.model(forms[form])
        args = fake.args((torch.randn(2, 16), torch.zeros(2, 0)))
        with noise_from(model, "official"), fake.running() as seen:
            model(*args)
        with fake.running() as after:
            model(*args)
    assert {d.type for d in seen.draws} == {"cpu"}
    assert {d.type for d in after.draws} == {"cuda"}


@pytest.mark.parametrize("form", ["plain", "fast", "deployed", "lean"])
def test_on_a_cpu_both_sources_give_the_same_image(form: str, forms: dict[str, nn.Module]) -> None:
    model, images = copy.deepcopy(forms[form]), []
    for source in ("device", "official"):
        set_noise_source(model, source)
        torch.manual_seed(3)
        with torch.no_grad():
            images.append(model(torch.ones(1, 16), torch.zeros(1, 0)))
    assert torch.equal(*images)


def test_the_numbers_are_those_of_the_official_code() -> None:
    made = Generator.from_config(resolution=64, ngf=2)
    noise: Any = next(m for m in made.modules() if type(m).__name__ == "NoiseInjection")
    noise.weight.data.fill_(2.0)
    feat = torch.randn(2, 3, 8, 8)
    torch.manual_seed(5)
    want = feat + 2 * torch.randn(2, 1, 8, 8)
    torch.manual_seed(5)
    assert torch.equal(noise(feat), want)


def test_a_model_is_as_before_afterwards(forms: dict[str, nn.Module]) -> None:
    model = forms["plain"]
    before = [dict(m.__dict__) for m in model.modules()]
    with noise_from(model, "official"):
        assert [dict(m.__dict__) for m in model.modules()] != before
    assert [dict(m.__dict__) for m in model.modules()] == before
    set_noise_source(model, "official")
    set_noise_source(model, "device")
    assert [dict(m.__dict__) for m in model.modules()] == before
    wrong: Any = "gpu"
    with pytest.raises(UsageError, match="device or official"):
        set_noise_source(model, wrong)


def test_a_form_takes_the_source_along(forms: dict[str, nn.Module]) -> None:
    model = copy.deepcopy(forms["fast"])
    source: NoiseSource = "official"
    set_noise_source(model, source)
    made = dsconvert.lean(model)
    with fake_cuda() as fake:
        args = fake.args((torch.randn(2, 16), torch.zeros(2, 0)))
        with fake.running() as seen:
            fake.model(made)(*args)
    assert {d.type for d in seen.draws} == {"cpu"}
