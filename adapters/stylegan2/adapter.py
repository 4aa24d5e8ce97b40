"""The adapter object that dsconvert finds through the entry point ``stylegan2``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.adapter import PERSISTENCE, Adapter
from dsconvert.errors import AdapterError

from ..latents import latents_and_classes
from . import architecture
from .restore import restored
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


@lru_cache(maxsize=1)
def _text() -> str:
    return Path(architecture.__file__).read_text(encoding="utf-8")


class StyleGan2(Adapter):
    """Adapter for StyleGAN2 generators in ``torch_utils.persistence`` files."""

    name = "stylegan2"

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
            "channel_base": max(b.conv1.out_channels * b.resolution for b in blocks),
            "channel_max": max(b.conv1.out_channels for b in blocks),
            "architecture": last.architecture,
            "z_dim": g.z_dim,
            "w_dim": g.w_dim,
            "mapping_layers": g.mapping.num_layers,
            "fp16_blocks": sum(b.use_fp16 for b in blocks),
            "conditional": g.c_dim > 0,
            "classes": g.c_dim,
            "img_channels": g.img_channels,
            "parameters": sum(p.numel() for p in generator.parameters()),
        }

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
