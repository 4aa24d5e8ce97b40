"""The classes of a conditional generator, drawn with the frequencies of a data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dsconvert.data.archive import DataFiles
from dsconvert.data.images import ImageSet, open_images
from dsconvert.data.labels import LABELS
from dsconvert.errors import DataError
from dsconvert.model.inputs import Inputs, as_args, held_out_inputs
from dsconvert.util.progress import Progress


def classes_of(inputs: Inputs | None) -> int:
    """Return the number of classes that a sampler draws; 0: none, or no sampler.

    A sampler with an attribute ``classes`` says it, and draws one class by its method ``of_class``.
    Of another it is the number of columns of the second argument, whose rows are one-hot (or else a
    second latent).
    """
    if inputs is None or hasattr(inputs, "classes"):
        return int(getattr(inputs, "classes", 0))
    args = as_args(held_out_inputs(inputs)(8, torch.Generator().manual_seed(0)))
    given = args[1] if len(args) == 2 else None
    if not isinstance(given, Tensor) or given.dim() != 2 or not given.shape[1]:
        return 0
    one_hot = ((given == 0) | (given == 1)).all() and (given.sum(1) == 1).all()
    return int(given.shape[1]) if one_hot else 0


def open_labelled(
    path: str,
    *,
    classes: int,
    resolution: int | tuple[int, int],
    channels: int,
    progress: Progress | None = None,
) -> tuple[ImageSet, str | None]:
    """Open a data set, with its labels if they fit a generator of ``classes`` classes.

    Only an official ``dataset.json`` counts: folders need not be classes.

    Args:
        path: a folder or zip.
        classes: of the generator; 0: open the images without labels.
        resolution: side of the images, or (height, width).
        channels: of the images.
        progress: see :func:`dsconvert.data.images.open_images`.

    Returns:
        the images, and the reason why they have no labels (None where they have them).

    Raises:
        DataError: there are no such data, or no readable image in them.
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
    elif LABELS not in DataFiles(path).names:
        why = f"{path} has no {LABELS}"
    else:
        try:  # reads the labels alone; no image is decoded yet
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
    """Return a sampler with the latents of ``inputs`` and the classes of random images."""
    condition: Any = getattr(inputs, "condition", None)
    of_class: Any = getattr(inputs, "of_class", None)

    def each(n: int, random: torch.Generator) -> tuple[Any, ...]:
        """Draw sample by sample, from a sampler that alone knows where its classes are."""
        rows = torch.randint(len(images), (n,), generator=random, device="cpu")
        labels: list[int] = images.label(rows).argmax(1).tolist()
        samples = [as_args(of_class(label)(1, random)) for label in labels]
        return tuple(torch.cat(parts) for parts in zip(*samples, strict=True))

    def draw(n: int, random: torch.Generator) -> tuple[Any, ...]:
        latents, given = inputs(n, random)
        rows = torch.randint(len(images), (n,), generator=random, device="cpu")
        found = images.label(rows)
        if condition is not None:
            return latents, condition(found.argmax(1))
        return latents, found if given.dim() == 2 else found.argmax(1)

    return draw if of_class is None or condition is not None else each


def with_class(inputs: Inputs, label: int) -> Inputs:
    """Return a sampler with the latents of ``inputs``, of a conditional generator, and one class.

    Args:
        inputs: :func:`classes_of` it is above ``label``.
        label: the class.
    """
    if (of_class := getattr(inputs, "of_class", None)) is not None:
        return of_class(label)

    def draw(n: int, random: torch.Generator) -> tuple[Any, ...]:
        latents, given = inputs(n, random)
        if given.dim() == 1:
            return latents, torch.full_like(given, label)
        condition = torch.zeros_like(given)
        condition[:, label] = 1
        return latents, condition

    return draw
