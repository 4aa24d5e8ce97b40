"""The rows of ``gpu.py`` for single kernels: their time beside a copy of the bytes they must move.

    python benchmarks/gpu.py 120 --rows 'kernel*'

The sizes are those of the official generator, ngf 128, 256 px.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gpu_rows import Mode, Work
from torch import Tensor

from dsconvert import kernels
from dsconvert.bench import memory
from dsconvert.bench.machine import seconds_of, seconds_of_each
from dsconvert.errors import DsconvertError


class FellBackError(DsconvertError):
    """On a card an operation of an official size was done by torch's operators."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One operation.

    Attributes:
        operation: ``depthwise``, ``noise_gate`` or ``batch_norm_gate``.
        channels: behind the filter.
        side: of its input, in pixels.
        filter: the filter's side: 0: none; 3; 4, which doubles the size.
        rank: input channels of a channel.
    """

    operation: str
    channels: int
    side: int
    filter: int
    rank: int = 1

    def numbers(self, *, step: bool) -> int:
        """Return how many numbers one sample must move.

        Forward: the input and the output; with the batch's statistics the input twice. Backward:
        the input, the output's gradient and the input's; with statistics the former two twice.
        """
        area = self.side**2
        read = self.channels * self.rank * area
        written = self.channels * area * (4 if self.filter == 4 else 1)
        written //= 1 if self.operation == "depthwise" else 2
        twice = 2 if self.operation == "batch_norm_gate" else 1
        forward = twice * read + written
        return forward + twice * (read + written) + read if step else forward

    def arguments(self, batch: int, device: str, mode: Mode) -> dict[str, Any]:
        """Make random maps and parameters."""
        dtype = torch.bfloat16 if mode.dtype == "bfloat16" else torch.float32
        form = torch.channels_last if mode.channels_last else torch.contiguous_format
        n, c, side = batch, self.channels, self.side * (2 if self.filter == 4 else 1)
        x = torch.randn(n, c * self.rank, self.side, self.side, device=device, dtype=dtype)
        found: dict[str, Any] = {"x": x.contiguous(memory_format=form)}
        if self.filter:
            found["weight"] = torch.randn(c, self.rank, self.filter, self.filter, device=device)
        if self.operation != "depthwise":
            found |= {
                "noise": torch.ones(1, device=device),
                "plane": torch.randn(n, 1, side, side, device=device, dtype=dtype),
                "shift": torch.zeros(c, device=device),
            }
        if self.operation == "batch_norm_gate":
            found["gain"] = torch.ones(c, device=device)
        return found


KERNELS: dict[str, Kernel] = {
    "kernel: depthwise behind an upsample, 128 ch, 128 px": Kernel(
        operation="depthwise", channels=128, side=128, filter=4
    ),
    "kernel: the same with noise and gate": Kernel(
        operation="noise_gate", channels=128, side=128, filter=4
    ),
    "kernel: the same with batch norm": Kernel(
        operation="batch_norm_gate", channels=128, side=128, filter=4
    ),
    "kernel: noise, batch norm and gate, 128 ch, 256 px": Kernel(
        operation="batch_norm_gate", channels=128, side=256, filter=0
    ),
    "kernel: depthwise behind an upsample, 512 ch, 16 px": Kernel(
        operation="depthwise", channels=512, side=16, filter=4
    ),
    "kernel: the same, rank 3": Kernel(
        operation="depthwise", channels=512, side=16, filter=4, rank=3
    ),
    "kernel: depthwise 3x3, 128 ch, 128 px": Kernel(
        operation="depthwise", channels=128, side=128, filter=3
    ),
}
WORKS = {
    "K": Work(kind="kernel", batch=32, seconds=8, compiling=0),
    "k": Work(kind="kernel step", batch=16, seconds=15, compiling=0),
}
"""Forward, and forward with backward; the first guesses include Triton's compilation."""
FIRST: tuple[tuple[str, str, str], ...] = tuple((row, "FP32", "K") for row in list(KERNELS)[:2])
"""What stands behind the first rows of whole generators."""
REST: tuple[tuple[str, str, str], ...] = (
    *((row, "BF16", "K") for row in list(KERNELS)[:2]),
    *((row, "FP32", "k") for row in list(KERNELS)[2:4]),
    *((row, mode, "Kk") for row in list(KERNELS)[4:] for mode in ("FP32", "BF16")),
    *((row, "FP32", "k") for row in list(KERNELS)[:2]),
    *((row, "BF16", "k") for row in list(KERNELS)[:4]),
)


class KernelRun:
    """One operation, forward or forward and backward."""

    def __init__(self, row: str, mode: Mode, work: Work, device: str, *, small: bool) -> None:
        kernel = KERNELS[row]
        if small:
            kernel = Kernel(
                operation=kernel.operation, channels=4, side=8, filter=kernel.filter,
                rank=kernel.rank,
            )  # fmt: skip
        batch = 2 if small else work.batch
        self.bytes = kernel.numbers(step=work.kind != "kernel") * batch * mode.bytes
        self._device, self._operation = device, kernel.operation
        self._arguments = kernel.arguments(batch, device, mode)
        self._leaves: list[Tensor] = []
        if work.kind != "kernel":
            self._leaves = [t.requires_grad_() for k, t in self._arguments.items() if k != "plane"]
        self._grad: Tensor | None = None

    def _run(self) -> None:
        with torch.set_grad_enabled(bool(self._leaves)):
            made = getattr(kernels, self._operation)(**self._arguments)
        made = made[0] if isinstance(made, tuple) else made
        if not self._leaves:
            return
        if self._grad is None:
            self._grad = torch.randn_like(made)
        torch.autograd.grad(made, self._leaves, self._grad)

    def first(self) -> float:
        """Run once; return the seconds."""
        return seconds_of(self._run, self._device)

    def each(self, count: int) -> list[float]:
        """Return the seconds of runs in a row."""
        return seconds_of_each(self._run, self._device, count)

    def peak(self) -> int | None:
        """Return the peak memory of a run."""
        base = 0 if self._device != "cpu" else (memory.resident() or 0)
        return memory.peak(self._run, self._device, base)

    def check(self, reference: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing: the tests compare the numbers."""
        return {}


def fallen_back(events: list[kernels.Event], device: str) -> list[str]:
    """Return a sentence for each operation that torch's operators did on a card."""
    if not device.startswith("cuda"):
        return []
    found: dict[str, None] = {}
    for e in events:
        if e.by != "triton":
            g = e.geometry
            size = f"{g.inputs} to {g.channels} channels, {g.height} x {g.width}"
            kind = str(e.dtype).removeprefix("torch.")
            found[f"{e.operation} ({size}, {kind}): {e.reason}"] = None
    return list(found)


def refuse(rows: list[dict[str, Any]]) -> None:
    """Raise an error that names what fell back on the card.

    Raises:
        FellBackError: something did.
    """
    found = dict.fromkeys(said for row in rows for said in row.get("fell_back", ()))
    if found:
        raise FellBackError(
            f"{len(found)} operations of official sizes fell back from the Triton kernels to "
            f"torch's own operators on this card: {'; '.join(list(found)[:8])}. Their rows are in "
            "the results, marked; the kernels need work there."
        )
