"""StyleGAN2's generator, state-dict compatible with rosinality/stylegan2-pytorch.

Written afresh after Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020).
Names, shapes and the arguments of a call are the original's, so that a state dict serves both.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modulated import Blur, ModulatedConv2d

_ROOT2 = math.sqrt(2.0)
TAPS = (1.0, 3.0, 3.0, 1.0)
"""The usual low-pass filter, in each direction."""


def low_pass(size: int = len(TAPS)) -> Tensor:
    """Return the filter (size, size) behind a layer that upsamples: its sum is 4."""
    taps = torch.tensor(TAPS) if size == len(TAPS) else torch.ones(size)
    taps = taps / taps.sum()
    return torch.outer(taps, taps) * 4


class PixelNorm(nn.Module):
    """Give latents (N, W) mean square one."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the original's name, also below)
        """(N, W) to (N, W)."""
        return input * torch.rsqrt(input.square().mean(1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: the stored weight is scaled when it is used."""

    def __init__(
        self, in_dim: int, out_dim: int, bias_init: float = 0.0, lr_mul: float = 1.0,
        activation: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_dim,), float(bias_init)))
        self.activation, self.lr_mul = activation, float(lr_mul)
        self.scale = lr_mul / math.sqrt(in_dim)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(N, I) to (N, O)."""
        y = F.linear(input, self.weight * self.scale, self.bias * self.lr_mul)
        return F.leaky_relu(y, 0.2) * _ROOT2 if self.activation else y


class FusedLeakyReLU(nn.Module):
    """Add a bias (C,), then a leaky ReLU that keeps the variance."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(N, C, H, W) to (N, C, H, W)."""
        return F.leaky_relu(input + self.bias[:, None, None], 0.2) * _ROOT2


class NoiseInjection(nn.Module):
    """Add one plane of noise to all channels, scaled by a learned ``weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Add ``noise`` (N, 1, H, W), drawn anew where it is None, to maps (N, C, H, W)."""
        if noise is None:
            n, _, height, width = image.shape
            noise = image.new_empty(n, 1, height, width).normal_()
        return image + self.weight * noise


class ConstantInput(nn.Module):
    """The learned first map."""

    def __init__(self, channel: int, size: int = 4) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channel, size, size))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the map as often as ``input`` has rows: (N, C, 4, 4)."""
        return self.input.expand(input.shape[0], -1, -1, -1)


class Upsample(nn.Module):
    """Zero-insertion x2 and a low-pass filter, for images."""

    kernel: Tensor

    def __init__(self, taps: int) -> None:
        super().__init__()
        self.register_buffer("kernel", low_pass(taps))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(N, 3, H, W) to (N, 3, 2H, 2W)."""
        # Old versions of torch.jit take no traced size for a padding.
        size = int(self._buffers["kernel"].shape[-1])  # type: ignore[union-attr]
        kernel = self.kernel.expand(3, 1, size, size)
        return F.conv_transpose2d(input, kernel, stride=2, padding=size // 2 - 1, groups=3)


def _modulated(
    inp: int, outs: int, size: int, style_dim: int, *, demodulate: bool = True, taps: int = 0
) -> ModulatedConv2d:
    """Return a modulated convolution with random weights; it upsamples where it has ``taps``."""
    weight = nn.Parameter(torch.randn(1, outs, inp, size, size))
    modulation = EqualLinear(style_dim, inp, bias_init=1.0)
    extra = taps - 2 - (size - 1)
    blur = Blur(low_pass(taps), ((extra + 1) // 2 + 1, extra // 2 + 1)) if taps else None
    return ModulatedConv2d(weight, modulation, demodulate=demodulate, blur=blur)


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias and activation."""

    def __init__(self, in_channel: int, out_channel: int, style_dim: int, taps: int = 0) -> None:
        super().__init__()
        self.conv = _modulated(in_channel, out_channel, 3, style_dim, taps=taps)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(out_channel)

    def forward(self, input: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:  # noqa: A002
        """(N, I, H, W) and latents (N, W) to (N, O, H', W')."""
        return self.activate(self.noise(self.conv(input, style), noise))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to an image, added to the upsampled image so far."""

    def __init__(self, in_channel: int, style_dim: int, taps: int = 0) -> None:
        super().__init__()
        if taps:
            self.upsample = Upsample(taps)
        self.conv = _modulated(in_channel, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, input: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:  # noqa: A002
        """(N, I, H, W) and latents (N, W) to (N, 3, H, W)."""
        out = self.conv(input, style) + self.bias
        return out if skip is None else out + self.upsample(skip)


class Generator(nn.Module):
    """The whole generator: latents (N, W) to images in about [-1, 1].

    Args:
        channels: of the maps of 4, 8, 16, ... pixels.
        style_dim: the size W of a latent.
        n_mlp: layers of the mapping network.
        taps: the size of the low-pass filter, in each direction.
        lr_mlp: the learning rate of the mapping network, relative to that of the others.
    """

    def __init__(
        self,
        channels: Sequence[int],
        style_dim: int = 512,
        n_mlp: int = 8,
        taps: int = len(TAPS),
        lr_mlp: float = 0.01,
    ) -> None:
        super().__init__()
        self.size, self.style_dim, self.n_mlp = 2 << len(channels), style_dim, n_mlp
        mapping = [
            EqualLinear(style_dim, style_dim, lr_mul=lr_mlp, activation="fused_lrelu")
            for _ in range(n_mlp)
        ]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        first = channels[0]
        self.input = ConstantInput(first)
        self.conv1 = StyledConv(first, first, style_dim)
        self.to_rgb1 = ToRGB(first, style_dim)
        self.num_layers, self.n_latent = 2 * len(channels) - 1, 2 * len(channels)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        self.noises = nn.Module()
        for i in range(self.num_layers):
            side = 4 << ((i + 1) // 2)
            self.noises.register_buffer(f"noise_{i}", torch.randn(1, 1, side, side))
        for before, after in pairwise(channels):
            self.convs.append(StyledConv(before, after, style_dim, taps=taps))
            self.convs.append(StyledConv(after, after, style_dim))
            self.to_rgbs.append(ToRGB(after, style_dim, taps=taps))

    def mean_latent(self, n_latent: int) -> Tensor:
        """Return the mean (1, W) of ``n_latent`` mapped latents, for truncation."""
        device = self.input.input.device
        z = torch.randn(n_latent, self.style_dim, device=device)
        return self.style(z).mean(0, keepdim=True)

    def forward(
        self,
        styles: Any,
        return_latents: bool = False,
        inject_index: int | None = None,
        truncation: float = 1,
        truncation_latent: Any = None,
        input_is_latent: bool = False,
        noise: Any = None,
        randomize_noise: bool = True,
    ) -> Any:
        """Return images (N, 3, R, R); the original returns a pair of them and None.

        Args:
            styles: latents (N, W); or a list of one such, or of two, whose styles are mixed.
            return_latents: whether a pair is returned: images, and the layers' latents (N, L, W).
            inject_index: the layer from which on the second style counts; None: a random one.
            truncation: 1 leaves the mapped latents as they are, 0 makes them the mean.
            truncation_latent: that mean (1, W).
            input_is_latent: whether ``styles`` are mapped latents, also (N, L, W).
            noise: planes for the layers; None: see the next.
            randomize_noise: whether noise is drawn anew; otherwise it is the stored one.
        """
        given = list(styles) if isinstance(styles, list | tuple) else [styles]
        mapped = given if input_is_latent else [self.style(s) for s in given]
        if noise is None:
            stored = self.noises._buffers
            noise = [None if randomize_noise else stored[f"noise_{i}"] for i in self._layers()]
        if truncation < 1:
            mapped = [truncation_latent + truncation * (w - truncation_latent) for w in mapped]
        latent = self._all_layers(mapped, inject_index, input_is_latent)
        out = self.conv1(self.input(latent), latent[:, 0], noise[0])
        skip = self.to_rgb1(out, latent[:, 1])
        for i, to_rgb in enumerate(self.to_rgbs):
            first, second = 2 * i, 2 * i + 1
            out = self.convs[first](out, latent[:, first + 1], noise[first + 1])
            out = self.convs[second](out, latent[:, second + 1], noise[second + 1])
            skip = to_rgb(out, latent[:, second + 2], skip)
        return (skip, latent) if return_latents else skip

    def _layers(self) -> range:
        return range(self.num_layers)

    def _all_layers(self, mapped: list[Any], inject_index: int | None, wide: bool) -> Any:
        """Return the latents (N, L, W) of all layers."""
        first = mapped[0]
        if len(mapped) == 1:
            if wide and first.ndim == 3:
                return first
            return first.unsqueeze(1).repeat(1, self.n_latent, 1)
        cut = random.randint(1, self.n_latent - 1) if inject_index is None else inject_index
        parts = [
            first.unsqueeze(1).repeat(1, cut, 1),
            mapped[1].unsqueeze(1).repeat(1, self.n_latent - cut, 1),
        ]
        return torch.cat(parts, 1)
