"""The formula against scipy's matrix square root, and what the bootstrap says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsconvert.errors import UsageError
from dsconvert.metrics import compare_features, compare_sets, frechet_distance


def textbook(a: torch.Tensor, b: torch.Tensor) -> float:
    """Heusel et al. 2017, eq. 6, by scipy's general matrix square root."""
    linalg = pytest.importorskip("scipy.linalg")
    x, y = a.double().numpy(), b.double().numpy()
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(linalg.sqrtm(c @ d))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root))


def features(count: int, width: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return scale * torch.randn(count, width, generator=g) @ mix


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_full_rank_is_the_textbook(scale):
    a, b = features(300, 24, 0), features(200, 24, 1, scale) + 0.3
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_fewer_samples_than_features():
    # Features of N rows span N - 1 directions: in a basis of both sets' span the covariances are
    # small enough for the textbook formula with a ridge that goes to zero.
    a, b = features(20, 60, 0), features(25, 60, 1) + 0.2
    basis = torch.linalg.qr(torch.cat([a, b]).T).Q
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a @ basis, b @ basis), rel=1e-6)
    x, y = a.double(), b.double()
    c, d = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    trace = torch.linalg.eigvalsh(root @ d @ root).clamp_min(0).sqrt().sum()
    wanted = (x.mean(0) - y.mean(0)).square().sum() + c.trace() + d.trace() - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-5)


def test_known_values():
    a = features(50, 80, 0)
    size = float(a.double().var(0).sum())
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * size)
    shift = torch.linspace(-1, 1, 80)
    # A shift adds its square; a scale s of centred features (s - 1)^2 of the variance.
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-4)
    centred = a - a.mean(0)
    assert frechet_distance(centred, 1.5 * centred) == pytest.approx(0.25 * size, rel=1e-4)
    assert frechet_distance(2 * a, 2 * a.flip(1)) == pytest.approx(
        4 * frechet_distance(a, a.flip(1)), rel=1e-5
    )


def test_the_teacher_itself_is_not_distinguishable():
    teacher, other = features(40, 64, 0), features(40, 64, 1)
    found = compare_sets(teacher, teacher, other, bootstrap=20)
    assert found.value == found.floor > 0
    assert found.interval == (0, 0)
    assert found.floor_interval[0] < found.floor < found.floor_interval[1]
    # The shared noise cancels: a difference is known better than either distance.
    near = compare_sets(teacher + 0.05 * features(40, 64, 7), teacher, other, bootstrap=40)
    width = near.interval[1] - near.interval[0]
    assert width < 0.5 * (near.value_interval[1] - near.value_interval[0])
    assert near.interval[0] < near.value - near.floor < near.interval[1]


@pytest.mark.slow
def test_the_verdict_at_its_two_ends():
    """An equally good but different generator passes (nearly always), a blurred one never does."""
    told, caught = 0, 0
    for trial in range(12):
        teacher, other = features(40, 96, 3 * trial), features(40, 96, 3 * trial + 1)
        fresh = 0.8 * teacher + 0.6 * features(40, 96, 3 * trial + 2)
        _, _, (low, high) = compare_features(fresh, teacher, other, bootstrap=30, seed=trial)
        told += low > 0 or high < 0
        _, _, (low, _) = compare_features(1.5 * teacher, teacher, other, bootstrap=30, seed=trial)
        caught += low > 0
    assert told <= 2
    assert caught == 12


def test_bias_of_resampling_moves_no_interval():
    """Every interval holds its full-sample estimate, also for a student that spreads more."""
    teacher, other = features(30, 90, 0), features(30, 90, 1)
    for scale in (0.7, 1.0, 1.4):
        found = compare_sets(scale * teacher, teacher, other, bootstrap=60)
        middle = sum(found.value_interval) / 2
        assert middle == pytest.approx(found.value, rel=0.1)
        assert found.value_interval[0] <= found.value <= found.value_interval[1]


def test_deterministic_and_seeded():
    sets = features(20, 30, 0), features(20, 30, 1), features(25, 30, 2)
    assert compare_sets(*sets, bootstrap=10) == compare_sets(*sets, bootstrap=10)
    assert compare_sets(*sets, bootstrap=10) != compare_sets(*sets, bootstrap=10, seed=1)
    point = compare_sets(*sets, bootstrap=0)
    assert point.interval == (point.value - point.floor,) * 2


@pytest.mark.parametrize(
    ("a", "b", "what"),
    [
        (torch.ones(1, 4), torch.ones(3, 4), "N of 2 or more"),
        (torch.ones(3, 4, 1), torch.ones(3, 4), "N of 2 or more"),
        (torch.ones(3, 4), torch.ones(3, 5), r"\[4, 5\]"),
        (torch.full((3, 4), float("nan")), torch.ones(3, 4), "NaN"),
    ],
)
def test_what_cannot_be_compared(a, b, what):
    with pytest.raises(UsageError, match=what):
        frechet_distance(a, b)


def test_student_and_teacher_share_latents():
    with pytest.raises(UsageError, match="share latents"):
        compare_sets(features(5, 4, 0), features(6, 4, 1), features(6, 4, 2))
