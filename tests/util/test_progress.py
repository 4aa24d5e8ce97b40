"""Signs of life: lines on stderr where asked for, none by default."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import dsconvert
from dsconvert.cli.output import Bars
from dsconvert.config.distill import DistillConfig
from dsconvert.matching.schedule import DistillSchedule
from dsconvert.util import progress
from dsconvert.util.numbers import clock_text
from dsconvert.util.progress import Heartbeat, reports_progress, stage
from tests.made_models import moved_generator


@reports_progress
def work(seconds: float, *, progress: progress.Progress | None = None) -> bool:
    if progress is not None:
        progress("stage", 3, 9, "a layer")
    time.sleep(seconds)
    return progress is not None


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    monkeypatch.delenv(progress.VARIABLE, raising=False)


def test_clock() -> None:
    assert clock_text(3725.4) == "1:02:05"


def test_the_library_is_quiet_by_default(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not work(0.2)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["argument", "variable", "logger"])
def test_lines_where_they_are_asked_for(
    how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv(progress.VARIABLE, "1")
    if how == "logger":
        caplog.set_level(logging.INFO, logger="dsconvert")
    assert work(0.3, **({"progress": True} if how == "argument" else {}))
    messages = [r.getMessage() for r in caplog.records if r.name == "dsconvert"]
    assert messages[0] == "stage: 3 of 9, a layer, after 0:00:00"
    count = len(caplog.records)
    time.sleep(0.2)
    assert len(caplog.records) == count  # nothing after the end


def test_false_and_zero_are_no(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(progress.VARIABLE, "0")
    assert not work(0.1)
    monkeypatch.setenv(progress.VARIABLE, "1")
    assert not work(0.1, progress=False)  # type: ignore[arg-type]
    assert not caplog.records


def test_a_callable_is_called_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[tuple[object, ...]] = []
    assert work(0.1, progress=lambda *a: calls.append(a))
    assert calls == [("stage", 3, 9, "a layer")]
    assert not caplog.records


@pytest.mark.slow
def test_stderr_where_logging_is_not_configured() -> None:
    program = (
        "import time, dsconvert.util.progress as p\n"
        "p.EVERY = 0.05\n"
        "@p.reports_progress\n"
        "def work(*, progress=None):\n"
        "    time.sleep(0.3)\n"
        "work(progress=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr.startswith("dsconvert: at work, after 0:00:00\n")


@pytest.mark.slow
def test_a_conversion_tells_what_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    model = moved_generator()
    dsconvert.convert(model, preset="paper", calibrate=8, progress=True)
    messages = [r.getMessage() for r in caplog.records]
    assert any(re.match(r"fit: \d+ of \d+, synthesis\.\w+", m) for m in messages)
    assert not any("<" in m for m in messages)


def test_work_without_steps_has_a_name_and_no_count() -> None:
    lines: list[str] = []
    with Heartbeat(lines.append, every=0.02) as beat:
        with stage(beat, "polish, set-up", "a trial step"):
            time.sleep(0.2)
        seen = len(lines)
        time.sleep(0.2)
    assert seen
    assert lines[0].startswith("polish, set-up, a trial step, after ")
    assert lines[-1].startswith("at work, after ")
    with stage(None, "nobody listens"):
        pass


def test_the_stages_before_a_fit_have_names() -> None:
    told: list[str] = []
    dsconvert.convert(
        _Doubles(), inputs=_maps, calibrate=8, width="auto", progress=lambda *a: told.append(a[0])
    )
    stages = [s for i, s in enumerate(told) if i == 0 or told[i - 1] != s]
    assert stages[:3] == ["tracing the network", "counting MACs", "choosing widths"]
    assert {"factorising kernels", "fit"} < set(stages)


class _Doubles(nn.Module):
    """Functions, built-in ones too, are nodes of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) * 2)[:, :3]


def test_nodes_have_names_and_no_addresses() -> None:
    told: list[str] = []
    dsconvert.apply(
        _Doubles(),
        dsconvert.plan(_Doubles(), preset="fast", inputs=_maps),
        inputs=_maps,
        calibrate=8,
        progress=lambda *a: told.append(a[3]),
    )
    assert "getitem" in told
    assert not any("<" in t for t in told)


def _maps(n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return (torch.randn(n, 8, 8, 8, generator=generator),)


@pytest.mark.slow
def test_commands_write_lines_where_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Bars(hidden=False) as bars:
        bars("fit", 1, 2, "x")
        time.sleep(0.2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "fit: 1 of 2, x, after 0:00:00"
    with Bars(hidden=True) as bars:
        bars("fit", 1, 2, "x")
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_a_heartbeat_survives_a_stderr_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = (tmp_path / "x").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    with Heartbeat(progress.to_stderr):
        time.sleep(0.1)


def test_a_distillation_says_where_it_ends() -> None:
    fixed, timed, both, open_ended = (
        DistillSchedule(config)
        for config in (
            DistillConfig(steps=40),
            DistillConfig(minutes=0.5),
            DistillConfig(steps=40, minutes=0.5),
            DistillConfig(patience=3),
        )
    )
    assert fixed.position(10, 5.0) == ("distil, steps", 10, 40)
    assert timed.position(10, 5.2) == ("distil, seconds", 5, 30)
    assert both.position(10, 25.0) == ("distil, percent", 83, 100)
    assert open_ended.position(10, 25.0) == ("distil, steps", 10, 11)
    assert fixed.detail(10, ("loss 0.1235",)) == "loss 0.1235"
    assert open_ended.detail(10, ("loss 0.1235",)) == (
        "step 10, loss 0.1235, until 3 evaluations bring nothing"
    )
