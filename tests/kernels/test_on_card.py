"""Every Triton program on a CUDA card, against torch's own operators in float64."""

from __future__ import annotations

import pytest
import torch

from dsconvert.kernels import Tile
from dsconvert.kernels.geometry import CHANNELS_LAST, CONTIGUOUS
from tests.kernels.cases import SMALL, Case, check
from tests.kernels.test_programs import FEW, MANY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

LARGE = tuple(
    Case(operation=operation, side=side, rank=rank, size=size, dtype=dtype, last=last,
         # In front of batch normalisation its gradient is 0, and what is found is all rounding.
         bias=operation != "batch_norm_gate")
    for size, rank in (((4, 96, 64, 64), 1), ((3, 40, 17, 23), 2), ((2, 512, 16, 16), 3))
    for operation, side in (
        ("depthwise", 4), ("noise_gate", 4), ("batch_norm_gate", 4), ("batch_norm_gate", 0),
        ("depthwise", 3),
    )
    for dtype, last in ((torch.float32, False), (torch.bfloat16, True))
)  # fmt: skip
"""Maps of the sizes that occur, and some that no tile divides."""


@pytest.mark.parametrize("case", [*FEW, *MANY], ids=str)
def test_every_program(case: Case) -> None:
    check(case, "triton", SMALL)


@pytest.mark.parametrize("case", [c for c in LARGE if c.side or c.rank == 1], ids=str)
def test_large_maps(case: Case) -> None:
    check(case, "triton")


@pytest.mark.parametrize(
    ("tile", "last"),
    [*((tile, False) for tile in CONTIGUOUS), *((tile, True) for tile in CHANNELS_LAST)],
    ids=str,
)
def test_every_candidate(tile: Tile, last: bool) -> None:
    for side in (0, 4):
        case = Case(operation="batch_norm_gate", side=side, size=(2, 64, 32, 32), last=last)
        check(case, "triton", tile)
