"""The adapter object that dsconvert finds through the entry point ``rosinality``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dsconvert.adapter import Adapter
from dsconvert.errors import AdapterError

from ..latents import normal_latents
from .architecture import Generator, NoiseInjection
from .modulated import Demodulation

if TYPE_CHECKING:
    from collections.abc import Callable

State = Mapping[str, torch.Tensor]
_ENTRIES = ("g_ema", "g", "state_dict")
"""Entries with a generator, the averaged one first; the last is a bare state dict."""
_NAMES = frozenset({"input.input", "conv1.noise.weight", "to_rgb1.bias", "style.1.weight"})
_LARGEST = 1 << 14
"""The largest number among the arguments of an architecture; beyond, a file is damaged."""
_MEAN_OF = 4096
"""Latents whose mean truncation pulls towards, as in the original's ``generate.py``."""


class Rosinality(Adapter):
    """Adapter for ``.pt`` files with ``g_ema``, ``g`` and ``d``, or with ``g_ema`` alone."""

    name = "rosinality"

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is a generator of ours."""
        return isinstance(model, Generator)

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """``g_ema`` and ``g``.

        Raises:
            ValueError: the generator is a SWAGAN.
        """
        found: dict[str, State] = {}
        for key in _ENTRIES:
            state = checkpoint.get(key)
            if not isinstance(state, Mapping) or not set(state) >= _NAMES:
                continue
            if any(name.startswith(("iwt.", "dwt.")) or ".iwt." in name for name in state):
                raise ValueError("it is a SWAGAN (--arch swagan), which is not supported")
            found[key] = state
        return found

    def read_config(self, state: State) -> Mapping[str, Any]:
        """``channels``, ``style_dim``, ``n_mlp`` and ``taps``.

        Raises:
            ValueError: the images have other than three channels.
        """
        if (channels := state["to_rgb1.bias"].shape[1]) != 3:
            raise ValueError(f"its images have {channels} channels, not 3")
        widths = [state["input.input"].shape[1]]
        while (name := f"convs.{2 * len(widths) - 2}.conv.weight") in state:
            widths.append(state[name].shape[1])
        layers = 0
        while f"style.{layers + 1}.weight" in state:
            layers += 1
        blur = state.get("convs.0.conv.blur.kernel")
        return {
            "channels": widths,
            "style_dim": state["style.1.weight"].shape[1],
            "n_mlp": layers,
            "taps": 4 if blur is None else blur.shape[-1],
        }

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator with random weights; ``config`` may come from a file."""
        widths = [_number(n) for n in config["channels"]]
        if not 1 <= len(widths) <= 10:
            raise ValueError(f"{len(widths)} resolutions are not 1 to 10")
        return Generator(widths, *(_number(config[k]) for k in ("style_dim", "n_mlp", "taps")))

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """The file, without the optimisers' states: they belong to parameters that are gone."""
        kept = {k: v for k, v in checkpoint.items() if k not in ("g_optim", "d_optim")}
        return kept | {key: dict(state) for key, state in states.items()}

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a live generator; also of a converted one.

        Raises:
            AdapterError: ``generator`` is none of this codebase's.
        """
        g = self._require(generator)
        return {
            "cfg": "stylegan2",
            "resolution": g.size,
            "z_dim": g.style_dim,
            "mapping_layers": g.n_mlp,
            "img_channels": 3,
            "parameters": sum(p.numel() for p in generator.parameters()),
        }

    def sampler(
        self, model: nn.Module
    ) -> Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]:
        """Normal latents (n, W).

        Raises:
            AdapterError: ``model`` is none of this codebase's.
        """
        return normal_latents(int(self._require(model).style_dim))

    def truncation(self, generator: nn.Module, psi: float) -> Mapping[str, Any]:
        """The keywords of a truncated call, with the mean of 4096 mapped latents of a fixed seed.

        Raises:
            AdapterError: ``generator`` is none of this codebase's.
        """
        g = self._require(generator)
        device = g.input.input.device
        z = torch.randn(_MEAN_OF, g.style_dim, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            mean = g.style(z.to(device)).mean(0, keepdim=True)
        return {"truncation": psi, "truncation_latent": mean}

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """The demodulation, whose kernel is a site of its own."""
        return (Demodulation,)

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        """The noise injection."""
        return (NoiseInjection,)

    def _require(self, model: nn.Module) -> Any:
        if not self.matches(model):
            raise AdapterError(
                f"{type(model).__name__} is no generator of stylegan2-pytorch as dsconvert builds "
                "it. Open its file with dsconvert, or build it with "
                "dsconvert_adapters.rosinality.Generator."
            )
        return model


def _number(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise ValueError(f"{value!r} is no number of channels or layers")
    return value


ADAPTER = Rosinality()
