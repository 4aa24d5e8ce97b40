"""Training: from scratch, fine-tuned, and what both are made of.

Plain functions over a generator, a discriminator, a data set and a configuration; nothing here
knows a GAN codebase, which is the adapters' business. Importing this package is cheap: torch is
imported when a name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsconvert.data.images import ImageSet, open_images
    from dsconvert.data.stream import Stream
    from dsconvert.projected.discriminator import ProjectedDiscriminator
    from dsconvert.projected.projector import Projector
    from dsconvert.runs.stats import StatsWriter, read_stats
    from dsconvert.train.config import TrainConfig
    from dsconvert.train.loop import TrainResult, train
    from dsconvert.train.runs import RunResult, finetune, resume, train_new
    from dsconvert.train.setup import (
        DiscriminatorFacts,
        NewGenerator,
        new_discriminator,
        new_generator,
    )

_HOMES = {
    "dsconvert.train.config": ("TrainConfig",),
    "dsconvert.data.images": ("ImageSet", "open_images"),
    "dsconvert.projected.discriminator": ("ProjectedDiscriminator",),
    "dsconvert.train.loop": ("TrainResult", "train"),
    "dsconvert.projected.projector": ("Projector",),
    "dsconvert.train.runs": ("RunResult", "finetune", "resume", "train_new"),
    "dsconvert.train.setup": (
        "DiscriminatorFacts",
        "NewGenerator",
        "new_discriminator",
        "new_generator",
    ),
    "dsconvert.runs.stats": ("StatsWriter", "read_stats"),
    "dsconvert.data.stream": ("Stream",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DiscriminatorFacts",
    "ImageSet",
    "NewGenerator",
    "ProjectedDiscriminator",
    "Projector",
    "RunResult",
    "StatsWriter",
    "Stream",
    "TrainConfig",
    "TrainResult",
    "finetune",
    "new_discriminator",
    "new_generator",
    "open_images",
    "read_stats",
    "resume",
    "train",
    "train_new",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dsconvert.train' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
