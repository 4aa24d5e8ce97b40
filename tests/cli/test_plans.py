"""Edited plans and two generators in one file: what is reported is what was done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dsconvert.cli import main
from dsconvert.formats.official import load_snapshot, new_snapshot, save_snapshot

SVD = ("--init", "svd", "--calibrate", "0", "--quiet")


def image(model: nn.Module, seed: int = 0) -> torch.Tensor:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(torch.randn(2, 16), torch.zeros(2, 0))


@pytest.fixture(scope="module")
def two(snapshot_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose G and G_ema differ, as in every file of a real training."""
    ema = load_snapshot(snapshot_file).generator
    raw = load_snapshot(snapshot_file).module("G")
    torch.manual_seed(1)
    for parameter in raw.parameters():
        parameter.data.mul_(1 + 0.3 * torch.rand(parameter.shape))
    path = tmp_path_factory.mktemp("two") / "two.pkl"
    save_snapshot(new_snapshot(ema), {"G": raw, "G_ema": ema}, path)
    return path


@pytest.mark.slow
def test_each_generator_keeps_its_own_weights(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "exact.pkl"
    assert main([str(two), "--out", str(out), "--preset", "exact", *SVD]) == 0
    before, after = load_snapshot(two), load_snapshot(out)
    images = {key: image(before.module(key)) for key in ("G", "G_ema")}
    assert (images["G"] - images["G_ema"]).abs().max() > 0.05
    for key, wanted in images.items():
        assert (image(after.module(key)) - wanted).abs().max() < 1e-4, key


@pytest.mark.slow
@pytest.mark.extended
def test_both_are_fitted(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fast.pkl"
    assert (
        main(
            [
                str(two),
                "--out",
                str(out),
                "--calibrate",
                "8",
                "--polish",
                "0",
                "--preset",
                "paper",
                "--json",
                "--quiet",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)["converted"]
    assert found["G"]["plan"] == found["G_ema"]["plan"]
    errors = {key: [f["svd"] for f in entry["fits"]] for key, entry in found.items()}
    assert errors["G"] != errors["G_ema"]
    assert all(e is not None for values in errors.values() for e in values)


Edit = Callable[[Callable[[dict], object]], list[str]]


@pytest.fixture(scope="module")
def plan_text(two: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert (
        main([str(two), "--plan-only", "--polish", "0", "--preset", "fast", "--out", str(path)])
        == 0
    )
    return path.read_text()


@pytest.fixture
def edited(two: Path, plan_text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Edit:
    """Edits a plan, writes it, and returns the command that uses it."""

    def make(change: Callable[[dict], object]) -> list[str]:
        path = tmp_path / "plan.json"
        capsys.readouterr()
        plan = json.loads(plan_text)
        change(plan)
        path.write_text(json.dumps(plan))
        return [str(two), "--plan", str(path), "--out", str(tmp_path / "o.pkl"), "--json", *SVD]

    return make


@pytest.mark.slow
def test_the_costs_of_an_edited_line_are_worked_out_anew(
    edited: Edit, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = "synthesis.feat_32.1"

    def change(plan: dict) -> None:
        for line in plan["decisions"]:
            if line["site"] == site:
                line["rank"] = 4

    assert main(edited(change)) == 0
    entry = json.loads(capsys.readouterr().out)["converted"]["G_ema"]
    line = next(d for d in entry["plan"]["decisions"] if d["site"] == site)
    made = load_snapshot(tmp_path / "o.pkl").generator.get_submodule(site)
    assert line["params_after"] == sum(p.numel() for p in made.parameters())
    old = load_snapshot(two).generator.get_submodule(site)
    assert line["params_before"] == sum(p.numel() for p in old.parameters())
    saved = entry["before"]["params"] - entry["after"]["params"]
    lines = entry["plan"]["decisions"]
    by_line = sum(d["params_before"] - d["params_after"] for d in lines)
    # What goes with a removed block and is no convolution (normalisations, noise).
    assert 0 <= saved - by_line < 0.01 * entry["before"]["params"]


@pytest.mark.slow
def test_an_edited_plan_is_shown_with_its_own_costs(
    edited: Edit, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--plan-only`` of an edited plan says what the conversion will say."""

    def change(plan: dict) -> None:
        for line in plan["decisions"]:
            if line["site"] == "synthesis.feat_32.1":
                line |= {"rank": 4, "reason": "mine"}

    command = edited(change)
    assert main(command) == 0
    done = json.loads(capsys.readouterr().out)["converted"]["G_ema"]["plan"]
    assert main([str(two), "--plan", str(tmp_path / "plan.json"), "--plan-only", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == done


SPOILED: dict[str, tuple[Callable[[dict], object], str]] = {
    "a live layer removed by its line": (
        lambda p: p["decisions"][0].update(action="remove"),
        "nothing under 'remove' holds it",
    ),
    "a live block removed": (lambda p: p["remove"].append("synthesis.feat_8"), "but runs"),
    "remove is a text": (lambda p: p.update(remove="abc"), "not a list"),
    "remove has a number": (lambda p: p.update(remove=[5]), "5 where a text"),
    "no model": (lambda p: p.update(model=None), "None where a text"),
    "decisions is a number": (lambda p: p.update(decisions=5), "not iterable"),
    "a line twice": (lambda p: p["decisions"].append(p["decisions"][0]), "decided twice"),
    "no rule": (lambda p: p["decisions"][0].update(rule=None), "needs a rule"),
    "a list of rules": (lambda p: p["decisions"][0].update(rule=["dw-pw"]), "not a name"),
    "a fractional rank": (lambda p: p["decisions"][0].update(rank=1.5), "whole number"),
    "a rank of true": (lambda p: p["decisions"][0].update(rank=True), "whole number"),
    "a cost of text": (lambda p: p["decisions"][0].update(params_before="9 M"), "whole number"),
    "a reason of numbers": (lambda p: p["decisions"][0].update(reason=5), "not a text"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPOILED)
def test_spoiled_plans_end_in_one_sentence(
    kind: str, edited: Edit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = SPOILED[kind]
    assert main(edited(change)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("dsconvert: ")
    assert words in err
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.slow
def test_the_longest_name_takes_a_plan(two: Path, tmp_path: Path) -> None:
    assert main([str(two), "--plan-only", "--polish", "0", "--out", f"{tmp_path}/{'p' * 255}"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["p" * 255]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "pipe"])
@pytest.mark.parametrize("command", ["convert", "plan", "generate"])
def test_names_that_no_file_can_have(
    command: str, name: str, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "pipe":
        # Like /dev/null: renaming a file over it would take it away.

        os.mkfifo(tmp_path / name)
    words = {
        "convert": [str(two), *SVD],
        "plan": [str(two), "--plan-only"],
        "generate": ["generate", str(two), "--seeds", "0"],
    }[command]
    assert main([*words, "--overwrite", "--out", f"{tmp_path}/{name}"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("dsconvert: ")
    assert all(p.is_fifo() for p in tmp_path.iterdir())


@pytest.mark.slow
def test_a_snapshot_writer_of_its_own_checks_too(two: Path, tmp_path: Path) -> None:

    from dsconvert.errors import OutputError

    snap = load_snapshot(two)
    os.mkfifo(tmp_path / "pipe")
    for name in ("x" * 300, "a\0b", "pipe"):
        with pytest.raises(OutputError):
            save_snapshot(snap, snap.generator, tmp_path / name, overwrite=True)
    # A name as long as the file system allows is fine.
    save_snapshot(snap, snap.generator, tmp_path / ("x" * 255))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe", "x" * 255]


@pytest.mark.slow
def test_json_has_no_nan(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken generator makes images of NaN; the output is still JSON."""
    snap = load_snapshot(two)
    broken = snap.generator
    broken.get_parameter("synthesis.to_big.weight_orig").data.fill_(float("nan"))
    save_snapshot(snap, broken, tmp_path / "nan.pkl")

    def refuse(constant: str) -> object:
        raise AssertionError(constant)

    out = ["--seeds", "0", "--out", str(tmp_path / "o.png"), "--json"]
    assert main(["compare", str(two), str(tmp_path / "nan.pkl"), *out]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["psnr_db"] == {"0": None}
