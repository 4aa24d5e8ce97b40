"""Models that are not on the CPU: nothing mixes devices, and results are those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import dsconvert
from dsconvert.config.train import DiscriminatorFacts, NewGenerator, TrainConfig
from dsconvert.fit.activation_stream import ActivationStream
from dsconvert.metrics import sample_images
from dsconvert.model.inputs import sampler_of
from dsconvert.train.setup import new_discriminator, new_generator
from dsconvert.train.state import latents_of, new_state
from dsconvert.train.step import Stepper
from dsconvert.util.devices import full_float32
from tests.made_models import moved_generator
from tests.second_device import DEVICE, moved, second_device

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return moved_generator(resolution=64, ngf=2)


def images(model: nn.Module, original: nn.Module) -> torch.Tensor:
    return sample_images(model, sampler_of(original), samples=4, seed=1, batch=2)


@pytest.mark.extended
def test_a_fit_ends_where_that_on_the_cpu_ends(original: nn.Module) -> None:
    plan = dsconvert.plan(original, preset="fast", keep=["synthesis.feat_[136]*", "synthesis.i*"])
    assert any(d.action == "rewrite" for d in plan.decisions)
    want = dsconvert.apply(original, plan, calibrate=8)
    with second_device():
        got = dsconvert.apply(moved(original), plan, calibrate=8)
        assert next(got.model.parameters()).device == DEVICE
        assert (images(got.model, original) - images(want.model, original)).abs().max() < 1e-3
    for ours, theirs in zip(got.fits, want.fits, strict=True):
        assert ours.fitted == pytest.approx(theirs.fitted, rel=0.02)


def test_channels_are_found_as_on_the_cpu(original: nn.Module) -> None:
    want = dsconvert.plan(original, preset="none", width=0.5)
    assert want.widths
    with second_device():
        assert dsconvert.plan(moved(original), preset="none", width=0.5).widths == want.widths


@pytest.mark.extended
def test_channels_are_chosen_and_absorbed_as_on_the_cpu(original: nn.Module) -> None:
    plan = dsconvert.plan(original, preset="none", width=0.5)
    want = dsconvert.apply(original, plan, init="svd", calibrate=4)
    with second_device():
        made = dsconvert.apply(moved(original), plan, init="svd", calibrate=4)
        assert next(made.model.parameters()).device == DEVICE
        assert made.kept == want.kept
        assert (images(made.model, original) - images(want.model, original)).abs().max() < 1e-3


@pytest.mark.parametrize("form", ["deployed", "lean"])
def test_a_form_is_made_where_the_model_is(form: str, original: nn.Module) -> None:
    with second_device():
        model = moved(original)
        made = dsconvert.deploy(model) if form == "deployed" else dsconvert.lean(model)
        assert (images(made, original) - images(original, original)).abs().max() < 1e-4
        if form == "lean":
            args = [a.to(DEVICE) for a in sampler_of(original)(2, torch.Generator())]
            made.train().requires_grad_(True)
            made(*args).sum().backward()
            grads = [p.grad for p in made.parameters() if p.grad is not None]
            assert grads
            assert {g.device for g in grads} == {DEVICE}


class _Alone:
    rank, world, device = 0, 1, DEVICE

    def mean_(self, tensors: Any) -> None:
        pass


class _Data:
    def __len__(self) -> int:
        return 10

    def label(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(indices), 0)


@pytest.mark.parametrize("recompute", ["none", pytest.param("lean", marks=pytest.mark.extended)])
@pytest.mark.filterwarnings("ignore:the EfficientNet-Lite0 backbone has RANDOM weights")
def test_a_training_step_stays_on_its_device(recompute: Any) -> None:
    generator, _ = new_generator(NewGenerator(resolution=64, ngf=2, preset="paper"))
    facts = DiscriminatorFacts(resolution=64, num_discs=1)
    discriminator = new_discriminator(facts, weights="random")
    config = TrainConfig(batch=2, recompute=recompute)
    data: Any = _Data()
    procs: Any = _Alone()
    with second_device():
        latents = latents_of(generator)
        state = new_state(moved(generator), moved(discriminator), config, DEVICE)
        before = next(state.generator.parameters()).detach().clone()
        step = Stepper(config=config, data=data, latents=latents, procs=procs)
        shown = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        sums = step.run(state, shown, torch.zeros(2, 0))
        assert sums.device == DEVICE
        assert bool(sums.isfinite().all())
        assert bool((next(state.generator.parameters()) != before).any())


@pytest.mark.extended
def test_a_polish_works_where_the_model_is(original: nn.Module) -> None:
    plan = dsconvert.plan(original, preset="fast")
    with second_device():
        made = dsconvert.apply(moved(original), plan, init="svd", calibrate=4, polish_steps=2)
    assert made.polish is not None
    assert made.polish.distance_after <= made.polish.distance_before


def test_a_fit_on_a_gpu_computes_in_full_precision(
    original: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cudnn, seen = torch.backends.cudnn, []
    run = ActivationStream._run
    monkeypatch.setattr(
        ActivationStream, "_run", lambda self: (seen.append(cudnn.allow_tf32), run(self))[1]
    )
    assert cudnn.allow_tf32
    with full_float32():
        assert not cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    dsconvert.apply(original, dsconvert.plan(original, preset="paper"), init="svd", calibrate=4)
    assert seen == [False]
    assert cudnn.allow_tf32
