"""The adapter object that dsconvert finds through the entry point ``projected_gan``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dsconvert.adapter import Adapter
from dsconvert.errors import AdapterError

from ..latents import latents_and_classes
from . import architecture, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NETWORKS = "pg_modules.networks_fastgan"
_BLOCKS = "pg_modules.blocks"
_CLASSES: dict[tuple[str, str], type[nn.Module]] = {
    (_NETWORKS, "Generator"): architecture.Generator,
    (_NETWORKS, "DummyMapping"): architecture.DummyMapping,
    (_NETWORKS, "FastganSynthesis"): architecture.FastganSynthesis,
    (_NETWORKS, "FastganSynthesisCond"): architecture.FastganSynthesisCond,
    (_BLOCKS, "InitLayer"): blocks.InitLayer,
    (_BLOCKS, "SEBlock"): blocks.SEBlock,
    (_BLOCKS, "UpBlockBigCond"): blocks.UpBlockBigCond,
    (_BLOCKS, "UpBlockSmallCond"): blocks.UpBlockSmallCond,
    (_BLOCKS, "CCBN"): blocks.CCBN,
    (_BLOCKS, "GLU"): blocks.GLU,
    (_BLOCKS, "Swish"): blocks.Swish,
    (_BLOCKS, "NoiseInjection"): blocks.NoiseInjection,
}


def _official_name(module: nn.Module) -> tuple[str, str] | None:
    """The official name of an instance of our class, or of the official class itself."""
    kind = type(module)
    key = (kind.__module__, kind.__name__)
    if key in _CLASSES:
        return key
    return next((k for k, v in _CLASSES.items() if v is kind), None)


def _norm_widths(block: nn.Module) -> list[int]:
    """The channels of each batch normalisation in ``block``."""
    found: list[int] = []
    for module in block.modules():
        norm: Any = module
        if isinstance(module, nn.BatchNorm2d):
            found.append(int(norm.num_features))
        elif _official_name(module) == (_BLOCKS, "CCBN"):
            found.append(int(norm.output_size))
    return found


def _ngf(synthesis: Any, resolution: int) -> int:
    """The smallest ``ngf`` that makes no block narrower than it is.

    That is the original's unless every block has fewer channels.
    """
    blocks = {size: synthesis._modules.get(f"feat_{size}") for size in architecture.CHANNELS}
    widths = [  # of the maps, which are half as wide as the normalisation before the gate
        (size, width / 2)
        for size, block in {**blocks, 4: synthesis.init}.items()
        if block is not None
        for width in _norm_widths(block)
    ]
    last = next(
        (m for m in synthesis.to_big.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)),
        None,
    )
    if last is not None:
        widths.append((resolution, last.in_channels))
    shares = architecture.CHANNELS
    return max((math.ceil(w / shares[size]) for size, w in widths if size in shares), default=0)


class ProjectedGan(Adapter):
    """Adapter for generators of the official Projected GAN code, ``fastgan`` configurations."""

    name = "projected_gan"

    configurations = ("fastgan", "fastgan_lite")

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

        Raises:
            AdapterError: an unknown configuration or resolution, or too small an ``ngf`` for it.
        """
        share = architecture.CHANNELS.get(resolution, 1)
        if int(share * ngf) < 1:
            raise AdapterError(
                f"ngf {ngf} leaves no channels at {resolution} px; give {math.ceil(1 / share)} or "
                "more."
            )
        try:
            return architecture.Generator.from_config(
                cfg=cfg,
                resolution=resolution,
                ngf=ngf,
                classes=classes,
                img_channels=img_channels,
                z_dim=z_dim,
            )
        except ValueError as error:
            raise AdapterError(f"no such generator: {error}.") from error

    @property
    def classes(self) -> Mapping[tuple[str, str], type[nn.Module]]:
        """Official names to our classes."""
        return _CLASSES

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is a generator of ours or of the official code."""
        return _official_name(model) == (_NETWORKS, "Generator")

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a generator, read off its structure; also of a converted one.

        Raises:
            AdapterError: ``generator`` is none of this codebase's.
        """
        self._require(generator)
        g: Any = generator
        synthesis: Any = g.synthesis
        lite = len(_norm_widths(synthesis.feat_8)) < 2
        embed = synthesis._modules.get("embed")
        return {
            "cfg": "fastgan_lite" if lite else "fastgan",
            "resolution": g.img_resolution,
            "ngf": _ngf(synthesis, int(g.img_resolution)),
            "lite": lite,
            "z_dim": g.z_dim,
            "conditional": embed is not None,
            "classes": g.c_dim,
            "embedding_rows": embed.num_embeddings if isinstance(embed, nn.Embedding) else None,
            "img_channels": g.img_channels,
            "parameters": sum(p.numel() for p in generator.parameters()),
        }

    def sampler(
        self, model: nn.Module
    ) -> Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]:
        """A sampler of ``(z, c)``: normal latents (n, z_dim), uniform one-hot classes (n, c_dim).

        ``c`` is (n, 0) for an unconditional generator, as the official tools pass it.

        Raises:
            AdapterError: ``model`` is none of this codebase's.
        """
        self._require(model)
        facts: Any = model
        return latents_and_classes(int(facts.z_dim), int(facts.c_dim))

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """Classes whose inside torch.fx can't trace."""
        return (blocks.GLU, blocks.NoiseInjection)

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        """The noise injection."""
        return (blocks.NoiseInjection,)

    def norm_types(self) -> tuple[type[nn.Module], ...]:
        """The conditional batch normalisation."""
        return (blocks.CCBN,)

    def unused(self, generator: nn.Module) -> tuple[str, ...]:
        """The blocks above the resolution: the official code builds them below 256 px, too."""
        self._require(generator)
        g: Any = generator
        found = (name.rpartition("_") for name, _ in g.synthesis.named_children())
        return tuple(
            f"synthesis.{kind}_{size}"
            for kind, _, size in found
            if kind in ("feat", "se") and size.isdigit() and int(size) > int(g.img_resolution)
        )

    def affine(self, norm: nn.Module, *condition: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Gain and bias (N, C) of a ``CCBN`` for the class embeddings (N, E)."""
        conditional: Any = norm
        return 1 + conditional.gain(*condition), conditional.bias(*condition)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The generator that `describe` says ``config`` of; untrained.

        Raises:
            AdapterError: a fact is missing, of a wrong type, or out of bounds.
        """
        limits = {
            "resolution": (64, 1024),
            "ngf": (1, 4096),
            "classes": (0, 1 << 20),
            "img_channels": (1, 64),
            "z_dim": (1, 1 << 16),
        }
        facts: dict[str, Any] = {}
        for key, (low, high) in limits.items():
            value = config.get(key) if isinstance(config, dict) else None
            if type(value) is not int or not low <= value <= high:
                raise AdapterError(f"{key} is {value!r}, not a whole number from {low} to {high}.")
            facts[key] = value
        try:
            made = architecture.Generator.from_config(cfg=config["cfg"], **facts)
        except (KeyError, ValueError, TypeError) as error:
            raise AdapterError(f"no generator of Projected GAN is described: {error}.") from error
        return made

    def _require(self, model: nn.Module) -> None:
        if not self.matches(model):
            raise AdapterError(
                f"{type(model).__name__} is no generator of Projected GAN. Load one with "
                "load_snapshot, or build one with dsconvert_adapters.projected_gan.Generator."
            )


ADAPTER = ProjectedGan()
