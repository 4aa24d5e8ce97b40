"""Classes of a conditional generator, drawn as often as a data set has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dsconvert.data.images import LABELS, Files, ImageSet, Progress, open_images
from dsconvert.errors import DataError

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]


def classes_of(inputs: Inputs) -> int:
    """How many classes the generator of a sampler has: columns of its second argument; 0: none.

    An argument whose rows are not one-hot is no class but a second latent.
    """
    args = inputs(8, torch.Generator().manual_seed(0))
    given = args[1] if len(args) == 2 else None
    if not isinstance(given, Tensor) or given.dim() != 2 or not given.shape[1]:
        return 0
    one_hot = ((given == 0) | (given == 1)).all() and (given.sum(1) == 1).all()
    return int(given.shape[1]) if one_hot else 0


def open_labelled(
    path: str,
    *,
    classes: int,
    resolution: int,
    channels: int,
    progress: Progress | None = None,
) -> tuple[ImageSet, str | None]:
    """Open a data set with its labels, if it has any that a generator of ``classes`` takes.

    Only an official ``dataset.json`` counts: the names of folders need not be classes.

    Args:
        path: a folder or zip.
        classes: of the generator; 0: labels are not looked for.
        resolution: side of the images.
        channels: of the images.
        progress: see :func:`dsconvert.data.images.open_images`.

    Returns:
        the images, and why they come without labels (None where they have them).

    Raises:
        DataError: no such data, or no readable image in it.
    """

    def opened(*, conditional: bool, decode: bool) -> ImageSet:
        return open_images(
            path,
            resolution=resolution,
            channels=channels,
            conditional=conditional,
            cache="auto" if decode else "never",
            progress=progress,
        )

    why: str | None = None
    if not classes:
        why = "the generator has no classes"
    elif LABELS not in Files(path).names:
        why = f"{path} has no {LABELS}"
    else:
        try:  # of the labels alone: nothing is decoded yet
            found = opened(conditional=True, decode=False)
        except DataError as error:
            why = str(error).rstrip(".")
        else:
            vectors = found.labels is not None and found.labels.dim() == 2
            if found.classes > classes or (vectors and found.classes != classes):
                why = f"{path} has {found.classes} classes, and the generator {classes}"
    images = opened(conditional=why is None, decode=True)
    return (images if why else replace(images, classes=classes)), why


def with_classes_of(inputs: Inputs, images: ImageSet) -> Inputs:
    """``inputs`` with the classes of randomly chosen images in place of its own.

    The latents stay those that ``inputs`` draws.
    """

    def draw(n: int, random: torch.Generator) -> tuple[Any, ...]:
        latents, _ = inputs(n, random)
        return latents, images.label(torch.randint(len(images), (n,), generator=random))

    return draw
