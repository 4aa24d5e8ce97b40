"""The device: its availability, description, limits, and synchronisation."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from dsconvert.bench.records import Limits
from dsconvert.config.measure import Settings
from dsconvert.errors import UsageError
from dsconvert.util.devices import accelerator, usable

_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def settle(settings: Settings) -> Settings:
    """Return ``settings`` with the device named, after a check against this machine.

    Raises:
        UsageError: the device or type is unknown, or the number of threads is below 1.
    """
    name = accelerator() if settings.device == "auto" else settings.device
    usable(name)
    if settings.threads is not None and settings.threads < 1:
        raise UsageError(f"{settings.threads} threads can't run anything; give 1 or more.")
    return dataclasses.replace(settings, device=name)


def weight_type(settings: Settings) -> torch.dtype:
    """Return the type that parameters are converted to (float32 under autocast)."""
    return _TYPES.get(settings.dtype, torch.float32)


def running(settings: Settings) -> Any:
    """Return a context for one run: autocast if the dtype is one of ``amp``."""
    if not settings.dtype.startswith("amp"):
        return nullcontext()
    device = torch.device(settings.device).type
    _, _, wanted = settings.dtype.partition("-")
    usual = "float16" if device == "cuda" else "bfloat16"
    return torch.autocast(device, dtype=_TYPES[wanted or usual])


def synchronise(device: str) -> None:
    """Wait until the device has finished its work; a CPU always has."""
    module = getattr(torch, torch.device(device).type, None)
    if module is not None and hasattr(module, "synchronize") and not device.startswith("cpu"):
        module.synchronize()


@contextmanager
def threads(settings: Settings) -> Generator[int, None, None]:
    """Set the number of torch's CPU threads within this context; yield it."""
    before = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def device_name(device: str) -> str:
    """Return the name of the hardware."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return model or platform.processor() or platform.machine()


def facts(settings: Settings) -> dict[str, Any]:
    """Return the conditions of a measurement: machine, versions, threads, date, load."""
    with threads(settings) as count:
        load = os.getloadavg() if hasattr(os, "getloadavg") else None
        return {
            **dataclasses.asdict(settings),
            "threads": count,
            "machine": device_name(settings.device),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda if settings.device.startswith("cuda") else None,
            "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "load_average": [round(x, 2) for x in load] if load else None,
        }


def seconds_of(call: Callable[[], Any], device: str) -> float:
    """Return the wall-clock seconds of one call, with an idle device before and after."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def seconds_of_each(call: Callable[[], Any], device: str, count: int) -> list[float]:
    """Return the seconds of ``count`` calls that follow one another without a pause.

    On CUDA they are between events on the stream: the host may run ahead, as it does in use, and
    where it is the slower one its time counts. Elsewhere each call is timed by the clock.
    """
    if torch.device(device).type != "cuda":
        return [seconds_of(call, device) for _ in range(count)]
    with torch.cuda.device(device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        torch.cuda.synchronize()
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]


def limits(settings: Settings, *, size: int | None = None, floats: int | None = None) -> Limits:
    """Measure a large matrix product and a large copy; return the best of several runs.

    The best and not the median, because these are bounds.

    Args:
        settings: device, type and threads.
        size: rows and columns of the matrices.
        floats: length of the float32 vector that is copied.
    """
    cpu = settings.device.startswith("cpu")
    large, many, repeats = (2048, 64 << 20, 5) if cpu else (8192, 256 << 20, 10)
    size, floats = size or large, floats or many
    kind = weight_type(settings)
    with threads(settings), torch.no_grad(), running(settings):
        a = torch.randn(size, size, device=settings.device, dtype=kind)
        b = torch.randn(size, size, device=settings.device, dtype=kind)
        torch.mm(a, b)
        product = min(seconds_of(lambda: torch.mm(a, b), settings.device) for _ in range(repeats))
        source = torch.ones(floats, device=settings.device)
        target = torch.zeros_like(source)
        copy = min(
            seconds_of(lambda: target.copy_(source), settings.device) for _ in range(repeats)
        )
    return Limits(macs_per_second=size**3 / product, bytes_per_second=2 * 4 * floats / copy)
