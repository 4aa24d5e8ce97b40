"""Plans for targets: with a clock of our own (costs by parameters), and once with the real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsconvert import apply, cost, plan
from dsconvert.adapter import Adapter
from dsconvert.bench import Settings
from dsconvert.cli import convert, main
from dsconvert.cli.codes import MEANINGS, code_of
from dsconvert.cli.parser import parse
from dsconvert.errors import MissedTargetError, UsageError
from dsconvert.formats.official import load_snapshot
from dsconvert.search import Clock, MeasuredPlan, plan_measured, verify
from dsconvert.search.records import Probe
from tests.core.test_one_dimensional import mels, vocoder
from tests.models import Decoder, decoder, latents
from tests.search.clocks import ByWeight, whole

CPU = Settings(device="cpu", threads=1)


def planned(tmp_path: Path, *targets: str, clock: Clock | None = None, **options) -> MeasuredPlan:
    given = {"settings": CPU, "cache": tmp_path, "inputs": latents, "repeats": 3}
    options = {**given, "remove": ("dead",), **options}
    return plan_measured(decoder(), targets, clock=clock or ByWeight(), **options)


def actions(found: MeasuredPlan) -> dict[str, str]:
    return {d.site: d.rule or d.action for d in found.plan.decisions}


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    ["latency=1x", "params=1x"]
    + [pytest.param(t, marks=pytest.mark.extended) for t in ("latency=3x", "latency=1h")],
)
def test_a_target_that_the_original_meets_changes_nothing(tmp_path: Path, target: str) -> None:
    target = target.replace("1h", "3600s")
    clock = ByWeight()
    found = planned(tmp_path, target, clock=clock)
    assert found.unchanged
    assert found.loss == 0
    assert set(actions(found).values()) == {"keep"}
    assert clock.parts == 0
    assert "the original meets every target" in found.plan.decisions[0].reason
    model = decoder()
    result = apply(model, found.plan, inputs=latents, calibrate=8)
    state = result.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    asked = clock.wholes
    (promise,) = verify(found, model, result.model, inputs=latents, clock=clock)
    assert promise.met
    assert clock.wholes == asked  # it is the same model: noise has no say


@pytest.mark.slow
def test_less_time_costs_more_loss_and_the_promise_holds(tmp_path: Path) -> None:
    losses = []
    model = decoder()
    for ratio in (0.8, 0.5):
        found = planned(tmp_path, f"latency={ratio}x")
        (promise,) = found.promises
        assert promise.promised <= promise.budget * (1 + 1e-9)
        result = apply(model, found.plan, inputs=latents, calibrate=8)
        (checked,) = verify(found, model, result.model, inputs=latents, clock=ByWeight())
        assert checked.met
        assert checked.measured == pytest.approx(whole(result.model))
        assert checked.measured == pytest.approx(checked.promised)
        losses.append(found.loss)
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_macs_are_counted_in_the_types_of_the_model(tmp_path: Path) -> None:
    model = decoder().to(torch.bfloat16)
    options = {"settings": CPU, "cache": tmp_path, "inputs": latents, "calibrate": 0}
    (promise,) = plan_measured(model, ["macs=0.5x"], **options).promises
    assert promise.before == cost(decoder(), inputs=latents).macs
    assert promise.promised <= promise.budget


class Uncountable(Decoder):
    """torch.jit, which counts, fails where torch.fx does not."""

    def forward(self, z: torch.Tensor, flag: bool = False) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not under torch.jit")
        return super().forward(z, flag)


def test_macs_that_can_not_be_counted_are_no_target(tmp_path: Path) -> None:
    options = {"settings": CPU, "cache": tmp_path, "inputs": latents}
    with pytest.raises(UsageError, match=r"macs can't be a target .*not under torch\.jit"):
        plan_measured(Uncountable().eval(), ["macs=1K"], **options)


class Own(Adapter):
    """Knows the inputs of the decoder, which no installed adapter does."""

    name = "own"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, Decoder)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        return {}

    def sampler(self, model: nn.Module) -> Any:
        return latents


def test_a_given_adapter_serves_the_plan_and_its_check(tmp_path: Path) -> None:
    model = decoder()
    found = planned(tmp_path, "macs=0.9x", inputs=None, adapter=Own())
    result = apply(model, found.plan, adapter=Own(), init="svd", calibrate=0)
    (promise,) = verify(found, model, result.model, adapter=Own(), clock=ByWeight())
    assert promise.measured == promise.promised


def test_a_timed_plan_and_its_check_leave_the_random_state(tmp_path: Path) -> None:
    model, converted = decoder(), decoder()
    before = torch.get_rng_state()
    options = {"settings": CPU, "cache": tmp_path, "inputs": latents, "repeats": 1}
    found = plan_measured(model, ["latency=0.9x"], best_effort=True, **options)
    verify(found, model, converted, inputs=latents)
    assert torch.equal(torch.get_rng_state(), before)


class DenseIsFast(ByWeight):
    """A machine on which every separable pair is slow."""

    def seconds(self, module: nn.Module, probe: Probe) -> float:
        pair = any("depthwise" in dict(m.named_children()) for m in module.modules())
        return super().seconds(module, probe) * (100.0 if pair else 1.0)


@pytest.mark.slow
def test_nothing_faster_stays_dense(tmp_path: Path) -> None:
    found = planned(tmp_path, "latency=1x", "params=0.99x", clock=DenseIsFast())
    reasons = {d.site: d.reason for d in found.plan.decisions}
    assert actions(found)["shared"] == "keep"
    assert "nothing measured is faster" in reasons["shared"]
    assert "already grouped" in reasons["mix"]


class SlowWhole(ByWeight):
    """Whatever is neither the original nor the leanest takes longer than its parts say."""

    def __init__(self, extra: float) -> None:
        super().__init__()
        self.extra = extra
        self.asked: list[float] = []

    def of_whole(self, name: str, model: nn.Module, probe: Probe) -> float:
        here = whole(model)
        self.asked.append(here)
        return here + (self.extra if min(self.asked) < here < max(self.asked) else 0.0)


@pytest.mark.slow
def test_a_whole_that_is_slower_than_its_parts_is_planned_again(tmp_path: Path) -> None:
    on_paper = planned(tmp_path, "latency=0.7x")
    (paper,) = on_paper.promises
    extra = paper.budget - paper.promised + 0.5
    found = planned(tmp_path, "latency=0.7x", clock=SlowWhole(extra))
    (promise,) = found.promises
    assert promise.promised <= promise.budget * (1 + 1e-9)
    assert found.loss > on_paper.loss


@pytest.mark.slow
def test_an_impossible_target_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(MissedTargetError, match=r"latency=0\.001x can't be reached") as refused:
        planned(tmp_path, "latency=0.001x")
    nearest = float(str(refused.value).split("the nearest is latency=")[1].split("x")[0])
    assert 0.001 < nearest < 1
    # What it names is reached, and a hair less is not.
    found = planned(tmp_path, f"latency={nearest * 1.01:.5f}x")
    assert found.promises[0].promised <= found.promises[0].budget
    with pytest.raises(MissedTargetError, match="can't be reached"):
        planned(tmp_path, f"latency={nearest * 0.98:.5f}x")


@pytest.mark.slow
def test_several_targets_hold_together(tmp_path: Path) -> None:
    every = ("latency=0.7x", "train-time=0.7x", "macs=0.5x", "params=18K", "memory=0.95x")
    found = planned(tmp_path, *every)
    model = decoder()
    result = apply(model, found.plan, inputs=latents, calibrate=0)
    checked = {
        p.metric: p for p in verify(found, model, result.model, inputs=latents, clock=ByWeight())
    }
    assert set(checked) == {"latency", "train-time", "macs", "params", "memory"}
    assert all(p.met for p in checked.values()), checked
    assert checked["params"].measured == result.after.params <= 18_000
    assert checked["macs"].measured == result.after.macs


@pytest.mark.slow
def test_memory_is_predicted_from_its_parts(tmp_path: Path) -> None:
    # No clock at all: bytes are counted, so what is promised must come out.
    found = planned(tmp_path, "memory=0.9x")
    model = decoder()
    result = apply(model, found.plan, inputs=latents, calibrate=0)
    (p,) = verify(found, model, result.model, inputs=latents, clock=ByWeight())
    assert p.met
    assert p.measured == pytest.approx(p.promised, rel=0.03)


class ChannelsLast(ByWeight):
    """A machine that is twice as fast in channels_last."""

    def seconds(self, module: nn.Module, probe: Probe) -> float:
        return super().seconds(module, probe) * (0.5 if probe.channels_last else 1.0)

    def of_whole(self, name: str, model: nn.Module, probe: Probe) -> float:
        fast = probe.channels_last and name != "original"
        return whole(model) * (0.5 if fast else 1.0)


@pytest.mark.slow
def test_the_layout_with_less_time_is_taken_and_named(tmp_path: Path) -> None:
    assert not planned(tmp_path, "latency=0.6x", clock=ChannelsLast()).channels_last
    both = planned(tmp_path, "latency=0.6x", layouts=(False, True), clock=ChannelsLast())
    assert both.channels_last
    assert both.loss == 0
    assert "channels_last" in (both.plan.note or "")
    # The original is what it is: in its own layout.
    assert both.promises[0].before == pytest.approx(whole(decoder()))


@pytest.mark.slow
def test_keep_is_obeyed(tmp_path: Path) -> None:
    found = planned(tmp_path, "latency=0.9x", keep=["block1"])
    assert actions(found)["block1.1"] == actions(found)["block1.5"] == "keep"


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.5, pytest.param("auto", marks=pytest.mark.extended)])
def test_forms_are_measured_at_the_widths_asked_for(tmp_path: Path, width: Any) -> None:
    model = decoder()
    found = planned(tmp_path, "latency=0.3x", width=width)
    assert found.plan.widths
    (promise,) = found.promises
    assert promise.before == pytest.approx(whole(model))  # the original's, at full width
    result = apply(model, found.plan, inputs=latents, calibrate=8)
    assert {w.group for w in found.plan.widths} == set(result.kept)
    (checked,) = verify(found, model, result.model, inputs=latents, clock=ByWeight())
    assert checked.met
    assert checked.measured == pytest.approx(checked.promised)
    before = {d.site: d.macs_before for d in plan(model, preset="exact", inputs=latents).decisions}
    assert {d.site: d.macs_before for d in found.plan.decisions} == before


@pytest.mark.slow
def test_widths_alone_may_meet_a_target(tmp_path: Path) -> None:
    found = planned(tmp_path, "params=0.9x", width=0.5)
    assert found.plan.widths
    assert not found.unchanged
    met = planned(tmp_path, "params=1x", width=0.5)
    assert met.unchanged
    assert not met.plan.widths


@pytest.mark.slow
def test_without_activations_the_loss_is_the_kernels(tmp_path: Path) -> None:
    found = planned(tmp_path, "params=0.5x", calibrate=0)
    result = apply(decoder(), found.plan, init="svd", calibrate=0, inputs=latents)
    residuals = [f.residual for f in result.fits]
    assert len(residuals) > 0
    assert found.loss == pytest.approx(sum(residuals), abs=1e-4)


@pytest.mark.slow
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


def test_a_layer_that_holds_integers_is_timed_and_its_memory_measured(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    model[0].table = nn.Parameter(torch.tensor([1, 0]), requires_grad=False)
    found = plan_measured(
        model, ["train-time=0.9x", "memory=0.9x"], settings=CPU, cache=tmp_path, repeats=1,
        calibrate=0, inputs=lambda n, g: (torch.randn(n, 4, 8, 8, generator=g),), best_effort=True,
    )  # fmt: skip
    assert found.measured > 0


class Runs(ByWeight):
    """Runs each part once on a map of the shape that it is timed at."""

    def part(
        self, module: nn.Module, shape: tuple[int, ...], probe: Probe, *, metric: str
    ) -> Sequence[float]:
        with torch.no_grad():
            module(torch.zeros(shape))
        return super().part(module, shape, probe, metric=metric)


def row(**up: Any) -> nn.Module:
    """A network of one dimension that makes its maps longer."""
    return nn.Sequential(
        nn.Conv1d(8, 6, 3, padding=1), nn.Upsample(**up), nn.Conv1d(6, 6, 5, padding=2), nn.ReLU(),
        nn.Conv1d(6, 1, 3, padding=1),
    )  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [row(scale_factor=2), row(scale_factor=4), row(size=36), vocoder()],
    ids=["doubled", "four times", "of a size", "vocoder"],
)
def test_a_network_of_one_dimension_has_a_plan(tmp_path: Path, model: nn.Module) -> None:
    found = plan_measured(
        model, ["latency=0.5x", "memory=0.5x"], settings=CPU, cache=tmp_path, inputs=mels,
        repeats=1, calibrate=2, clock=Runs(), best_effort=True,
    )  # fmt: skip
    assert found.measured > 0


@pytest.mark.slow
def test_on_the_real_clock(tmp_path: Path) -> None:
    """That a plan comes out, from real times, whatever this machine is doing meanwhile."""
    found = plan_measured(
        decoder(), ["latency=0.5x"], settings=CPU, cache=tmp_path, inputs=latents, repeats=3,
        calibrate=4, best_effort=True,
    )  # fmt: skip
    assert found.measured > 0
    (promise,) = found.promises
    assert promise.before > 0
    assert promise.promised <= promise.before


@pytest.mark.slow
def test_a_second_run_measures_no_convolution_again(tmp_path: Path) -> None:
    assert planned(tmp_path, "latency=0.5x").measured > 0
    assert planned(tmp_path, "latency=0.5x").measured == 0


# The command line ---------------------------------------------------------------------------------

QUICK = ["--threads", "1", "--init", "svd", "--calibrate", "0", "--quiet"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles of a test are its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def typed(*words: object, clock: Clock | None = None) -> None:
    """Run ``convert`` as typed, with a clock of our own."""
    convert.run(parse([str(w) for w in words]), clock=clock or ByWeight())


def unfolded(text: str) -> str:
    """Without white space: lines are folded at the terminal's width."""
    return "".join(text.split())


@pytest.mark.slow
def test_convert_with_a_target(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast.pkl"
    capsys.readouterr()
    typed(snapshot_file, "--out", out, "--target", "latency=0.3x", *QUICK, "--json")
    data = json.loads(capsys.readouterr().out)
    (row,) = data["targets"]
    assert row["met"]
    assert row["measured"] <= row["budget"]
    assert row["budget"] == pytest.approx(0.3 * row["original"])
    assert data["missed"] is None
    assert not data["unchanged"]
    assert data["converted"]["G_ema"]["plan"]["preset"] == "measured"
    typed(snapshot_file, "--plan-only", "--target", "latency=0.3x", *QUICK)
    text = capsys.readouterr().out
    assert "promised" in text
    assert "not measured yet" in text


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--target", "latency=3MiB"], "none of latency's"),
        (["--target", "latency=0.5x", "--preset", "fast"], "drop --plan, --preset"),
        (["--target", "latency=0.5x", "--batch", "0"], "--batch 0"),
        (["--threads", "1"], "only together with --target"),
        (["--remeasure"], "--remeasure: only together"),
        (["--best-effort"], "--best-effort: only together"),
        (["--target", "params=2", "--target", "params=1K"], "params is a target twice"),
        (["--target", "params=0.5x", "--device", "warp"], "device 'warp'"),
    ],
)
def test_bad_input_is_one_sentence_and_no_file(
    snapshot_file: Path,
    tmp_path: Path,
    extra: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert main([str(snapshot_file), "--out", str(tmp_path / "out.pkl"), *extra]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.pkl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    ["--out out.pkl"]
    + [
        pytest.param(more, marks=pytest.mark.extended)
        for more in ("--plan-only", "--plan-only --out plan.json")
    ],
)
def test_a_target_out_of_reach_is_exit_code_3_and_no_file(
    snapshot_file: Path,
    tmp_path: Path,
    more: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    capsys.readouterr()
    assert main([str(snapshot_file), *more.split(), "--target", "params=2", *QUICK]) == 3
    said, err = capsys.readouterr()
    assert said == ""
    assert "params=2 can't be reached" in err
    assert "the nearest is params=" in err
    assert "--best-effort" in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.slow
def test_best_effort_writes_the_nearest_and_says_so(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pkl"
    command = [str(snapshot_file), "--out", str(out), "--target", "params=2", *QUICK]
    capsys.readouterr()
    assert main([*command, "--best-effort", "--json"]) == 3
    said, err = capsys.readouterr()
    data = json.loads(said)
    (row,) = data["targets"]
    assert row["met"] is False
    assert 2 < row["measured"] == row["promised"] < row["original"]
    assert "can't be reached" in data["missed"]
    assert "is written all the same" in err
    made = load_snapshot(out).generator
    assert sum(p.numel() for p in made.parameters()) == row["measured"]
    plan = tmp_path / "plan.json"
    command[2] = str(plan)
    assert main([*command, "--plan-only", "--best-effort"]) == 3
    assert json.loads(plan.read_text())["preset"] == "measured"


@pytest.mark.slow
@pytest.mark.extended
def test_best_effort_says_so_in_the_table_too(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pkl"
    loud = [word for word in QUICK if word != "--quiet"]
    command = [str(snapshot_file), "--out", str(out), "--target", "params=2", *loud]
    capsys.readouterr()
    assert main([*command, "--best-effort"]) == 3
    said, _ = capsys.readouterr()
    assert "missed" in said
    assert unfolded(f"wrote {out}") in unfolded(said)


class Late(ByWeight):
    """Every promise is broken: the converted model takes what the original takes."""

    def of_whole(self, name: str, model: nn.Module, probe: Probe) -> float:
        return 50.0 if name == "converted" else whole(model)


@pytest.mark.slow
def test_a_broken_promise_is_exit_code_3_and_no_file(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pkl"
    command = [snapshot_file, "--out", out, "--target", "latency=0.3x", *QUICK]
    capsys.readouterr()
    with pytest.raises(MissedTargetError, match="missed in the measurement") as error:
        typed(*command, clock=Late())
    assert code_of(error.value) == 3
    assert "Nothing was written" in str(error.value)
    assert capsys.readouterr().out == ""
    assert not out.exists()
    loud = [word for word in command if word != "--quiet"]
    with pytest.raises(MissedTargetError, match="written all the same") as error:
        typed(*loud, "--best-effort", clock=Late())
    assert code_of(error.value) == 3
    assert "missed" in capsys.readouterr().out
    assert out.exists()


def test_the_help_lists_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["convert", "--help"]):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(words)
        said = unfolded(capsys.readouterr().out)
        for code, meaning in MEANINGS.items():
            assert unfolded(f"{code}: {meaning}") in said


@pytest.mark.slow
def test_the_original_that_meets_the_target_is_written_as_it_is(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the real clock: whatever it says, the file as it is takes 1.0x of itself."""
    out = tmp_path / "same.pkl"
    capsys.readouterr()
    command = [str(snapshot_file), "--out", str(out), "--target", "latency=1x", "--threads", "1"]
    assert main([*command, "--quiet", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["unchanged"]
    assert data["targets"][0]["met"]
    before, after = load_snapshot(snapshot_file), load_snapshot(out)
    for key in before.generators:
        new = after.module(key).state_dict()
        old = before.module(key).state_dict()
        assert set(old) == set(new)
        assert all(torch.equal(v, new[k]) for k, v in old.items())


@pytest.mark.slow
def test_a_damaged_profile_is_a_note_of_the_command(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [snapshot_file, "--plan-only", "--target", "latency=0.3x", *QUICK]
    typed(*command)
    (profile,) = (tmp_path / "cache" / "dsconvert").iterdir()
    profile.write_bytes(b"\0")
    capsys.readouterr()
    typed(*command)
    said = unfolded(capsys.readouterr().out)
    assert unfolded("is damaged; its times are measured again") in said
