"""The image-to-image generators of CycleGAN, pix2pix and CUT, state-dict compatible with them.

Written afresh after Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent
Adversarial Networks" (ICCV 2017), Isola et al., "Image-to-Image Translation with Conditional
Adversarial Networks" (CVPR 2017), and Zhang, "Making Convolutional Networks Shift-Invariant Again"
(ICML 2019), whose filters CUT resamples with. Names and shapes are the originals'.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["instance", "batch", "none"]
NORMS: tuple[Norm, ...] = ("instance", "batch", "none")


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(channels) if kind == "instance" else nn.Identity()


def _filters(taps: tuple[float, ...], channels: int, gain: float = 1.0) -> Tensor:
    """Return one low-pass filter for each channel: (C, 1, k, k), each with the sum ``gain``."""
    line = torch.tensor(taps)
    kernel = torch.outer(line, line) / line.sum() ** 2 * gain
    return kernel.repeat(channels, 1, 1, 1)


class Downsample(nn.Module):
    """Low-pass filter (1, 2, 1) in both directions, then every second pixel."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("filt", _filters((1.0, 2.0, 1.0), channels))

    def forward(self, inp: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H/2, W/2)."""
        padded = F.pad(inp, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.filt, stride=2, groups=inp.shape[1])


class Upsample(nn.Module):
    """Zero-insertion x2 and the low-pass filter (1, 3, 3, 1) in both directions."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("filt", _filters((1.0, 3.0, 3.0, 1.0), channels, 4.0))

    def forward(self, inp: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 2H, 2W); border pixels are repeated outside."""
        padded = F.pad(inp, (1, 1, 1, 1), mode="replicate")
        # One pixel of padding at either side is two of the result, and the filter adds one.
        return F.conv_transpose2d(padded, self.filt, stride=2, padding=3, groups=inp.shape[1])


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, dim: int, norm: Norm, *, use_dropout: bool, reflect: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for last in (False, True):
            layers += [nn.ReflectionPad2d(1)] if reflect else []
            padding = 0 if reflect else 1
            layers.append(nn.Conv2d(dim, dim, 3, padding=padding, bias=norm == "instance"))
            layers.append(_norm(norm, dim))
            if not last:
                layers += [nn.ReLU(), *([nn.Dropout(0.5)] if use_dropout else [])]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """Pictures (N, input_nc, H, W) in [-1, 1] to pictures of the same size; sides divide by 4.

    Args:
        input_nc: channels of the input.
        output_nc: channels of the output.
        ngf: channels of the first map.
        norm: the kind of normalisation.
        use_dropout: whether the blocks have dropout.
        n_blocks: residual blocks at a quarter of the size.
        reflect: whether the blocks mirror pixels at the border; otherwise they pad by zeros.
        blur_down: whether :class:`Downsample` halves maps (CUT), not a stride of the convolution.
        blur_up: whether :class:`Upsample` doubles maps (CUT), not a transposed convolution.
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        norm: Norm = "instance",
        *,
        use_dropout: bool = False,
        n_blocks: int = 9,
        reflect: bool = True,
        blur_down: bool = False,
        blur_up: bool = False,
    ) -> None:
        super().__init__()
        self.input_nc, self.output_nc, self.ngf, self.norm = input_nc, output_nc, ngf, norm
        self.n_blocks, self.blur_down, self.blur_up = n_blocks, blur_down, blur_up
        bias = norm == "instance"
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(input_nc, ngf, 7, bias=bias)]
        layers += [_norm(norm, ngf), nn.ReLU()]
        for size in (ngf, 2 * ngf):
            stride = 1 if blur_down else 2
            layers.append(nn.Conv2d(size, 2 * size, 3, stride=stride, padding=1, bias=bias))
            layers += [_norm(norm, 2 * size), nn.ReLU()]
            layers += [Downsample(2 * size)] if blur_down else []
        for _ in range(n_blocks):
            layers.append(ResnetBlock(4 * ngf, norm, use_dropout=use_dropout, reflect=reflect))
        for size in (4 * ngf, 2 * ngf):
            if blur_up:
                layers += [Upsample(size), nn.Conv2d(size, size // 2, 3, padding=1, bias=bias)]
            else:
                layers.append(
                    nn.ConvTranspose2d(
                        size, size // 2, 3, stride=2, padding=1, output_padding=1, bias=bias
                    )
                )
            layers += [_norm(norm, size // 2), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the original's name)
        """(N, input_nc, H, W) to (N, output_nc, H, W)."""
        return self.model(input)


class UnetSkipConnectionBlock(nn.Module):
    """Halve the map, run an inner block, double the map; beside it the input, as further channels.

    Args:
        outer: channels of the result of this block, without those of its input.
        inner: channels of the halved map.
        submodule: the inner block; None: this is the innermost one.
        norm: the kind of normalisation.
        input_nc: channels of a picture, for the outermost block, which returns a picture.
        use_dropout: whether the block ends in dropout.
    """

    def __init__(
        self,
        outer: int,
        inner: int,
        submodule: nn.Module | None,
        norm: Norm,
        *,
        input_nc: int | None = None,
        use_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.outermost = input_nc is not None
        bias = norm == "instance"
        halve = nn.Conv2d(
            outer if input_nc is None else input_nc, inner, 4, stride=2, padding=1, bias=bias
        )
        double = nn.ConvTranspose2d(
            inner if submodule is None else 2 * inner, outer, 4, stride=2, padding=1,
            bias=bias or self.outermost,
        )  # fmt: skip
        layers: list[nn.Module] = [halve] if self.outermost else [nn.LeakyReLU(0.2), halve]
        if submodule is not None:
            layers += [] if self.outermost else [_norm(norm, inner)]
            layers.append(submodule)
        layers += [nn.ReLU(), double, nn.Tanh() if self.outermost else _norm(norm, outer)]
        layers += [nn.Dropout(0.5)] if use_dropout else []
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to a picture, or to (N, C + outer, H, W)."""
        made = self.model(x)
        return made if self.outermost else torch.cat([x, made], 1)


class UnetGenerator(nn.Module):
    """Pictures (N, input_nc, H, W) in [-1, 1] to pictures of the same size.

    Args:
        input_nc: channels of the input.
        output_nc: channels of the output.
        num_downs: how often maps are halved; sides divide by two to this power.
        ngf: channels of the first map.
        norm: the kind of normalisation.
        use_dropout: whether inner blocks have dropout; no state dict shows it.
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        num_downs: int = 8,
        ngf: int = 64,
        norm: Norm = "batch",
        *,
        use_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.input_nc, self.output_nc, self.ngf, self.norm = input_nc, output_nc, ngf, norm
        self.num_downs = num_downs
        block = UnetSkipConnectionBlock(8 * ngf, 8 * ngf, None, norm)
        for _ in range(num_downs - 5):
            block = UnetSkipConnectionBlock(8 * ngf, 8 * ngf, block, norm, use_dropout=use_dropout)
        for outer in (4 * ngf, 2 * ngf, ngf):
            block = UnetSkipConnectionBlock(outer, 2 * outer, block, norm)
        self.model = UnetSkipConnectionBlock(output_nc, ngf, block, norm, input_nc=input_nc)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the original's name)
        """(N, input_nc, H, W) to (N, output_nc, H, W)."""
        return self.model(input)
