"""All that a model returns takes part in the comparison, not its image alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsconvert.config.distill import DistillConfig
from dsconvert.matching.batches import TeacherBatches
from dsconvert.matching.evaluator import evaluate_student
from dsconvert.matching.loss import Objective, Scales, weighted_loss
from dsconvert.matching.outputs import outputs_of
from dsconvert.model.pictures import FromUnit


class _Layered(nn.Module):
    """A picture and its mask, a pooled vector, and values that are no maps of an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.rgb = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)
        self.mask = nn.Conv2d(8, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.body(x))
        picture, mask = torch.sigmoid(self.rgb(y)), torch.sigmoid(self.mask(y))
        vector = mask.mean((2, 3))
        return picture, {"mask": mask}, [vector], mask.mean(), vector.argmax(1)


def _pictures(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(n, 3, 8, 8, generator=generator),)


def _batches(student: nn.Module, teacher: nn.Module) -> TeacherBatches:
    objective = Objective(teacher, student, blocks=(), features=None)
    return TeacherBatches(objective, _pictures, DistillConfig(steps=8, batch=4, features=0.0))


def test_what_has_a_row_for_each_image_is_an_output() -> None:
    model, args = _Layered(), _pictures(2, torch.Generator())
    found = outputs_of(model, args, 0)
    assert found.image.shape == (2, 3, 8, 8)
    assert [tuple(t.shape) for t in found.others] == [(2, 1, 8, 8), (2, 1)]
    shown = outputs_of(FromUnit(model, whole=True), args, 0)
    assert torch.equal(shown.image, found.image * 2 - 1)
    assert all(map(torch.equal, shown.others, found.others))
    assert torch.equal(FromUnit(model)(*args), shown.image)


def test_a_mask_that_moves_is_seen_and_corrected() -> None:
    teacher = _Layered().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    batches = _batches(student, teacher)
    scales = batches.scales()
    assert evaluate_student(batches, scales).score.distance < 1e-9
    with torch.no_grad():
        student.mask.weight.mul_(1.5)
    before = evaluate_student(batches, scales).score
    assert before.terms["image"] < 1e-9
    assert before.distance == pytest.approx(before.terms["others"])  # with the image's weight
    assert before.distance > 0.01
    optimiser = torch.optim.Adam(student.mask.parameters(), lr=0.002)
    for step in range(60):
        target = batches.training(step)
        terms = batches.objective.terms(target, batches.objective.run_student(target), scales)
        optimiser.zero_grad()
        weighted_loss(terms, batches.config).backward()
        optimiser.step()
    assert evaluate_student(batches, scales).score.distance < 0.5 * before.distance


def test_an_output_that_never_changes_has_no_weight_beyond_its_size() -> None:
    class Constant(nn.Conv2d):
        def forward(self, x: Tensor) -> Any:
            made = super().forward(x)
            return made, torch.ones(len(x), 1) * self.bias.sum()

    teacher = Constant(3, 3, 1)
    student = copy.deepcopy(teacher)
    batches = _batches(student, teacher)
    with torch.no_grad():
        student.bias.mul_(1 + 1e-6)
    assert evaluate_student(batches, batches.scales()).score.distance < 1e-6


def test_an_output_of_another_shape_does_not_hide_the_rest() -> None:
    class Wider(_Layered):
        def forward(self, x: Tensor) -> Any:
            picture, mask, [vector], *rest = super().forward(x)
            return picture, mask, [vector.repeat(1, 2)], *rest

    teacher, student = _Layered(), Wider()
    batches = _batches(student, teacher)
    scales = batches.scales()
    assert evaluate_student(batches, scales).score.distance < 1e-9
    with torch.no_grad():
        student.mask.bias.add_(1)
    assert evaluate_student(batches, scales).score.terms["others"] > 1


@pytest.mark.parametrize("saved", [True, False])
def test_other_outputs_on_one_side_alone_are_not_compared(*, saved: bool) -> None:
    """A checkpoint of an older version has no scales of them: its run goes on without them."""

    class Picture(_Layered):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)[0]

    teacher = _Layered()
    batches = _batches(copy.deepcopy(teacher) if saved else Picture(), teacher)
    scales = batches.scales()
    if saved:
        state = {k: v for k, v in scales.state().items() if k != "others"}
        scales = Scales(**state).to(torch.device("cpu"))
    assert set(evaluate_student(batches, scales).score.terms) == {"image"}
