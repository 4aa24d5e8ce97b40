"""The official trainer with a converted generator: a checkout is needed, a GPU is not.

Where the loop calls CUDA, this test (and nothing else) puts the CPU in its place.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dsconvert_adapters.projected_gan.blocks import CCBN
from PIL import Image
from torch import nn

from dsconvert import convert_file, load_snapshot, save_snapshot
from dsconvert.cli import main
from dsconvert.errors import SnapshotError, UsageError
from dsconvert.official_trainer import ConversionSettings, launch
from dsconvert.official_trainer.hooks import _copier, alias_old_timm


@pytest.fixture(scope="module")
def repo() -> str:
    root = os.environ.get("PROJECTED_GAN_ROOT")
    if not root:
        pytest.skip("PROJECTED_GAN_ROOT does not point to a checkout of the official code")
    pytest.importorskip("timm")
    for name in ("click", "requests", "psutil", "dill"):
        pytest.importorskip(name, reason=f"the official code needs {name}")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four noisy 128 px pictures in the official zip layout."""
    path = tmp_path_factory.mktemp("data") / "tiny.zip"
    rng = np.random.RandomState(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(4):
            file = io.BytesIO()
            Image.fromarray(rng.randint(0, 255, (128, 128, 3), np.uint8)).save(file, "PNG")
            archive.writestr(f"{i}.png", file.getvalue())
    return str(path)


class _CpuTorch:
    """torch as the training loop sees it, with the CPU where it says cuda."""

    cuda = SimpleNamespace(
        Event=lambda **_: SimpleNamespace(
            record=lambda *_: None, cuda_event=0, synchronize=lambda: None, elapsed_time=lambda _: 1
        ),
        current_stream=lambda *_: None,
        max_memory_allocated=lambda *_: 0,
        max_memory_reserved=lambda *_: 0,
        reset_peak_memory_stats=lambda *_: None,
    )
    device = staticmethod(lambda *_: torch.device("cpu"))
    # The loop shows its networks uninitialised latents to print their shapes, in train mode: what
    # the memory held before goes into batch statistics, now and then NaN, which they never forget.
    empty = staticmethod(torch.zeros)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def trained(repo: str, data: str, tmp_path: Path) -> Callable[..., Path]:
    """Runs one step of the official loop in a process of its own; returns the run's folder."""

    def run(*official: str, options: tuple[str, ...] = ()) -> Path:
        script = [sys.executable, str(Path(__file__)), repo, *options, "--"]
        out = tmp_path / "runs"
        arguments = [
            f"--outdir={out}", f"--data={data}", "--gpus=1", "--batch=2", "--kimg=1",
            "--metrics=none", "--workers=1", "--cfg=fastgan", *official,
        ]  # fmt: skip
        done = subprocess.run(
            [*script, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        (tmp_path / "log.txt").write_text(done.stdout)
        return sorted(out.iterdir())[-1]

    return run


def _step(argv: list[str]) -> int:
    """The child process: the loop's CUDA calls stubbed, narrow networks, one step, few pictures."""
    repo, own = argv[0], argv[1 : argv.index("--")]
    sys.path.insert(0, repo)
    alias_old_timm()
    from pg_modules import networks_fastgan
    from training import training_loop

    training_loop.torch = _CpuTorch()
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    networks_fastgan.Generator.__init__.__defaults__ = (256, 0, 0, 256, 3, 4, 0, {}, {})
    whole = training_loop.setup_snapshot_image_grid

    def few(training_set: Any, **_: Any) -> Any:
        _, images, labels = whole(training_set=training_set)
        return (2, 1), images[:2], labels[:2]

    training_loop.setup_snapshot_image_grid = few
    one = training_loop.training_loop

    def stepped(**c: Any) -> None:
        if "DISC" in os.environ:  # the shared file has a discriminator of fewer channels
            cout, discs = os.environ["DISC"].split(",")
            c["D_kwargs"].backbone_kwargs.update(cout=int(cout), num_discs=int(discs))
        one(**{**c, "abort_fn": lambda: True})

    training_loop.training_loop = stepped
    code = launch._train_module(Path(repo))
    # train.py starts again what did not finish; one step is all that is wanted here.
    code.exit = lambda _: None
    return main(["official-train", "--repo", repo, *own, *argv[argv.index("--") :]])


def _official(path: Path, repo: str) -> dict[str, Any]:
    """The snapshot as the official loader's pickle reads it, in a process of its own."""
    script = (
        "import sys, pickle, torch; sys.path.insert(0, sys.argv[1]);"
        "d = pickle.load(open(sys.argv[2], 'rb'));"
        "G = d['G_ema'].eval(); z = torch.zeros(1, G.z_dim) + 0.1;"
        "torch.manual_seed(0); image = G(z, torch.zeros(1, 0));"
        "torch.save({'image': image, 'names': [n for n, _ in G.named_modules()],"
        " 'D': d['D'].state_dict()}, sys.argv[3])"
    )
    out = path.with_suffix(".read.pt")
    subprocess.run([sys.executable, "-c", script, repo, str(path), str(out)], check=True)
    return torch.load(out, weights_only=True)


@pytest.mark.slow
def test_from_scratch_then_resumed(trained: Callable[..., Path], repo: str, tmp_path: Path) -> None:
    folder = trained(options=("--preset", "paper", "--backbone", "random"))
    snapshot = folder / "network-snapshot.pkl"
    file = load_snapshot(snapshot)
    block = file.generator.synthesis.feat_64
    assert [n for n, _ in block[1].named_children()] == ["depthwise", "pointwise"]
    assert hasattr(block[1].pointwise, "weight_orig"), "the paper's spectral norm is kept"
    theirs = _official(snapshot, repo)
    assert "synthesis.feat_64.1.depthwise" in theirs["names"]
    with torch.no_grad():
        torch.manual_seed(0)
        ours = file.generator.eval()(torch.zeros(1, file.generator.z_dim) + 0.1, torch.zeros(1, 0))
    assert (ours - theirs["image"]).abs().max() < 1e-4 * theirs["image"].abs().max()

    again = trained(f"--resume={snapshot}", "--desc=resumed", options=("--backbone", "random"))
    log = (tmp_path / "log.txt").read_text()
    tensors = len(file.generator.state_dict())
    assert log.count("tensors restored") == 3, log[-2000:]
    assert f"Generator: {tensors} of {tensors} tensors restored" in log
    assert "ProjectedDiscriminator" in log
    resumed = load_snapshot(again / "network-snapshot.pkl").generator
    assert [n for n, _ in resumed.named_modules()] == [n for n, _ in file.generator.named_modules()]
    # One step of Adam moves a weight by about its rate (2e-4), from where the file left it.
    for (name, a), b in zip(
        load_snapshot(again / "network-snapshot.pkl").module("G").named_parameters(),
        file.module("G").parameters(),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-3, name


@pytest.mark.slow
def test_a_file_of_ours_with_an_old_discriminator_is_resumed(
    trained: Callable[..., Path],
    shared_snapshots: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G, G_ema and a discriminator pickled under timm 0.4.12 (256 px, ngf 4), balanced preset."""
    snap = load_snapshot(shared_snapshots / "fastgan-256-full.pkl")
    fast = tmp_path / "fast.pkl"
    save_snapshot(snap, convert_file(snap, init="svd", calibrate=0).models, fast)
    path = tmp_path / "tiny256.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(4):
            file = io.BytesIO()
            Image.new("RGB", (256, 256), (40 * i, 90, 200)).save(file, "PNG")
            archive.writestr(f"{i}.png", file.getvalue())
    monkeypatch.setenv("DISC", "4,1")
    folder = trained(f"--resume={fast}", f"--data={path}", options=("--backbone", "random"))
    log = (tmp_path / "log.txt").read_text()
    assert log.count("tensors restored") == 3
    made = load_snapshot(folder / "network-snapshot.pkl").generator
    wanted = load_snapshot(fast).generator
    assert {k: v.shape for k, v in made.state_dict().items()} == {
        k: v.shape for k, v in wanted.state_dict().items()
    }


@pytest.mark.slow
def test_dry_run(repo: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        f"--outdir={tmp_path}", "--cfg=fastgan", f"--data={data}", "--gpus=1", "--batch=2",
    ]  # fmt: skip
    assert main(["official-train", "--repo", repo, "--", *arguments, "--dry-run"]) == 0
    assert "Dry run; exiting." in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(["official-train", "--repo", repo, "--", *arguments, "--cfg=none"]) == 2
    assert "train.py: Invalid value for '--cfg'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--repo", "."], "behind --"),
        (["--repo", ".", "--", "--dry-run"], "no checkout of autonomousvision/projected-gan"),
        (["--", "--dry-run"], "--repo"),
        (["--repo", ".", "--preset", "fast", "--plan", "p.json", "--", "-n"], "already holds"),
        (["--repo", ".", "--preset", "fast", "--", "--resume", "f.pkl"], "from its file"),
        (["--repo", ".", "--plan", "p.json", "--", "--resume=f.pkl"], "from its file"),
    ],
)
def test_bad_usage(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["official-train", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_a_copy_that_restores_too_little_is_refused() -> None:
    def official(src: nn.Module, dst: nn.Module, require_all: bool = False) -> None:
        dst.load_state_dict(src.state_dict(), strict=False)

    copy = _copier(official)
    small, large = nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    copy(small, large)
    assert torch.equal(small[0].weight, large[0].weight)
    # Norms of a conversion have epsilons of their own; those with classes are no nn.BatchNorm2d.
    norms = [nn.Sequential(nn.BatchNorm2d(4), CCBN(4, 2)) for _ in range(2)]
    norms[0][0].eps, norms[0][1].eps = 2e-5, 3e-5
    copy(*norms)
    assert [n.eps for n in norms[1]] == [2e-5, 3e-5]
    large.append(nn.BatchNorm2d(1))
    with pytest.raises(SnapshotError, match=r"2 of 7 tensors .* 2\.weight"):
        copy(small, large)


@pytest.mark.slow
def test_pickles_of_old_timm_find_their_classes() -> None:
    pytest.importorskip("timm")
    alias_old_timm()
    for name in (
        "timm.models.layers.conv2d_same Conv2dSame",
        "timm.models.efficientnet_blocks InvertedResidual",
    ):
        module, cls = name.split()
        found = pickle.loads(f"c{module}\n{cls}\n.".encode())
        assert issubclass(found, nn.Module)


@pytest.mark.slow
def test_settings_are_checked() -> None:
    from dsconvert.official_trainer.hooks import install

    with pytest.raises(UsageError, match="no backbone weights"):
        install(ConversionSettings(repo="/nowhere", backbone="best"))  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(_step(sys.argv[1:]))
