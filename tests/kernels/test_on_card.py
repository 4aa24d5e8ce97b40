"""Every Triton program on a CUDA card, against torch's own operators in float64."""

from __future__ import annotations

import pytest
import torch

from dsconvert.kernels.geometry import CHANNELS_LAST, CONTIGUOUS
from tests.kernels.cases import SMALL, Case, check
from tests.kernels.test_programs import FEW, MANY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

SIZES = (((4, 96, 64, 64), 1), ((3, 40, 17, 23), 2), ((2, 512, 16, 16), 3))
"""Maps of the sizes that occur, and some that no tile divides; with ranks."""
LARGE = tuple(
    Case(operation=operation, side=side, rank=rank if side else 1, size=size, dtype=dtype,
         last=last,
         # In front of batch normalisation its gradient is 0, and what is found is all rounding.
         bias=operation != "batch_norm_gate")
    for i, (operation, side) in enumerate((
        ("depthwise", 4), ("noise_gate", 4), ("batch_norm_gate", 4), ("batch_norm_gate", 0),
        ("depthwise", 3),
    ))
    for j, (dtype, last) in enumerate(((torch.float32, False), (torch.bfloat16, True)))
    for size, rank in (SIZES[(i + j) % 3],)
)  # fmt: skip
"""Each program once in each layout: Triton compiles for most of the time. All constants are
compared by the interpreter, without a card."""


@pytest.mark.parametrize("case", [*FEW, *MANY[::7]], ids=str)
def test_every_program(case: Case) -> None:
    check(case, "triton", SMALL)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_maps(case: Case) -> None:
    check(case, "triton")


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("last", [False, True])
def test_every_candidate(last: bool, i: int) -> None:
    tile = (CHANNELS_LAST if last else CONTIGUOUS)[i]
    case = Case(
        operation="batch_norm_gate", side=4, size=(2, 64, 32, 32), last=last, bias=False,
        dtype=torch.float32,
    )  # fmt: skip
    check(case, "triton", tile)


def test_programs_that_take_several_tiles() -> None:
    # Enough programs that each sums over many tiles.
    check(Case(operation="batch_norm_gate", side=4, size=(8, 64, 128, 128), bias=False,
               dtype=torch.float32), "triton")  # fmt: skip
