"""Polish: it improves the fit, keeps what is kept, repeats to the bit, and ends as it says."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
import torch
from torch import nn

from dsconvert import apply, convert, plan
from dsconvert.config.distill import DistillConfig
from dsconvert.core import polish_config as polish_settings
from dsconvert.core.analysis import analyse
from dsconvert.core.polish import polish
from dsconvert.core.polish_options import PolishOptions, check_polishable
from dsconvert.core.polish_schedule import (
    EVERY,
    PATIENCE,
    PolishSchedule,
    steps_before_fall,
    total_after,
)
from dsconvert.errors import MissingExtraError, NoGradientsError, PolishError, UsageError
from dsconvert.records import Conversion, PolishForecast
from dsconvert.report.jsonable import conversion_dict
from dsconvert.report.tables import conversion_report
from tests import awkward
from tests.models import decoder, latents, output


@pytest.fixture(autouse=True)
def without_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are left out, as where timm is not installed."""

    def missing(**_: Any) -> None:
        raise MissingExtraError("timm is missing")

    monkeypatch.setattr("dsconvert.matching.setup.ProjectedMaps", missing)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return decoder()


@pytest.fixture(scope="module")
def fitted(teacher: nn.Module) -> Conversion:
    decided = plan(teacher, preset="paper", rank=1, inputs=latents)
    return apply(teacher, decided, init="svd", calibrate=8, inputs=latents)


def polished(teacher: nn.Module, fitted: Conversion, **options: Any) -> Conversion:
    progress = options.pop("progress", None)
    return polish(
        analyse(teacher, inputs=latents), fitted, PolishOptions(**options), progress=progress
    )


def equal(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(v, state[k]) for k, v in one.state_dict().items())


# --- the schedule ---


def test_the_length_tells_where_the_rate_began_to_fall() -> None:
    for held in range(1, 2000):
        assert steps_before_fall(total_after(held)) == held


def simulated(
    schedule: PolishSchedule, *, step: float = 1.0, better: int = 10**9
) -> tuple[list[float], list[int], str, float]:
    """Run a schedule with steps of ``step`` seconds; evaluations after ``better`` bring nothing."""
    seconds, steps, rates, judged = 2.0, 0, [], []
    schedule.expect(step)
    schedule.evaluated(0, seconds, took=1.0, distance=0.01)  # a good fit, which training leaves
    distance = 1.0
    schedule.start(0, seconds)
    while (reason := schedule.end(steps, seconds)) is None:
        if steps not in judged and schedule.evaluation_due(steps, seconds):
            judged.append(steps)
            seconds += 1.0
            distance *= 0.95 if steps <= better else 0.999
            schedule.evaluated(steps, seconds, took=1.0, distance=distance)
            continue
        rates.append(schedule.rate(steps, seconds))
        steps += 1
        seconds += step
    return rates, judged, reason, seconds


@pytest.mark.parametrize("limit", [3.0, 4.5, 9.0, 30.0, 301.5])
def test_the_rate_falls_to_zero_within_the_time(limit: float) -> None:
    schedule = PolishSchedule(limit=limit)
    rates, _, reason, seconds = simulated(schedule)
    assert reason == "minutes"
    assert seconds + 1.0 <= limit or not rates  # the last evaluation takes a second
    assert len(rates) == schedule.total
    assert len(rates) >= 0.75 * (limit - 5.0)  # it does not stop long before
    if len(rates) > 20:
        assert max(rates) == 1.0
        assert rates[-1] < 0.2


def test_it_settles_when_evaluations_bring_nothing() -> None:
    schedule = PolishSchedule(limit=10_000.0)
    rates, judged, reason, _ = simulated(schedule, better=100)
    assert reason == "patience"
    last = [s for s in judged if s > 100][PATIENCE - 1]
    assert len(rates) == total_after(last) < 400
    assert judged[:4] == [EVERY, 2 * EVERY, 3 * EVERY, 4 * EVERY]


@pytest.mark.parametrize("limit", [40.0, 400.0])
def test_the_total_repeats_the_rates_and_evaluations_on_a_slower_machine(limit: float) -> None:
    first = PolishSchedule(limit=limit)
    rates, judged, _, _ = simulated(first, better=70)
    again = PolishSchedule(limit=None, steps=len(rates))
    assert simulated(again, step=7.0)[:3] == (rates, judged, "steps")


def test_a_machine_that_becomes_slow_does_not_get_more_time() -> None:
    schedule = PolishSchedule(limit=100.0)
    schedule.expect(1.0)
    schedule.start(0, 0.0)
    assert schedule.end(50, 60.0) is None
    assert schedule.total is not None  # it has begun to fall
    assert schedule.end(55, 101.0) == "minutes"


# --- the stage ---


@pytest.mark.slow
def test_it_improves_the_fit_and_leaves_the_rest_alone(teacher, fitted) -> None:
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (teacher, fitted.model)]
    told: list[tuple[str, int, int, str]] = []
    made = polished(teacher, fitted, steps=40, progress=lambda *a: told.append(a))
    record = made.polish
    assert record is not None
    assert (record.steps, record.ended, record.repeat) == (40, "steps", 40)
    assert record.distance_after < 0.9 * record.distance_before
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(99))
    wanted = output(teacher, z)
    before, after = ((output(m, z) - wanted).square().mean() for m in (fitted.model, made.model))
    assert after < 0.9 * before
    for model, state in zip((teacher, fitted.model), states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert made.psnr == record.psnr_after
    assert made.seconds["polish"] == record.seconds
    assert any("timm is missing" in n for n in made.undone)
    assert all(p.grad is None and p.is_contiguous() for p in made.model.parameters())
    assert ("polish, steps", 40, 40) in [t[:3] for t in told]
    # It is reported.
    assert conversion_dict(made)["polish"]["repeat"] == 40
    text = "\n".join(line for line in conversion_report(made) if isinstance(line, str))
    assert "--polish-steps 40" in text
    assert f"{record.distance_after:.4g}" in text


class Ticking:
    """A clock that goes on by a hundredth of a second whenever somebody looks at it."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


@pytest.mark.slow
def test_minutes_end_it_and_the_reported_steps_repeat_it(teacher, fitted, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", Ticking())
        first = polished(teacher, fitted, minutes=0.04)
    record = first.polish
    assert record.ended == "minutes"
    assert record.repeat == record.steps > 10
    assert 1.0 < record.seconds < 2.4
    again = polished(teacher, fitted, steps=record.repeat)
    assert again.polish.distance_after == record.distance_after
    assert equal(again.model, first.model)


@pytest.mark.slow
def test_python_s_convert_and_apply_take_it(teacher) -> None:
    options: Any = {"inputs": latents, "calibrate": 8, "init": "svd"}
    once = convert(teacher, preset="paper", rank=1, polish_steps=3, **options)
    twice = apply(
        teacher, plan(teacher, preset="paper", rank=1, inputs=latents), polish_steps=3, **options
    )
    plain = convert(teacher, preset="paper", rank=1, **options)
    assert equal(once, twice.model)
    assert not equal(once, plain)


@pytest.mark.slow
def test_what_is_kept_keeps_its_bytes(teacher) -> None:
    decided = plan(teacher, preset="paper", rank=1, keep=["head", "block1.3"], inputs=latents)
    made = apply(teacher, decided, inputs=latents, calibrate=8, polish_steps=3)
    assert made.polish.best_step
    for name in ("head", "block1.3"):
        assert equal(made.model.get_submodule(name), teacher.get_submodule(name))
    assert all(p.requires_grad for p in made.model.parameters())


def pixels(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 8, 8, generator=generator),)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["head", "all"])
def test_frozen_parameters_stay_unless_all_are(frozen: str) -> None:
    """A moving average is stored without gradients, and is polished as a whole."""
    model = awkward.made("integer parameter")[0]
    (model if frozen == "all" else model.head).requires_grad_(False)
    decided = plan(model, rank=1, inputs=pixels)
    made = apply(model, decided, inputs=pixels, calibrate=16, polish_steps=3)
    assert made.polish.best_step
    assert equal(made.model.head, model.head) == (frozen == "head")
    assert not equal(made.model.tail, model.tail)
    assert torch.equal(made.model.index, model.index)
    assert not made.model.head.weight.requires_grad
    assert made.model.tail.weight.requires_grad == (frozen == "head")


@pytest.mark.slow
def test_the_result_has_the_hooks_and_attributes_of_the_fit() -> None:
    model, seen = awkward.Remembers().eval(), []
    model.body.register_forward_hook(lambda m, i, o: seen.append(o))
    decided = plan(model, rank=1, inputs=pixels)
    made = apply(model, decided, inputs=pixels, calibrate=16, polish_steps=2)
    assert made.polish.best_step
    assert seen == made.model.history == []
    assert made.model.steps == 0
    made.model(awkward.image())
    assert len(seen) == 1


@pytest.mark.slow
def test_it_does_not_follow_the_caller_s_gradient_mode(teacher, fitted) -> None:
    wanted = polished(teacher, fitted, steps=2)
    with torch.no_grad():
        made = polished(teacher, fitted, steps=2)
        assert not torch.is_grad_enabled()
    assert equal(made.model, wanted.model)
    assert not equal(made.model, fitted.model)


def with_rate(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    def config(**settings: Any) -> DistillConfig:
        return DistillConfig(**{**settings, "lr": rate, "optimiser": "adam"})

    monkeypatch.setattr(polish_settings, "DistillConfig", config)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "ended"), [(3.0, "steps"), (1e30, "diverged")])
def test_it_never_makes_things_worse(teacher, fitted, monkeypatch, rate: float, ended: str) -> None:
    with_rate(monkeypatch, rate)
    made = polished(teacher, fitted, steps=12)
    assert made.polish.ended == ended
    assert made.polish.best_step == 0
    assert made.polish.distance_after == made.polish.distance_before
    assert made.model is fitted.model
    assert any("the fit" in n for n in made.undone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.extended)]
)
def test_an_interruption_keeps_the_best_so_far(teacher, fitted, number) -> None:
    def stop(stage: str, done: int, _total: int, _detail: str) -> None:
        if stage == "polish, steps" and done == 15:
            signal.raise_signal(number)

    made = polished(teacher, fitted, steps=1000, progress=stop)
    record = made.polish
    assert (record.ended, record.steps, record.repeat) == ("interrupted", 15, None)
    assert record.best_step == 15  # it was evaluated before the end
    assert record.distance_after < record.distance_before
    assert not equal(made.model, fitted.model)


def test_an_interruption_of_the_set_up_keeps_the_fit(teacher, fitted) -> None:
    def stop(_: PolishForecast) -> None:
        raise KeyboardInterrupt

    made = polished(teacher, fitted, minutes=1.0, forecast=stop)
    assert made.polish.ended == "interrupted"
    assert made.polish.steps == 0
    assert made.model is fitted.model


@pytest.mark.slow
def test_it_says_beforehand_how_far_it_will_come(teacher, fitted) -> None:
    told: list[PolishForecast] = []
    polished(teacher, fitted, minutes=1e-6, forecast=told.append)
    (expected,) = told
    assert expected.steps == 0
    assert expected.useful_minutes == pytest.approx(
        expected.step_seconds * expected.useful_steps / 60, rel=0.2
    )


@pytest.mark.slow
def test_no_time_for_a_step_is_said(teacher, fitted) -> None:
    made = polished(teacher, fitted, minutes=1e-6)
    assert (made.polish.steps, made.polish.ended, made.polish.repeat) == (0, "minutes", None)
    assert any("not one step" in n for n in made.undone)
    assert made.model is fitted.model


@pytest.mark.slow
def test_an_exact_conversion_has_nothing_to_improve(teacher) -> None:
    decided = plan(teacher, preset="exact", inputs=latents)
    made = apply(teacher, decided, inputs=latents, polish_steps=50)
    assert made.polish.ended == "exact"
    assert made.polish.steps == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "shift", "picture", "said"),
    [(0.1, 0.5, True, False), (100.0, 0.0, False, True)],
)
def test_images_of_another_range(
    teacher, scale: float, shift: float, picture: bool, said: bool
) -> None:
    """From 0 to 1 they are images; far beyond 1 they are compared value by value."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return (self.inner(z) * scale + shift).clamp(min=0 if shift else -1e9)

    model = Scaled()
    decided = plan(model, preset="paper", rank=1, inputs=latents)
    made = apply(model, decided, init="svd", inputs=latents, calibrate=8, polish_steps=10)
    record = made.polish
    assert record.distance_after < record.distance_before
    assert (record.psnr_after is not None) == picture
    assert any("no image" in n for n in made.undone) == said


@pytest.mark.parametrize("unit", [False, True])
def test_a_mask_beside_the_picture_takes_part(*, unit: bool) -> None:
    class Layered(nn.Module):
        def __init__(self, *, alone: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.alone = alone
            self.trunk = nn.Conv2d(3, 16, 3, padding=1)
            self.body = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.body(self.trunk(x).relu())
            picture = y[:, :3].sigmoid() if unit else y[:, :3].tanh()
            return picture if self.alone else (picture, y[:, 3:4].sigmoid())

    def pictures(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
        return (torch.randn(n, 3, 8, 8, generator=generator),)

    distances: list[float] = []
    for alone in (True, False):
        model = Layered(alone=alone).eval()
        decided = plan(model, preset="paper", rank=1, inputs=pictures)
        made = apply(model, decided, init="svd", inputs=pictures, calibrate=0, polish_steps=1)
        assert made.polish is not None
        distances.append(made.polish.distance_before)
    assert distances[1] > 1.2 * distances[0]


@pytest.mark.slow
def test_what_can_t_be_polished_is_refused_before_any_work(teacher) -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.inner(z).mean((2, 3))

    with pytest.raises(PolishError, match="Tensor, not images"):
        convert(Vector(), inputs=latents, polish=1)
    with pytest.raises(PolishError, match="inputs look like"):
        convert(teacher, polish=1)
    check_polishable(analyse(teacher, inputs=latents))
    with pytest.raises(UsageError, match="from scratch"):
        convert(teacher, inputs=latents, init="random", polish_steps=1)
    for bad in ({"polish": -1.0}, {"polish": float("nan")}, {"polish_steps": 0}):
        with pytest.raises(UsageError, match="give"):
            convert(teacher, inputs=latents, **bad)


@pytest.mark.slow
def test_a_single_convolution() -> None:
    def maps(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
        # Smooth maps, for which the kernel's SVD is far from the best.
        return (nn.functional.avg_pool2d(torch.randn(n, 6, 11, 11, generator=generator), 3, 1),)

    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3)
    decided = plan(conv, preset="paper", rank=1, inputs=maps)
    made = apply(conv, decided, init="svd", inputs=maps, calibrate=8, polish_steps=30)
    assert made.polish.distance_after < 0.995 * made.polish.distance_before
    assert isinstance(made.model, nn.Sequential)


@pytest.mark.slow
def test_a_narrower_model_is_polished_through_read_outs(teacher) -> None:
    decided = plan(teacher, preset="paper", rank=2, width=0.5, inputs=latents)
    made = apply(teacher, decided, inputs=latents, calibrate=16, polish_steps=30)
    assert any(w.kept < w.channels for w in made.plan.widths)
    assert made.polish.distance_after < 0.95 * made.polish.distance_before


@pytest.mark.parametrize("name", ["writes out", "adds in place"])
def test_a_model_without_gradients_is_fitted_and_says_so(name: str) -> None:
    model, _ = awkward.made(name)

    def pictures(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
        return (torch.randn(n, 3, 8, 8, generator=generator),)

    fitted = apply(model, plan(model, rank=2, inputs=pictures), inputs=pictures, calibrate=8)
    made = polish(analyse(model, inputs=pictures), fitted, PolishOptions(steps=2))
    assert made.model is fitted.model
    assert any("gradients can't be computed" in n for n in made.undone)
    text = "\n".join(line for line in conversion_report(made) if isinstance(line, str))
    assert "the model has no gradients, the fit stays" in text
    with pytest.raises(NoGradientsError, match="--width"):
        plan(model, preset="none", width="auto", inputs=pictures)
    convert(model, inputs=pictures, calibrate=8, polish_steps=2)  # widths by default, none here
