"""What a run's settings leave open: its learning rates, and phases that would outlast it.

The lengths are fixed when a run begins. A resumed run keeps them even if its length changes, so
that no weight depends on where the run was interrupted.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from dsconvert.adapter import Recipe, adapter_for
from dsconvert.config.train import TrainConfig
from dsconvert.train.losses import LEAST_FADE

EMA_SHARE = 0.2
"""The default half-life of an average without a ramp-up is at most this share of the run."""
BLUR_SHARE = 0.5
"""The blur ends after at most this share of the run."""


def with_rates(config: TrainConfig, generator: nn.Module) -> TrainConfig:
    """Return settings whose learning rates are numbers: given ones, or those of the codebase."""
    adapter = adapter_for(generator)
    official = (Recipe() if adapter is None else adapter.recipe).learning_rate
    rate = official if config.lr_generator is None else config.lr_generator
    theirs = official if config.lr_discriminator is None else config.lr_discriminator
    return replace(config, lr_generator=rate, lr_discriminator=theirs)


def fit_to_run(config: TrainConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """Shorten the half-life of the average and the blur if they do not fit the run.

    With a ramp-up (``ema_rampup``) the half-life is a share of the images seen, which always fits.

    Returns:
        the settings to train with, and a sentence about each change, for people.
    """
    notes: list[str] = []
    half_life = config.ema_images / 1000
    if config.ema_rampup is None and config.ema_kimg is None:
        longest = EMA_SHARE * config.kimg
        if half_life > longest:
            config = replace(config, ema_kimg=longest)
            notes.append(
                f"the half-life of G_ema is {longest:g} kimg, a fifth of this run, not "
                f"{half_life:g} as in a long one (--ema-kimg sets it)"
            )
    elif config.ema_rampup is None and half_life > config.kimg:
        notes.append(
            f"the half-life of G_ema ({half_life:g} kimg) is longer than the run "
            f"({config.kimg:g}): G_ema is still mostly what it started from (--ema-kimg)"
        )
    longest = BLUR_SHARE * config.kimg
    if config.blur_init_sigma:
        wanted, fade = config.blur_fade_kimg, min(config.blur_fade_kimg, longest)
        if fade <= LEAST_FADE:
            notes.append(
                f"there is no blur: it would fade out over {fade:g} kimg, and needs more than "
                f"{LEAST_FADE:g} (--blur-kimg; at most half of the run, --kimg)"
            )
        elif fade < wanted:
            notes.append(
                f"the blur fades out over {fade:g} kimg, half of this run, not over {wanted:g}"
            )
        config = replace(config, blur_fade_kimg=fade)
    return config, tuple(notes)
