"""The frozen feature space of Projected GAN: a pretrained network and random mixing of its maps.

Sauer et al., "Projected GANs Converge Faster" (NeurIPS 2021), section 3: four maps of
EfficientNet-Lite0 (1/4 to 1/32 of the image), cross-channel mixing (CCM: a random 1x1 convolution
for each map) and cross-scale mixing (CSM: from the coarsest map up, random 1x1 convolutions and
bilinear upsampling). Nothing in it is trained. Child names are those of the official files.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert.projected.folding import FoldedLayers, can_fold
from dsconvert.projected.lite0 import Weights, lite0

BACKBONE_CHANNELS = (24, 40, 112, 320)
RESOLUTIONS = (128, 64, 32, 16)
"""Map sizes that the heads are built for. The official code fixes them to those of a 256 px image,
for a data set of any resolution."""


def doubling(size: int) -> Tensor:
    """Return the matrix (2 size, size) that doubles a row bilinearly, with aligned corners."""
    line = torch.arange(2 * size, dtype=torch.float64, device="cpu")
    at = line[:, None] * ((size - 1) / (2 * size - 1))
    return (1 - (at - line[:size]).abs()).clamp_(min=0).float()


class Fusion(nn.Module):
    """One step of cross-scale mixing: add the finer map, double the size, mix the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(inputs, outputs, 1)
        self._doubling: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, coarse: Tensor, fine: Tensor | None = None) -> Tensor:
        """Map two inputs (N, I, H, W) to (N, O, 2H, 2W).

        Bilinear weights sum to one, so the 1x1 convolution commutes with the upsampling. It runs
        first here, on a quarter of the pixels.
        """
        mixed = self.out_conv(coarse if fine is None else coarse + fine)
        apart = mixed.device.type == "cuda" and mixed.dtype == torch.float32
        # torch.compile would trace the change of the dictionary, and compile the upsampling itself.
        if torch.compiler.is_compiling() or not (apart and mixed.is_contiguous()):
            return F.interpolate(mixed, scale_factor=2, mode="bilinear", align_corners=True)
        # On an H100 torch's kernel for this type and layout takes 11 ms of a step at batch 32, some
        # 35 times a copy of the same bytes. Two matrix products are cheap, as are their gradients.
        rows, columns = (self._matrix(n, mixed.device) for n in mixed.shape[2:])
        return rows @ (mixed @ columns.t())

    def _matrix(self, size: int, device: torch.device) -> Tensor:
        if (size, device) not in self._doubling:
            with torch.inference_mode(False):
                self._doubling[size, device] = doubling(size).to(device)
        return self._doubling[size, device]


class Projector(nn.Module):
    """Maps images (N, 3, H, W) in [-1, 1] to four maps, the finest first.

    For an image of 256 px and ``cout`` 64 they are (64, 128, 128), (64, 64, 64), (128, 32, 32) and
    (256, 16, 16).

    Args:
        cout: channels of the finest mixed map.
        expand: whether coarser maps have more channels (x2 for each level), the official default.
        weights: see :func:`dsconvert.projected.lite0.lite0`.

    Raises:
        MissingExtraError: timm or the backbone's weights are not installed.
    """

    def __init__(self, *, cout: int = 64, expand: bool = True, weights: Weights = "auto") -> None:
        super().__init__()
        net = lite0(weights=weights, extra="train", purpose="the projected discriminator")
        self.cout, self.expand = cout, expand
        self.pretrained = nn.Module()
        # The activation was once a module (place 2); newer versions of timm have it in the norm.
        stem = (net.conv_stem, net.bn1, nn.Identity())
        self.pretrained.layer0 = nn.Sequential(*stem, *net.blocks[0:2])
        self.pretrained.layer1 = nn.Sequential(*net.blocks[2:3])
        self.pretrained.layer2 = nn.Sequential(*net.blocks[3:5])
        self.pretrained.layer3 = nn.Sequential(*net.blocks[5:9])
        width = [cout * 2**i if expand else cout for i in range(4)]
        self.scratch = nn.Module()
        for i, (inputs, outputs) in enumerate(zip(BACKBONE_CHANNELS, width, strict=True)):
            self.scratch.add_module(f"layer{i}_ccm", nn.Conv2d(inputs, outputs, 1))
        out = [cout, *(w // 2 for w in width[1:])] if expand else width
        for i in reversed(range(4)):
            self.scratch.add_module(f"layer{i}_csm", Fusion(width[i], out[i]))
        self.channels = tuple(out)
        self._folded: FoldedLayers | None = None
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Projector:  # noqa: ARG002
        """Stay in eval mode: the statistics of the normalisations must not change."""
        return super().train(False)

    def backbone(self, x: Tensor) -> list[Tensor]:
        """Return the backbone's four maps, without mixing."""
        maps: list[Tensor] = []
        for layer in self._layers():
            x = layer(x)
            maps.append(x)
        return maps

    def _layers(self) -> list[nn.Module]:
        """Return the backbone's layers, folded where nobody wants their gradients."""
        layers = [self.pretrained.get_submodule(f"layer{i}") for i in range(4)]
        if not can_fold(layers):
            return layers
        if self._folded is None or not self._folded.fits(layers):
            self._folded = FoldedLayers(layers)
        return self._folded.layers

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the folded copies, which follow from the rest."""
        return {**self.__dict__, "_folded": None}

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the four mixed maps; gradients flow to ``x``."""
        scratch = self.scratch
        mixed = [scratch.get_submodule(f"layer{i}_ccm")(m) for i, m in enumerate(self.backbone(x))]
        y: Tensor = scratch.get_submodule("layer3_csm")(mixed[3])
        maps = [y]
        for i in (2, 1, 0):
            y = scratch.get_submodule(f"layer{i}_csm")(y, mixed[i])
            maps.append(y)
        return maps[::-1]
