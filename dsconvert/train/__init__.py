"""Training from scratch and fine-tuning.

Plain functions over a generator, a discriminator, a data set and settings. Adapters know the GAN
codebases; this package does not. Importing it is cheap: torch is imported when a name is first
used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsconvert.config.train import TrainConfig
    from dsconvert.data.images import ImageSet, open_images
    from dsconvert.data.stream import ImageStream
    from dsconvert.projected.discriminator import ProjectedDiscriminator
    from dsconvert.projected.projector import Projector
    from dsconvert.runs.stats import StatsWriter, read_stats
    from dsconvert.train.launch import RunResult
    from dsconvert.train.loop import TrainResult, train
    from dsconvert.train.runs import finetune, resume, train_new
    from dsconvert.train.setup import (
        DiscriminatorFacts,
        NewGenerator,
        new_discriminator,
        new_generator,
    )

_HOMES = {
    "dsconvert.config.train": ("TrainConfig",),
    "dsconvert.data.images": ("ImageSet", "open_images"),
    "dsconvert.projected.discriminator": ("ProjectedDiscriminator",),
    "dsconvert.train.loop": ("TrainResult", "train"),
    "dsconvert.projected.projector": ("Projector",),
    "dsconvert.train.launch": ("RunResult",),
    "dsconvert.train.runs": ("finetune", "resume", "train_new"),
    "dsconvert.train.setup": (
        "DiscriminatorFacts",
        "NewGenerator",
        "new_discriminator",
        "new_generator",
    ),
    "dsconvert.runs.stats": ("StatsWriter", "read_stats"),
    "dsconvert.data.stream": ("ImageStream",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DiscriminatorFacts",
    "ImageSet",
    "ImageStream",
    "NewGenerator",
    "ProjectedDiscriminator",
    "Projector",
    "RunResult",
    "StatsWriter",
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
