"""The order of the tries: few of them, the fastest that holds, and the next where it does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsconvert.bench import Settings
from dsconvert.records import Plan, Quality
from dsconvert.search.promise import PromiseSearch
from dsconvert.search.promise_candidates import in_order, overrun
from dsconvert.search.quality_targets import parse_qualities
from dsconvert.search.records import Probe
from dsconvert.search.targets import parse_targets
from dsconvert.search.tries import Try, TryStore
from dsconvert.search.verify import Figure


@dataclasses.dataclass
class Made:
    """In the place of a conversion."""

    model: float
    quality: Quality | None = None


def quality(psnr: float) -> Quality:
    return Quality(
        samples=4, psnr=psnr, psnr_interval=(psnr - 1, psnr + 1), fd=None, floor=None, ratio=None,
        ratio_interval=None, seconds=0.0,
    )  # fmt: skip


class Judged:
    """A judge whose models are their own PSNR; ``change`` is that of its latents."""

    def __init__(self, change: float = 0.0) -> None:
        self.change, self.asked = change, 0

    def measure(self, model: float, *, progress: Any) -> Quality:
        self.asked += 1
        return quality(model + self.change)


class Search(PromiseSearch):
    """Without fits: the number in a plan's name is its PSNR."""

    made = 0

    def _conversion(self, one: Try) -> Any:
        type(self).made += 1
        return Made(float(one.name))


def tries(*rows: tuple[float, float, float]) -> list[Try]:
    """(seconds, loss, PSNR) of each; the original takes 10 s."""
    return [
        Try(
            name=f"{psnr:g}",
            plan=Plan(model="m", preset=f"p{i}", decisions=()),
            loss=loss,
            before={"latency": Figure(10.0)},
            figures={"latency": Figure(seconds)},
        )
        for i, (seconds, loss, psnr) in enumerate(rows)
    ]


def work(promise: str, *targets: str, change: float = 0.0) -> Any:
    probe = Probe(
        metrics=("latency",), batch=1, train_batch=1, channels_last=False, settings=Settings(),
        repeats=1,
    )  # fmt: skip
    return SimpleNamespace(
        qualities=parse_qualities([promise]), targets=parse_targets(targets) if targets else (),
        probe=probe, picture=lambda m: m, search=Judged(), promise=Judged(change),
    )  # fmt: skip


ROWS = ((1, 0.9, 18), (2, 0.5, 22), (3, 0.3, 26), (4, 0.2, 30), (5, 0.1, 34), (6, 0.05, 38))


def test_only_plans_that_no_faster_one_beats_are_in_the_order() -> None:
    rows = tries(*ROWS, (3.5, 0.4, 25), (9.9, 0.0, 99))
    names = [t.name for t in in_order(work("psnr=1dB"), rows)]
    assert names == ["18", "22", "26", "30", "34", "38"]  # 25: slower than 26, more loss; 99: slow
    limited = work("psnr=1dB", "latency=0.35x")
    assert [t.name for t in in_order(limited, rows)] == ["18", "22", "26"]
    assert overrun(limited, rows[3]) == pytest.approx(4 / 3.5)


@pytest.mark.parametrize(("bound", "wanted"), [(17, "18"), (25, "26"), (38, "38")])
def test_the_fastest_that_holds_is_found_by_few_tries(
    tmp_path: Path, bound: int, wanted: str
) -> None:
    task = work(f"psnr={bound}dB")
    store = TryStore("key", folder=tmp_path)
    rows = tries(*ROWS)
    found = Search(task, store, rows, None).run()
    assert found is not None
    assert found.chosen.name == wanted
    assert found.missed is None
    assert found.conversion.quality == found.chosen.promised
    assert task.search.asked <= 3  # of six
    assert task.promise.asked == 1
    # A later run with another promise uses the tries of this one.
    stored = store.load()
    assert [t.name for t in stored] == [t.name for t in rows]
    assert [t.quality for t in stored] == [t.quality for t in rows]
    again = work(f"psnr={bound}dB")
    search = Search(again, store, stored, None)
    other = search.run()
    assert other is not None
    assert other.chosen.name == wanted
    assert again.search.asked == again.promise.asked == 0
    assert search.reused > 0


def test_a_plan_that_breaks_the_promise_on_unseen_latents_gives_way(tmp_path: Path) -> None:
    task = work("psnr=25dB", change=-2.0)
    found = Search(task, TryStore("key", folder=tmp_path), tries(*ROWS), None).run()
    assert found is not None
    assert found.chosen.name == "30"  # 26 measures 24 there
    assert found.chosen.promised is not None
    assert found.chosen.promised.psnr == 28
    assert found.missed is None


def test_what_nothing_holds_is_refused_with_the_nearest(tmp_path: Path) -> None:
    found = Search(work("psnr=50dB"), TryStore("k", folder=tmp_path), tries(*ROWS), None).run()
    assert found is not None
    assert found.chosen.name == "38"
    assert found.missed is not None
    assert "psnr=50dB can't be promised" in found.missed
    assert "the nearest is 38, latency=0.6x, with psnr=38.0dB (37.0 to 39.0)" in found.missed
    none = work("psnr=1dB", "latency=0.01x")
    assert Search(none, TryStore("k", folder=tmp_path), tries(*ROWS), None).run() is None
