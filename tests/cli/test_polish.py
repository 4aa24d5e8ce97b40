"""``convert --polish``: the report, the file after Ctrl-C, a time that is too short, refusals."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dsconvert import ModuleSource, load_snapshot, open_file
from dsconvert.cli import main
from dsconvert.cli.convert import run
from dsconvert.cli.output import Bars
from dsconvert.cli.parser import Call
from dsconvert.config.convert import ConvertJob
from dsconvert.config.distill import DistillConfig
from dsconvert.config.setting import assemble
from dsconvert.core import polish as polish_stage
from dsconvert.errors import MissingExtraError
from tests.models import decoder

FAST = ["--preset", "paper", "--init", "svd", "--calibrate", "4"]
CODE = ["--module", "tests.models:Decoder", "--input", "16"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, no backbone."""

    def missing(**_: Any) -> None:
        raise MissingExtraError("timm is missing")

    config = functools.partial(DistillConfig, batch=4, held_out=4)
    monkeypatch.setattr(polish_stage, "DistillConfig", config)
    monkeypatch.setattr("dsconvert.matching.setup.ProjectedMaps", missing)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of a user's own code."""
    path = tmp_path_factory.mktemp("dense") / "dense.pth"
    torch.save({"state_dict": decoder().state_dict(), "epoch": 3}, path)
    return path


@pytest.mark.slow
def test_the_report_and_the_json_tell_the_steps(dense: Path, tmp_path: Path, capsys) -> None:
    one, two = tmp_path / "one.pth", tmp_path / "two.pth"
    words = ["convert", str(dense), *FAST, *CODE, "--polish-steps", "5"]
    assert main([*words, "--out", str(one)]) == 0
    said = capsys.readouterr().out
    assert "5 steps" in said
    assert "--polish-steps 5" in said.replace("\n", " ").replace("  ", " ")
    assert main([*words, "--out", str(two), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["converted"].values()
    assert entry["polish"]["steps"] == entry["polish"]["repeat"] == 5
    assert entry["polish"]["distance_after"] < entry["polish"]["distance_before"]
    first, second = (torch.load(p, weights_only=True)["state_dict"] for p in (one, two))
    assert all(torch.equal(v, second[k]) for k, v in first.items())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.extended)]
)
def test_an_interrupted_polish_writes_the_file_and_says_so(
    dense: Path, tmp_path: Path, monkeypatch, capsys, number: signal.Signals
) -> None:
    def bar(_self: Bars, stage: str, done: int, *_: object) -> None:
        if stage.endswith("polish, steps") and done == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(Bars, "__call__", bar)
    out = tmp_path / "out.pth"
    words = ["convert", str(dense), *FAST, *CODE, "--polish-steps", "500", "--out", str(out)]
    assert main(words) == 130
    said = capsys.readouterr()
    assert "3 steps" in said.out
    assert "interrupted, the best so far is kept" in said.out.replace("\n", " ")
    assert f"wrote {out}" in " ".join(said.out.split())
    assert said.err.endswith("dsconvert: interrupted.\n")
    module = ModuleSource(factory="tests.models:Decoder", shapes=((16,),))
    assert open_file(out, module=module).generator is not None


@pytest.mark.slow
def test_a_time_that_is_too_short_is_said_beforehand(dense: Path, tmp_path: Path, capsys) -> None:
    words = ["convert", str(dense), *FAST, *CODE, "--polish", "0.0001"]
    assert main([*words, "--out", str(tmp_path / "out.pth")]) == 0
    said = capsys.readouterr()
    assert "polish: about 0 steps in 0.0001 min (" in said.err
    assert re.search(r"a useful polish makes 200: --polish \d+$", said.err, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.extended
def test_a_snapshot_of_two_generators(snapshot_file: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.pkl"
    words = ["convert", str(snapshot_file), *FAST, "--polish-steps", "2", "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "G: by the same plan" in said
    assert "not polished" in said
    assert load_snapshot(out).generator is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--polish", "-1"], "not 0 or more"),
        (["--polish", "soon"], "number"),
        (["--polish-steps", "0"], "not 1 or more"),
        (["--polish", "1", "--polish-steps", "5"], "drop --polish"),
        (["--polish", "1", "--init", "random"], "from scratch"),
    ],
)
def test_bad_usage_is_one_sentence(
    dense: Path, tmp_path: Path, capsys, words: list[str], said: str
) -> None:
    out = tmp_path / "out.pth"
    assert main(["convert", str(dense), *CODE, "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_unknown_inputs_are_refused_before_any_work(dense: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.pth"
    words = ["convert", str(dense), "--module", "tests.models:Decoder", "--polish", "1"]
    assert main([*words, "--out", str(out)]) == 2
    assert "--input SHAPE" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("init", ["fit", "random"])
def test_a_polish_by_default_is_left_out_where_it_makes_no_sense(
    dense: Path, tmp_path: Path, capsys, init: str
) -> None:
    out = tmp_path / "out.pth"
    settings = {
        ("snapshot",): str(dense),
        ("out",): str(out),
        ("source", "module"): "tests.models:Decoder",
        ("fitting", "init"): init,
        ("polishing", "polish"): 1.0,  # the default, so to speak: nothing was typed
    }
    run(Call(command="convert", options=assemble(ConvertJob, settings), typed={}))
    said = capsys.readouterr().err
    assert ("not polished: can't polish this Decoder" in said) == (init == "fit")
    assert out.exists()


@pytest.mark.slow
def test_the_main_job_chooses_widths_and_polishes(
    snapshot_file: Path, tmp_path: Path, capsys
) -> None:
    """Without any option; only time and latents are cut."""
    options = assemble(ConvertJob, {("snapshot",): "x.pkl", ("out",): "y.pkl"})
    assert options.polishing.polish == 5.0
    assert options.rewriting.width is None
    words = ["convert", str(snapshot_file), "--calibrate", "8"]
    assert main([*words, "--polish-steps", "2", "--json", "--out", str(tmp_path / "a.pkl")]) == 0
    both = json.loads(capsys.readouterr().out)["converted"]["G_ema"]
    assert both["plan"]["widths"]
    assert both["polish"]["steps"] == 2
    assert main([*words, "--polish", "0", "--json", "--out", str(tmp_path / "b.pkl")]) == 0
    plain = json.loads(capsys.readouterr().out)["converted"]["G_ema"]
    assert "widths" not in plain["plan"]
    assert plain["polish"] is None
    assert both["after"]["macs"] < plain["after"]["macs"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--init", "svd"], ["--calibrate", "0"], ["--preset", "exact"]])
def test_nothing_is_polished_where_nothing_is_fitted(
    dense: Path, tmp_path: Path, capsys, words: list[str]
) -> None:
    out = tmp_path / "out.pth"
    assert main(["convert", str(dense), *CODE, *words, "--json", "--out", str(out)]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["converted"].values()
    assert entry["polish"] is None or entry["polish"]["ended"] == "exact"
    assert "widths" not in entry["plan"]
