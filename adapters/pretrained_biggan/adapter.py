"""The adapter object that dsconvert finds through the entry point ``pretrained_biggan``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter
from dsconvert.errors import AdapterError

from ..latents import ClassConditional
from .architecture import BigGAN, BigGANBatchNorm

State = Mapping[str, Tensor]
_ENTRY = "state_dict"
_REACH = 2.0
"""Latents are normal ones, drawn anew where they are farther than this from zero."""
_LARGEST = 1 << 20


class PretrainedBiggan(Adapter):
    """Adapter for ``pytorch_model.bin``, with ``config.json`` beside it."""

    name = "pretrained_biggan"
    settings_file = "config.json"

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is a generator of ours."""
        return isinstance(model, BigGAN)

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a live generator; also of a converted one.

        Raises:
            AdapterError: ``generator`` is none of this codebase's.
        """
        g = _required(generator)
        return {
            "cfg": "BigGAN-deep",
            "resolution": g.resolution,
            "z_dim": g.z_dim,
            "c_dim": g.classes,
            "parameters": sum(p.numel() for p in g.parameters()),
        }

    def sampler(self, model: nn.Module) -> ClassConditional:
        """Truncated normal latents (n, z_dim), and one-hot classes; the truncation is 1.

        Raises:
            AdapterError: ``model`` is none of this codebase's.
        """
        g = _required(model)
        size, classes = g.z_dim, g.classes
        edge = math.erf(_REACH / math.sqrt(2))

        def latents(n: int, generator: torch.Generator) -> Tensor:
            uniform = torch.rand(n, size, generator=generator, device=generator.device)
            return torch.erfinv((2 * uniform - 1) * edge) * math.sqrt(2)

        return ClassConditional(
            latents=latents,
            condition=lambda c: torch.nn.functional.one_hot(c, classes).float(),
            classes=classes,
        )

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """The normalisation, whose statistics are interpolated."""
        return (BigGANBatchNorm,)

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """The bare state dict of the file."""
        state: Any = checkpoint.get(_ENTRY, checkpoint)
        names = ("embeddings.weight", "generator.layers.0.bn_0.running_means")
        known = isinstance(state, Mapping) and all(n in state for n in names)
        return {_ENTRY: state} if known else {}

    def read_config(self, state: State) -> Mapping[str, Any]:
        """The arguments of :class:`BigGAN`, with every second block doubling the size."""
        count = len({k.split(".")[2] for k in state if k.startswith("generator.layers.")})
        places = [f"generator.layers.{i}" for i in range(count)]
        blocks = [p for p in places if f"{p}.conv_0.weight_orig" in state]
        attention = [i for i, p in enumerate(places) if f"{p}.gamma" in state]
        if len(attention) > 1 or len(blocks) + len(attention) != count:
            raise ValueError("its layers are not blocks and one attention")
        layers: list[list[int]] = []
        for i, place in enumerate(blocks):
            inputs = state[f"{place}.conv_0.weight_orig"].shape[1]
            outputs = state[f"{place}.conv_3.weight_orig"].shape[0]
            layers.append([i % 2, inputs, outputs])
        z_dim, classes = state["embeddings.weight"].shape
        return {
            "layers": layers,
            "attention": attention[0] if attention else -1,
            "z_dim": z_dim,
            "classes": classes,
            "rows": state["generator.bn.running_means"].shape[0],
            "eps": 1e-4,
        }

    def completed(
        self, config: Mapping[str, Any], settings: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """Take which blocks double the size, and the epsilon, from ``config.json``.

        Raises:
            AdapterError: it belongs to other tensors.
        """
        if settings is None or "layers" not in settings:
            return config
        try:
            width = int(settings["channel_width"])
            given = [
                [int(bool(d)), width * int(a), width * int(b)] for d, a, b in settings["layers"]
            ]
            eps = float(settings["eps"])
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(
                f"config.json describes no BigGAN ({error!r}); take the one of this checkpoint."
            ) from None
        if [layer[1:] for layer in given] != [layer[1:] for layer in config["layers"]]:
            raise AdapterError(
                "config.json has other layers than the checkpoint beside it; take the one that "
                "belongs to it."
            )
        return {**config, "layers": given, "eps": eps}

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator with random weights.

        Raises:
            AdapterError: there is no such generator.
        """
        try:
            numbers = {k: int(config[k]) for k in ("attention", "z_dim", "classes", "rows")}
            layers = [[int(d), int(a), int(b)] for d, a, b in config["layers"]]
            eps = float(config["eps"])
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"this describes no BigGAN ({error!r}).") from None
        sizes = [*numbers.values(), *(n for layer in layers for n in layer)]
        known = 0 < len(layers) <= 64 and numbers["rows"] > 1 and 0 < eps < 1
        if not known or not all(-1 <= n <= _LARGEST for n in sizes):
            raise AdapterError("this describes no BigGAN: a size is out of range.")
        return BigGAN(layers=layers, eps=eps, **numbers)

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """Return the file: a bare state dict gets an entry, since something stands beside it."""
        kept = checkpoint if _ENTRY in checkpoint else {}
        return {**kept, _ENTRY: dict(states[_ENTRY])}


def _required(model: nn.Module) -> BigGAN:
    if not isinstance(model, BigGAN):
        raise AdapterError(f"{type(model).__name__} is no generator of pytorch-pretrained-biggan.")
    return model


ADAPTER = PretrainedBiggan()
