"""Every Triton program against torch's own operators, by Triton's interpreter on a CPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from dsconvert import kernels
from dsconvert.kernels import Tile, eager, launch, plan
from dsconvert.kernels.geometry import geometry_of
from dsconvert.kernels.launch import Source
from tests.kernels.cases import SMALL, Case, check, quick

pytest.importorskip("triton")

FEW = (
    Case(operation="batch_norm_gate", side=4, size=(1, 2, 2, 3)),
    Case(operation="batch_norm_gate", last=True, dtype=torch.float32, per_sample=True),
    Case(operation="noise_gate", side=3, rank=2, last=True, noise=0, size=(1, 2, 2, 3)),
    Case(operation="noise_gate", dtype=torch.bfloat16, size=(2, 4, 3, 3), planes=1),
    Case(operation="depthwise", side=4, multiplier=2, dtype=torch.float16, size=(1, 1, 2, 2)),
)
"""All programs, filters, layouts and types at least once: what each `make test` runs."""
MANY = tuple(
    Case(operation=operation, side=side, rank=rank, multiplier=many, size=size, dtype=dtype,
         last=last, gate=gate, bias=last, noise=noise)
    for (rank, many), operation, side, size, dtype, last, gate, noise in (
        (shape, operation, side, size, dtype, last, gate, noise)
        for i, (shape, operation, side, last) in enumerate(itertools.product(
            ((1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 4)),
            ("depthwise", "noise_gate", "batch_norm_gate"), (3, 4), (False, True),
        ))
        for size in [((1, 2, 2, 2), (2, 2, 3, 5), (1, 4, 4, 3))[i % 3]]
        for dtype in [
            (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float32)[i % 5]
        ]
        for gate in [bool(i % 7 % 2) or operation == "depthwise"]
        for noise in [(None, 1, 0)[i % 4 % 3]]
    )
)  # fmt: skip
"""Ranks 1 to 4 and multipliers, filters and layouts; sizes, types, gates and noises in turn."""
HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but the programs compute."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a card")
    quick()

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("torch's operators ran")

    for name in ("forward", "statistics", "backward", "filter_gradients"):
        monkeypatch.setattr(eager, name, refused)


@pytest.mark.slow
@pytest.mark.parametrize("case", FEW, ids=str)
def test_every_program(case: Case) -> None:
    check(case, "triton", SMALL)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("case", MANY, ids=str)
def test_ranks_shapes_types_and_layouts(case: Case) -> None:
    check(case, "triton", SMALL)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("tile", [None, Tile(aligned=True), Tile(numbers=64, channels=32)], ids=str)
def test_tiles_that_do_not_divide_the_map(tile: Tile | None, last: bool) -> None:
    # A width of 16 is where rows are aligned; three channels leave a part of a tile empty.
    size = (2, 6, 3, 16)
    check(Case(operation="batch_norm_gate", side=4, size=size, last=last), "triton", tile)
    check(Case(operation="noise_gate", size=size, last=last), "triton", tile)


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, pytest.param(True, marks=pytest.mark.extended)])
def test_a_program_takes_several_tiles(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROGRAMS", 3 if last else 6)
    plan.plan_of.cache_clear()
    case = Case(operation="batch_norm_gate", side=4, size=(1, 4, 5, 8), last=last)
    g = geometry_of(case.tensors()["x"], case.tensors()["weight"], gate=True)  # type: ignore[arg-type]
    found = plan.plan_of(g, SMALL, g.channels, case.dtype, True, 1 << 20)
    assert found.steps > 1 < found.groups
    assert found.constants["EVEN"] == last
    # The last group reaches beyond the map.
    rows, columns = found.constants["BP"] // found.constants["BX"], found.constants["BX"]
    assert found.steps * found.groups > -(-g.height // rows) * -(-g.width // columns)
    check(case, "triton", SMALL)
    plan.plan_of.cache_clear()


@pytest.mark.slow
def test_statistics_far_from_zero() -> None:
    x = 1000 + torch.randn(2, 2, 3, 40, generator=torch.Generator().manual_seed(0))
    source = Source(x=x, weight=None)
    mean, var = launch.statistics(source, Tile(numbers=32, warps=1))
    wanted_var, wanted = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert torch.allclose(mean.double(), wanted, rtol=3e-7)
    assert torch.allclose(var.double(), wanted_var, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("operation", ["noise_gate", "batch_norm_gate"])
@pytest.mark.parametrize("side", [0, 3, 4])
def test_gradcheck(operation: str, side: int) -> None:
    case = Case(operation=operation, side=side, size=(1, 2, 2, 2))
    given = case.tensors()
    names = [k for k, t in given.items() if t is not None and k != "plane"]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return case._called(given | dict(zip(names, tensors, strict=True)))[0]

    leaves = tuple(given[k].requires_grad_() for k in names)  # type: ignore[union-attr]
    with kernels.using("triton"):
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", [FEW[0]], ids=str)
def test_a_sum_does_not_depend_on_the_run(case: Case) -> None:
    with kernels.using("triton", tile=SMALL):
        one, two = (
            torch.ops.dsconvert.depthwise_backward(
                torch.ones(1, 2, 4, 6), torch.arange(12.0).reshape(1, 2, 2, 3),
                torch.ones(2, 1, 4, 4), False, True,
            )[1]
            for _ in range(2)
        )  # fmt: skip
    assert torch.equal(one, two)
