"""Operations of the kernels, and the same by torch's own autograd, in float64."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsconvert import kernels
from dsconvert.kernels import Tile

EPS = 1e-5
NAMES = ("x", "weight", "bias", "noise", "gain", "shift")
SMALL = Tile(numbers=16, channels=2, warps=1)
"""Several programs even for a tiny map."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def quick() -> None:
    """Spare Triton's interpreter its checks for overflow, which take half of its time."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation: ``operation`` is depthwise, noise_gate or batch_norm_gate."""

    operation: str
    side: int = 0
    """Of the filter: 0: none; 3; 4: transposed."""
    rank: int = 1
    multiplier: int = 1
    size: tuple[int, int, int, int] = (2, 2, 3, 5)
    """N, groups, H, W."""
    dtype: torch.dtype = torch.float64
    last: bool = False
    gate: bool = True
    bias: bool = True
    noise: int | None = 1
    """The numbers of the noise's weight; 0: one a channel."""
    planes: int | None = None
    """The samples of the plane; None: N."""
    per_sample: bool = False

    def __str__(self) -> str:
        changed = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }
        return "-".join(f"{k}={v}" for k, v in changed.items()).replace(" ", "")

    def tensors(self) -> dict[str, Tensor | None]:
        """Make the arguments."""
        n, groups, h, w = self.size
        inputs, c = groups * self.rank, groups * self.multiplier
        random = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            drawn = torch.randn(*shape, generator=random, dtype=torch.float64)
            return drawn.to(DEVICE, self.dtype)

        def kept(t: Tensor) -> Tensor:  # parameters in single precision, as with autocast
            return t.float() if self.dtype in (torch.float16, torch.bfloat16) else t

        form = torch.channels_last if self.last else torch.contiguous_format
        step = 2 if self.side == 4 else 1
        affine = (n, c) if self.per_sample else (c,)
        noisy = self.noise is not None and self.operation != "depthwise"
        given = self.operation != "depthwise"
        planes = n if self.planes is None else self.planes
        return {
            "x": draw(n, inputs, h, w).contiguous(memory_format=form),
            "weight": kept(draw(c, self.rank, self.side, self.side)) if self.side else None,
            "bias": kept(draw(c)) if self.bias and self.side else None,
            "noise": kept(draw(self.noise or c)) if noisy else None,
            "gain": kept(draw(*affine)) if given else None,
            "shift": kept(draw(*affine)) if given else None,
            "plane": draw(planes, 1, h * step, w * step) if noisy else None,
        }

    def run(self, backend: Any, tile: Tile | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Return outputs and gradients by the operators; checks which backend ran."""
        given = self.tensors()
        leaves = {k: t.requires_grad_() for k in NAMES if (t := given[k]) is not None}
        with kernels.using(backend, tile=tile), kernels.recording() as events:
            outputs = self._called(given)
            found = torch.autograd.grad(_projected(outputs[0]), list(leaves.values()))
        assert {e.by for e in events} == {backend}, events
        assert len(events) == 2 + (self.side > 0 and self.operation != "depthwise")
        return [o.detach() for o in outputs], list(found)

    def _called(self, given: dict[str, Any]) -> tuple[Tensor, ...]:
        front = {k: given[k] for k in ("weight", "bias", "noise", "plane")}
        if self.operation == "depthwise":
            return (kernels.depthwise(given["x"], given["weight"], given["bias"]),)
        if self.operation == "noise_gate":
            made = kernels.noise_gate(
                given["x"], **front, scale=given["gain"], shift=given["shift"], gate=self.gate
            )
            return (made,)
        return kernels.batch_norm_gate(
            given["x"], given["gain"], given["shift"], **front, eps=EPS, gate=self.gate
        )

    def reference(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the same by torch's operators and autograd, in float64."""
        given = {k: None if t is None else t.double() for k, t in self.tensors().items()}
        leaves = {k: t.requires_grad_() for k in NAMES if (t := given[k]) is not None}
        outputs = self._plain(given)
        found = torch.autograd.grad(_projected(outputs[0]), list(leaves.values()))
        return [o.detach() for o in outputs], list(found)

    def _plain(self, given: dict[str, Any]) -> tuple[Tensor, ...]:
        groups = self.size[1]
        y, weight, bias = given["x"], given["weight"], given["bias"]
        if self.side == 3:
            y = F.conv2d(y, weight, bias, padding=1, groups=groups)
        elif self.side == 4:
            weight = weight.reshape(y.shape[1], -1, 4, 4)
            y = F.conv_transpose2d(y, weight, bias, stride=2, padding=1, groups=groups)
        if self.operation == "depthwise":
            return (y,)
        if given["noise"] is not None:
            y = y + given["noise"].reshape(1, -1, 1, 1) * given["plane"]
        statistics: tuple[Tensor, ...] = ()
        if self.operation == "batch_norm_gate":
            var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
            statistics = (mean, var)
            y = F.batch_norm(y, None, None, training=True, eps=EPS)
        gain, shift = (given[k].reshape(-1, y.shape[1], 1, 1) for k in ("gain", "shift"))
        y = y * gain + shift
        return (F.glu(y, 1) if self.gate else y, *statistics)


def _projected(y: Tensor) -> Tensor:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (y * weights.to(y)).sum()


TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 4e-2,
}
"""Of the largest number of a tensor."""


def check(case: Case, backend: Any, tile: Tile | None = None) -> None:
    """Compare outputs, gradients and layouts with the reference."""
    wanted, made = case.reference(), case.run(backend, tile)
    for kind, many, others in zip(("output", "gradient"), made, wanted, strict=True):
        for i, (got, want) in enumerate(zip(many, others, strict=True)):
            assert got.shape == want.shape
            size = want.abs().max().item()
            error = (got.double() - want).abs().max().item()
            assert error <= TOLERANCE[case.dtype] * max(size, 1.0), (kind, i, error, size)
    form = torch.channels_last if case.last else torch.contiguous_format
    assert made[0][0].is_contiguous(memory_format=form)
    assert made[0][0].dtype == made[1][0].dtype == case.dtype
