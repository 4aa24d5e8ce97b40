"""The adapter object that dsconvert finds through the entry point ``hifigan``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter
from dsconvert.errors import AdapterError
from dsconvert.records.sounds import MelSpec

from .architecture import Generator
from .settings import LAYERS, SOUND, checked, config_of, with_settings

State = Mapping[str, Tensor]
_ENTRY = "generator"
_FRAMES = 32
_PARTS = ("conv_pre", "ups", "resblocks", "conv_post")
_MEAN, _SPREAD = -5.0, 2.0
"""About those of the values of speech."""


class _Sound(nn.Module):
    """The sound as a map (N, 1, 1, T)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Tensor:
        """(N, mels, frames) -> (N, 1, 1, T)."""
        return self.model(x).unsqueeze(2)


class Hifigan(Adapter):
    """Adapter for files with the entry ``generator``, and ``config.json`` beside them."""

    name = "hifigan"
    settings_file = "config.json"

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is a generator of ours or of the original code."""
        if isinstance(model, Generator):
            return True
        parts = all(isinstance(model._modules.get(p), nn.Module) for p in _PARTS)
        return type(model).__name__ == "Generator" and parts and hasattr(model, "h")

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a live generator; also of a converted one.

        Raises:
            AdapterError: ``generator`` is none of this codebase's.
        """
        spec = self.sounds(generator)
        return {
            "cfg": "HiFi-GAN",
            "mels": spec.mels,
            "sampling_rate": spec.rate,
            "hop_size": spec.hop,
            "parameters": sum(p.numel() for p in generator.parameters()),
        }

    def sounds(self, model: nn.Module) -> MelSpec:
        """The spectrograms that the model was trained with, by its settings.

        Raises:
            AdapterError: ``model`` is none of this codebase's.
        """
        if not self.matches(model):
            raise AdapterError(f"{type(model).__name__} is no generator of HiFi-GAN.")
        live: Any = model
        given: Any = live.settings if isinstance(model, Generator) else live.h
        settings = {**SOUND, **{k: given[k] for k in SOUND if k in given}}
        return MelSpec(
            rate=int(settings["sampling_rate"]),
            mels=_mels(live),
            n_fft=int(settings["n_fft"]),
            hop=int(settings["hop_size"]),
            window=int(settings["win_size"]),
            low=float(settings["fmin"]),
            high=None if settings["fmax"] is None else float(settings["fmax"]),
            frames=_FRAMES,
        )

    def sampler(self, model: nn.Module) -> Callable[[int, torch.Generator], tuple[Tensor, ...]]:
        """Random spectrograms (n, mels, frames), for shapes and times."""
        mels = self.sounds(model).mels

        def draw(n: int, generator: torch.Generator) -> tuple[Tensor]:
            values = torch.randn(n, mels, _FRAMES, generator=generator, device=generator.device)
            return (values * _SPREAD + _MEAN,)

        return draw

    def picture(self, model: nn.Module) -> nn.Module:
        """The sound as a map (N, 1, 1, T) in [-1, 1]."""
        return _Sound(model)

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """The state dict under ``generator``, or a bare one.

        Raises:
            ValueError: it holds the discriminators, or a BigVGAN.
        """
        if "mpd" in checkpoint and "msd" in checkpoint:
            raise ValueError(
                "it holds the discriminators (do_...); name the generator's file, g_..."
            )
        state: Any = checkpoint.get(_ENTRY, checkpoint)
        if not isinstance(state, Mapping) or "conv_post.bias" not in state:
            return {}
        if any(".activations." in str(k) for k in state):
            raise ValueError(
                "it is a BigVGAN, whose anti-aliased activations dsconvert does not know"
            )
        first = any(str(k).startswith("conv_pre.") for k in state)
        return {_ENTRY: state} if first and any(str(k).startswith("ups.0.") for k in state) else {}

    def read_config(self, state: State) -> Mapping[str, Any]:
        """The facts that tensors tell; see :func:`~.settings.config_of`."""
        return config_of(state)

    def completed(
        self, config: Mapping[str, Any], settings: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """Take rates, dilations and the sound's settings from ``config.json``.

        Raises:
            AdapterError: it belongs to other tensors, or is needed and missing.
        """
        return with_settings(config, settings)

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator with random weights.

        Raises:
            AdapterError: there is no such generator.
        """
        known = checked(config)
        model = Generator(**{k: known[k] for k in (*LAYERS, "num_mels", "norm")})
        model.settings = {k: known[k] for k in SOUND}
        return model

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """Return the file with this state dict in place of its own."""
        kept = checkpoint if _ENTRY in checkpoint else {}
        return {**kept, _ENTRY: dict(states[_ENTRY])}


def _mels(model: Any) -> int:
    """Bands that the first convolution reads, converted or not."""
    first: Any = next(m for m in model.conv_pre.modules() if isinstance(m, nn.Conv1d))
    return int(first.in_channels)


ADAPTER = Hifigan()
