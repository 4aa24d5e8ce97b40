"""The record of a run's data in ``settings.json``, and the check that they are still the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dsconvert.data.images import ImageSet, open_images
from dsconvert.errors import TrainingError
from dsconvert.util.progress import Progress


def data_record(images: ImageSet) -> dict[str, Any]:
    """Return the facts that :func:`reopen` needs to open the same images again."""
    return {
        "path": str(images.path.resolve()),
        "images": len(images),
        "fingerprint": images.fingerprint,
        "resolution": images.resolution,
        "channels": images.channels,
        "conditional": images.labels is not None,
        "classes": images.classes,
        "skipped": list(images.skipped),
    }


def reopen(record: Mapping[str, Any], *, progress: Progress | None = None) -> ImageSet:
    """Open the images of :func:`data_record`.

    Raises:
        DataError: the data can't be read.
        TrainingError: the data have changed since.
    """
    path = record["path"]
    images = open_images(
        path,
        resolution=record["resolution"],
        channels=record["channels"],
        conditional=record["conditional"],
        progress=progress,
    )
    if len(images) != record["images"]:
        raise TrainingError(
            f"{path} has {len(images)} images now, and had {record['images']} when the run began: "
            "it can't be continued exactly. Put them back, or start from its snapshot (finetune)."
        )
    # Runs of older versions have no fingerprint.
    if record.get("fingerprint", images.fingerprint) != images.fingerprint:
        raise TrainingError(
            f"the images of {path} have other names or sizes than when the run began: it can't be "
            "continued exactly. Put them back, or start from its snapshot (finetune)."
        )
    return replace(images, classes=record["classes"])
