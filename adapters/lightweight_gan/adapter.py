"""The adapter object that dsconvert finds through the entry point ``lightweight_gan``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dsconvert.adapter import Adapter
from dsconvert.errors import AdapterError

from ..latents import normal_latents
from .architecture import Generator, Noise

if TYPE_CHECKING:
    from collections.abc import Callable

State = Mapping[str, torch.Tensor]
_PARTS = {"GE": "GE.", "G": "G."}
"""Generators in a file: the moving average first."""
_HEAD = 64


class _Picture(nn.Module):
    """Images in [-1, 1]: the package's are in [0, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(N, latent_dim) -> (N, C, R, R)."""
        return self.model(z) * 2 - 1


class LightweightGan(Adapter):
    """Adapter for the package's ``model_N.pt``: everything under ``GAN``, with prefixes."""

    name = "lightweight_gan"

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is a generator of ours or of the package."""
        if isinstance(model, Generator):
            return True
        kind = type(model)
        return kind.__name__ == "Generator" and kind.__module__.startswith("lightweight_gan")

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """``GE`` and ``G``."""
        found: Any = checkpoint.get("GAN", checkpoint.get("state_dict"))
        if not isinstance(found, Mapping):
            return {}
        whole: Mapping[str, Any] = found
        if "initial_conv.1.running_mean" in whole:  # one generator alone (safetensors)
            return {"GE": whole}
        states = {
            name: {k.removeprefix(p): v for k, v in whole.items() if k.startswith(p)}
            for name, p in _PARTS.items()
        }
        known = "initial_conv.1.running_mean"
        return {k: v for k, v in states.items() if known in v}

    def read_config(self, state: State) -> Mapping[str, Any]:
        """The arguments of `make`, as plain data (JSON has no whole numbers as keys)."""
        blocks = sorted(
            int(m[1]) for k in state if (m := re.fullmatch(r"layers\.(\d+)\.0\.4\.weight", k))
        )
        if not blocks or blocks != list(range(len(blocks))):
            raise ValueError("it has no numbered blocks")
        convs = [state[f"layers.{i}.0.2.1.weight"] for i in blocks]
        gates: dict[str, str] = {}
        attention: dict[str, int] = {}
        for i in blocks:
            if f"layers.{i}.1.dct_weights" in state:
                gates[str(i)] = "frequency"
            elif f"layers.{i}.1.to_k.weight" in state:
                gates[str(i)] = "context"
            if (query := state.get(f"layers.{i}.2.fn.to_q.weight")) is not None:
                attention[str(i)] = query.shape[0] // _HEAD
        return {
            "latent_dim": state["initial_conv.0.weight"].shape[0],
            "channels": [convs[0].shape[1], *(c.shape[0] // 2 for c in convs)],
            "out_channels": state["out_conv.weight"].shape[0],
            "gates": gates,
            "attention": attention,
            "antialias": "layers.0.0.1.f" in state,
        }

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator with random weights."""
        return Generator(
            latent_dim=int(config["latent_dim"]),
            channels=[int(c) for c in config["channels"]],
            out_channels=int(config["out_channels"]),
            gates={int(k): str(v) for k, v in config["gates"].items()},
            attention={int(k): int(v) for k, v in config["attention"].items()},
            antialias=bool(config["antialias"]),
        )

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """The file, with these generators' tensors under their prefixes."""
        if "GAN" not in checkpoint:
            return {"state_dict": dict(states["GE"])}
        whole = {
            k: v for k, v in checkpoint["GAN"].items() if not k.startswith(tuple(_PARTS.values()))
        }
        for name, state in states.items():
            whole |= {f"{_PARTS[name]}{k}": v for k, v in state.items()}
        return {**checkpoint, "GAN": whole}

    def picture(self, model: nn.Module) -> nn.Module:
        """Images in [-1, 1]."""
        return _Picture(model)

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a live generator; also of a converted one.

        Raises:
            AdapterError: ``generator`` is none of this codebase's.
        """
        return {
            "image_size": 2 ** (len(self._blocks(generator)) + 2),
            "latent_dim": _latents(generator),
            "parameters": sum(p.numel() for p in generator.parameters()),
        }

    def sampler(
        self, model: nn.Module
    ) -> Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]:
        """Normal latents (n, latent_dim).

        Raises:
            AdapterError: ``model`` is none of this codebase's.
        """
        self._blocks(model)
        return normal_latents(_latents(model))

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        """The noise injection."""
        return (Noise,)

    def _blocks(self, model: nn.Module) -> nn.ModuleList:
        blocks = model._modules.get("layers")
        if not self.matches(model) or not isinstance(blocks, nn.ModuleList):
            raise AdapterError(f"{type(model).__name__} is no generator of lightweight-gan.")
        return blocks


def _latents(model: nn.Module) -> int:
    """Channels that the first layer reads, converted or not."""
    first: Any = next(
        m
        for m in model.get_submodule("initial_conv").modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    )
    return int(first.in_channels)


ADAPTER = LightweightGan()
