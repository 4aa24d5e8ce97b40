"""KID: the squared maximum mean discrepancy in Inception features (Binkowski et al. 2018).

The kernel is ``(x.y / F + 1)^3``; the estimator is unbiased, so that KID (unlike FID) does not grow
for smaller sets. clean-fid averages it over random subsets of 1,000 rows, which estimates the value
over all rows; this module computes that value. For the bootstrap, rows have weights, and pairs of a
row with a copy of itself are left out.
"""

from __future__ import annotations

import numpy as np

from dsconvert.config.measure import KID_LIMIT
from dsconvert.errors import UsageError
from dsconvert.metrics.frechet import Weighted

_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _kernel(x: _Array, y: _Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    # Single precision: six digits of a sum over millions of pairs, at half the memory.
    product = x.astype(np.float32) @ y.astype(np.float32).T
    return (product / np.float32(x.shape[1]) + np.float32(1)) ** 3


def check_rows(count: int) -> None:
    """Check the number of images a side.

    Raises:
        UsageError: a set is too large for its kernel matrix.
    """
    if count > KID_LIMIT:
        raise UsageError(
            f"KID takes at most {KID_LIMIT} images a side, not {count}; give fewer, or leave kid "
            "out."
        )


def kernel(x: _Array, y: _Array) -> Weighted:
    """Return KID of two sets ``(N, F)`` as a function of each row's number of occurrences.

    Raises:
        UsageError: a set is too large for its kernel matrix.
    """
    for rows in (x, y):
        check_rows(len(rows))
    within_x, within_y, between = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    np.fill_diagonal(within_x, 0)
    np.fill_diagonal(within_y, 0)

    def mean(matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]], times: _Array) -> float:
        pairs = times.sum() ** 2 - np.square(times).sum()
        return float(times @ (matrix @ times)) / float(pairs)

    def weighted(times_x: _Array, times_y: _Array) -> float:
        across = float(times_x @ (between @ times_y)) / float(times_x.sum() * times_y.sum())
        return mean(within_x, times_x) + mean(within_y, times_y) - 2 * across

    return weighted
