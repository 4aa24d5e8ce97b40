"""Standard streams as users have them, in processes of their own."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsconvert.cli import main

DSCONVERT = [sys.executable, "-m", "dsconvert"]
QUICK = ["--init", "svd", "--calibrate", "0"]


def shell(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``$D`` in ``command`` is dsconvert, ``$1`` and so on are ``arguments``."""
    return subprocess.run(
        ["bash", "-c", f'D="{" ".join(DSCONVERT)}"; {command}', "bash", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", pytest.param("utf-8", marks=pytest.mark.extended)])
def test_a_name_outside_the_encoding_of_stdout(
    snapshot_file: Path, tmp_path: Path, encoding: str
) -> None:
    source, out = tmp_path / "图.pkl", tmp_path / "果.pkl"
    shutil.copy(snapshot_file, source)
    words = [str(source), "--out", str(out), *QUICK]
    done = shell('$D "$@"', *words, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert out.name.encode(encoding, "backslashreplace") in done.stdout
    assert out.is_file()


@pytest.mark.slow
@pytest.mark.extended
def test_a_name_that_is_no_text(snapshot_file: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/bad\xff.pkl"
    try:
        shutil.copy(os.fsencode(snapshot_file), name)
    except OSError:
        pytest.skip("this file system takes text only")
    done = subprocess.run([*DSCONVERT, "inspect", name], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"bad\\udcff.pkl" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("$D report $1 --json | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", 0, b""),
        ("$D --help | true; exit ${PIPESTATUS[0]}", 0, b""),
        ("$D inspect $1 >&- 2>&-", 0, b""),
        ("$D inspect 2>/dev/full", 2, b""),  # without a file: an error
        ("$D inspect $1 >/dev/full", 2, b"can't write to standard output"),
        pytest.param("$D inspect <(cat $1)", 2, b"is a pipe", marks=pytest.mark.extended),
        pytest.param("$D inspect $1 >&-", 0, b"", marks=pytest.mark.extended),
        pytest.param("$D report <(cat $1)", 2, b"is a pipe", marks=pytest.mark.extended),
        pytest.param("cat $1 | $D inspect /dev/stdin", 2, b"is a pipe", marks=pytest.mark.extended),
    ],
)
def test_streams_that_are_closed_full_or_left(
    snapshot_file: Path, command: str, code: int, said: bytes
) -> None:
    done = shell(command, str(snapshot_file))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.count(b"\n") == bool(said), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix",
    ["pkl", "safetensors"]
    + [pytest.param(suffix, marks=pytest.mark.extended) for suffix in ("pt2", "onnx", "xml")],
)
def test_a_full_disk(
    snapshot_file: Path, tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    needs = {"safetensors": "safetensors", "onnx": "onnxscript", "xml": "openvino"}
    if suffix in needs:
        pytest.importorskip(needs[suffix])
    words = [str(snapshot_file), "--out", str(tmp_path / f"o.{suffix}"), *QUICK, "--quiet"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert main(words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = capfd.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("dsconvert: ")]
    assert len(said) == 1
    assert "can't write" in said[0]
    assert lines == said or suffix == "xml"  # OpenVINO's telemetry has files of its own
    assert not list(tmp_path.iterdir())


def test_no_escape_of_a_file_reaches_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth"
    torch.save({"\x1b]0;owned\x07": torch.zeros(2)}, path)
    assert main(["report", str(path)]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\\x1b]0;owned\\x07" in said
