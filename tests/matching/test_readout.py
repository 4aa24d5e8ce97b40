"""A block with other channels than its original's is held to it by least squares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsconvert.config.distill import DistillConfig
from dsconvert.distill import distill
from dsconvert.errors import UsageError
from dsconvert.matching.evaluator import evaluate_student
from dsconvert.matching.loss import Scales
from dsconvert.matching.readout import ReadOut
from dsconvert.matching.setup import teacher_batches, working_copy
from dsconvert.model.inputs import sampler_of
from tests.made_models import moved_generator
from tests.matching.narrow_fastgan import narrowed
from tests.models import decoder, latents, narrow_decoder
from tests.second_device import DEVICE, second_device

QUICK = {"features": 0.0, "batch": 4, "held_out": 4, "evaluations": 2}


def maps(n: int, channels: int, seed: int) -> torch.Tensor:
    return torch.randn(n, channels, 6, 5, generator=torch.Generator().manual_seed(seed))


def test_an_affine_relation_is_found_exactly_and_the_rest_is_measured() -> None:
    matrix, noise = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)), 0.5
    readout = ReadOut(3, 7, torch.device("cpu"))
    for seed in range(20):
        x = maps(8, 3, seed)
        readout.follow(x, torch.einsum("nchw,ck->nkhw", x, matrix) + 2)
    readout.solve()
    x = maps(8, 3, 99)
    torch.testing.assert_close(
        readout(x), torch.einsum("nchw,ck->nkhw", x, matrix) + 2, rtol=1e-2, atol=1e-2
    )
    moments = readout.fresh()
    for seed in range(20):
        x = maps(8, 3, seed)
        y = torch.einsum("nchw,ck->nkhw", x, matrix) + noise * maps(8, 7, 1000 + seed)
        moments.add(x, y)
    # What no matrix explains is the noise, in units of the scale.
    assert moments.unexplained(torch.full((1, 7, 1, 1), 0.25)) == pytest.approx(1.0, rel=0.05)


def test_earlier_batches_are_forgotten() -> None:
    readout = ReadOut(2, 2, torch.device("cpu"))
    for i in range(400):
        x = maps(4, 2, i)
        readout.follow(x, x if i < 200 else -x)
    readout.solve()
    x = maps(4, 2, 999)
    torch.testing.assert_close(readout(x), -x, rtol=0.02, atol=0.02)


def test_maps_that_are_not_finite_leave_the_solution() -> None:
    readout = ReadOut(2, 2, torch.device("cpu"))
    x = maps(4, 2, 0)
    readout.follow(x, 3 * x)
    readout.solve()
    before = readout(x)
    readout.follow(x * float("inf"), x)
    readout.solve()
    assert torch.equal(readout(x), before)
    assert readout.moments.unexplained(torch.ones(2)) == float("inf")


@pytest.mark.slow
@pytest.mark.extended
def test_a_narrower_block_of_a_fastgan_is_judged_and_learns() -> None:
    teacher = moved_generator(ngf=2)
    inputs = sampler_of(teacher)
    found = {}
    for name, kept in (("all", [0, 1]), ("one", [0])):
        batches = teacher_batches(
            narrowed(teacher, [0, 1]), working_copy(narrowed(teacher, kept)), inputs,
            config=DistillConfig(steps=1, **{**QUICK, "batch": 8}), device=torch.device("cpu"),
        )  # fmt: skip
        assert ("synthesis.feat_128" in batches.objective.readouts) == (name == "one")
        found[name] = evaluate_student(batches, batches.scales()).score
    assert found["all"].distance < 1e-9
    assert found["one"].terms["blocks"] > 1e-4  # one channel is not a function of the other

    config = DistillConfig(steps=5, lr=1e-2, image=0.0, **QUICK)
    done = distill(teacher, narrowed(teacher, [0]), config=config)
    assert "synthesis.feat_128" in done.blocks
    assert "read-out" in done.notes[-1]
    assert done.after.terms["blocks"] < done.before.terms["blocks"]


@pytest.mark.slow
def test_a_cut_off_run_with_read_outs_ends_bit_equal(tmp_path: Path) -> None:
    pair = decoder(), narrow_decoder()
    # One solution of the read-outs lies before the cut, one behind it.
    config = DistillConfig(steps=21, checkpoint_minutes=1e-9, hold=1.0, **QUICK)
    whole = distill(*pair, latents, config=config)

    def cut(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "distil, steps" and done == 13:
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        distill(*pair, latents, config=config, folder=tmp_path, progress=cut)
    rest = distill(*pair, latents, config=config, folder=tmp_path, resume=True)
    assert whole.end == rest.end
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, rest.student.state_dict()[name]), name


@pytest.mark.slow
def test_blocks_whose_inputs_or_outputs_differ_do_not_train_alone() -> None:
    """They would be given maps that they can't take."""
    config = DistillConfig(steps=2, blockwise=0.5, **QUICK)
    with pytest.raises(UsageError, match="no blockwise stage"):
        distill(decoder(), narrow_decoder(), latents, config=config)


def test_a_checkpoint_is_restored_to_the_device_of_the_run() -> None:
    x, y = maps(2, 3, 0), maps(2, 4, 1)
    first = ReadOut(3, 4, torch.device("cpu"))
    first.follow(x, y)
    first.solve()
    scales = Scales(image=torch.ones(()), blocks={"a": torch.ones(1, 4, 1, 1)}, maps=[y.var()])
    with second_device():
        other = ReadOut(3, 4, DEVICE)
        other.restore(first.state())
        there = x.to(DEVICE)
        assert torch.equal(other(there).cpu(), first(x))
        other.follow(there, y.to(DEVICE))
        moved = scales.to(DEVICE)
        assert {moved.image.device, moved.blocks["a"].device, moved.maps[0].device} == {DEVICE}
