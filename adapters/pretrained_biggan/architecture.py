"""The BigGAN-deep of ``pytorch-pretrained-biggan``, state-dict compatible.

Written afresh after Brock et al., "Large Scale GAN Training for High Fidelity Natural Image
Synthesis" (ICLR 2019), appendix B. The normalisations hold statistics for several strengths of
truncation, between which they interpolate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init, spectral_norm
from torch.nn.utils.spectral_norm import SpectralNorm

REDUCTION = 4
"""Channels of a block, relative to those inside it."""


def _conv(inputs: int, outputs: int, kernel: int = 1, *, bias: bool = True) -> Any:
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Module:
    return spectral_norm(nn.Linear(inputs, outputs, bias=bias))


class BigGANBatchNorm(nn.Module):
    """Normalisation by stored statistics, one row for each strength of truncation.

    Args:
        channels: of the map.
        condition: size of the condition that gain and bias are linear in; 0: they are constant.
        rows: of the statistics, for truncations from 0 to 1.
        eps: added to variances.
    """

    channels_of = 0
    running_means: Tensor
    running_vars: Tensor

    def __init__(self, channels: int, condition: int, *, rows: int, eps: float) -> None:
        super().__init__()
        self.conditional, self.eps = bool(condition), eps
        self.register_buffer("running_means", torch.zeros(rows, channels))
        self.register_buffer("running_vars", torch.ones(rows, channels))
        if condition:
            self.scale = _linear(condition, channels, bias=False)
            self.offset = _linear(condition, channels, bias=False)
        else:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))

    def _statistics(self, truncation: float) -> tuple[Tensor, Tensor]:
        share, position = math.modf(truncation * (len(self.running_means) - 1))
        row = int(position)
        means, variances = self.running_means, self.running_vars
        if share == 0.0:
            return means[row], variances[row]
        # The share belongs to the lower row: so the original has it, and so its images were made.
        return (
            means[row] * share + means[row + 1] * (1 - share),
            variances[row] * share + variances[row + 1] * (1 - share),
        )

    def forward(self, x: Tensor, truncation: float, condition: Tensor | None = None) -> Tensor:
        """(N, C, H, W), kept; ``condition`` is (N, E)."""
        mean, var = self._statistics(truncation)
        if not self.conditional or condition is None:
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        out = F.batch_norm(x, mean, var, None, None, False, 0.0, self.eps)
        gain, bias = 1 + self.scale(condition), self.offset(condition)
        return out * gain[:, :, None, None] + bias[:, :, None, None]

    def narrow(self, kept: Tensor) -> None:
        """Keep the channels ``kept``; see :class:`dsconvert.adapter.Narrows`."""
        for name in ("running_means", "running_vars"):
            setattr(self, name, getattr(self, name)[:, kept].clone())
        if not self.conditional:
            for name in ("weight", "bias"):
                old = self.get_parameter(name)
                setattr(self, name, nn.Parameter(old.detach()[kept], old.requires_grad))
            return
        for name in ("scale", "offset"):
            layer: Any = self.get_submodule(name)
            weight = _applied(layer)[kept]
            made: Any = skip_init(nn.Linear, layer.in_features, len(kept), bias=False)
            needs = any(p.requires_grad for p in layer.parameters())
            made.weight = nn.Parameter(weight, requires_grad=needs)
            self.add_module(name, made.train(layer.training))

    def follow(self, student: Any, teacher: Any, wanted: Any) -> None:  # noqa: ARG002
        """Move all rows as the statistics of the input have moved; see ``Follows``."""
        (got, got_var), (want, want_var) = _moments(student), _moments(teacher)
        ratio = (got_var + self.eps) / (want_var + self.eps)
        means = got + (self.running_means - want) * ratio.sqrt()
        variances = ((self.running_vars + self.eps) * ratio - self.eps).clamp_min(0)
        if bool(means.isfinite().all()) and bool(variances.isfinite().all()):
            self.running_means.copy_(means)
            self.running_vars.copy_(variances)


def _applied(layer: nn.Module) -> Tensor:
    """Return the weight of a linear layer as applied in eval mode."""
    with torch.no_grad():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                return hook.compute_weight(layer, do_power_iteration=False)
        return layer.get_parameter("weight").detach()


def _moments(calls: Any) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the channels of the first arguments."""
    rows = torch.cat([args[0].transpose(0, 1).flatten(1).double() for args in calls], dim=1)
    return rows.mean(1), rows.var(1, correction=0)


class GenBlock(nn.Module):
    """The bottleneck block; its shortcut drops channels instead of mixing them."""

    def __init__(
        self, inputs: int, outputs: int, condition: int, *, doubles: bool, rows: int, eps: float
    ) -> None:
        super().__init__()
        self.outputs, self.doubles = outputs, doubles
        inner = inputs // REDUCTION
        sizes = ((inputs, inner, 1), (inner, inner, 3), (inner, inner, 3), (inner, outputs, 1))
        for i, (a, b, kernel) in enumerate(sizes):
            self.add_module(f"bn_{i}", BigGANBatchNorm(a, condition, rows=rows, eps=eps))
            self.add_module(f"conv_{i}", _conv(a, b, kernel))

    def forward(self, x: Tensor, condition: Tensor, truncation: float) -> Tensor:
        """(N, I, H, W) -> (N, O, H, W), or twice the size."""
        m: Any = self
        h = m.conv_0(F.relu(m.bn_0(x, truncation, condition)))
        h = F.relu(m.bn_1(h, truncation, condition))
        x = x[:, : self.outputs]
        if self.doubles:
            h = F.interpolate(h, scale_factor=2)
            x = F.interpolate(x, scale_factor=2)
        h = m.conv_1(h)
        h = m.conv_2(F.relu(m.bn_2(h, truncation, condition)))
        return m.conv_3(F.relu(m.bn_3(h, truncation, condition))) + x


class SelfAttn(nn.Module):
    """Self-attention over the map; keys and values are read at half the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.snconv1x1_theta = _conv(channels, channels // 8, bias=False)
        self.snconv1x1_phi = _conv(channels, channels // 8, bias=False)
        self.snconv1x1_g = _conv(channels, channels // 2, bias=False)
        self.snconv1x1_o_conv = _conv(channels // 2, channels, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        theta = self.snconv1x1_theta(x).flatten(2)
        phi = F.max_pool2d(self.snconv1x1_phi(x), 2).flatten(2)
        g = F.max_pool2d(self.snconv1x1_g(x), 2).flatten(2)
        beta = torch.bmm(theta.transpose(1, 2), phi).softmax(-1)
        mixed = torch.bmm(g, beta.transpose(1, 2)).unflatten(2, (x.shape[2], x.shape[3]))
        return x + self.gamma * self.snconv1x1_o_conv(mixed)


class Generator(nn.Module):
    """A condition (N, 2 z_dim) to images (N, 3, R, R) in [-1, 1].

    Args:
        layers: of each block: whether it doubles the size, its inputs and its outputs.
        attention: the number of the attention among the layers.
        condition: size of the condition.
        rows: see :class:`BigGANBatchNorm`.
        eps: of the normalisations.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[int]],
        attention: int,
        condition: int,
        *,
        rows: int,
        eps: float,
    ) -> None:
        super().__init__()
        first, last = layers[0][1], layers[-1][2]
        self.first = first
        self.gen_z = _linear(condition, 16 * first)
        self.layers = nn.ModuleList()
        for i, (doubles, inputs, outputs) in enumerate(layers):
            if i == attention:
                self.layers.append(SelfAttn(inputs))
            self.layers.append(
                GenBlock(inputs, outputs, condition, doubles=bool(doubles), rows=rows, eps=eps)
            )
        self.bn = BigGANBatchNorm(last, 0, rows=rows, eps=eps)
        self.conv_to_rgb = _conv(last, last, 3)

    def forward(self, condition: Tensor, truncation: float) -> Tensor:
        """Make images at a truncation between 0 and 1."""
        h = self.gen_z(condition).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2).contiguous()
        for layer in self.layers:
            h = layer(h, condition, truncation) if isinstance(layer, GenBlock) else layer(h)
        h = self.conv_to_rgb(F.relu(self.bn(h, truncation)))
        return torch.tanh(h[:, :3])


class BigGAN(nn.Module):
    """Latents (N, z_dim) and one-hot classes (N, classes) to images in [-1, 1]."""

    def __init__(
        self,
        *,
        layers: Sequence[Sequence[int]],
        attention: int,
        z_dim: int,
        classes: int,
        rows: int = 51,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.z_dim, self.classes = z_dim, classes
        self.resolution = 4 * 2 ** sum(1 for layer in layers if layer[0])
        self.embeddings = nn.Linear(classes, z_dim, bias=False)
        self.generator = Generator(layers, attention, 2 * z_dim, rows=rows, eps=eps)

    def forward(self, z: Tensor, class_label: Tensor, truncation: float = 1.0) -> Tensor:
        """Make images; the latents are those of the truncation (scaled by it)."""
        condition = torch.cat((z, self.embeddings(class_label)), dim=1)
        return self.generator(condition, truncation)
