"""The positions of large maps that enter a fit."""

from __future__ import annotations

import pytest
import torch

from dsconvert.fit.positions import position_step


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64), (63, 63), (15, 40), (1, 96)])
@pytest.mark.parametrize("about", [2, 3, 4, 5, 7, 8, 63, 64])
def test_every_column_row_and_phase_is_visited_alike(height: int, width: int, about: int) -> None:
    sample = height * width
    total = 200 * sample
    step = position_step(total, total // about, sample)
    assert about <= step <= about + 5  # 40 x 15 has the factors 2, 3 and 5
    visits = (torch.arange(total)[::step] % sample).bincount(minlength=sample)
    assert visits.min() >= visits.max() - 1 > 0


def test_small_maps_are_taken_whole() -> None:
    assert position_step(1000, 1000, 10) == position_step(10, 1000, 10) == 1
