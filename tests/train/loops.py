"""A pair of networks that costs next to nothing, and short runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.projected.augment import diffaugment
from dsconvert.runs.checkpoint import load_checkpoint
from dsconvert.runs.folder import RunFolder
from dsconvert.train import ImageSet, TrainConfig
from dsconvert.train import train as train_networks
from dsconvert.train.loop import TrainResult
from tests.train.parts import small_generator


class Plain(nn.Module):
    """What a projected discriminator has that matters to the loop, at a hundredth of its cost."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.AvgPool2d(4),
            nn.utils.spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2),
            nn.utils.spectral_norm(nn.Conv2d(8, 1, 4)),
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.main(diffaugment(x)).flatten(1)


def plain_pair() -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_generator(), Plain()


def config(steps: int, **more: Any) -> TrainConfig:
    wanted = {"batch": 2, "tick_kimg": 0.004, "snapshot_ticks": 1, "grid": 2, **more}
    return TrainConfig(kimg=steps * wanted["batch"] / 1000, **wanted)


def flat(value: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {prefix: value}
    if not isinstance(value, dict | list | tuple):
        return {}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for name, part in items for k, v in flat(part, f"{prefix}/{name}").items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def trained(
    out: Path,
    data: ImageSet,
    settings: TrainConfig,
    *,
    networks: tuple[nn.Module, nn.Module] | None = None,
    **more: Any,
) -> tuple[TrainResult, dict[str, Tensor], nn.Module]:
    """Train a fresh pair; its result, and the last checkpoint's tensors by a flat name."""
    generator, judge = networks or plain_pair()
    result = train_networks(generator, judge, data, settings, out=out, **more)
    return result, flat(load_checkpoint(RunFolder(out).checkpoints()[-1])), generator
