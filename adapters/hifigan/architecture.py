"""The generator of HiFi-GAN, state-dict compatible with jik876/hifi-gan.

Written afresh after Kong et al., "HiFi-GAN: Generative Adversarial Networks for Efficient and High
Fidelity Speech Synthesis" (NeurIPS 2020), section 2.2 and appendix A.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

SLOPE = 0.1
"""Of the leaky units between convolutions; the last one has torch's default."""


def _normed(conv: nn.Module, norm: str) -> Any:
    if norm == "param":
        return parametrizations.weight_norm(conv)
    if norm == "hook":
        with warnings.catch_warnings():
            # The files have the names of this form, which newer versions of torch advise against.
            warnings.simplefilter("ignore", FutureWarning)
            return weight_norm(conv)
    return conv


def _conv(inputs: int, outputs: int, kernel: int, *, dilation: int = 1, norm: str) -> Any:
    made = nn.Conv1d(
        inputs, outputs, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2
    )
    return _normed(made, norm)


class ResBlock1(nn.Module):
    """Residual pairs of a dilated and a plain convolution (versions 1 and 2)."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int], *, norm: str) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            _conv(channels, channels, kernel, dilation=d, norm=norm) for d in dilations
        )
        self.convs2 = nn.ModuleList(_conv(channels, channels, kernel, norm=norm) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T), kept."""
        for first, second in zip(self.convs1, self.convs2, strict=True):
            h = first(F.leaky_relu(x, SLOPE))
            x = second(F.leaky_relu(h, SLOPE)) + x
        return x


class ResBlock2(nn.Module):
    """Residual dilated convolutions (version 3)."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int], *, norm: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            _conv(channels, channels, kernel, dilation=d, norm=norm) for d in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T), kept."""
        for conv in self.convs:
            x = conv(F.leaky_relu(x, SLOPE)) + x
        return x


class Generator(nn.Module):
    """Mel spectrograms (N, num_mels, frames) to sounds (N, 1, frames * hop) in [-1, 1].

    Args:
        resblock: ``1`` or ``2``.
        upsample_rates: of each stage; their product is the hop.
        upsample_kernel_sizes: of each stage.
        upsample_initial_channel: halved by each stage.
        resblock_kernel_sizes: of the blocks of a stage, whose results are averaged.
        resblock_dilation_sizes: of their convolutions.
        num_mels: bands.
        norm: weight norm: ``hook`` (as in the original's files), ``param`` (newer torch) or
            ``none`` (removed).
    """

    def __init__(
        self,
        *,
        resblock: str,
        upsample_rates: Sequence[int],
        upsample_kernel_sizes: Sequence[int],
        upsample_initial_channel: int,
        resblock_kernel_sizes: Sequence[int],
        resblock_dilation_sizes: Sequence[Sequence[int]],
        num_mels: int = 80,
        norm: str = "hook",
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.num_mels, self.num_kernels = num_mels, len(resblock_kernel_sizes)
        channels = upsample_initial_channel
        self.conv_pre = _conv(num_mels, channels, 7, norm=norm)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        kind: Any = ResBlock1 if resblock == "1" else ResBlock2
        for rate, kernel in zip(upsample_rates, upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(
                channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2
            )
            self.ups.append(_normed(up, norm))
            channels //= 2
            for size, dilations in zip(resblock_kernel_sizes, resblock_dilation_sizes, strict=True):
                self.resblocks.append(kind(channels, size, dilations, norm=norm))
        self.conv_post = _conv(channels, 1, 7, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Make sounds."""
        x = self.conv_pre(x)
        blocks = list(self.resblocks)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            here = blocks[i * self.num_kernels : (i + 1) * self.num_kernels]
            total = here[0](x)
            for block in here[1:]:
                total = total + block(x)
            x = total / self.num_kernels
        return torch.tanh(self.conv_post(F.leaky_relu(x)))
