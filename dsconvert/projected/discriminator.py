"""The projected, multi-scale discriminator (Sauer et al. 2021).

It is not part of the Projected GAN adapter, because it works with the images of any generator, and
the library must not import an adapter. Its state dict is the official one: each code loads the
other's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from dsconvert.errors import TrainingError
from dsconvert.projected.augment import POLICIES, diffaugment, draw_augmentation
from dsconvert.projected.lite0 import Weights, three_channels
from dsconvert.projected.projector import RESOLUTIONS, Projector

HEAD_CHANNELS = {8: 512, 16: 256, 32: 128, 64: 64, 128: 64}
"""Map size in a head to its channels; the first map of a head has those of the projector."""
SIDE = 224
"""Images smaller than this are enlarged to it, the size that the backbone was trained on."""
CLASS_ROWS = 1000
"""The least rows of the class embedding: the official code makes that many for any data."""


def _conv(inputs: int, outputs: int, stride: int, padding: int, *, bias: bool) -> Any:
    return spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, padding, bias=bias))


class SeparableConv2d(nn.Module):
    """A depthwise 3x3 convolution and a pointwise one: (N, I, H, W) to (N, O, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = spectral_norm(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        )
        self.pointwise = spectral_norm(nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Filter each channel, and mix them."""
        return self.pointwise(self.depthwise(x))


class DownBlock(nn.Module):
    """Maps (N, I, H, W) to (N, O, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int, *, separable: bool = False) -> None:
        super().__init__()
        behind = (nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True))
        if separable:
            conv = SeparableConv2d(inputs, outputs)
            self.main = nn.Sequential(conv, *behind, nn.AvgPool2d(2, 2))
        else:
            self.main = nn.Sequential(_conv(inputs, outputs, 2, 1, bias=True), *behind)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        return self.main(x)


def _down(channels: int, start: int, *, separable: bool) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    while start > 8:
        start //= 2
        blocks.append(DownBlock(channels, HEAD_CHANNELS[start], separable=separable))
        channels = HEAD_CHANNELS[start]
    return blocks


class Head(nn.Module):
    """One unconditional head: maps a feature map to a plane of logits."""

    def __init__(self, channels: int, start: int, *, separable: bool = False) -> None:
        super().__init__()
        self.start_sz = start
        last = _conv(HEAD_CHANNELS[8], 1, 1, 0, bias=False)
        self.main = nn.Sequential(*_down(channels, start, separable=separable), last)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        """Map (N, C, H, W) to (N, 1, h, w); ``c`` is not used."""
        return self.main(x)


class HeadCond(nn.Module):
    """One conditional head: the logit is a projection on an embedding of the class."""

    def __init__(
        self,
        channels: int,
        start: int,
        *,
        separable: bool = False,
        rows: int = CLASS_ROWS,
        cmap_dim: int = 64,
        embedding_dim: int = 128,
    ) -> None:
        super().__init__()
        self.start_sz, self.cmap_dim = start, cmap_dim
        self.main = nn.Sequential(*_down(channels, start, separable=separable))
        self.cls = _conv(HEAD_CHANNELS[8], cmap_dim, 1, 0, bias=False)
        self.embed = nn.Embedding(rows, embedding_dim)
        self.embed_proj = nn.Sequential(
            nn.Linear(embedding_dim, cmap_dim), nn.LeakyReLU(0.2, inplace=True)
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map (N, C, H, W) and one-hot (N, classes) to (N, 1, h, w)."""
        out = self.cls(self.main(x))
        wanted = self.embed_proj(self.embed(c.argmax(1)))[:, :, None, None]
        return (out * wanted).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)


class Heads(nn.Module):
    """One head for each map of the projector."""

    def __init__(
        self,
        channels: tuple[int, ...],
        *,
        num_discs: int,
        cond: bool,
        rows: int,
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.disc_in_channels = list(channels[:num_discs])
        self.disc_in_res = list(RESOLUTIONS[:num_discs])
        made: dict[str, nn.Module] = {}
        pairs = zip(self.disc_in_channels, self.disc_in_res, strict=True)
        for i, (width, start) in enumerate(pairs):
            if cond:
                made[str(i)] = HeadCond(width, start, rows=rows, separable=separable)
            else:
                made[str(i)] = Head(width, start, separable=separable)
        self.mini_discs = nn.ModuleDict(made)

    def forward(self, maps: list[Tensor], c: Tensor) -> Tensor:
        """Return the logits of all heads, (N, L)."""
        found = [
            self.mini_discs[str(i)](maps[i], c).flatten(1) for i in range(len(self.mini_discs))
        ]
        return torch.cat(found, dim=1)


class ProjectedDiscriminator(nn.Module):
    """Maps images (N, C, R, R) in [-1, 1] and one-hot classes (N, classes) to logits (N, L).

    Args:
        resolution: of the images; those below 224 px are enlarged to 224 px (bilinear).
        classes: 0 for unconditional heads.
        augment: DiffAugment policies, () for none.
        cout: channels of the finest projected map.
        expand: see :class:`Projector`.
        num_discs: number of heads, starting at the finest map.
        weights: of the backbone, see :func:`dsconvert.projected.lite0.lite0`.
        rows: of the class embedding; None: 1000, or ``classes`` if that is more.
        separable: heads of separable convolutions, which the official code has for ``stylegan2``.

    Raises:
        MissingExtraError: timm or the backbone's weights are not installed.
    """

    def __init__(
        self,
        *,
        resolution: int,
        classes: int = 0,
        augment: tuple[str, ...] = tuple(POLICIES),
        cout: int = 64,
        expand: bool = True,
        num_discs: int = 4,
        weights: Weights = "auto",
        rows: int | None = None,
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.separable = separable
        self.augment, self.interp224 = augment, resolution < SIDE
        self.resolution, self.classes = resolution, classes
        self.feature_network = Projector(cout=cout, expand=expand, weights=weights)
        self.discriminator = Heads(
            self.feature_network.channels,
            num_discs=num_discs,
            cond=classes > 0,
            rows=rows or max(CLASS_ROWS, classes),
            separable=separable,
        )

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        *,
        resolution: int,
        classes: int = 0,
        augment: tuple[str, ...] = tuple(POLICIES),
    ) -> ProjectedDiscriminator:
        """Build a discriminator from the state dict of an official one; its shapes give the widths.

        Raises:
            TrainingError: the tensors are not those of an official discriminator.
            MissingExtraError: timm is not installed.
        """
        prefix = "discriminator.mini_discs."
        try:
            ccm = [state[f"feature_network.scratch.layer{i}_ccm.weight"].shape[0] for i in range(4)]
            embed = state.get(f"{prefix}0.embed.weight")
            made = _quietly(
                cls,
                resolution=resolution,
                classes=classes or (embed.shape[0] if embed is not None else 0),
                augment=augment,
                cout=ccm[0],
                expand=ccm[1] != ccm[0],
                num_discs=len({k.split(".")[2] for k in state if k.startswith(prefix)}),
                rows=None if embed is None else embed.shape[0],
                separable=any(k.startswith(prefix) and ".depthwise." in k for k in state),
            )
            made.load_state_dict(state)
        except (KeyError, RuntimeError, IndexError) as error:
            raise TrainingError(
                "the file's discriminator is not one of the official configurations "
                f"({str(error)[:300]}). Start with a new one instead (--new-discriminator)."
            ) from error
        return made

    def forward(self, x: Tensor, c: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return the logits of ``x``, augmented; gradients flow to ``x``.

        Args:
            x: the images.
            c: their classes.
            draws: of :meth:`augmentation_draws`, where x is; None: drawn anew in each call.
        """
        x = diffaugment(x, self.augment, draws)
        return self.discriminator(self.features(x), c)

    def augmentation_draws(self, count: int, size: tuple[int, int]) -> Tensor:
        """Draw the augmentation of ``count`` images of a height and width: (count, numbers)."""
        return draw_augmentation(self.augment, count, size)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the projected maps of ``x``, without augmentation."""
        x = three_channels(x)
        if self.interp224:
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.feature_network(x)


def _quietly(cls: type[ProjectedDiscriminator], **options: Any) -> ProjectedDiscriminator:
    """Build a discriminator without weights and without a warning: they are loaded next."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        return cls(weights="random", **options)
