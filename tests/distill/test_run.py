"""The folder of a distillation: it takes no other run's, and goes on with its own files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsconvert.config.distill import DistillConfig
from dsconvert.distill.run import DistillationRun
from dsconvert.errors import TrainingError, UsageError
from dsconvert.runs.lock import locked

CONFIG = DistillConfig(steps=1)


@pytest.mark.parametrize(
    "files",
    [
        {"settings.json": '{"dsconvert_run": 1}'},  # a training before its first checkpoint
        {"checkpoints/images-0000000010.pt": "x", "stats.jsonl": "{}\n"},  # of train() in Python
        {"settings.json": "damaged"},
        {"report.html": "<html>"},
    ],
    ids=str,
)
@pytest.mark.parametrize("resume", [False, True])
def test_another_run_is_left_as_it_is(tmp_path: Path, files: dict[str, str], resume: bool) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match="holds"):
        DistillationRun(tmp_path, CONFIG, resume=resume)
    assert {n: (tmp_path / n).read_text() for n in files} == files


def test_a_run_without_a_checkpoint_begins_again_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "start.pt").write_text("mine")
    for _ in range(2):
        run = DistillationRun(tmp_path, CONFIG, resume=False)
        with run.alone():
            run.begin({}, images=0).close()
    assert (tmp_path / "start.pt").read_text() == "mine"


def test_a_run_goes_on_with_the_files_that_it_began_with(tmp_path: Path) -> None:
    files = {"teacher": "1" * 64, "student": "2" * 64}
    run = DistillationRun(tmp_path, CONFIG, resume=False, files=files)
    run.begin({"teacher": "a.pkl", "student": "b.pkl"}, images=0).close()
    run.save(8, {})
    DistillationRun(tmp_path, CONFIG, resume=True, files=files)
    other = {**files, "student": "3" * 64}
    with pytest.raises(UsageError, match=r"the student is not the file .*b\.pkl"):
        DistillationRun(tmp_path, CONFIG, resume=True, files=other)
    # A run of an older version has no digests.
    settings = json.loads((tmp_path / "settings.json").read_text())
    del settings["sha256"]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    DistillationRun(tmp_path, CONFIG, resume=True, files=other)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    run = DistillationRun(tmp_path, CONFIG, resume=False)
    with pytest.raises(TrainingError, match="another process"), locked(tmp_path), run.alone():
        raise AssertionError
    DistillationRun(tmp_path, CONFIG, resume=False).save(8, {})
    with pytest.raises(TrainingError, match="meanwhile"), run.alone():
        raise AssertionError
