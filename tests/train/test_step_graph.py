"""Steps whose passes are replayed: the numbers of ordinary steps, bit for bit.

A stand-in for a CUDA graph runs the captured function again on its own tensors. As on a GPU, the
noise comes from another generator than the draws on the CPU, and ``torch.manual_seed`` sets both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsconvert.errors import UsageError
from dsconvert.projected.augment import diffaugment, draw_augmentation
from dsconvert.train import ImageSet, TrainConfig, open_images
from dsconvert.train import train as train_networks
from dsconvert.train.cuda_capture import CudaCapture
from dsconvert.train.step import Stepper
from dsconvert.train.step_graph import ORDINARY, StepGraphs, why_no_graph
from dsconvert.util.processes import SingleProcess
from tests.train.loops import Plain, config, equal, trained
from tests.train.parts import tiny_zip

DEVICE = torch.Generator()
"""The generator of the stand-in for a device."""
NAMES = ("/generator", "/discriminator", "/ema", "/opt_g", "/opt_d", "/sums")


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * torch.randn(len(x), 1, *x.shape[2:], generator=DEVICE)


class Drawing(Plain):
    """A discriminator whose augmentation can be drawn before."""

    def forward(self, x: Tensor, c: Tensor, draws: Tensor | None = None) -> Tensor:
        return self.main(diffaugment(x, draws=draws)).flatten(1)

    def augmentation_draws(self, count: int, size: tuple[int, int]) -> Tensor:
        return draw_augmentation(("color", "translation", "cutout"), count, size)


def networks() -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(
            nn.utils.spectral_norm(nn.Linear(4, 3 * 256)), nn.Unflatten(1, (3, 16, 16)),
            nn.Upsample(scale_factor=2), Noise(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, 1, 1),
        )  # fmt: skip
        judge = Drawing()
        judge.main[0] = nn.Identity()
        judge.main[-1] = nn.Conv2d(8, 1, 4)
        return generator, judge


def latents(labels: Tensor, random: torch.Generator) -> tuple[Tensor, float]:
    return torch.randn(len(labels), 4, generator=random), 1.0


class Takes(nn.Sequential):
    """A generator with an argument that is no tensor."""

    def forward(self, z: Tensor, scale: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(z) * scale


def pair() -> tuple[nn.Module, nn.Module]:
    generator, judge = networks()
    return Takes(*generator), judge


def again(run: Callable[[], Sequence[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
    """A graph without CUDA: each replay runs the function and overwrites the first results."""
    made = [t.clone() for t in run()]

    def replay() -> None:
        for old, new in zip(made, run(), strict=True):
            old.copy_(new)

    return made, replay


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return open_images(tiny_zip(tmp_path_factory.mktemp("data")), resolution=32)


@pytest.fixture(autouse=True)
def _two_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded = torch.manual_seed

    def both(seed: int) -> torch.Generator:
        DEVICE.manual_seed(seed)
        return seeded(seed)

    monkeypatch.setattr(torch, "manual_seed", both)


def run(
    folder: Path,
    data: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    capture: Any = None,
    *,
    steps: int = 7,
    **more: Any,
) -> dict[str, Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr("dsconvert.train.loop.Stepper", partial(Stepper, capture=capture))
        settings = config(steps, mirror=True, snapshot_ticks=100, tick_kimg=1, **more)
        resume = bool(list(folder.glob("checkpoints/*")))
        _, tensors, _ = trained(
            folder, data, settings, networks=pair(), latents=latents, resume=resume
        )
    return {k: v for k, v in tensors.items() if k.startswith(NAMES)}


@pytest.mark.slow
def test_replayed_steps_are_the_ordinary_ones_also_when_resumed(
    tmp_path: Path, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(run: Any) -> Any:
        made, replay = again(run)
        return made, lambda: (calls.append(1), replay())[1]

    plain = run(tmp_path / "plain", data, monkeypatch)
    replayed = run(tmp_path / "replayed", data, monkeypatch, counted)
    assert len(calls) == 2 * (7 - ORDINARY)
    assert len(plain) > 20
    assert equal(plain, replayed)
    run(tmp_path / "cut", data, monkeypatch, again, steps=5)
    assert equal(plain, run(tmp_path / "cut", data, monkeypatch, again))
    # A run that goes on without graphs ends the same.
    run(tmp_path / "other", data, monkeypatch, again, steps=6)
    assert equal(plain, run(tmp_path / "other", data, monkeypatch))


@pytest.mark.slow
def test_spectral_norms_together_are_those_of_ordinary_steps(
    tmp_path: Path, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: the generator's norms are computed before each pass, in the graph and outside."""
    hooks = run(tmp_path / "hooks", data, monkeypatch, steps=1)
    import dsconvert.train.loop as module

    made = module.new_state
    monkeypatch.setattr(module, "new_state", lambda *a, **k: replace(made(*a, **k), together=True))
    once = run(tmp_path / "once", data, monkeypatch, steps=1)
    assert once.keys() == hooks.keys()
    for name, value in hooks.items():
        # Adam's first step has the size of the learning rate (2e-4), and where a gradient is 0 but
        # for rounding, any sign.
        tight = name.endswith(("_u", "_v"))
        atol = 1e-5 if tight else 5e-4
        assert torch.allclose(once[name].double(), value.double(), rtol=1e-4, atol=atol), name
    plain = run(tmp_path / "plain", data, monkeypatch, steps=5)
    assert equal(plain, run(tmp_path / "replayed", data, monkeypatch, again, steps=5))


@pytest.mark.slow
def test_a_blur_is_faded_out_by_ordinary_steps(
    tmp_path: Path, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dsconvert.train.step as module

    sigmas = iter([1.0] * 8 + [0.0] * 6)
    monkeypatch.setattr(module, "blur_sigma", lambda *_, **__: next(sigmas))
    plain = run(tmp_path / "plain", data, monkeypatch)
    sigmas = iter([1.0] * 8 + [0.0] * 6)
    captured: list[int] = []

    def late(run: Any) -> Any:
        captured.append(1)
        return again(run)

    assert equal(plain, run(tmp_path / "replayed", data, monkeypatch, late))
    assert len(captured) == 2


def broken(run: Callable[[], Sequence[Tensor]]) -> Any:
    run()
    raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")


def stale(run: Callable[[], Sequence[Tensor]]) -> Any:
    """A graph in which the random numbers of the capture are constants."""
    return [t.clone() for t in run()], lambda: None


def silent(run: Callable[[], Sequence[Tensor]]) -> Any:
    run()
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("capture", [broken, stale, silent])
def test_a_capture_that_fails_costs_one_sentence(
    capture: Any,
    tmp_path: Path,
    data: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = run(tmp_path / "plain", data, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert equal(plain, run(tmp_path / "failed", data, monkeypatch, capture))
    (said,) = [r.getMessage() for r in caplog.records if "CUDA graph" in r.getMessage()]
    assert "the training goes on" in said
    assert "\n" not in said


@pytest.mark.slow
def test_a_batch_of_another_size_runs_as_usual(data: ImageSet) -> None:
    from dsconvert.train.state import new_state

    ends: list[list[Tensor]] = []
    for capture in (None, again):
        generator, judge = pair()
        settings, procs = TrainConfig(batch=4), SingleProcess("cpu")
        state = new_state(generator, judge, settings, procs.device)
        stepper = Stepper(
            config=settings, data=data, latents=latents, procs=procs, capture=capture
        )  # fmt: skip
        shown = torch.randint(
            0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=DEVICE.manual_seed(1)
        )
        for size in (4, 4, 4, 4, 3, 4):
            sums = stepper.run(state, shown[:size], torch.zeros(size, 0))
        ends.append([sums, *generator.state_dict().values(), *judge.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_why_steps_are_not_captured(data: ImageSet, tmp_path: Path) -> None:
    card: Any = SimpleNamespace(world=1, device=torch.device("cuda"))
    assert why_no_graph(TrainConfig(), card) is None
    for more, word in (
        ({"precision": "fp16"}, "fp16"), ({"compile": True}, "compile"),
        ({"recompute": "blocks"}, "blocks"), ({"batch": 4, "micro_batch": 2}, "micro_batch"),
    ):  # fmt: skip
        assert word in str(why_no_graph(TrainConfig(**more), card))
    many: Any = SimpleNamespace(world=2, device=torch.device("cuda"))
    assert "processes" in str(why_no_graph(TrainConfig(), many))
    with pytest.raises(UsageError, match="need CUDA"):
        train_networks(*pair(), data, config(1, cuda_graph="on"), out=tmp_path, latents=latents)
    # Automatic only for networks that are known to draw nothing in the middle on the CPU.
    for judge, wanted in ((Drawing(), True), (Plain(), False)):
        state: Any = SimpleNamespace(generator=networks()[0], discriminator=judge)
        assert (StepGraphs.of(TrainConfig(), state, card, None).capture is not None) is wanted
        assert StepGraphs.of(TrainConfig(cuda_graph="on"), state, card, None).capture is not None
        assert StepGraphs.of(TrainConfig(cuda_graph="off"), state, card, None).capture is None


def test_a_capture_warms_up_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the calls of torch.cuda, whose results a card alone can tell."""
    seen: list[Any] = []

    class Stream:
        def wait_stream(self, other: Any) -> None:
            seen.append("wait")

    class Graph:
        def replay(self) -> None:
            seen.append("replay")

    @contextmanager
    def graph(made: Any, **options: Any) -> Generator[None, None, None]:
        seen.append(options)
        yield
        seen.append("captured")

    @contextmanager
    def nothing(*_: Any) -> Generator[None, None, None]:
        yield

    for name, value in {
        "device": nothing, "Stream": Stream, "current_stream": Stream, "stream": nothing,
        "graph_pool_handle": lambda: "pool", "CUDAGraph": Graph, "graph": graph,
        "set_stream": lambda stream: seen.append("back"),
        "empty_cache": lambda: seen.append("empty"),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    capture = CudaCapture(torch.device("cuda"))
    made, replay = capture(lambda: (seen.append("run"), [torch.ones(1)])[1])
    replay()
    capture(lambda: [])
    assert seen[:5] == ["empty", "wait", "run", "run", "wait"]
    assert seen[6:10] == ["run", "captured", "back", "replay"]
    first, second = (s for s in seen if isinstance(s, dict))
    assert first == second
    assert first["pool"] == "pool"
    assert made[0].tolist() == [1]
    capture.recover()  # raises nothing, whatever CUDA is


@pytest.mark.parametrize("known", [False, True])
def test_a_broken_capture_leaves_nothing_under_way(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the allocator waits for the end of a capture, it frees nothing."""
    seen: list[Any] = []

    @contextmanager
    def nothing(*_: Any) -> Generator[None, None, None]:
        yield

    def ended(*args: Any) -> None:
        seen.append(("end", *args))
        if known:
            raise RuntimeError("not currently recording to mempool_id")

    def broken_device() -> None:
        raise RuntimeError("CUDA error: capture invalidated")

    class Drawn:
        def __init__(self, device: Any) -> None:
            pass

        def graphsafe_get_state(self) -> str:
            return "fresh"

        def graphsafe_set_state(self, state: str) -> None:
            seen.append(state)

    monkeypatch.setattr(torch, "Generator", Drawn)
    for name, value in {
        "device": nothing, "synchronize": broken_device, "current_device": lambda: 0,
        "default_generators": [Drawn(0)], "empty_cache": lambda: seen.append("empty"),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        monkeypatch.setattr(torch._C, name, ended, raising=False)
    released = ("released", 0, "pool")
    monkeypatch.setattr(
        torch._C, "_cuda_releasePool", lambda *a: seen.append(("released", *a)), raising=False
    )
    capture = CudaCapture(torch.device("cuda"))
    capture._pool = "pool"
    capture.recover()
    assert seen == ["fresh", ("end", 0, "pool"), *([] if known else [released]), "empty"]
