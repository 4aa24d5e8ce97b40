"""The settings of the loop that polishes: its rate, and the weights of its loss by medium."""

from __future__ import annotations

from dataclasses import replace

from dsconvert.config.distill import DistillConfig
from dsconvert.core.polish_options import PolishOptions

RATE = 1.5e-3
"""Learning rate, relative to the root mean square of each tensor: that of a distillation."""
PICTURE_WEIGHT = 10.0
"""Of the image, where a network changes pictures: it is near to the original's from the start, and
the features of a backbone pull it away (Real-ESRGAN's compact model, 24 steps: 43.5 to 43.4 dB with
them, to 44.0 dB without)."""
NEAR, NEAR_RATE = 0.01, 5e-4
"""Relative squared error of the image below which the usual rate spoils more than it mends, and the
rate for such a start."""
SOUND_BATCH, SOUND_HELD_OUT = 1, 12
"""Of a vocoder: a piece of sound has thousands of positions, and takes as long as many images."""
SOUND_RATE = 3e-4
"""Of a vocoder. The usual rate spoils a fitted HiFi-GAN within ten steps; near this one, 16 steps
lower its STFT distance by a tenth. The waveform has no weight: no ear hears all of its phases."""


def polish_config(
    options: PolishOptions, *, seed: int, sounds: bool, near: bool, picture: bool
) -> DistillConfig:
    """Return the settings of a polish.

    Args:
        options: how long.
        seed: of every draw.
        sounds: the outputs are sounds; their spectra are the features.
        near: the model changes pictures, which begin near to the original's.
        picture: the outputs are images in a known range.
    """
    config = DistillConfig(
        minutes=None if options.steps is not None else options.minutes,
        steps=options.steps,
        seed=seed,
        lr=RATE,
    )
    if sounds:
        return replace(config, batch=SOUND_BATCH, held_out=SOUND_HELD_OUT, lr=SOUND_RATE, image=0.0)
    if near:
        return replace(config, image=PICTURE_WEIGHT, features=0.0)
    return config if picture else replace(config, features=0.0)
