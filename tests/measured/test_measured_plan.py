"""Plans for targets: with a clock of our own (costs by parameters), and once with the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import decoder, latents
from torch import nn

from dsconvert import apply
from dsconvert.bench import LocalSubject, Operation, Settings
from dsconvert.cli import main
from dsconvert.errors import TargetError, UsageError
from dsconvert.measured import MeasuredPlan, plan_measured, sites, verify

CPU = Settings(device="cpu", threads=1)


def weight(module: nn.Module) -> float:
    """What a module takes by our clock: a second a thousand parameters."""
    return sum(p.numel() for p in module.parameters()) / 1000


def whole(model: nn.Module) -> float:
    """The same of a whole model: what is called twice takes twice as long."""
    return weight(model) + weight(getattr(model, "shared", nn.Identity()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time without a clock."""

    def seconds(self: LocalSubject, operation: Operation) -> float:
        return whole(self._model)

    monkeypatch.setattr(sites, "_seconds", lambda module, *_, **__: weight(module))
    monkeypatch.setattr(LocalSubject, "seconds", seconds)


def planned(tmp_path: Path, *targets: str, **options) -> MeasuredPlan:
    options = {"settings": CPU, "cache": tmp_path, "inputs": latents, "repeats": 3, **options}
    return plan_measured(decoder(), targets, **options)


def actions(found: MeasuredPlan) -> dict[str, str]:
    return {d.site: d.rule or d.action for d in found.plan.decisions}


@pytest.mark.usefixtures("clock")
def test_a_loose_target_loses_nothing(tmp_path: Path) -> None:
    found = planned(tmp_path, "latency=1x")
    assert found.loss == 0
    assert {"dw-pw", "pw-dw", "up-pw-dw"}.isdisjoint(actions(found).values())
    assert actions(found)["dead"] == "keep"


@pytest.mark.usefixtures("clock")
def test_less_time_costs_more_loss_and_the_promise_holds(tmp_path: Path) -> None:
    losses = []
    model = decoder()
    for ratio in (0.8, 0.6, 0.5):
        found = planned(tmp_path, f"latency={ratio}x")
        (promise,) = found.promises
        assert promise.promised <= promise.budget * (1 + 1e-9)
        result = apply(model, found.plan, inputs=latents, calibrate=8)
        (checked,) = verify(found, model, result.model, inputs=latents)
        assert checked.met
        assert checked.measured == pytest.approx(whole(result.model))
        assert checked.measured == pytest.approx(checked.promised)
        losses.append(found.loss)
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


@pytest.mark.usefixtures("clock")
def test_nothing_faster_stays_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dense_is_fast(module: nn.Module, *_, **__) -> float:
        pair = any("depthwise" in dict(m.named_children()) for m in module.modules())
        return 1.0 if pair else 0.001

    monkeypatch.setattr(sites, "_seconds", dense_is_fast)
    found = planned(tmp_path, "latency=1x")
    reasons = {d.site: d.reason for d in found.plan.decisions}
    assert actions(found)["shared"] == "keep"
    assert "nothing measured is faster" in reasons["shared"]
    assert "already grouped" in reasons["mix"]


@pytest.mark.usefixtures("clock")
def test_a_whole_that_is_slower_than_its_parts_is_planned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_paper = planned(tmp_path, "latency=0.7x")
    (paper,) = on_paper.promises
    extra = paper.budget - paper.promised + 0.5
    asked: list[float] = []

    def seconds(self: LocalSubject, operation: Operation) -> float:
        # Whatever is neither the original nor the leanest takes longer than its parts say.
        here = whole(self._model)
        asked.append(here)
        return here + (extra if min(asked) < here < max(asked) else 0.0)

    monkeypatch.setattr(LocalSubject, "seconds", seconds)
    found = planned(tmp_path, "latency=0.7x")
    (promise,) = found.promises
    assert promise.promised <= promise.budget * (1 + 1e-9)
    assert found.loss > on_paper.loss


@pytest.mark.usefixtures("clock")
def test_an_impossible_target_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"latency=0\.001x can't be reached") as refused:
        planned(tmp_path, "latency=0.001x")
    nearest = float(str(refused.value).split("the nearest is latency=")[1].split("x")[0])
    assert 0.001 < nearest < 1
    # What it names is reached, and a hair less is not.
    found = planned(tmp_path, f"latency={nearest * 1.01:.5f}x")
    assert found.promises[0].promised <= found.promises[0].budget
    with pytest.raises(TargetError, match="can't be reached"):
        planned(tmp_path, f"latency={nearest * 0.98:.5f}x")


@pytest.mark.usefixtures("clock")
def test_several_targets_hold_together(tmp_path: Path) -> None:
    every = ("latency=0.7x", "train-time=0.7x", "macs=0.5x", "params=18K", "memory=0.95x")
    found = planned(tmp_path, *every)
    model = decoder()
    result = apply(model, found.plan, inputs=latents, calibrate=0)
    checked = {p.metric: p for p in verify(found, model, result.model, inputs=latents)}
    assert set(checked) == {"latency", "train-time", "macs", "params", "memory"}
    assert all(p.met for p in checked.values()), checked
    assert checked["params"].measured == result.after.params <= 18_000
    assert checked["macs"].measured == result.after.macs
    with pytest.raises(TargetError, match="together"):
        planned(tmp_path, "latency=0.7x", "params=1K")


def test_memory_is_predicted_from_its_parts(tmp_path: Path) -> None:
    # No clock at all: bytes are counted, so what is promised must come out.
    found = planned(tmp_path, "memory=0.9x")
    model = decoder()
    result = apply(model, found.plan, inputs=latents, calibrate=0)
    (p,) = verify(found, model, result.model, inputs=latents)
    assert p.met
    assert p.measured == pytest.approx(p.promised, rel=0.03)


def test_the_layout_with_less_time_is_taken_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(self: LocalSubject, operation: Operation) -> float:
        return whole(self._model) * (0.5 if self._settings.channels_last else 1.0)

    def part(module: nn.Module, _site, _batch, probe: sites.Probe, **_) -> float:
        return weight(module) * (0.5 if probe.channels_last else 1.0)

    monkeypatch.setattr(LocalSubject, "seconds", seconds)
    monkeypatch.setattr(sites, "_seconds", part)
    assert not planned(tmp_path, "latency=0.6x").channels_last
    both = planned(tmp_path, "latency=0.6x", layouts=(False, True))
    assert both.channels_last
    assert both.loss == 0
    assert "channels_last" in (both.plan.note or "")
    # The original is what it is: in its own layout.
    assert both.promises[0].before == pytest.approx(whole(decoder()))


@pytest.mark.usefixtures("clock")
def test_keep_is_obeyed(tmp_path: Path) -> None:
    found = planned(tmp_path, "latency=0.9x", keep=["block1"])
    assert actions(found)["block1.1"] == actions(found)["block1.5"] == "keep"


def test_without_activations_the_loss_is_the_kernels(tmp_path: Path) -> None:
    found = planned(tmp_path, "params=0.5x", calibrate=0)
    result = apply(decoder(), found.plan, init="svd", calibrate=0, inputs=latents)
    residuals = [f.residual for f in result.fits]
    assert len(residuals) > 0
    assert found.loss == pytest.approx(sum(residuals), abs=1e-4)


def test_planning_leaves_the_model_and_the_dice_alone(tmp_path: Path) -> None:
    model = decoder()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    plan_measured(model, ["params=0.6x"], settings=CPU, cache=tmp_path, inputs=latents)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model.training


def test_a_model_nobody_knows_needs_inputs() -> None:
    with pytest.raises(UsageError, match="pass inputs"):
        plan_measured(nn.Sequential(nn.Conv2d(3, 3, 3)), ["latency=0.5x"], settings=CPU)


def test_on_the_real_clock(tmp_path: Path) -> None:
    """That a plan comes out, from real times, and that a second run measures none again."""
    first = planned(tmp_path, "latency=50x", calibrate=4)
    assert first.measured > 0
    assert first.promises[0].before > 0
    second = planned(tmp_path, "latency=50x", calibrate=4)
    assert second.measured == 0


# The command line ---------------------------------------------------------------------------------

QUICK = ["--threads", "1", "--init", "svd", "--calibrate", "0", "--quiet"]


@pytest.mark.usefixtures("clock")
def test_convert_with_a_target(
    snapshot_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "fast.pkl"
    command = [str(snapshot_file), "--out", str(out), "--target", "latency=0.3x", *QUICK]
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (row,) = data["targets"]
    assert row["met"]
    assert row["measured"] <= row["budget"]
    assert row["budget"] == pytest.approx(0.3 * row["original"])
    assert data["converted"]["G_ema"]["plan"]["preset"] == "measured"
    assert main([str(snapshot_file), "--plan-only", "--target", "latency=0.3x", *QUICK]) == 0
    text = capsys.readouterr().out
    assert "promised" in text
    assert "not measured yet" in text


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--target", "latency=3MiB"], "none of latency's"),
        (["--target", "latency=0.5x", "--preset", "fast"], "drop --plan, --preset"),
        (["--target", "latency=0.5x", "--batch", "0"], "--batch 0"),
        (["--device", "cpu"], "only together with --target"),
        (["--remeasure"], "--remeasure: only together"),
        (["--target", "params=2"], "params=2 can't be reached"),
        (["--target", "params=0.5x", "--device", "warp"], "device 'warp'"),
    ],
)
def test_bad_input_is_one_sentence_and_no_file(
    snapshot_file: Path,
    tmp_path: Path,
    extra: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    capsys.readouterr()
    assert main([str(snapshot_file), "--out", str(tmp_path / "out.pkl"), *extra]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.pkl").exists()
