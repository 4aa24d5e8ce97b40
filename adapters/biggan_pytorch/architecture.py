"""The generators of BigGAN and BigGAN-deep; all sizes are given, since a file tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .layers import BN, CCBN, Attention, DeepGBlock, GBlock, NestedBN, NestedCCBN, conv, linear

DEPTH = 2
"""Blocks a stage of BigGAN-deep; the last one of a stage doubles the size."""


class Generator(nn.Module):
    """Latents (N, dim_z) and a condition to images (N, 3, resolution, resolution) in [-1, 1].

    As in the original, the condition is ``model.shared(classes)`` and computed by the caller, so
    that classes can be mixed.

    Args:
        channels: pairs of a block's inputs and outputs.
        dim_z: size of the latents; with ``hier`` the sum of their parts.
        bottom_width: side of the first map.
        n_classes: number of classes.
        shared_dim: size of a class's embedding; 0: each normalisation has its own embedding.
        hier: each block reads a part of the latents of its own.
        inner: channels inside each block of BigGAN-deep; empty for BigGAN.
        attention: numbers of the blocks with attention behind them.
        vectors: of the spectral norm; 0: without one.
        statistics: the place of the normalisations' statistics: ``own``, ``my`` (option ``mybn``)
            or ``cross`` (``cross_replica``).
        img_channels: of the image.
    """

    def __init__(
        self,
        *,
        channels: Sequence[Sequence[int]],
        dim_z: int,
        bottom_width: int = 4,
        n_classes: int = 1000,
        shared_dim: int = 128,
        hier: bool = True,
        inner: Sequence[int] = (),
        attention: Sequence[int] = (),
        vectors: int = 1,
        statistics: str = "own",
        img_channels: int = 3,
    ) -> None:
        super().__init__()
        self.dim_z, self.bottom_width, self.hier = dim_z, bottom_width, hier
        self.n_classes, self.shared_dim, self.deep = n_classes, shared_dim, bool(inner)
        doublings = len(channels) // (DEPTH if self.deep else 1)
        self.resolution = bottom_width * 2**doublings
        parts = len(channels) + 1 if hier and not self.deep else 1
        self.z_chunk_size = dim_z // parts
        first = dim_z + shared_dim if self.deep else self.z_chunk_size
        condition = shared_dim + (first - shared_dim if self.deep else self.z_chunk_size * hier)
        nested = {"mine": statistics == "my"} if statistics != "own" else {}
        kind: Any = NestedCCBN if nested else CCBN
        norm = partial(
            kind,
            condition=condition if shared_dim else n_classes,
            embedded=not shared_dim,
            vectors=vectors,
            **nested,
        )
        last = channels[-1][1]
        out_norm = NestedBN(last, **nested) if nested else BN(last)
        self.shared = nn.Embedding(n_classes, shared_dim) if shared_dim else nn.Identity()
        self.linear = linear(first, channels[0][0] * bottom_width**2, vectors=vectors)
        self.blocks = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(channels):
            block: nn.Module
            if self.deep:
                doubles = i % DEPTH == DEPTH - 1
                block = DeepGBlock(
                    inputs, outputs, inner[i], norm, doubles=doubles, vectors=vectors
                )
            else:
                block = GBlock(inputs, outputs, norm, vectors=vectors)
            found: list[nn.Module] = []
            found.append(block)
            if i in attention:
                found.append(Attention(outputs, vectors=vectors))
            self.blocks.append(nn.ModuleList(found))
        self.output_layer = nn.Sequential(
            out_norm, nn.ReLU(), conv(last, img_channels, vectors=vectors)
        )

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Make images.

        Args:
            z: latents (N, dim_z).
            y: ``shared(classes)``, (N, shared_dim); without a shared embedding, classes (N,).
        """
        conditions = [y] * len(self.blocks)
        if self.hier and self.deep:
            z = torch.cat([y, z], 1)
            conditions = [z] * len(self.blocks)
        elif self.hier:
            z, *rest = torch.split(z, self.z_chunk_size, 1)
            conditions = [torch.cat([y, part], 1) for part in rest]
        h = self.linear(z).unflatten(1, (-1, self.bottom_width, self.bottom_width))
        for block, condition in zip(self.blocks, conditions, strict=True):
            modules: Any = block
            for module in modules:
                h = module(h, condition)
        return torch.tanh(self.output_layer(h))


def config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of :class:`Generator`, by names and shapes, as plain data.

    Raises:
        ValueError: the tensors are not those of such a generator.
        KeyError: one is missing.
    """
    count = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    deep = "blocks.0.0.conv4.weight" in state
    last = "conv4" if deep else "conv1"
    names = [f"blocks.{i}.0" for i in range(count)]
    channels = [
        [state[f"{n}.conv1.weight"].shape[1], state[f"{n}.{last}.weight"].shape[0]] for n in names
    ]
    rows, first = state["linear.weight"].shape
    width = round((rows / channels[0][0]) ** 0.5)
    if channels[0][0] * width**2 != rows:
        raise ValueError(f"its first layer has {rows} outputs for {channels[0][0]} channels")
    gain = state["blocks.0.0.bn1.gain.weight"]
    shared = state.get("shared.weight")
    shared_dim = 0 if shared is None else shared.shape[1]
    hier = deep or (shared is not None and gain.shape[1] > shared_dim)
    own = "blocks.0.0.bn1.stored_mean" in state
    return {
        "channels": channels,
        "dim_z": first - shared_dim if deep else first * (count + 1) if hier else first,
        "bottom_width": width,
        "n_classes": (gain if shared is None else shared).shape[0],
        "shared_dim": shared_dim,
        "hier": hier,
        "inner": [state[f"{n}.conv1.weight"].shape[0] for n in names] if deep else [],
        "attention": [i for i in range(count) if f"blocks.{i}.1.gamma" in state],
        "vectors": sum(1 for k in state if k.startswith("linear.u")),
        "statistics": "own"
        if own
        else "my"
        if "blocks.0.0.bn1.bn.stored_mean" in state
        else "cross",
        "img_channels": state["output_layer.2.weight"].shape[0],
    }
