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
            loss = _projected(outputs[0], self.dtype)
            found = torch.autograd.grad(loss, list(leaves.values()))
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

    def reference(self) -> tuple[list[Tensor], list[Tensor], dict[str, float]]:
        """Return the same by torch's operators and autograd, in float64, and how large it is.

        The noise's gradient sums numbers of both signs and may be 0 by chance. Errors of its terms
        that do not depend on each other add up to that share of the root of the terms' squares,
        which those of the channels, that are independent too, stand for here.
        """
        given = {k: None if t is None else t.double() for k, t in self.tensors().items()}
        if given["noise"] is not None:
            given["noise"] = given["noise"].expand(self.size[1] * self.multiplier).clone()
        leaves = {k: t.requires_grad_() for k in NAMES if (t := given[k]) is not None}
        outputs = self._plain(given)
        found = torch.autograd.grad(_projected(outputs[0], self.dtype), list(leaves.values()))
        gradients = dict(zip(leaves, found, strict=True))
        sizes = {k: t.abs().max().item() for k, t in gradients.items()}
        if "noise" in gradients:
            sizes["noise"] = gradients["noise"].norm().item()
            if self.noise == 1:
                gradients["noise"] = gradients["noise"].sum().view(1)
        return [o.detach() for o in outputs], list(gradients.values()), sizes

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


def _projected(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a number whose gradient for y is the same in float64 as in the case's type."""
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (y * weights.to(dtype).to(y)).sum()


TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 4e-2,
}
"""Of the largest number of a tensor. The programs compute in float32 or float64 and round a map
when they store it, by half a unit in the last place: 2**-9 in bfloat16, 2**-12 in float16. A
gradient is made of two rounded maps (the output's gradient is the reference's own), and a number of
it, a sum of n products, is off by at most that share of the sum of their sizes, sqrt(n) times
the typical sum: 10 and 16 units are left for n up to 16 taps; over more pixels errors cancel. In
float32, sums over n pixels and ``tl.exp`` (2 units) are off by some 100 units, 2**-24 each."""


def check(case: Case, backend: Any, tile: Tile | None = None) -> None:
    """Compare outputs, gradients and layouts with the reference."""
    outputs, gradients, sizes = case.reference()
    made, found = case.run(backend, tile)
    names = ["output", "mean", "var"][: len(outputs)]
    sizes |= {k: t.abs().max().item() for k, t in zip(names, outputs, strict=True)}
    wrong: list[str] = []
    names += [k for k in NAMES if k in sizes]
    for name, got, want in zip(names, made + found, outputs + gradients, strict=True):
        assert got.shape == want.shape
        error = (got.double() - want).abs().max().item() / max(sizes[name], 1.0)
        if not error <= TOLERANCE[case.dtype]:
            wrong.append(f"{name} is off by {error:.2g}")
    assert not wrong, f"{case}: {', '.join(wrong)}"
    form = torch.channels_last if case.last else torch.contiguous_format
    assert made[0].is_contiguous(memory_format=form)
    assert made[0].dtype == found[0].dtype == case.dtype
