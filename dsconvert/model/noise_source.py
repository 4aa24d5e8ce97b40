"""Where the noise of a generator is drawn: on the device of its maps, or as the official code."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dsconvert.config.choices import NOISE_SOURCES, NoiseSource
from dsconvert.errors import UsageError

ATTRIBUTE = "noise_source"
"""A module that draws noise has this attribute, on its class as the default."""


def device_of_draws(source: NoiseSource, device: torch.device) -> torch.device:
    """Return the device that noise for maps on ``device`` is drawn on."""
    return torch.device("cpu") if source == "official" else device


def set_noise_source(model: nn.Module, source: NoiseSource) -> None:
    """Set where every module of ``model`` draws its noise.

    On a CPU both sources draw the same numbers. On any other device ``device`` is fast, and the
    same seed gives the same noise again on the same kind of device; ``official`` draws on the CPU
    and copies, as the official Projected GAN code does: the same seed gives the same noise
    everywhere. Modules that are not dsconvert's own draw as their code says.

    Args:
        model: changed in place; also a deployed or lean form.
        source: ``device`` or ``official``.

    Raises:
        UsageError: the source is unknown.
    """
    if source not in NOISE_SOURCES:
        raise UsageError(
            f"noise can't be drawn from {source!r}; choose {' or '.join(NOISE_SOURCES)}."
        )
    for module in model.modules():
        if not hasattr(type(module), ATTRIBUTE):
            continue
        # The default of a class stays out of its instances, and so out of files.
        if getattr(type(module), ATTRIBUTE) == source:
            module.__dict__.pop(ATTRIBUTE, None)
        else:
            module.__dict__[ATTRIBUTE] = source


@contextmanager
def noise_from(model: nn.Module, source: NoiseSource) -> Generator[None, None, None]:
    """Draw the noise of ``model`` from ``source`` within this context."""
    before: list[tuple[dict[str, Any], Any]] = [
        (m.__dict__, m.__dict__.get(ATTRIBUTE)) for m in model.modules()
    ]
    set_noise_source(model, source)
    try:
        yield
    finally:
        for attributes, value in before:
            if value is None:
                attributes.pop(ATTRIBUTE, None)
            else:
                attributes[ATTRIBUTE] = value
