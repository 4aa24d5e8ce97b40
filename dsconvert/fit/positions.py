"""The positions of large maps that enter a least-squares fit, where all would take too long."""

from __future__ import annotations

import math


def position_step(total: int, most: int, sample: int) -> int:
    """Return the step between the positions that are taken, of maps laid out row by row.

    The step has no common factor with the positions of one sample. So the positions that are taken
    visit every column and every row, and every phase of an upsampling, equally often: a step of 2
    would see every other column alone, whose statistics differ behind a transposed convolution.

    Args:
        total: positions of all samples.
        most: the number to take, about: fewer than twice as many are taken.
        sample: positions of one sample, for example H W.
    """
    step = max(1, total // most)
    while math.gcd(step, sample) > 1:
        step += 1
    return step
