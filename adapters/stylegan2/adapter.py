"""The adapter object that dsconvert finds through the entry point ``stylegan2``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.adapter import PERSISTENCE, Adapter, Recipe
from dsconvert.errors import AdapterError

from ..latents import latents_and_classes, moved_means
from . import architecture
from .restore import restored
from .restore_layers import MAX_RESOLUTION, is_side
from .sources import KNOWN_SOURCES

_CLASSES: dict[tuple[str, str], type[nn.Module]] = {
    (PERSISTENCE, kind.__name__): kind
    for kind in (
        architecture.Generator,
        architecture.MappingNetwork,
        architecture.SynthesisNetwork,
        architecture.SynthesisBlock,
        architecture.SynthesisLayer,
        architecture.ToRGBLayer,
        architecture.Conv2dLayer,
        architecture.FullyConnectedLayer,
        architecture.Demodulation,
        architecture.Noise,
    )
}


_BASE = 256
"""Channels times resolution, of one ``ngf``."""


def _widest(block: Any) -> int:
    return int(max(block.conv1.in_channels, block.conv1.out_channels))


def _whole(config: Mapping[str, Any], name: str, least: int, most: int = 1 << 16) -> int:
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} {value!r} is no whole number from {least} to {most}")
    return value


def _number(config: Mapping[str, Any], name: str) -> float | None:
    value = config[name]
    return None if value is None else float(value)


@lru_cache(maxsize=1)
def _text() -> str:
    return Path(architecture.__file__).read_text(encoding="utf-8")


class StyleGan2(Adapter):
    """Adapter for StyleGAN2 generators in ``torch_utils.persistence`` files."""

    name = "stylegan2"

    configurations = ("stylegan2",)
    recipe = Recipe(z_dim=64, learning_rate=2e-3, separable_heads=True, move_means=moved_means)

    def new_generator(
        self,
        *,
        cfg: str,
        resolution: int,
        ngf: int,
        classes: int,
        img_channels: int,
        z_dim: int,
    ) -> nn.Module:
        """A new generator, from torch's global random state.

        ``ngf`` is that of ``fastgan``: 128 gives the official numbers of channels, 32768 over the
        resolution and at most 512. Two layers map the latents to 128 numbers, as Projected GAN's
        ``cfg=stylegan2`` has it, and all layers compute in float32 (``--fp32=True``).

        Raises:
            AdapterError: another configuration, a resolution that is no power of two, or too small
                an ``ngf`` for it.
        """
        if cfg not in self.configurations:
            raise AdapterError(f"the adapter {self.name!r} builds stylegan2, not {cfg!r}.")
        base = _BASE * ngf
        if not is_side(resolution):
            raise AdapterError(
                f"StyleGAN2 has no resolution {resolution}: give a power of two from 4 to "
                f"{MAX_RESOLUTION}."
            )
        if base < resolution:
            raise AdapterError(
                f"ngf {ngf} leaves no channels at {resolution} px; give "
                f"{-(-resolution // _BASE)} or more."
            )
        return architecture.Generator(
            z_dim=z_dim,
            c_dim=classes,
            w_dim=128,
            img_resolution=resolution,
            img_channels=img_channels,
            mapping_kwargs={"num_layers": 2},
            channel_base=base,
            channel_max=4 * ngf,
            num_fp16_res=0,
            conv_clamp=None,
        )

    @property
    def classes(self) -> Mapping[tuple[str, str], type[nn.Module]]:
        """Persistent class names to our classes."""
        return _CLASSES

    @property
    def known_sources(self) -> Mapping[str, str]:
        """Released source texts by hash."""
        return KNOWN_SOURCES

    def source(self) -> str:
        """The text of :mod:`~dsconvert_adapters.stylegan2.architecture`."""
        return _text()

    def restored(self, module: nn.Module) -> str | None:
        """See :func:`~dsconvert_adapters.stylegan2.restore.restored`."""
        return restored(module)

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is a generator of ours."""
        return isinstance(model, architecture.Generator)

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a generator, read off its structure; also of a converted one.

        Raises:
            AdapterError: ``generator`` is none of ours.
        """
        g = self._require(generator)
        blocks: list[Any] = [getattr(g.synthesis, f"b{r}") for r in g.synthesis.resolutions()]
        last = blocks[-1]
        return {
            "cfg": "stylegan2",
            "resolution": g.img_resolution,
            # channels = min(channel_base / resolution, channel_max), unless some were removed
            "channel_base": max(_widest(b) * b.resolution for b in blocks),
            "channel_max": max(_widest(b) for b in blocks),
            "architecture": last.architecture,
            "z_dim": g.z_dim,
            "w_dim": g.w_dim,
            "mapping_layers": g.mapping.num_layers,
            "mapping_width": g.mapping.fc0.out_features,
            "mapping_lr": g.mapping.fc0.bias_gain,
            "mean_beta": g.mapping.w_avg_beta,
            "embedding": g.mapping.embed.out_features if g.c_dim else 0,
            "noise": last.conv1.use_noise,
            "clamp": last.conv1.conv_clamp,
            "fp16_blocks": sum(b.use_fp16 for b in blocks),
            "conditional": g.c_dim > 0,
            "classes": g.c_dim,
            "img_channels": g.img_channels,
            "parameters": sum(p.numel() for p in generator.parameters()),
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator with random weights, as :meth:`describe` describes it.

        Raises:
            AdapterError: there is no such generator.
        """
        try:
            side = _whole(config, "resolution", 4, MAX_RESOLUTION)
            if not is_side(side):
                raise ValueError("a resolution that is no power of two")
            if config["architecture"] not in ("skip", "resnet", "orig"):
                raise ValueError("an architecture that is none of skip, resnet, orig")
            return architecture.Generator(
                z_dim=_whole(config, "z_dim", 1),
                c_dim=_whole(config, "classes", 0),
                w_dim=_whole(config, "w_dim", 1),
                img_resolution=side,
                img_channels=_whole(config, "img_channels", 1, 64),
                mapping_kwargs={
                    "num_layers": _whole(config, "mapping_layers", 1, 100),
                    "layer_features": _whole(config, "mapping_width", 1),
                    "embed_features": _whole(config, "embedding", 0),
                    "lr_multiplier": _number(config, "mapping_lr") or 1.0,
                    "w_avg_beta": _number(config, "mean_beta"),
                },
                channel_base=_whole(config, "channel_base", side, 1 << 26),
                channel_max=_whole(config, "channel_max", 1),
                num_fp16_res=_whole(config, "fp16_blocks", 0, 16),
                architecture=str(config["architecture"]),
                conv_clamp=_number(config, "clamp"),
                use_noise=bool(config["noise"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"these are no facts of a StyleGAN2 generator: {error}.") from None

    def sampler(
        self, model: nn.Module
    ) -> Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]:
        """A sampler of ``(z, c)``: normal latents (n, z_dim), uniform one-hot classes (n, c_dim).

        Raises:
            AdapterError: ``model`` is none of ours.
        """
        g = self._require(model)
        return latents_and_classes(int(g.z_dim), int(g.c_dim))

    def truncation(self, generator: nn.Module, psi: float) -> Mapping[str, float]:
        """The keyword of a truncated call.

        Raises:
            AdapterError: ``generator`` is none of ours, or holds no mean of its latents.
        """
        if self._require(generator).mapping.w_avg_beta is None:
            raise AdapterError("the file does not hold the mean of its latents")
        return {"truncation_psi": psi}

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """The demodulation, whose kernel is a site of its own."""
        return (architecture.Demodulation,)

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        """The noise, behind the demodulation."""
        return (architecture.Noise,)

    def _require(self, model: nn.Module) -> Any:
        if not self.matches(model):
            raise AdapterError(
                f"{type(model).__name__} is no StyleGAN2 generator of dsconvert's. Load one with "
                "load_snapshot, or build one with dsconvert_adapters.stylegan2.Generator."
            )
        return model


ADAPTER = StyleGan2()
