"""The adapter object that dsconvert finds through the entry point ``fastgan_pytorch``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dsconvert.adapter import Adapter, image_tensor
from dsconvert.errors import AdapterError

from .. import projected_gan
from ..latents import normal_latents
from ..projected_gan import blocks
from .architecture import Generator

if TYPE_CHECKING:
    from collections.abc import Callable

State = Mapping[str, torch.Tensor]
_BUFFERS = ("weight_u", "weight_v", "running_mean", "running_var", "num_batches_tracked")
_EMA_BUFFERS = "g_ema_buffers"
"""Ours, in a converted file: the official one keeps statistics for ``g`` alone."""


class _Picture(nn.Module):
    """The large image alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(N, nz) -> (N, nc, R, R)."""
        return image_tensor(self.model(z))


class FastganPytorch(Adapter):
    """Adapter for ``all_N.pth`` (``g``, ``g_ema``, ``d``, optimisers) and ``N.pth`` (``g``)."""

    name = "fastgan_pytorch"

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is a generator of ours or of the original code."""
        if isinstance(model, Generator):
            return True
        parts = ("init", "feat_8", "feat_256", "se_64", "to_128", "to_big")
        return (
            type(model).__name__ == "Generator"
            and isinstance(getattr(model, "im_size", None), int)
            and all(model._modules.get(p) is not None for p in parts)
        )

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """``g_ema`` (its list of parameters named after those of ``g``), and ``g``."""
        found: Any = checkpoint.get("g", checkpoint.get("state_dict", checkpoint))
        if not isinstance(found, Mapping):
            return {}
        raw = _stripped(found)
        if not {"feat_8.7.running_mean", "init.init.1.running_mean"} <= set(raw):
            return {}
        if not any(k.startswith("to_128.") for k in raw):
            return {}
        averaged: Any = checkpoint.get("g_ema")
        if isinstance(averaged, Mapping) and averaged:
            return {"g_ema": _stripped(averaged), "g": raw}
        if not isinstance(averaged, Sequence) or not averaged:
            return {"g": raw}
        return {"g_ema": _named(averaged, raw, checkpoint.get(_EMA_BUFFERS)), "g": raw}

    def read_config(self, state: State) -> Mapping[str, Any]:
        """``ngf``, ``nz``, ``nc`` and ``im_size``."""
        first = state["init.init.0.weight_orig"]
        names = set(state)
        large = {1024: "feat_1024.2.running_mean", 512: "feat_512.3.running_mean"}
        return {
            "im_size": next((size for size, name in large.items() if name in names), 256),
            "ngf": first.shape[1] // 2 // 16,
            "nz": first.shape[0],
            "nc": state["to_big.weight_orig"].shape[0],
        }

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator with random weights."""
        return Generator(**{k: int(config[k]) for k in ("ngf", "nz", "nc", "im_size")})

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """The file, without the optimisers' states: they belong to parameters that are gone."""
        whole = "g" in checkpoint
        kept = {k: v for k, v in checkpoint.items() if whole and not k.startswith("opt_")}
        kept["g"] = dict(states["g"])
        if "g_ema" in states:
            averaged = states["g_ema"]
            if isinstance(checkpoint.get("g_ema"), Mapping):  # somebody's own train.py
                kept["g_ema"] = dict(averaged)
                return kept
            kept["g_ema"] = [v for k, v in averaged.items() if not k.endswith(_BUFFERS)]
            kept[_EMA_BUFFERS] = {k: v for k, v in averaged.items() if k.endswith(_BUFFERS)}
        return kept

    def picture(self, model: nn.Module) -> nn.Module:
        """The large image alone."""
        return _Picture(model)

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a live generator; also of a converted one.

        Raises:
            AdapterError: ``generator`` is none of this codebase's.
        """
        self._require(generator)
        facts: Any = generator
        return {
            "im_size": facts.im_size,
            "nz": _latents(generator),
            "parameters": sum(p.numel() for p in generator.parameters()),
        }

    def sampler(
        self, model: nn.Module
    ) -> Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]:
        """Normal latents (n, nz).

        Raises:
            AdapterError: ``model`` is none of this codebase's.
        """
        self._require(model)
        return normal_latents(_latents(model))

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """Classes whose inside torch.fx can't trace."""
        return projected_gan.ADAPTER.leaves()

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        """The noise injection."""
        return (blocks.NoiseInjection,)

    def _require(self, model: nn.Module) -> None:
        if not self.matches(model):
            raise AdapterError(f"{type(model).__name__} is no generator of FastGAN-pytorch.")


def _latents(model: nn.Module) -> int:
    """Channels that the first layer reads, converted or not."""
    first: Any = next(
        m
        for m in model.get_submodule("init").modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    )
    return int(first.in_channels)


def _stripped(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the prefix of DataParallel."""
    if any(str(k).startswith("module.") for k in state):
        return {str(k).removeprefix("module."): v for k, v in state.items()}
    return state


def _named(averaged: Sequence[Any], raw: State, buffers: Any) -> State:
    """The official ``g_ema`` is a bare list, in the order of ``parameters()``.

    A state dict lists parameters in that order too, with the buffers between them.
    """
    names = [k for k in raw if not k.endswith(_BUFFERS)]
    if len(names) != len(averaged):
        raise ValueError(f"g_ema has {len(averaged)} tensors and g {len(names)} parameters")
    named = dict(zip(names, averaged, strict=True))
    rest = buffers if isinstance(buffers, Mapping) else raw
    return {k: named[k] if k in named else rest[k] for k in (*raw, *named)}


ADAPTER = FastganPytorch()
