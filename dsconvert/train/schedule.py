"""Phases of a training that must not outlast it: how a short run shortens them.

The lengths are settled once, when a run begins: a resumed run keeps them whatever length it is
given then, so that no weight depends on where it was cut.
"""

from __future__ import annotations

from dataclasses import replace

from dsconvert.train.config import TrainConfig

EMA_SHARE = 0.2
"""The default half-life of an average without a ramp-up is at most this share of the run."""
BLUR_SHARE = 0.5
"""What the discriminator sees is sharp for the rest of the run at least."""


def fit_to_run(config: TrainConfig) -> tuple[TrainConfig, tuple[str, ...]]:
    """Shorten what would outlast the run.

    With a ramp-up (``ema_rampup``) the half-life of the average is a share of the images seen, so
    it is never too long.

    Returns:
        the settings to train with, and what was changed, for a person to read.
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
    if config.blur_init_sigma and config.blur_fade_kimg > longest:
        notes.append(
            f"the blur fades out over {longest:g} kimg, half of this run, not over "
            f"{config.blur_fade_kimg:g}"
        )
        config = replace(config, blur_fade_kimg=longest)
    return config, tuple(notes)
