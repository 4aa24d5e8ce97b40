"""Bad input: exit code 2, one sentence on stderr, nothing on stdout, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dsconvert_adapters.fastgan_pytorch import Generator

from dsconvert.cli import main

SVD = ("--init", "svd", "--calibrate", "0")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must be refused; returns what it says."""

    def run(*command: str | Path) -> str:
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        capsys.readouterr()
        assert main([str(word) for word in command]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("dsconvert: ")
        assert err.count("dsconvert: ") == 1
        assert "Traceback" not in err
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        return err

    return run


ANOTHER = "a pickle of something else"
ANOTHER = "a pickle of something else"
FOREIGN = {
    "empty": (b"", "empty"),
    "text": (b"hello, this is a note\n" * 20, "text"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "LFS"),
    "zip": (b"PK\x03\x04" + bytes(64), "zip"),
    ANOTHER: (pickle.dumps({"a": 1}), "G_ema"),
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        pytest.param(command, kind, marks=[pytest.mark.extended] if extended else [])
        for command in ("convert", "inspect", "report", "generate", "compare")
        for kind in FOREIGN
        # Each kind once, each command once: they open files by the same function.
        for extended in [command != "convert" and kind not in ("text", ANOTHER)]
    ],
)
def test_foreign_files(
    kind: str, command: str, refused: Callable[..., str], tmp_path: Path, snapshot_file: Path
) -> None:
    content, word = FOREIGN[kind]
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(content)
    words: dict[str, tuple[str | Path, ...]] = {
        "convert": (bad, "--out", tmp_path / "o.pkl"),
        "inspect": (bad,),
        "report": (snapshot_file, bad),
        "generate": (bad, "--out", tmp_path / "o.png"),
        "compare": (snapshot_file, bad, "--out", tmp_path / "o.png"),
    }
    if command == "inspect" and kind == ANOTHER:
        assert main(["inspect", str(bad)]) == 0  # any pickle may be looked into
        return
    said = refused(command, *words[command])
    assert word.lower() in said.lower()
    assert "bad.pkl" in said


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_truncated(
    share: float, refused: Callable[..., str], tmp_path: Path, snapshot_file: Path
) -> None:
    bad = tmp_path / "bad.pkl"
    content = snapshot_file.read_bytes()
    bad.write_bytes(content[: int(share * len(content))])
    assert "bad.pkl" in refused(bad, "--out", tmp_path / "o.pkl")


def test_missing_file_and_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "no.pkl", "--out", tmp_path / "o.pkl")
    assert "folder" in refused(tmp_path, "--out", tmp_path / "o.pkl")


def test_a_path_that_is_none(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "names no file" in refused("inspect", "a\0b")
    assert "can't read the plan" in refused("x.pkl", "--plan", "a\0b", "--out", tmp_path / "o.pkl")


def test_an_input_that_is_a_device(refused: Callable[..., str]) -> None:
    assert "is a device" in refused("inspect", os.devnull)


def test_output_is_checked_before_the_input_is_read(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    """The input does not even exist: a user is not kept waiting for a fit that can't be saved."""
    nowhere = tmp_path / "no.pkl"
    for command in (("convert", nowhere), ("generate", nowhere), ("compare", nowhere, nowhere)):
        there = tmp_path / f"there.{'pkl' if command[0] == 'convert' else 'png'}"
        there.write_text("mine")
        assert "--overwrite" in refused(*command, "--out", there)
        assert "does not exist" in refused(*command, "--out", tmp_path / "a" / there.name)
        assert "is a folder" in refused(*command, "--out", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--preset", "huge"), "balanced"),
        (("--init", "magic"), "svd"),
        (("--rank", "0"), "rank"),
        (("--rank", "-1"), "rank"),
        (("--rank", "two"), "two"),
        (("--rank", "2", "--preset", "exact"), "exact"),
        (("--keep", "nothing.*"), "nothing.*"),
        (("--calibrate", "-3"), "-3"),
        (("--seed", "x"), "x"),
        (("--seed", str(2**64)), "too large"),
        (("--drop", "G_ema"), "G_ema"),
        (("--drop", "X"), "X"),
        (("--plan", "no-such-plan.json"), "no-such-plan.json"),
        (("--colour",), "--colour"),
    ],
)
def test_options_of_the_main_job(
    options: tuple[str, ...],
    word: str,
    refused: Callable[..., str],
    tmp_path: Path,
    snapshot_file: Path,
) -> None:
    said = refused(snapshot_file, "--out", tmp_path / "o.pkl", *options, "--quiet")
    assert word in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("words", [("eval", "--metrics"), ("convert", "--out"), ("x.pkl", "--out")])
def test_an_option_without_its_value_names_the_command(
    words: tuple[str, str], refused: Callable[..., str]
) -> None:
    command = "convert" if words[0] == "x.pkl" else words[0]
    said = refused(*words)
    assert f"'{words[1]}' requires an argument. (see dsconvert {command} --help)" in said


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("export", "a.pkl", "--out", "a.safetensors", "--seed", "3"), "--noise fixed"),
        (("export", "a.pkl", "--out", "a/", "--format", "hub", "--seed", "3"), "--noise fixed"),
        (("export", "a.pkl", "--out", "a.onnx", "--noise", "zero", "--seed", "3"), "--noise fixed"),
        (("export", "a.pkl", "--out", "a.onnx", "--least-psnr", "90"), "add --dtype"),
        (("export", "a.pkl", "--out", "a/", "--least-psnr", "9", "--dtype", "fp32"), "add --dtype"),
        (("report", "a.pkl", "--overwrite"), "--out FILE.svg"),
        (("compare", "a.pkl", "b.pkl", "--out", "a.png", "--seeds", "0-10000"), "at most 10000"),
        (
            ("a.pkl", "--out", "b.pkl", "--quality", "fd=1.05x", "--measure", "0"),
            "drop --measure 0",
        ),
        (
            ("eval", "a.pkl", "--against", "b.pkl", "--metrics", "fid,kid", "--samples", "12001"),
            "--samples 12001: KID takes at most 12000 images a side",
        ),
    ],
)
def test_an_option_without_effect(
    words: tuple[str, ...], word: str, refused: Callable[..., str]
) -> None:
    assert word in refused(*words)


def test_missing_output(refused: Callable[..., str], snapshot_file: Path) -> None:
    assert "--out" in refused(snapshot_file)
    assert "--out" in refused("generate", snapshot_file)


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "1-", "-1", "1,,2", "0-99999999", "5000000000", "²", "0-²"]
)
def test_seeds(text: str, refused: Callable[..., str], tmp_path: Path, snapshot_file: Path) -> None:
    out = tmp_path / "o.png"
    said = refused("generate", snapshot_file, f"--seeds={text}", "--out", out)
    assert "--seeds" in said
    assert "int()" not in said


def test_shapes(refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused("generate", "a.pth", "--input", "3,²", "--out", tmp_path / "o.png")
    assert "is not like 256 or 3,64,64" in said


@pytest.mark.slow
def test_class(
    refused: Callable[..., str], tmp_path: Path, snapshot_file: Path, conditional_file: Path
) -> None:
    out = ("--out", tmp_path / "o.png")
    assert "--class" in refused("generate", conditional_file, *out)
    assert "0..2" in refused("generate", conditional_file, "--class", "3", *out)
    assert "unconditional" in refused("generate", snapshot_file, "--class", "0", *out)


@pytest.fixture(scope="module")
def plan_text(snapshot_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert (
        main(
            [
                str(snapshot_file),
                "--plan-only",
                "--polish",
                "0",
                "--out",
                str(path),
                "--preset",
                "fast",
            ]
        )
        == 0
    )
    return path.read_text()


@pytest.fixture
def plan_file(tmp_path: Path, plan_text: str) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(plan_text)
    return path


PLAN_EDITS: dict[str, tuple[Callable[[dict], object], str]] = {
    "rule": (lambda d: d.update(rule="nope"), "nope"),
    "rank too high": (lambda d: d.update(rank=99), "99"),
    "rank is text": (lambda d: d.update(rank="2"), "'2'"),
    "action": (lambda d: d.update(action="melt"), "melt"),
    "site": (lambda d: d.update(site="synthesis.feat_7"), "synthesis.feat_7"),
    "unknown field": (lambda d: d.update(speed=3), "speed"),
    "missing field": (lambda d: d.pop("reason"), "reason"),
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", PLAN_EDITS)
def test_spoiled_plans(
    edit: str, refused: Callable[..., str], tmp_path: Path, snapshot_file: Path, plan_file: Path
) -> None:
    spoil, word = PLAN_EDITS[edit]
    plan = json.loads(plan_file.read_text())
    spoil(next(d for d in plan["decisions"] if d["action"] == "rewrite"))
    plan_file.write_text(json.dumps(plan))
    said = refused(snapshot_file, "--plan", plan_file, "--out", tmp_path / "o.pkl", *SVD)
    assert word in said


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "\xff", "[" * 100_000, '{"dsconvert_plan": 1}', '{"a": '],
    ids=["nothing", "list", "dict", "no text", "deep", "no decisions", "half"],
)
def test_no_plans(
    text: str, refused: Callable[..., str], tmp_path: Path, snapshot_file: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    assert "plan" in refused(snapshot_file, "--plan", path, "--out", tmp_path / "o.pkl")


@pytest.mark.slow
def test_plan_of_another_model(
    refused: Callable[..., str], tmp_path: Path, plan_file: Path, shared_snapshots: Path
) -> None:
    other = shared_snapshots / "fastgan_lite-256.pkl"
    said = refused(other, "--plan", plan_file, "--out", tmp_path / "o.pkl", *SVD)
    assert "does not fit" in said


@pytest.mark.parametrize(
    "choice", [("--rank", "2"), ("--keep", "synthesis.*"), ("--preset", "balanced")]
)
def test_a_plan_and_a_choice_contradict(
    choice: tuple[str, str],
    refused: Callable[..., str],
    tmp_path: Path,
    snapshot_file: Path,
    plan_file: Path,
) -> None:
    said = refused(snapshot_file, "--plan", plan_file, *choice, "--out", tmp_path / "o.pkl")
    assert "--plan" in said
    assert choice[0] in said


@pytest.mark.slow
def test_a_plan_that_does_not_fit_is_not_shown_either(
    refused: Callable[..., str], snapshot_file: Path, plan_file: Path
) -> None:
    plan = json.loads(plan_file.read_text())
    plan["decisions"][0]["site"] = "synthesis.feat_7"
    plan_file.write_text(json.dumps(plan))
    assert "synthesis.feat_7" in refused(snapshot_file, "--plan", plan_file, "--plan-only")


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_stdout_that_refuses(options: tuple[str, ...], snapshot_file: Path) -> None:
    command = [sys.executable, "-m", "dsconvert", "inspect", str(snapshot_file), *options]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("dsconvert: can't write to standard output")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["convert", "plan", "generate"])
def test_a_disk_that_refuses(
    kind: str,
    refused: Callable[..., str],
    tmp_path: Path,
    snapshot_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr(Path, "replace", full)
    words = {
        "convert": (snapshot_file, *SVD),
        "plan": (snapshot_file, "--plan-only", "--polish", "0"),
        "generate": ("generate", snapshot_file, "--seeds", "0"),
    }[kind]
    name = {"convert": "o.pkl", "plan": "o.json", "generate": "o.png"}[kind]
    assert "No space left" in refused(*words, "--out", tmp_path / name)


def test_missing_extra_is_missed_before_the_work(
    refused: Callable[..., str],
    tmp_path: Path,
    snapshot_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("dsconvert.cli.compare.opened", None)
    words = ("compare", snapshot_file, snapshot_file, "--distance", "4")
    assert "pip install" in refused(*words, "--out", tmp_path / "o.png")


@pytest.mark.slow
def test_images_of_different_sizes(
    refused: Callable[..., str], tmp_path: Path, snapshot_file: Path, shared_snapshots: Path
) -> None:
    other = shared_snapshots / "fastgan-256.pkl"
    said = refused("compare", snapshot_file, other, "--seeds", "0", "--out", tmp_path / "o.png")
    assert "can't be compared" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("eval", "STUDENT", "--against", "TEACHER", "--samples", "4"),
        ("eval", "OTHER", "--against", "TEACHER", "--samples", "4"),
        ("compare", "TEACHER", "OTHER", "--seeds", "0", "--distance", "4", "--out", "o.png"),
        ("distill", "TEACHER", "OTHER", "--steps", "1", "--features", "0", "--out", "o.pth"),
    ],
)
def test_generators_of_different_inputs(
    command: tuple[str, ...],
    refused: Callable[..., str],
    tmp_path: Path,
    snapshot_file: Path,
    conditional_file: Path,
    fastgan_file: Path,
) -> None:
    other = tmp_path / "other.pth"
    torch.save({"g": Generator(ngf=4, nz=8, im_size=256).state_dict()}, other)
    words = {"STUDENT": snapshot_file, "TEACHER": fastgan_file, "OTHER": other}
    if command[1] == "STUDENT":
        words["TEACHER"] = conditional_file
    said = refused(*(words.get(w, tmp_path / w if w.startswith("o.") else w) for w in command))
    assert "takes inputs of shape" in said
    assert said.count("\n") == 1


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("__import__('pathlib').Path('fired').touch()",))


@pytest.mark.parametrize("command", ["convert", "report", "generate"])
def test_hostile_file(
    command: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(pickle.dumps({"G": None, "D": _Bomb(), "G_ema": None}))
    out = (
        ()
        if command == "report"
        else ("--out", tmp_path / f"o.{'png' if command == 'generate' else 'pkl'}")
    )
    assert "eval" in refused(command, bad, *out)
    assert not (tmp_path / "fired").exists()
    pickle.loads(bad.read_bytes())
    assert (tmp_path / "fired").exists()


def test_full_memory_is_one_sentence(
    refused: Callable[..., str],
    tmp_path: Path,
    snapshot_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")

    monkeypatch.setattr("dsconvert.cli.convert.convert_file", full)
    said = refused("convert", snapshot_file, "--out", tmp_path / "o.pkl", *SVD)
    assert said == (
        "dsconvert: the memory is full (CUDA out of memory. Tried to allocate 2 GiB): give "
        "--device cpu, or --polish 0 (the polish needs most).\n"
    )
