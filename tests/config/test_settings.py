"""A setting stands once: command line, checks, resumption, JSON and documentation follow it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from typing import Any

import pytest

from dsconvert.cli.parser import Call, parse
from dsconvert.config.base import Job, own_items, refuse_fixed, resumable
from dsconvert.config.choices import POLICIES
from dsconvert.config.convert import ConvertJob, Fitting, Rewriting
from dsconvert.config.distill import DistillConfig, default_optimiser
from dsconvert.config.export import ExportJob
from dsconvert.config.jobs import JOBS
from dsconvert.config.reference import reference, table
from dsconvert.config.setting import assemble, items, part, sections, setting
from dsconvert.config.train import TrainConfig, TrainJob
from dsconvert.errors import UsageError


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> tuple[type[TrainConfig], type[TrainJob]]:
    """``train`` with two settings more; nothing but the dataclass knows them."""
    config = dataclasses.make_dataclass(
        "MoreConfig",
        [
            ("sparkle", float, setting(0.5, help="how much it glitters", above=0, resumable=True)),
            ("shade", int, setting(3, help="how dark it is", choices=(1, 3))),
        ],
        bases=(TrainConfig,),
        frozen=True,
        kw_only=True,
    )
    job = dataclasses.make_dataclass(
        "MoreTrain", [("config", config, part())], bases=(TrainJob,), frozen=True, kw_only=True
    )
    job.__doc__ = TrainJob.__doc__
    monkeypatch.setitem(JOBS, "train", job)
    return config, job


def typed(*words: str) -> Call:
    call = parse(words)
    assert isinstance(call, Call)
    return call


NEW = ("train", "--data", "x", "--cfg", "fastgan")


def test_a_made_up_field_appears_everywhere(made_up, capsys: pytest.CaptureFixture[str]) -> None:
    config, job = made_up
    # The help of the command.
    assert parse(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--sparkle X how much it glitters [default: 0.5]" in text
    assert "--shade [1|3] how dark it is [default: 3]" in text
    # The command line, with its range.
    assert typed(*NEW, "--sparkle", "0.7").options.config.sparkle == 0.7
    assert typed(*NEW).options.config.shade == 3
    with pytest.raises(UsageError, match=r"--sparkle.*'0' is not above 0"):
        parse([*NEW, "--sparkle", "0"])
    with pytest.raises(UsageError, match=r"--shade.*none of 1, 3"):
        parse([*NEW, "--shade", "2"])
    # The signature, with its range.
    assert inspect.signature(config).parameters["sparkle"].default == 0.5
    with pytest.raises(UsageError, match=r"sparkle is -1.*shade is 2, none of 1, 3"):
        config(sparkle=-1.0, shade=2)
    # JSON, and the check of a resumed run.
    run = json.loads(json.dumps(config(sparkle=2.0).to_dict()))
    assert config.from_dict(run) == config(sparkle=2.0)
    assert config(sparkle=0.1).fixed_changes(run) == {}
    assert config(shade=1).fixed_changes(run) == {"shade": (3, 1)}
    assert typed("train", "--resume", "r", "--sparkle", "1").typed["--sparkle"] == 1
    with pytest.raises(UsageError, match=r"drop --shade \(only .*--sparkle"):
        parse(["train", "--resume", "r", "--shade", "1"])
    # The reference page.
    assert "| 0.5 | above 0 | how much it glitters | may change it |" in table(job)
    assert "| `--shade` | `config.shade` | 3 | 1, 3 | how dark it is | keeps it |" in reference()


def test_every_setting_has_its_help_and_every_default_is_allowed() -> None:
    for name, job in JOBS.items():
        for item in items(job):
            assert item.about.help, f"{name}: {item.name}"
            if not item.required and item.default is not dataclasses.MISSING:
                assert item.problem(item.default) is None, f"{name}: {item.name}"
        options = [i.option for _, group in sections(job) for i in group]
        assert len(set(options)) == len(options)


def test_what_a_resumed_run_may_change() -> None:
    assert resumable(TrainConfig) == {
        "kimg", "tick_kimg", "snapshot_ticks", "checkpoint_minutes", "keep_last", "evaluate",
        "workers", "compile", "recompute", "cuda_graph",
    }  # fmt: skip
    assert resumable(DistillConfig) == {
        "minutes", "steps", "patience", "evaluations", "checkpoint_minutes", "keep_last", "clock",
    }  # fmt: skip
    with pytest.raises(UsageError, match="drop --batch, --no-augment"):
        refuse_fixed(TrainJob, {"--batch": 3, "--kimg": 2, "--no-augment": (), "--quiet": True})


def test_settings_are_read_back_from_json() -> None:
    config = DistillConfig(steps=3, betas=(0.5, 0.9))
    text = json.dumps(config.to_dict())
    assert DistillConfig.from_dict(json.loads(text)) == config
    for wrong, words in (
        ({"step": 3}, "unknown: step"),
        ({"steps": "3"}, r"can't be read: .*`int.*`str`.*steps"),
        ({"steps": 3, "image": -1}, "image is -1"),
        ({}, "nothing ends it"),
    ):
        with pytest.raises(UsageError, match=words):
            DistillConfig.from_dict(wrong)


def test_two_fields_of_one_option_get_one_value() -> None:
    config = typed(*NEW, "--lr", "0.5").options.config
    assert (config.lr_generator, config.lr_discriminator) == (0.5, 0.5)


def test_defaults_of_a_part_are_the_job_s_own() -> None:
    tuned = typed("finetune", "a.pkl", "--data", "x").options
    assert (tuned.config.kimg, tuned.config.ema_rampup) == (100.0, None)
    assert typed(*NEW).options.config == TrainConfig()
    assert typed("official-train", "--repo", ".", "--", "-h").options.rewriting.preset == "paper"
    assert Rewriting.preset == "balanced"  # the default stands in the class


def test_flags_stand_for_their_values() -> None:
    assert typed(*NEW, "--no-augment").options.discriminator.augment == ()
    assert typed(*NEW).options.discriminator.augment == POLICIES
    assert typed(*NEW, "--mirror").options.config.mirror


def test_the_default_optimiser_is_one_that_this_torch_has() -> None:
    import torch

    assert (default_optimiser() == "muon") == hasattr(torch.optim, "Muon")


def test_a_job_is_made_from_some_of_its_settings() -> None:
    job: Any = assemble(ConvertJob, {("snapshot",): "a.pkl", ("rewriting", "rank"): 2})
    assert isinstance(job, Job)
    assert job.rewriting.keywords() == {
        "preset": "balanced", "rank": 2, "width": None, "keep": (), "refit": (), "remove": (),
    }  # fmt: skip
    assert [i.name for i in own_items(ConvertJob)].count("snapshot") == 1


@pytest.mark.parametrize(
    "name", ["plan", "convert", "apply", "plan_file", "convert_file", "export_model"]
)
def test_public_functions_have_the_defaults_of_the_settings(name: str) -> None:
    import dsconvert

    parts = (Rewriting, Fitting) if name != "export_model" else (ExportJob,)
    defaults = {item.name: item.default for cls in parts for item in items(cls)}
    found = inspect.signature(getattr(dsconvert, name)).parameters
    shared = [n for n in found if n in defaults and defaults[n] is not dataclasses.MISSING]
    assert shared
    assert {n: found[n].default for n in shared} == {n: defaults[n] for n in shared}


# The command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["genrate", "x.pkl"], "'genrate'. Did you mean 'generate'?"),
        (["convrt", "x.pkl", "--out", "y.pkl"], "Did you mean 'convert'?"),
        (["generate", "x.pkl", "--out", "y", "--sede", "1"], "'--sede'. Did you mean '--seeds'"),
        (["x.pkl", "--out", "y.pkl", "--presett", "fast"], "--preset"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert said in str(caught.value)


def test_a_file_is_converted_whatever_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genrate").touch()
    for word in ("genrate", "./genrat", "generate.pkl", "train.pkl", "network-snapshot"):
        call = typed(word, "--out", "o.pkl")
        assert (call.command, call.options.snapshot) == ("convert", word)
    call = typed("--out", "o.pkl", "a.pkl", "--keep", "A", "--keep", "B")
    assert call.options.rewriting.keep == ("A", "B")
    call = typed("a.pkl", "--out=o.pkl", "--target", "latency=0.2x", "--target=params=1M")
    assert call.options.targets.target == ("latency=0.2x", "params=1M")
    assert typed("--out", "o.pkl", "--", "-a.pkl").options.snapshot == "-a.pkl"


@pytest.mark.parametrize("command", JOBS)
def test_help_of_each_command_fits_80_columns(command: str, capsys) -> None:
    assert parse([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("Options:") for line in lines)


@pytest.mark.slow
def test_shell_completion() -> None:
    program = "from dsconvert.cli import main; raise SystemExit(main())"

    def completed(words: str, place: int) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={
                "_DSCONVERT_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(place),
                "PYTHONPATH": ":".join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert completed("dsconvert gen", 1) == ["plain,generate"]
    assert completed("dsconvert fil", 1) == ["file,fil"]
    assert "plain,balanced" in completed("dsconvert convert a.pkl --preset b", 4)
    assert completed("dsconvert a.pkl --calibrate", 2) == ["plain,--calibrate"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--show-completion", shell]) == 0
    assert "_DSCONVERT_COMPLETE" in capsys.readouterr().out


def test_a_setting_that_an_older_run_lacks_counts_as_its_default() -> None:
    stored = DistillConfig(steps=3).to_dict()
    del stored["reuse"]
    assert DistillConfig(steps=3).fixed_changes(stored) == {}
    changed = DistillConfig(steps=3, reuse=True).fixed_changes(stored)
    assert changed == {"reuse": (False, True)}
