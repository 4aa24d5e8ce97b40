"""The teacher's batches: what is run once, and what is run again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsconvert.config.distill import DistillConfig
from dsconvert.matching import batches as module
from dsconvert.matching.batches import LAG, TeacherBatches
from dsconvert.matching.evaluator import evaluate_student
from dsconvert.matching.loss import Objective, TeacherOutput
from dsconvert.model.inputs import tensors_of


class _Counting(nn.Module):
    """An affine map of latents (N, 2) to images (N, 1, 4, 4); it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 16)
        self.calls = 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return self.body(z).reshape(-1, 1, 4, 4)


def _batches(*, reuse: bool = False) -> tuple[TeacherBatches, _Counting]:
    teacher, config = _Counting(), DistillConfig(steps=8, batch=4, reuse=reuse)
    objective = Objective(teacher, _Counting(), blocks=(), features=None)
    made = TeacherBatches(objective, lambda n, g: (torch.randn(n, 2, generator=g),), config)
    teacher.calls = 0
    return made, teacher


def _same(a: TeacherOutput, b: TeacherOutput) -> bool:
    return torch.equal(a.image, b.image) and a.seed == b.seed


def test_every_second_step_uses_an_earlier_batch() -> None:
    batches, teacher = _batches(reuse=True)
    found = [batches.training(step) for step in range(20)]
    fresh = [step for step in range(20) if step % 2 == 0 or step < LAG]
    assert teacher.calls == len(fresh)
    assert all(_same(found[s], found[s - LAG]) for s in range(20) if s not in fresh)
    assert len({found[s].seed for s in fresh}) == len(fresh)


def test_every_batch_is_new_without_reuse_or_without_memory_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches, teacher = _batches()
    monkeypatch.setattr(module, "_KEPT_BYTES", 100)
    little, other = _batches(reuse=True)
    for step in range(20):
        assert batches.training(step).seed == little.training(step).seed
    assert teacher.calls == other.calls == 20


def test_a_resumed_run_uses_the_same_batches() -> None:
    first, _ = _batches(reuse=True)
    again, other = _batches(reuse=True)
    other.load_state_dict(first.objective.teacher.state_dict())
    made = [first.training(step) for step in range(20)]
    assert all(_same(again.training(step), made[step]) for step in range(13, 20))


def test_a_batch_with_maps_is_not_taken_for_one_without() -> None:
    batches, teacher = _batches(reuse=True)
    for step in range(LAG):
        batches.training(step, maps=False)
    batches.training(LAG, maps=True)
    assert teacher.calls == LAG + 1


def test_the_change_to_whole_images_leaves_nothing_behind() -> None:
    batches, _ = _batches(reuse=True)
    for step in range(3 * LAG + 1):
        batches.training(step, maps=step > LAG)
    assert sorted(batches._again) == [s for s in range(2 * LAG + 1, 3 * LAG + 1) if s % 2 == 0]


def test_a_model_that_writes_into_its_arguments_gets_the_same_values_each_time() -> None:
    class Shifts(_Counting):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z.mul_(2).sub_(1))

    fixed = torch.randn(4, 2)
    before, teacher = fixed.clone(), Shifts()
    objective = Objective(teacher, copy.deepcopy(teacher), blocks=(), features=None)
    made = TeacherBatches(objective, lambda n, _g: (fixed[:n],), DistillConfig(steps=8, batch=4))
    scales = made.scales()
    for _ in range(2):
        found = evaluate_student(made, scales).score
        assert found.distance < 1e-9
        target = made.training(0)
        torch.testing.assert_close(objective.run_student(target).image, target.image)
    assert torch.equal(fixed, before)  # the sampler's own


@pytest.mark.parametrize(
    "wrapped", [lambda z: z, lambda z: (z,), lambda z: ([z],), lambda z: ({"z": z},)]
)
def test_arguments_are_placed_however_they_are_nested(wrapped: Any) -> None:
    class Takes(_Counting):
        def forward(self, z: Any) -> Tensor:
            return super().forward(*tensors_of(z))

    objective = Objective(Takes(), Takes(), blocks=(), features=None)
    made = TeacherBatches(
        objective,
        lambda n, g: wrapped(torch.randn(n, 2, generator=g, dtype=torch.float64)),
        DistillConfig(steps=8, batch=4),
    )
    args = made.training(0).args
    assert len(args) == 1
    assert [(t.dtype, tuple(t.shape)) for t in tensors_of(args)] == [(torch.float32, (4, 2))]


def test_held_out_batches_are_run_once_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * 16 * 4
    monkeypatch.setattr(module, "_KEPT_BYTES", 2 * size + 8)
    batches, teacher = _batches()
    found = [[batches.held_out(i) for i in range(3)] for _ in range(2)]
    assert teacher.calls == 4
    assert all(_same(a, b) for a, b in zip(*found, strict=True))
