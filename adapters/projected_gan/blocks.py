"""Building blocks of the FastGAN generator, as Projected GAN uses it.

Written afresh after Liu et al., "Towards Faster and Stabilized GAN Training for High-fidelity
Few-shot Image Synthesis" (2021) and Sauer et al., "Projected GANs Converge Faster" (2021), with
the parameter names of the official files, so that their weights fit. Each class names in
``FIELDS`` the plain attributes that a file must hold for it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm


def conv(inputs: int, outputs: int, kernel: int, *, padding: int = 0, bias: bool = False) -> Any:
    """A spectrally normalised convolution with stride 1."""
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=bias))


class GLU(nn.Module):
    """Gated linear unit over channels: (N, 2C, H, W) -> (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate the first half of the channels by the second half's sigmoid."""
        value, gate = x.chunk(2, dim=1)
        return value * torch.sigmoid(gate)


class Swish(nn.Module):
    """``x * sigmoid(x)``; a class of its own because the files name it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape, kept."""
        return x * torch.sigmoid(x)


class NoiseInjection(nn.Module):
    """Adds one plane of normal noise to all channels, scaled by a learned weight."""

    noise_source: str = "device"
    """``device``: drawn where the map is; ``official``: on the CPU, and copied, as the official
    code does. On a CPU both draw the same numbers (``dsconvert.model.noise_source``)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, feat: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Add noise to ``feat`` (N, C, H, W); ``noise`` is (N, 1, H, W), drawn anew if None.

        It is drawn in float32, and used in the type of the weight.
        """
        if noise is None:
            n, _, height, width = feat.shape
            where = torch.device("cpu") if self.noise_source == "official" else feat.device
            noise = torch.randn(n, 1, height, width, device=where, dtype=torch.float32)
            noise = noise.to(feat.device, self.weight.dtype)
        return feat + self.weight * noise

    def check_restored(self) -> str | None:
        """What is wrong with the tensors that came from a file, if anything."""
        weight = self._parameters.get("weight")
        return None if weight is not None and weight.numel() == 1 else "has no scalar weight"


class CCBN(nn.Module):
    """Batch normalisation whose gain and bias are linear in an embedding of the class."""

    stored_mean: torch.Tensor
    stored_var: torch.Tensor
    FIELDS: ClassVar[dict[str, type]] = {
        "output_size": int,
        "input_size": int,
        "eps": float,
        "momentum": float,
    }

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.output_size, self.input_size = channels, embedding
        self.gain = spectral_norm(nn.Linear(embedding, channels))
        self.bias = spectral_norm(nn.Linear(embedding, channels))
        self.eps, self.momentum = 1e-5, 0.1
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` (N, C, H, W) by the embeddings ``y`` (N, E)."""
        gain = 1 + self.gain(y)
        bias = self.bias(y)
        out = F.batch_norm(
            x, self.stored_mean, self.stored_var, None, None, self.training, 0.1, self.eps
        )
        return out * gain[:, :, None, None] + bias[:, :, None, None]

    def check_restored(self) -> str | None:
        """What is wrong with what came from a file, if anything."""
        for name in ("stored_mean", "stored_var"):
            buffer = self._buffers.get(name)
            if buffer is None or tuple(buffer.shape) != (self.output_size,):
                return f"has no usable {name}"
        return _missing(self, "gain", "bias")


class InitLayer(nn.Module):
    """Latents (N, Z) to the first feature map (N, C, 4, 4)."""

    def __init__(self, z_dim: int, channels: int) -> None:
        super().__init__()
        self.init = nn.Sequential(
            spectral_norm(nn.ConvTranspose2d(z_dim, 2 * channels, 4, bias=False)),
            nn.BatchNorm2d(2 * channels),
            GLU(),
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Map (N, Z) to (N, C, 4, 4)."""
        return self.init(noise.view(noise.shape[0], -1, 1, 1))

    def check_restored(self) -> str | None:
        """What is wrong with what came from a file, if anything."""
        return _missing(self, "init")


def up_block_small(inputs: int, outputs: int) -> nn.Sequential:
    """Upsampling block of ``fastgan_lite``: (N, I, H, W) -> (N, O, 2H, 2W)."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        conv(inputs, 2 * outputs, 3, padding=1),
        nn.BatchNorm2d(2 * outputs),
        GLU(),
    )


def up_block_big(inputs: int, outputs: int) -> nn.Sequential:
    """Upsampling block of ``fastgan``, with noise: (N, I, H, W) -> (N, O, 2H, 2W)."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        conv(inputs, 2 * outputs, 3, padding=1),
        NoiseInjection(),
        nn.BatchNorm2d(2 * outputs),
        GLU(),
        conv(outputs, 2 * outputs, 3, padding=1),
        NoiseInjection(),
        nn.BatchNorm2d(2 * outputs),
        GLU(),
    )


class UpBlockSmallCond(nn.Module):
    """`up_block_small` with class-conditional normalisation."""

    FIELDS: ClassVar[dict[str, type]] = {"in_planes": int, "out_planes": int}

    def __init__(self, inputs: int, outputs: int, z_dim: int) -> None:
        super().__init__()
        self.in_planes, self.out_planes = inputs, outputs
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv = conv(inputs, 2 * outputs, 3, padding=1)
        self.bn = CCBN(2 * outputs, z_dim)
        self.act = GLU()

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """(N, I, H, W) and class embeddings (N, Z) to (N, O, 2H, 2W)."""
        return self.act(self.bn(self.conv(self.up(x)), c))

    def check_restored(self) -> str | None:
        """What is wrong with what came from a file, if anything."""
        return _missing(self, "up", "conv", "bn", "act")


class UpBlockBigCond(nn.Module):
    """`up_block_big` with class-conditional normalisation; one noise weight for both halves."""

    FIELDS: ClassVar[dict[str, type]] = {"in_planes": int, "out_planes": int}

    def __init__(self, inputs: int, outputs: int, z_dim: int) -> None:
        super().__init__()
        self.in_planes, self.out_planes = inputs, outputs
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv1 = conv(inputs, 2 * outputs, 3, padding=1)
        self.conv2 = conv(outputs, 2 * outputs, 3, padding=1)
        self.bn1 = CCBN(2 * outputs, z_dim)
        self.bn2 = CCBN(2 * outputs, z_dim)
        self.act = GLU()
        self.noise = NoiseInjection()

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """(N, I, H, W) and class embeddings (N, Z) to (N, O, 2H, 2W)."""
        x = self.act(self.bn1(self.noise(self.conv1(self.up(x))), c))
        return self.act(self.bn2(self.noise(self.conv2(x)), c))

    def check_restored(self) -> str | None:
        """What is wrong with what came from a file, if anything."""
        return _missing(self, "up", "conv1", "conv2", "bn1", "bn2", "act", "noise")


class SEBlock(nn.Module):
    """Gates a large feature map by a small, earlier one (skip-layer excitation)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            conv(inputs, outputs, 4),
            Swish(),
            conv(outputs, outputs, 1),
            nn.Sigmoid(),
        )

    def forward(self, feat_small: torch.Tensor, feat_big: torch.Tensor) -> torch.Tensor:
        """(N, I, h, w) gates (N, O, H, W)."""
        return feat_big * self.main(feat_small)

    def check_restored(self) -> str | None:
        """What is wrong with what came from a file, if anything."""
        return _missing(self, "main")


def _missing(module: nn.Module, *names: str) -> str | None:
    lost = [name for name in names if module._modules.get(name) is None]
    return f"lacks {', '.join(lost)}" if lost else None
