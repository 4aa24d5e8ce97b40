"""A promised quality: what is tried, checked on unseen latents, kept, and refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from dsconvert.bench import Settings
from dsconvert.cli import main
from dsconvert.core.analysis import Analysis, analyse
from dsconvert.core.conversion import apply_to
from dsconvert.core.pipeline import plan_for
from dsconvert.core.polish_options import PolishOptions
from dsconvert.errors import ConversionError, TargetError
from dsconvert.records import Conversion, Plan, Polish, Quality
from dsconvert.search.layer_trials import layer_trials
from dsconvert.search.predictor import loss_at, predict_loss
from dsconvert.search.promise import PromiseSearch
from dsconvert.search.promise_candidates import CANDIDATES, candidates, time_again
from dsconvert.search.quality_targets import parse_qualities, parse_quality, worst
from dsconvert.search.records import Probe
from dsconvert.search.trial_rig import LayerTrials, Sensitivity, Trial
from dsconvert.search.tries import Try, TryStore, digest_of
from dsconvert.search.verify import Figure
from tests import awkward
from tests.search.clocks import ByWeight, whole


class Small(nn.Module):
    """Latents (N, 8) to images of 32 px."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 24 * 64)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.wide = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.up2 = nn.Upsample(scale_factor=2, mode="nearest")
        self.narrow = nn.Conv2d(24, 16, 3, padding=1)
        self.image = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).view(-1, 24, 8, 8)
        x = torch.relu(self.norm(self.wide(self.up(x))))
        x = torch.relu(self.narrow(self.up2(x)))
        return torch.tanh(self.image(x))


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Small().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2 if p.dim() > 1 else 1)
    return model


def latents(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(n, 8, generator=generator),)


def quality(*, ratio: float | None = None, psnr: float = 30.0) -> Quality:
    interval = None if ratio is None else (ratio - 0.1, ratio + 0.1)
    return Quality(
        samples=4, psnr=psnr, psnr_interval=(psnr, psnr), fd=ratio, floor=1.0, ratio=ratio,
        ratio_interval=interval, seconds=0.0,
    )  # fmt: skip


def test_promises_are_read_and_compared() -> None:
    fd, psnr = parse_qualities(["fd=1.05x", "psnr = 30 dB"])
    assert (fd.text, psnr.text) == ("fd=1.05x", "psnr=30dB")
    assert worst([fd, psnr], quality(ratio=1.04, psnr=31)) < 1
    assert worst([fd], quality(ratio=1.06)) > 1
    assert worst([psnr], quality(psnr=24)) == pytest.approx(2)
    assert worst([fd], quality()) == float("inf")
    for text, said in (
        ("fd=1.05", "write fd=1.05x"), ("psnr=30", "write psnr=30dB"), ("fid=3", "no promise"),
        ("fd=0x", "above 0"),
    ):  # fmt: skip
        with pytest.raises(TargetError, match=said):
            parse_quality(text)
    with pytest.raises(TargetError, match="fd is promised twice"):
        parse_qualities(["fd=1x", "fd=2x"])


def test_losses_between_and_beyond_the_tried_steps() -> None:
    rows = [(1, 0.4), (2, 0.1), (4, 0.11)]
    trials = tuple(Trial(step=s, macs=s, error=None, image=v, features=None) for s, v in rows)
    layer = LayerTrials(name="a", kind="rank", rule="dw-pw", whole=9, macs=20, trials=trials)
    at = [loss_at(layer, r, "features") for r in range(1, 10)]
    assert at[0] == 0.4
    assert at[1] == pytest.approx(0.11)  # more ranks are never worse
    assert at[8] == 0
    assert all(a >= b for a, b in itertools.pairwise(at))


@pytest.fixture(scope="module")
def known():
    model = small()
    analysis = analyse(model, inputs=latents)
    return analysis, layer_trials(analysis, picture=lambda m: m, features=None, latents=4)


@pytest.mark.slow
def test_every_layer_and_group_is_tried_and_more_is_better(known) -> None:
    analysis, found = known
    by_name = {(t.kind, t.name): t for t in found.layers}
    assert {"wide", "narrow"} <= {n for k, n in by_name if k == "rank"}
    assert any(k == "width" for k, _ in by_name)
    for layer in found.layers:
        first, last = layer.trials[0], layer.trials[-1]
        assert first.image > last.image > 0
        assert first.step < last.step < layer.whole
    # A trial is the original with that one layer replaced: the whole model agrees.
    strong, weak = (
        predict_loss(plan_of(analysis, rank), found).image for rank in (1, 4)
    )  # fmt: skip
    assert strong > weak > 0


def plan_of(analysis, rank: int) -> Plan:
    return plan_for(analysis, preset="fast", rank=rank, width=1.0)


def test_tries_survive_and_broken_ones_are_made_again(tmp_path: Path) -> None:
    store = TryStore(digest_of(None, {"a": 1}), folder=tmp_path)
    assert store.load() == []
    assert digest_of(None, {"a": 1}) != digest_of(None, {"a": 2})
    store.folder.mkdir()
    for damaged in ("{", "[]", "[" * 100_000):
        (store.folder / "tries.json").write_text(damaged, encoding="utf-8")
        assert store.load() == []
    polish = Polish(
        steps=1, seconds=2.0, ended="steps", best_step=1, distance_before=0.2, distance_after=0.1
    )
    one = Try(
        name="a", plan=Plan(model="m", preset="fast", decisions=()), loss=0.1, before={},
        figures={}, quality=quality(), kept={"g": (0, 2)}, eps={"n": 1.3e-5}, psnr=30.0,
        polish=polish,
    )  # fmt: skip
    store.save([one])
    assert store.load() == [one]
    whole = json.loads((store.folder / "tries.json").read_text(encoding="utf-8"))
    (row,) = whole["tries"]
    for name, wrong in {
        "before": [], "quality": row["quality"] | {"psnr": "x"}, "kept": {"g": ["x"]},
        "polish": row["polish"] | {"seconds": []}, "loss": 10**400, "eps": {"g": "x"},
    }.items():  # fmt: skip
        text = json.dumps(whole | {"tries": [row | {name: wrong}]})
        (store.folder / "tries.json").write_text(text, encoding="utf-8")
        assert store.load() == [], name


def test_a_restored_try_has_every_tensor(tmp_path: Path) -> None:
    model, args = awkward.made("state dict of its own")

    def inputs(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn(n, *args[0].shape[1:], generator=generator),)

    analysis = analyse(model, inputs=inputs)
    work: Any = SimpleNamespace(analysis=analysis, seed=0, calibrate=4, polishing=PolishOptions())
    one = Try(name="a", plan=plan_of(analysis, 1), loss=0.1, before={}, figures={})
    store = TryStore("key", folder=tmp_path)
    made = PromiseSearch(work, store, [one], None)._made(one)
    state = store.weights(one)
    assert state is not None
    restored = PromiseSearch(work, store, [one], None)._restored(one, state)
    assert restored is not None
    wanted = dict(made.model.named_parameters())
    for name, got in restored.model.named_parameters():
        assert torch.equal(got, wanted[name]), name


def block(inputs: int, outputs: int) -> list[nn.Module]:
    conv = spectral_norm(nn.Conv2d(inputs, 2 * outputs, 3, padding=1, bias=False))
    return [nn.Upsample(scale_factor=2), conv, nn.BatchNorm2d(2 * outputs), nn.GLU(1)]


def spectral() -> nn.Module:
    """Spectral norms with a batch normalisation behind them, and one without."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = spectral_norm(nn.Conv2d(16, 16, 1))
        model = nn.Sequential(*block(4, 16), *block(16, 16), last, nn.ReLU(), nn.Conv2d(16, 3, 1))
        return model.eval()


def maps(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(n, 4, 4, 4, generator=generator),)


def test_a_restored_try_has_the_norms_of_the_measured_one(tmp_path: Path) -> None:
    analysis = analyse(spectral(), inputs=maps)
    work: Any = SimpleNamespace(analysis=analysis, seed=0, calibrate=8, polishing=PolishOptions())
    plan = plan_for(analysis, preset="none", width=0.5)
    one = Try(name="a", plan=plan, loss=0.1, before={}, figures={})
    store = TryStore("key", folder=tmp_path)
    made = PromiseSearch(work, store, [one], None)._conversion(one).model
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(n.eps != 1e-5 for n in norms)
    (again,) = store.load()
    search = PromiseSearch(work, store, [again], None)
    search._made = lambda _: pytest.fail("fitted again")  # type: ignore[method-assign]
    restored = search._conversion(again).model
    assert [m.eps for m in restored.modules() if isinstance(m, nn.BatchNorm2d)] == [
        n.eps for n in norms
    ]
    x = maps(2, torch.Generator())
    with torch.no_grad():
        assert torch.equal(restored.eval()(*x), made.eval()(*x))


def test_weights_of_a_search_that_was_begun_anew_are_not_taken(tmp_path: Path) -> None:
    analysis = analyse(spectral(), inputs=maps)
    work: Any = SimpleNamespace(analysis=analysis, seed=0, calibrate=0, polishing=PolishOptions())
    store = TryStore("key", folder=tmp_path)
    first, anew = (
        Try(name="a", plan=plan_of(analysis, 1), loss=0.1, before={}, figures={}) for _ in range(2)
    )
    PromiseSearch(work, store, [first], None)._conversion(first)
    assert store.weights(anew) is not None
    PromiseSearch(work, store, [anew], None)._conversion(anew)
    assert anew.seconds > 0


def test_figures_of_another_machine_are_measured_again(tmp_path: Path) -> None:
    analysis = analyse(spectral(), inputs=maps)
    work = timed(analysis)
    one = Try(
        name="a", plan=plan_of(analysis, 1), loss=0.1, before={"latency": Figure(2.0)},
        figures={"latency": Figure(1.0)}, quality=quality(), eps={"1": 1e-5},
    )  # fmt: skip
    here, there = (
        TryStore("key", conditions={"threads": n}, folder=tmp_path) for n in (1, 2)
    )  # fmt: skip
    here.save([one])
    assert here.load() == [one]
    (other,) = there.load()
    assert other == dataclasses.replace(one, before={}, figures={})
    time_again(work, [other], None)
    assert other.before["latency"].value == pytest.approx(whole(analysis.model))
    assert other.figures["latency"].value < other.before["latency"].value
    there.save([other])
    assert here.load()[0].figures == {}


def timed(analysis: Analysis) -> Any:
    probe = Probe(
        metrics=("latency",), batch=1, train_batch=1, channels_last=False, settings=Settings(),
        repeats=1,
    )  # fmt: skip
    return SimpleNamespace(
        analysis=analysis, inputs=analysis.sampler, probe=probe, clock=ByWeight(), keep=(),
        refit=(), remove=(), calibrate=8, seed=0,
    )  # fmt: skip


def test_a_model_without_gradients_has_the_candidates_of_full_width() -> None:
    model, _ = awkward.made("writes out")

    def pictures(n: int, generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(n, 3, 8, 8, generator=generator),)

    analysis = analyse(model, inputs=pictures)

    def known() -> Sensitivity:
        return layer_trials(analysis, picture=lambda m: m, features=None, latents=2)

    found = candidates(timed(analysis), known, None)
    assert found
    assert not any(t.plan.widths for t in found)


def test_a_candidate_that_does_not_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def applied(analysis: Analysis, plan: Plan, **options: Any) -> Conversion:
        if plan.widths:
            raise ConversionError("does not run")
        return apply_to(analysis, plan, **options)

    monkeypatch.setattr("dsconvert.search.promise_candidates.apply_to", applied)
    task = timed(analyse(small(), inputs=latents))
    found = candidates(task, lambda: Sensitivity(layers=(), latents=1, power=1.0), None)
    assert found
    assert not any(t.plan.widths for t in found)


def words(path: Path, out: Path, *more: str) -> list[str]:
    return [
        str(path), "--out", str(out), "--module", "tests.search.test_promise:small", "--input", "8",
        "--calibrate", "24", "--polish", "0", "--measure", "6", "--json", "--overwrite", *more,
    ]  # fmt: skip


@pytest.mark.extended
@pytest.mark.slow
def test_a_promise_is_kept_again_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSCONVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dsconvert.cli.promises.MachineClock", ByWeight)
    monkeypatch.setattr("dsconvert.cli.promises.lite_features", lambda _: None)
    path, out = tmp_path / "small.pt", tmp_path / "out.pt"
    torch.save(small().state_dict(), path)
    assert main(words(path, out, "--quality", "psnr=20dB")) == 0
    data = json.loads(capsys.readouterr().out)
    (promise,) = data["promises"]
    assert promise["met"]
    assert promise["measured"] >= 20
    assert promise["measured"] != promise["search"]  # other latents
    tried = [t for t in data["tries"] if t["quality"] is not None]
    assert 1 <= len(tried) <= 5
    assert len(data["tries"]) <= len(CANDIDATES)
    assert out.is_file()
    # Again: nothing is fitted.
    out.unlink()
    monkeypatch.setattr(
        "dsconvert.search.promise.apply_and_polish", lambda *_, **__: pytest.fail("fitted")
    )
    assert main(words(path, out, "--quality", "psnr=20dB")) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["promises"] == data["promises"]
    assert again["reused"] >= 1
    assert out.is_file()
    # On another machine: the candidates are timed anew, and nothing is fitted.
    out.unlink()
    monkeypatch.setattr("dsconvert.cli.promises.conditions", lambda _: {"machine": "another"})
    asked: list[str] = []
    monkeypatch.setattr(
        "dsconvert.cli.promises.time_again", lambda *a: (asked.append("again"), time_again(*a))
    )
    for _ in range(2):
        assert main(words(path, out, "--quality", "psnr=20dB")) == 0
        elsewhere = json.loads(capsys.readouterr().out)
        assert elsewhere["promises"] == data["promises"]
    assert asked == ["again"]
    # Out of reach.
    out.unlink()
    more = ("--quality", "psnr=20dB", "--target", "macs=0.0001x")
    assert main(words(path, out, *more)) == 3
    assert "can't be promised" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--quality", "fd=1.05"], "write fd=1.05x"),
        (["--quality", "psnr=30dB", "--rank", "1"], "--quality chooses rules and ranks"),
        (["--quality", "psnr=30dB", "--init", "svd"], "promised after a fit; drop --init"),
    ],
)  # fmt: skip
def test_bad_promises(tmp_path: Path, capsys, more: list[str], said: str) -> None:
    torch.save(small().state_dict(), tmp_path / "small.pt")
    assert main(words(tmp_path / "small.pt", tmp_path / "out.pt", *more)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()
