"""Whole files: both generators by one plan, and neither of the caller's modules touched."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from dsconvert.config.distill import DistillConfig
from dsconvert.core import polish as polish_stage
from dsconvert.errors import MissingExtraError, UsageError
from dsconvert.formats.convert_file import convert_file
from dsconvert.formats.official import new_snapshot
from tests.made_models import drifted, moved_generator


@pytest.mark.slow
def test_equal_generators_are_fitted_once():
    model = moved_generator(ngf=2)
    snap = new_snapshot(model)
    snap.live["G"] = copy.deepcopy(model)
    done = convert_file(snap, preset="paper", calibrate=8).conversions
    assert done["G"].seconds == {}
    assert any("fitted once" in note for note in done["G"].notes)
    assert done["G"].model is not done["G_ema"].model
    for mine, theirs in zip(
        done["G"].model.parameters(), done["G_ema"].model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


@pytest.mark.slow
def test_unequal_generators_are_fitted_each():
    model = moved_generator(ngf=2)
    snap = new_snapshot(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    snap.live["G"] = other
    done = convert_file(snap, preset="paper", calibrate=8).conversions
    assert "fit" in done["G"].seconds


@pytest.mark.slow
@pytest.mark.parametrize("init", ["svd", pytest.param("random", marks=pytest.mark.extended)])
def test_a_live_generator_is_left_as_it_was(init):
    model = moved_generator(ngf=2)
    before = copy.deepcopy(model.state_dict())
    convert_file(new_snapshot(model), preset="fast", init=init, calibrate=0)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_that_are_not_finite_are_refused():
    model = moved_generator(ngf=2)
    with torch.no_grad():
        model.get_submodule("synthesis.feat_16.1").weight_orig[0, 0] = float("nan")
    with pytest.raises(UsageError, match=r"1 of the weights .*feat_16\.1\.weight_orig"):
        convert_file(new_snapshot(model), preset="paper", init="svd", calibrate=0)


def no_backbone(**_: object) -> None:
    raise MissingExtraError("timm is missing")


@pytest.mark.slow
def test_only_the_main_generator_is_polished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        polish_stage, "DistillConfig", functools.partial(DistillConfig, batch=2, held_out=4)
    )
    monkeypatch.setattr("dsconvert.matching.setup.ProjectedMaps", no_backbone)
    model = moved_generator(ngf=2)
    snap = new_snapshot(model)
    snap.live["G"] = drifted(model)
    stages: list[str] = []
    options = {"preset": "paper", "init": "svd", "calibrate": 4}
    plain = convert_file(snap, **options).conversions
    done = convert_file(
        snap, **options, polish_steps=2, progress=lambda stage, *_: stages.append(stage)
    )
    main, raw = done.conversions["G_ema"], done.conversions["G"]
    assert main.polish is not None
    assert main.polish.steps == 2
    assert raw.polish is None
    assert "not polished: only G_ema is, and the plan is the same" in raw.undone
    assert "G_ema: polish, steps" in stages
    for key, equal in (("G_ema", main.polish.best_step == 0), ("G", True)):
        states = [c[key].model.state_dict() for c in (plain, done.conversions)]
        assert all(torch.equal(v, states[1][k]) for k, v in states[0].items()) == equal
    assert all(
        torch.equal(v, model.state_dict()[k]) for k, v in snap.generator.state_dict().items()
    )
