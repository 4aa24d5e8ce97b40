"""The FastGAN generator, state-dict compatible with odegeasslbc/FastGAN-pytorch.

Written afresh after Liu et al., "Towards Faster and Stabilized GAN Training for High-fidelity
Few-shot Image Synthesis" (ICLR 2021); the blocks are those of Projected GAN, which took them over.
"""

from __future__ import annotations

import torch
from torch import nn

from ..projected_gan.architecture import CHANNELS
from ..projected_gan.blocks import (
    InitLayer,
    SEBlock,
    conv,
    up_block_big,
    up_block_small,
)

SIZES = (256, 512, 1024)


class Generator(nn.Module):
    """Latents (N, nz) to ``[image (N, nc, im_size, im_size), image (N, nc, 128, 128)]``.

    The small image is what the discriminator sees in training; both are about in [-1, 1].
    """

    def __init__(self, ngf: int = 64, nz: int = 100, nc: int = 3, im_size: int = 1024) -> None:
        super().__init__()
        if im_size not in SIZES:
            raise ValueError(f"im_size is {im_size}, not one of {SIZES}")
        size = {k: int(v * ngf) for k, v in CHANNELS.items()}
        self.im_size, self.nz = im_size, nz
        self.init = InitLayer(nz, size[4])
        self.feat_8 = up_block_big(size[4], size[8])
        self.feat_16 = up_block_small(size[8], size[16])
        self.feat_32 = up_block_big(size[16], size[32])
        self.feat_64 = up_block_small(size[32], size[64])
        self.feat_128 = up_block_big(size[64], size[128])
        self.feat_256 = up_block_small(size[128], size[256])
        self.se_64 = SEBlock(size[4], size[64])
        self.se_128 = SEBlock(size[8], size[128])
        self.se_256 = SEBlock(size[16], size[256])
        self.to_128 = conv(size[128], nc, 1)
        self.to_big = conv(size[im_size], nc, 3, padding=1)
        if im_size > 256:
            self.feat_512 = up_block_big(size[256], size[512])
            self.se_512 = SEBlock(size[32], size[512])
        if im_size > 512:
            self.feat_1024 = up_block_small(size[512], size[1024])

    def forward(self, input: torch.Tensor) -> list[torch.Tensor]:  # noqa: A002 (the official name)
        """Both images; at 1024 px they end in a tanh, as in the original."""
        x4 = self.init(input)
        x8 = self.feat_8(x4)
        x16 = self.feat_16(x8)
        x32 = self.feat_32(x16)
        x64 = self.se_64(x4, self.feat_64(x32))
        x128 = self.se_128(x8, self.feat_128(x64))
        x = self.se_256(x16, self.feat_256(x128))
        if self.im_size >= 512:
            x = self.se_512(x32, self.feat_512(x))
        if self.im_size >= 1024:
            x = self.feat_1024(x)
            return [torch.tanh(self.to_big(x)), torch.tanh(self.to_128(x128))]
        return [self.to_big(x), self.to_128(x128)]
