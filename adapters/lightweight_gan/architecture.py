"""The generator of lightweight-gan, state-dict compatible, in plain torch.

Written afresh after the FastGAN paper (Liu et al. 2021), with what the package has in its places:
pixel-shuffle upsamples (Shi et al. 2016), global context (Cao et al. 2020) or frequency channel
attention (Qin et al. 2021) as skip-layer gates, and linear plus local attention. All sizes are
given explicitly, since a file tells them by its shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

SKIPS = {3: 7, 4: 8, 5: 9, 6: 10}
"""log2 of the map a gate reads (before its block) to log2 of the map that it gates."""
_FREQUENCIES = 8


class ChanNorm(nn.Module):
    """Normalisation over channels: (N, C, H, W), kept."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero mean and unit variance a pixel, then gain and bias a channel."""
        var = torch.var(x, dim=1, unbiased=False, keepdim=True)
        mean = torch.mean(x, dim=1, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * self.g + self.b


class Noise(nn.Module):
    """Adds one plane of normal noise to all channels, scaled by a learned weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W), kept; ``noise`` is (N, 1, H, W), drawn on the map's device if None."""
        if noise is None:
            n, _, height, width = x.shape
            noise = torch.randn(n, 1, height, width, device=x.device).to(self.weight.dtype)
        return x + self.weight * noise


class Blur(nn.Module):
    """A [1, 2, 1] binomial filter with reflected borders (option ``antialias``)."""

    f: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), kept."""
        channels = x.size(1)
        kernel = self.f[:, None] * self.f[None, :]
        kernel = (kernel / kernel.abs().sum()).to(x.dtype).expand(channels, 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=channels)


class DepthWiseConv2d(nn.Module):
    """Depthwise, then pointwise."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
            nn.Conv2d(dim, out, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, O, H, W)."""
        return self.net(x)


class LinearAttention(nn.Module):
    """Linear attention over the whole map beside softmax attention over 3 x 3 neighbours."""

    def __init__(self, dim: int, dim_head: int = 64, heads: int = 8) -> None:
        super().__init__()
        self.heads, self.dim_head, self.scale = heads, dim_head, dim_head**-0.5
        inner = dim_head * heads
        self.nonlin = nn.GELU()
        self.to_lin_q = nn.Conv2d(dim, inner, 1, bias=False)
        self.to_lin_kv = DepthWiseConv2d(dim, inner * 2)
        self.to_q = nn.Conv2d(dim, inner, 1, bias=False)
        self.to_kv = nn.Conv2d(dim, inner * 2, 1, bias=False)
        self.to_out = nn.Conv2d(inner * 2, dim, 1)

    def forward(self, fmap: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), kept."""
        n, _, height, width = fmap.shape
        h, d = self.heads, self.dim_head

        def rows(x: torch.Tensor) -> torch.Tensor:  # (N, h d, H, W) -> (N h, H W, d)
            return x.reshape(n * h, d, height * width).transpose(1, 2)

        k, v = self.to_lin_kv(fmap).chunk(2, dim=1)
        q = rows(self.to_lin_q(fmap)).softmax(dim=-1) * self.scale
        context = rows(k).softmax(dim=-2).transpose(1, 2) @ rows(v)
        linear = (q @ context).transpose(1, 2).reshape(n, h * d, height, width)

        k, v = self.to_kv(fmap).chunk(2, dim=1)

        def near(x: torch.Tensor) -> torch.Tensor:  # (N, h d, H, W) -> (N h, H W, 9, d)
            patches = F.unfold(x.reshape(n * h, d, height, width), 3, padding=1)
            return patches.reshape(n * h, d, 9, height * width).permute(0, 3, 2, 1)

        q = rows(self.to_q(fmap)) * self.scale
        similar = torch.einsum("bid,bijd->bij", q, near(k))
        local = torch.einsum("bij,bijd->bid", similar.softmax(dim=-1), near(v))
        local = local.transpose(1, 2).reshape(n, h * d, height, width)
        return self.to_out(torch.cat((self.nonlin(linear), local), dim=1))


class PreNorm(nn.Module):
    """Normalise, then attend."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.fn = LinearAttention(dim, heads=heads)
        self.norm = ChanNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), kept."""
        return self.fn(self.norm(x))


class PixelShuffleUpsample(nn.Module):
    """(N, C, H, W) -> (N, C, 2H, 2W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(dim, dim * 4, 1), nn.SiLU(), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Four times the channels, shuffled into space."""
        return self.net(x)


def _gate(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, middle, 1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(middle, outputs, 1),
        nn.Sigmoid(),
    )


class GlobalContext(nn.Module):
    """A gate from an attention-pooled map: (N, I, h, w) -> (N, O, 1, 1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.to_k = nn.Conv2d(inputs, 1, 1)
        self.net = _gate(inputs, max(3, outputs // 2), outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool by softmax weights, then two 1x1 convolutions."""
        weights = self.to_k(x).flatten(2).softmax(dim=-1)
        pooled = (x.flatten(2) * weights).sum(-1)
        return self.net(pooled[:, :, None, None])


class FCANet(nn.Module):
    """A gate from one cosine coefficient a channel: (N, I, w, w) -> (N, O, 1, 1)."""

    dct_weights: torch.Tensor

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.register_buffer("dct_weights", _cosines(width, inputs))
        self.net = _gate(inputs, max(3, outputs // 4), outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Coefficients, then two 1x1 convolutions."""
        return self.net((x * self.dct_weights).sum((2, 3), keepdim=True))


def _cosines(width: int, channels: int) -> torch.Tensor:
    """DCT-II basis images (1, C, width, width): eight low frequencies a direction."""
    weights = torch.zeros(1, channels, width, width)
    if weights.is_meta:
        return weights  # a file brings the values
    rows, columns = [0] * _FREQUENCIES, list(range(_FREQUENCIES))
    place = torch.arange(width, dtype=torch.float64) + 0.5

    def basis(frequency: int) -> torch.Tensor:
        wave = torch.cos(math.pi * frequency * place / width) / math.sqrt(width)
        return wave if frequency == 0 else wave * math.sqrt(2)

    part = channels // (2 * _FREQUENCIES)
    for i, (u, v) in enumerate(zip(rows + columns, columns + rows, strict=True)):
        weights[:, i * part : (i + 1) * part] = torch.outer(basis(u), basis(v)).float()
    return weights


class Generator(nn.Module):
    """Latents (N, latent_dim) to images (N, C, image_size, image_size), about in [0, 1].

    Args:
        latent_dim: size of the latents.
        channels: channels in front of each block, and of the last map (one more than blocks).
        out_channels: of the image.
        gates: block number to ``context`` or ``frequency``; the gate reads that block's output.
        attention: block number to the number of heads.
        antialias: a blur behind each upsample.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        channels: Sequence[int],
        out_channels: int = 3,
        gates: Mapping[int, str] | None = None,
        attention: Mapping[int, int] | None = None,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim, self.image_size = latent_dim, 2 ** (len(channels) + 1)
        self.initial_conv = nn.Sequential(
            nn.ConvTranspose2d(latent_dim, latent_dim * 2, 4),
            nn.BatchNorm2d(latent_dim * 2),
            nn.GLU(dim=1),
        )
        gates, attention = gates or {}, attention or {}
        self.layers = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(pairwise(channels)):
            up = nn.Sequential(
                PixelShuffleUpsample(inputs),
                Blur() if antialias else nn.Identity(),
                # An even kernel keeps the size with a pixel more on one side.
                nn.Sequential(nn.ZeroPad2d((2, 1, 2, 1)), nn.Conv2d(inputs, outputs * 2, 4)),
                Noise(),
                nn.BatchNorm2d(outputs * 2),
                nn.GLU(dim=1),
            )
            gate: nn.Module | None = None
            if i in gates:
                gated = channels[SKIPS[i + 2] - 2]
                gate = (
                    FCANet(outputs, gated, 2 ** (i + 3))
                    if gates[i] == "frequency"
                    else GlobalContext(outputs, gated)
                )
            attend = PreNorm(inputs, attention[i]) if i in attention else None
            layer: list[Any] = [up, gate, attend]
            self.layers.append(nn.ModuleList(layer))
        self.out_conv = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, latent_dim) -> (N, C, R, R)."""
        x = F.normalize(self.initial_conv(x[:, :, None, None]), dim=1)
        waiting: dict[int, torch.Tensor] = {}
        for i, layer in enumerate(self.layers):
            parts: Any = layer
            up, gate, attend = parts[0], parts[1], parts[2]
            if attend is not None:
                x = attend(x) + x
            x = up(x)
            if gate is not None:
                waiting[SKIPS[i + 2]] = gate(x)
            if i + 3 in waiting:
                x = x * waiting[i + 3]
        return self.out_conv(x)
