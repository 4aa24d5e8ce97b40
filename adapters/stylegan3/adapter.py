"""The adapter object that dsconvert finds through the entry point ``stylegan3``."""

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
from .build import built, input_facts, layer_facts, mapping_facts
from .restore import restored
from .sources import KNOWN_SOURCES

_CLASSES: dict[tuple[str, str], type[nn.Module]] = {
    (PERSISTENCE, kind.__name__): kind
    for kind in (
        architecture.Generator,
        architecture.SuperresGenerator,
        architecture.MappingNetwork,
        architecture.SynthesisNetwork,
        architecture.SynthesisInput,
        architecture.SynthesisLayer,
        architecture.FullyConnectedLayer,
        architecture.Demodulation,
    )
}


@lru_cache(maxsize=1)
def _text() -> str:
    return Path(architecture.__file__).read_text(encoding="utf-8")


class StyleGan3(Adapter):
    """Adapter for generators of StyleGAN3 and StyleGAN-XL in ``torch_utils.persistence`` files."""

    name = "stylegan3"

    recipe = Recipe(learning_rate=2e-3, separable_heads=True, move_means=moved_means)

    @property
    def classes(self) -> Mapping[tuple[str, str], type[nn.Module]]:
        """Persistent class names to our classes."""
        return _CLASSES

    @property
    def known_sources(self) -> Mapping[str, str]:
        """Released source texts by hash."""
        return KNOWN_SOURCES

    def source(self) -> str:
        """The text of :mod:`~dsconvert_adapters.stylegan3.architecture`."""
        return _text()

    def restored(self, module: nn.Module) -> str | None:
        """See :func:`~dsconvert_adapters.stylegan3.restore.restored`."""
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
        layers: list[Any] = [getattr(g.synthesis, name) for name in g.synthesis.layer_names]
        # A converted kernel is a pair, one of whose convolutions is spatial.
        extents = [m.kernel_size[0] for m in layers[0].modules() if isinstance(m, nn.Conv2d)]
        by_class = "embed_proj" in g.mapping._modules
        stacked = isinstance(g, architecture.SuperresGenerator)
        return {
            "cfg": "stylegan3-t" if max(extents) > 1 else "stylegan3-r",
            "codebase": "stylegan-xl" if by_class or stacked else "stylegan3",
            "resolution": g.img_resolution,
            "channels": [layer.out_channels for layer in layers[:-1]],
            "radial_filters": any(
                layer.down_filter is not None and layer.down_filter.ndim == 2 for layer in layers
            ),
            "z_dim": g.z_dim,
            "w_dim": g.w_dim,
            "mapping_layers": g.mapping.num_layers,
            "layers": len(layers) - 1,
            "conditional": g.c_dim > 0,
            "classes": g.c_dim,
            "img_channels": g.img_channels,
            "parameters": sum(p.numel() for p in generator.parameters()),
            # What :meth:`build` needs beside these.
            "stacked": stacked,
            "output_scale": g.synthesis.output_scale,
            "mapping": mapping_facts(g.mapping),
            "input": input_facts(g.synthesis.input),
            "structure": {
                name: layer_facts(layer)
                for name, layer in zip(g.synthesis.layer_names, layers, strict=True)
            },
        }

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator as :meth:`describe` describes it; its tensors hold zeros.

        Raises:
            AdapterError: there is no such generator.
        """
        try:
            return built(config)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"these are no facts of a StyleGAN3 generator: {error}.") from None

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
            AdapterError: ``generator`` is none of ours.
        """
        self._require(generator)
        return {"truncation_psi": psi}

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """The demodulation, whose kernel is a site of its own."""
        return (architecture.Demodulation,)

    def unused(self, generator: nn.Module) -> tuple[str, ...]:
        """The table of classes that StyleGAN-XL's generators without classes hold.

        Raises:
            AdapterError: ``generator`` is none of ours.
        """
        mapping = self._require(generator).mapping
        return ("mapping.embed",) if not mapping.c_dim and "embed" in mapping._modules else ()

    def _require(self, model: nn.Module) -> Any:
        if not self.matches(model):
            raise AdapterError(
                f"{type(model).__name__} is no StyleGAN3 generator of dsconvert's. Load one with "
                "load_snapshot, or build one with dsconvert_adapters.stylegan3.Generator."
            )
        return model


ADAPTER = StyleGan3()
