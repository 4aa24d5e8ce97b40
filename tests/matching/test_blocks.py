"""The records of blocks: also of those that write into their inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dsconvert.matching.blocks import trunk_blocks
from dsconvert.matching.loss import Objective


def _activated(
    inputs: int, outputs: int, activation: Callable[..., nn.Module] = nn.LeakyReLU
) -> nn.Module:
    """A block as pix2pix has it: the activation first, in place."""
    return nn.Sequential(activation(0.2, inplace=True), nn.Conv2d(inputs, outputs, 3, 1, 1))


class _PreActivated(nn.Module):
    def __init__(self, activation: Callable[..., nn.Module] = nn.LeakyReLU) -> None:
        super().__init__()
        self.b0 = nn.Conv2d(3, 6, 3, 1, 1)
        self.b1, self.b2 = (_activated(6, 6, activation) for _ in "12")
        self.b3 = _activated(6, 3, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.b3(self.b2(self.b1(self.b0(x)))).tanh_()


def _objective(teacher: nn.Module, student: nn.Module) -> Objective:
    made = Objective(teacher.eval(), student.eval(), blocks=trunk_blocks(teacher), features=None)
    target = made.run_teacher((torch.randn(2, 3, 8, 8),), 0)
    assert made.keep_shared_blocks(target) == made.alone == ("b0", "b1", "b2", "b3")
    return made


def test_a_block_is_recorded_as_it_is_called_and_as_it_returns() -> None:
    model = _PreActivated()
    target = _objective(model, copy.deepcopy(model)).run_teacher((torch.randn(2, 3, 8, 8),), 0)
    with torch.no_grad():
        for name in ("b0", "b1", "b2", "b3"):
            (given,) = target.inputs[name]
            wanted = model.get_submodule(name)(given.clone())
            torch.testing.assert_close(target.blocks[name], wanted, msg=name)


@pytest.mark.parametrize("blockwise", [False, True])
@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Dropout])
def test_an_equal_student_is_at_distance_zero(
    activation: Callable[..., nn.Module], *, blockwise: bool
) -> None:
    """Dropout writes in training mode alone, where teacher and student differ."""
    teacher = _PreActivated(activation)
    objective = _objective(teacher, copy.deepcopy(teacher))
    target = objective.run_teacher((torch.randn(2, 3, 8, 8),), 0)
    blocks = {n: t.clone() for n, t in target.blocks.items()}
    inputs = {n: t.clone() for n, (t,) in target.inputs.items()}
    objective.student.train()
    made = objective.run_student(target, blockwise=blockwise)
    terms = objective.terms(target, made, objective.scales([target]))
    if activation is nn.LeakyReLU:
        assert float(terms["blocks"].detach()) < 1e-9
    terms["blocks"].backward()
    assert all(p.grad is not None for p in objective.student.parameters())
    assert all(torch.equal(t, target.blocks[n]) for n, t in blocks.items())
    assert all(torch.equal(t, target.inputs[n][0]) for n, t in inputs.items())


def test_a_student_without_writes_is_compared_with_the_same_values() -> None:
    """Its outputs are those of its blocks, and the teacher's are taken in the same place."""
    teacher = _PreActivated()
    student = copy.deepcopy(teacher)
    for name in ("b1", "b2", "b3"):
        student.get_submodule(f"{name}.0").inplace = False
    objective = _objective(teacher, student)
    target = objective.run_teacher((torch.randn(2, 3, 8, 8),), 0)
    with torch.no_grad():
        terms = objective.terms(target, objective.run_student(target), objective.scales([target]))
    assert float(terms["blocks"]) < 1e-9


def test_an_ordinary_model_is_recorded_without_copies() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 3, 3))
    objective = Objective(model, copy.deepcopy(model), blocks=("0", "1", "2"), features=None)
    target = objective.run_teacher((torch.randn(2, 3, 8, 8),), 0)
    assert target.inputs["1"][0] is target.blocks["0"]
    assert target.image is target.blocks["2"]
