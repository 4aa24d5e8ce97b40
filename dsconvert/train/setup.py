"""Make the networks of a run, new, converted or from a file, and write them as snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dsconvert.adapter import Adapter, adapter_for, adapters
from dsconvert.config.choices import POLICIES
from dsconvert.config.train import DiscriminatorFacts, NewGenerator
from dsconvert.core.analysis import analyse
from dsconvert.core.conversion import apply_to
from dsconvert.core.pipeline import plan_for
from dsconvert.data.images import ImageSet
from dsconvert.errors import AdapterError
from dsconvert.formats.official import Snapshot, new_snapshot, save_snapshot
from dsconvert.projected.discriminator import ProjectedDiscriminator
from dsconvert.projected.lite0 import Weights
from dsconvert.projected.official import FOREIGN, official_form
from dsconvert.records import Plan
from dsconvert.train.state import Save, TrainState


def builder_of(cfg: str) -> Adapter:
    """Return the installed adapter that builds generators of configuration ``cfg``.

    Raises:
        AdapterError: there is none.
    """
    found = adapters()
    for adapter in found:
        if cfg in adapter.configurations:
            return adapter
    known = sorted(c for a in found for c in a.configurations)
    raise AdapterError(
        f"no installed adapter builds a generator of cfg {cfg!r}; there are "
        f"{', '.join(known) or 'none'}."
    )


def new_generator(wanted: NewGenerator, *, seed: int = 0) -> tuple[nn.Module, Plan | None]:
    """Build a generator, and rewrite it by the preset's plan (None: it is dense).

    Raises:
        AdapterError: the configuration or the resolution is unknown.
        UsageError: the preset is unknown.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        builder = builder_of(wanted.cfg)
        dense = builder.new_generator(
            cfg=wanted.cfg,
            resolution=wanted.resolution,
            ngf=wanted.ngf,
            classes=wanted.classes,
            img_channels=wanted.img_channels,
            z_dim=wanted.z_dim or builder.recipe.z_dim,
        )
    if wanted.preset == "none" and wanted.width == 1:
        return dense, None
    analysis = analyse(dense)
    decided = plan_for(
        analysis, preset=wanted.preset, rank=wanted.rank, width=wanted.width, init="random"
    )
    if wanted.preset != "exact":
        norm: Literal["keep", "fold"] = wanted.spectral
        decided = replace(
            decided,
            decisions=tuple(
                replace(d, norm=norm) if d.action != "remove" else d for d in decided.decisions
            ),
        )
    return apply_to(analysis, decided, init="random", calibrate=0, seed=seed).model, decided


def new_discriminator(
    facts: DiscriminatorFacts, *, weights: Weights = "auto", seed: int = 0
) -> ProjectedDiscriminator:
    """Build a discriminator with random weights that follow from ``seed``.

    Raises:
        MissingExtraError: timm or the backbone's weights are not installed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return ProjectedDiscriminator(
            resolution=facts.resolution,
            classes=facts.classes,
            augment=tuple(facts.augment),
            cout=facts.cout,
            expand=facts.expand,
            num_discs=facts.num_discs,
            rows=facts.rows,
            separable=bool(facts.separable),
            weights=weights,
        )


def facts_of(discriminator: ProjectedDiscriminator) -> DiscriminatorFacts:
    """Return the structure of a discriminator, for :func:`new_discriminator`."""
    heads: Any = discriminator.discriminator.mini_discs
    embed = getattr(heads["0"], "embed", None)
    return DiscriminatorFacts(
        resolution=discriminator.resolution,
        classes=discriminator.classes,
        cout=discriminator.feature_network.cout,
        expand=discriminator.feature_network.expand,
        num_discs=len(heads),
        rows=None if embed is None else int(embed.num_embeddings),
        augment=tuple(discriminator.augment),
        separable=discriminator.separable,
    )


def facing(
    facts: DiscriminatorFacts | None, generator: nn.Module, **known: int
) -> DiscriminatorFacts:
    """Return the facts of a new discriminator for ``generator``; ``known`` replace some."""
    made = replace(facts or DiscriminatorFacts(resolution=0), **known)
    if made.separable is not None:
        return made
    adapter = adapter_for(generator)
    return replace(made, separable=adapter is not None and adapter.recipe.separable_heads)


def discriminator_of(
    snap: Snapshot, *, augment: tuple[str, ...] = POLICIES
) -> ProjectedDiscriminator | None:
    """Return a snapshot's discriminator; None if it has none, or an empty module.

    Raises:
        TrainingError: its discriminator is not a projected one.
    """
    state = snap.state("D") if snap.has_module("D") else {}
    if not state:
        return None
    return ProjectedDiscriminator.from_state(
        state,
        resolution=int(snap.config["resolution"]),
        classes=int(snap.config["classes"]),
        augment=augment,
    )


def official_saver(data: ImageSet, *, mirror: bool) -> Save:
    """Return a function that writes G, D, G_ema and the facts that the official metrics need."""
    about: Mapping[str, Any] = {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": str(data.path),
        "use_labels": data.labels is not None,
        "max_size": len(data),
        "xflip": mirror,
        "resolution": data.resolution,
        "random_seed": 0,
    }

    def save(state: TrainState, path: Path) -> None:
        modules: dict[str, nn.Module] = {"G": state.generator}
        if isinstance(state.discriminator, ProjectedDiscriminator):
            modules["D"] = official_form(state.discriminator)
        snap = new_snapshot(state.ema, modules=modules, foreign=FOREIGN, training_set_kwargs=about)
        save_snapshot(snap, state.ema, path, overwrite=True)

    return save
