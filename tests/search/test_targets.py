"""Targets as typed, the solver, and the profile on disk."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsconvert.bench import Settings, settle
from dsconvert.errors import MissingExtraError, TargetError
from dsconvert.search import parse_target
from dsconvert.search.records import Candidate
from dsconvert.search.solve import least_loss, nearest
from dsconvert.search.targets import parse_targets
from dsconvert.search.units import figure

SETTINGS = settle(Settings(device="cpu", threads=1))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("latency=0.2x", 0.2 * 1e6),
        ("latency=150ms", 0.15),
        ("train-time=20us", 20e-6),
        ("memory=500MiB", 500 * 2**20),
        ("memory=1GB", 1e9),
        ("macs=3GMAC", 3e9),
        ("macs=3G", 3e9),
        ("params=10M", 1e7),
        ("params=300", 300),
        ("params=.5x", 0.5 * 1e6),
    ],
)
def test_targets_are_read_with_their_units(text: str, budget: float) -> None:
    target = parse_target(text)
    assert target.budget(1e6) == pytest.approx(budget)
    assert parse_target(target.text).budget(1e6) == pytest.approx(budget, rel=0.01)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed=0.2x", "speed.*latency"),
        ("latency", "latency=0.2x"),
        ("latency=fast", "no number"),
        ("latency=10", "the unit is missing.*ms"),
        ("latency=10MiB", "'MiB' is none of latency's.*ms"),
        ("memory=2s", "'s' is none of memory's.*MiB"),
        ("macs=10ms", "'ms' is none of macs's"),
        ("params=10MiB", "'MiB' is none of params's"),
        ("latency=0x", "above 0"),
        ("latency=-1ms", "no number"),
        ("latency=nanx", "no number"),
    ],
)
def test_a_wrong_target_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        parse_target(text)


def test_a_metric_is_bounded_once() -> None:
    with pytest.raises(TargetError, match="latency is a target twice"):
        parse_targets(["latency=0.2x", "latency=3s"])
    with pytest.raises(TargetError, match="no target"):
        parse_targets([])


def test_figures_have_fitting_units() -> None:
    assert figure("latency", 0.0123) == "12.3 ms"
    assert figure("memory", 3 * 2**30) == "3.00 GiB"
    assert figure("macs", 49.74e9) == "49.7 GMAC"
    assert figure("params", 105.7e6) == "106 M"


# The solver ---------------------------------------------------------------------------------------


def candidate(loss: float, **costs: float) -> Candidate:
    return Candidate(rule=None, rank=None, loss=loss, costs=costs)


OPTIONS = st.lists(
    st.lists(
        st.builds(
            candidate,
            st.integers(0, 20).map(lambda n: n / 20),
            latency=st.integers(1, 30).map(float),
            params=st.integers(1, 30).map(float),
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@given(options=OPTIONS, latency=st.integers(0, 60), params=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_the_solver_is_optimal(options: list, latency: int, params: int) -> None:
    budgets = {"latency": float(latency), "params": float(params)}

    def total(choice: tuple[int, ...], of) -> float:
        return sum(of(o[i]) for o, i in zip(options, choice, strict=True))

    fits = [
        c
        for c in itertools.product(*(range(len(o)) for o in options))
        if all(total(c, lambda x, m=m: x.costs[m]) <= b for m, b in budgets.items())
    ]
    found = least_loss(options, budgets)
    if not fits:
        assert found is None
        return
    assert found in fits
    best = min(total(c, lambda x: x.loss) for c in fits)
    assert total(found, lambda x: x.loss) == pytest.approx(best, abs=1e-4)


def test_of_equal_losses_the_cheaper() -> None:
    options = [[candidate(0, latency=5), candidate(0, latency=3), candidate(0, latency=4)]]
    assert least_loss(options, {"latency": 100}) == (1,)


def test_nearest_balances_the_overruns() -> None:
    options = [[candidate(0, latency=1, params=9), candidate(0, latency=4, params=4)]]
    nothing = {"latency": 0.0, "params": 0.0}
    assert nearest(options, {"latency": 1, "params": 1}, nothing) == (1,)
    assert nearest(options, {"latency": 1, "params": 9}, nothing) == (0,)


def test_without_scipy_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match='pip install "scipy>='):
        least_loss([[candidate(0, latency=1)]], {"latency": 1})
