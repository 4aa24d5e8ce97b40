"""What the commands say: 80 columns, the result first, the last line alone if quiet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dsconvert_adapters.stylegan2 import Generator as StyleGan2

from dsconvert.cli import main, train
from dsconvert.cli.output import say_whole
from dsconvert.formats.official import load_snapshot, new_snapshot, save_snapshot
from dsconvert.rules.recognise import structure_of

FIT = ("--calibrate", "8", "--polish", "0")
SVD = ("--init", "svd", "--calibrate", "0")


@pytest.fixture(scope="module")
def fast(snapshot_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("said") / "fast.pkl"
    assert main([str(snapshot_file), "--out", str(out), "--rank", "2", *SVD]) == 0
    return out


def told(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    capsys.readouterr()
    assert main([str(w) for w in words]) == 0
    return capsys.readouterr().out.splitlines()


def fits(lines: list[str]) -> bool:
    """80 columns, but for a path that is longer by itself."""
    return all(len(line) <= 80 or max(map(len, line.split())) > 60 for line in lines)


@pytest.mark.slow
def test_the_result_of_a_conversion_comes_first(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.pkl"
    lines = told(capsys, snapshot_file, "--out", out, *FIT)
    first = [(line.split() or [""])[0] for line in lines[:8]]  # a long path takes lines
    at = first.index("parameters")
    assert first[at : at + 3] == ["parameters", "MACs", "PSNR"]
    assert " ".join(" ".join(lines).split()).endswith(f"wrote {out}")
    assert fits(lines)
    assert not any(line.rstrip().endswith(": ") or line.strip() == "G:" for line in lines)
    assert any(line.startswith("G: by the same plan") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("verbose", [pytest.param(False, marks=pytest.mark.extended), True])
def test_every_table_fits(
    snapshot_file: Path, fast: Path, verbose: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--verbose",) if verbose else ()
    assert fits(told(capsys, snapshot_file, "--plan-only", *more))
    assert fits(told(capsys, "report", snapshot_file, *more))
    assert fits(told(capsys, "report", snapshot_file, fast, "--ranks", "1-2", *more))
    assert fits(told(capsys, "inspect", fast, *more))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "FILE --out q.pkl --init svd --calibrate 0",
        "compare FILE FAST --seeds 1 --out c.png",
        "generate FAST --seeds 1 --out g.png",
        pytest.param(
            "distill FILE FAST --out d.pkl --steps 1 --batch 1 --features 0",
            marks=pytest.mark.extended,
        ),
    ],
)
def test_quiet_leaves_the_last_line(
    snapshot_file: Path,
    fast: Path,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"FILE": snapshot_file, "FAST": fast}
    lines = told(capsys, *(files.get(word, word) for word in words.split()), "--quiet")
    assert " ".join(lines).startswith("wrote ")
    assert " ".join(lines).count("wrote ") == 1


@pytest.mark.slow
@pytest.mark.extended
def test_eval_spells_its_metric_and_begins_with_the_verdict(
    snapshot_file: Path, fast: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    words = ("eval", fast, "--against", snapshot_file, "--samples", "12", "--bootstrap", "20")
    lines = told(capsys, *words)
    assert fits(lines)
    assert not any("FD-LITE0" in line for line in lines)
    verdict = next(i for i, line in enumerate(lines) if "distinguishable" in line)
    assert verdict <= 3
    assert "FD-lite0" in lines[verdict]
    assert "distinguishable" in told(capsys, *words, "--quiet")[0]


# inspect ------------------------------------------------------------------------------------


def cells(lines: list[str], name: str) -> str:
    return next(line.strip()[len(name) :].strip() for line in lines if line.split()[0] == name)


@pytest.mark.slow
def test_inspect_of_a_converted_snapshot(fast: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "inspect", fast)
    text = " ".join(" ".join(lines).split())
    assert "of 16 convolutions rewritten: " in text
    assert "up-pw-dw rank 2 x" in text
    data = json.loads("".join(told(capsys, "inspect", fast, "--json")))
    assert data["writer"] == "dsconvert"
    plan = structure_of(load_snapshot(fast).generator)
    assert data["structure"]["rewritten"] == plan.rewritten
    assert sum(plan.rewritten.values()) < plan.convolutions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "rank", "rules"),
    [
        ("exact", None, {"up-merge"}),
        pytest.param("paper", 3, {"dw-pw rank 3"}, marks=pytest.mark.extended),
        ("fast", 1, {"dw-pw rank 1", "pw-dw rank 1", "up-pw-dw rank 1"}),
    ],
)
def test_the_rules_are_told_from_the_modules(
    snapshot_file: Path, preset: str, rank: int | None, rules: set[str], tmp_path: Path
) -> None:
    """What the plan says went in is what is recognised, convolution by convolution."""
    out = tmp_path / "c.pkl"
    options = ["--preset", preset, "--init", "svd", "--calibrate", "0", "--quiet"]
    options += [] if rank is None else ["--rank", str(rank)]
    assert main([str(snapshot_file), "--out", str(out), *options]) == 0
    found = structure_of(load_snapshot(out).generator)
    assert set(found.rewritten) >= rules
    from dsconvert import plan

    decided = plan(load_snapshot(snapshot_file).generator, preset=preset, rank=rank)
    rewrites = [d for d in decided.decisions if d.action == "rewrite"]
    assert sum(found.rewritten.values()) == len(rewrites)
    assert found.convolutions == sum(d.action != "remove" for d in decided.decisions)


@pytest.mark.slow
def test_inspect_of_a_checkpoint(
    fastgan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(capsys, "inspect", fastgan_file)
    assert ": a generator of fastgan_pytorch" in " ".join(" ".join(lines).split())
    assert cells(lines, "converted") == "no"
    assert "the code of fastgan_pytorch, by torch.save" in " ".join(lines)
    out = tmp_path / "fast.pth"
    assert main([str(fastgan_file), "--out", str(out), "--quiet", *SVD]) == 0
    lines = told(capsys, "inspect", out)
    assert "convolutions rewritten: dw-pw rank 1 x" in " ".join(lines)
    from dsconvert import __version__

    assert f"dsconvert {__version__}, by torch.save" in " ".join(lines)


@pytest.mark.slow
def test_inspect_of_an_export(
    fast: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    out = tmp_path / "fast.safetensors"
    assert main(["export", str(fast), "--format", "safetensors", "--out", str(out)]) == 0
    lines = told(capsys, "inspect", out)
    assert cells(lines, "images") == "128 x 128 px, 3 channels, no classes"
    assert "convolutions rewritten" in " ".join(lines)
    assert "dsconvert 0" in " ".join(lines)


def test_inspect_of_a_conditional_generator(
    conditional_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "3 classes" in cells(told(capsys, "inspect", conditional_file), "images")


def test_inspect_of_a_stylegan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = StyleGan2(z_dim=8, c_dim=2, w_dim=8, img_resolution=16, img_channels=3,
                      channel_base=128, channel_max=8)  # fmt: skip
    path = tmp_path / "sg.pkl"
    save_snapshot(new_snapshot(model), model, path)
    lines = told(capsys, "inspect", path)
    assert "a generator of stylegan2, cfg stylegan2" in " ".join(" ".join(lines).split())
    assert "2 classes" in cells(lines, "images")


def test_inspect_of_a_state_dict_that_nobody_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth"
    torch.save({f"layer{i}.weight": torch.zeros(3) for i in range(40)}, path)
    lines = told(capsys, "inspect", path)
    assert "no generator that dsconvert knows" in " ".join(" ".join(lines).split())
    assert "40 tensors, 120 numbers: layer0.weight" in " ".join(lines)
    assert "--module" in " ".join(lines)
    assert len(lines) < 17  # not 40; a long path takes lines


@pytest.mark.slow
def test_the_official_writers_are_told_from_ours(
    shared_snapshots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fastgan-128.pkl", "fastgan-256-dill.pkl"):
        lines = told(capsys, "inspect", shared_snapshots / name)
        assert "the code of projected_gan, by pickle or dill" in " ".join(lines)


def test_a_line_with_a_path_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"wrote /home/me/{'My Pictures and Models/' * 5}a fast one.png"
    say_whole(f"{line}\x1b[31m")
    assert capsys.readouterr().out == f"{line}\\x1b[31m\n"


def test_a_trial_of_a_few_images_has_a_length_and_perhaps_no_snapshot() -> None:
    assert [train._length(k) for k in (0.004, 0.25, 6.5, 0.0)] == ["0.004", "0.25", "6.50", "0.00"]
    assert train._finished("0.004", None) == "it had its 0.004 kimg already; it has no snapshot"
    assert train._finished("1.00", Path("a.pkl")).endswith("the newest snapshot is a.pkl")
