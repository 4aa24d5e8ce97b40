"""The teacher's batches: what is run once, and what is run again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsconvert.config.distill import DistillConfig
from dsconvert.matching import batches as module
from dsconvert.matching.batches import TeacherBatches
from dsconvert.matching.loss import Objective, TeacherOutput


class _Counting(nn.Module):
    """An affine map of latents (N, 2) to images (N, 1, 4, 4); it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 16)
        self.calls = 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return self.body(z).reshape(-1, 1, 4, 4)


def _batches(share: int = 1) -> tuple[TeacherBatches, _Counting]:
    teacher, config = _Counting(), DistillConfig(steps=8, batch=4, share=share)
    objective = Objective(teacher, _Counting(), blocks=(), features=None)
    made = TeacherBatches(objective, lambda n, g: (torch.randn(n, 2, generator=g),), config)
    teacher.calls = 0
    return made, teacher


def _same(a: TeacherOutput, b: TeacherOutput) -> bool:
    return torch.equal(a.image, b.image) and a.seed == b.seed


@pytest.mark.parametrize(("share", "calls"), [(1, 6), (2, 3), (4, 2)])
def test_steps_in_a_row_share_latents(share: int, calls: int) -> None:
    batches, teacher = _batches(share)
    found = [batches.training(step) for step in range(6)]
    assert teacher.calls == calls
    for step in range(1, 6):
        assert _same(found[step], found[step - 1]) == bool(step % share)


def test_a_resumed_run_continues_in_the_middle_of_a_shared_batch() -> None:
    first, _ = _batches(2)
    again, other = _batches(2)
    other.load_state_dict(first.objective.teacher.state_dict())
    made = [first.training(step) for step in range(4)]
    assert _same(again.training(3), made[3])


def test_a_batch_with_maps_is_not_taken_for_one_without() -> None:
    batches, teacher = _batches(2)
    batches.training(0, maps=False)
    batches.training(1, maps=True)
    assert teacher.calls == 2


def test_held_out_batches_are_run_once_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * 16 * 4
    monkeypatch.setattr(module, "_KEPT_BYTES", 2 * size + 8)
    batches, teacher = _batches()
    found = [[batches.held_out(i) for i in range(3)] for _ in range(2)]
    assert teacher.calls == 4
    assert all(_same(a, b) for a, b in zip(*found, strict=True))
