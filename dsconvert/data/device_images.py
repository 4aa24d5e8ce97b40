"""A data set as uint8 levels on a GPU: each image is decoded once and copied there once.

A batch is then a list of indices and mirrorings, and costs the computer's CPU nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsconvert.data.images import ImageSet
from dsconvert.util.devices import free_memory, to_device

SHARE = 0.25
"""Of the device's free memory that images may take."""


class DeviceImages:
    """The images of a set on a device, filled as they arrive.

    Args:
        images: the set; one that is decoded is copied at once.
        device: for the images.
    """

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self._device, count = device, len(images)
        shape = (count, images.channels, *images.size)
        if images.decoded is not None:
            self._levels = images.decoded.to(device)
        else:
            self._levels = torch.empty(shape, dtype=torch.uint8, device=device)
        self._indices = torch.arange(count, device="cpu")
        self._missing = set() if images.decoded is not None else set(range(count))

    @property
    def complete(self) -> bool:
        """Whether every image is there."""
        return not self._missing

    def store(self, wanted: Tensor, flipped: Tensor, images: Tensor, indices: Tensor) -> Tensor:
        """Keep a batch that was read; return it on the device.

        Args:
            wanted: the indices (n,) that were asked for.
            flipped: whether each image is mirrored (n,).
            images: uint8 (n, C, R, R), mirrored.
            indices: of the images that were given instead where one can't be read (n,).
        """
        shown = images.to(self._device, non_blocking=True)
        at = to_device(wanted, self._device)
        self._levels[at] = _mirrored(shown, to_device(flipped, self._device))
        self._indices[wanted] = indices
        self._missing.difference_update(wanted.tolist())
        return shown

    def take(self, wanted: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (n, C, R, R) on the device, and their indices (n,) on the CPU."""
        levels = self._levels[to_device(wanted, self._device)]
        return _mirrored(levels, to_device(flipped, self._device)), self._indices[wanted]


def _mirrored(images: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def device_images(images: ImageSet, device: torch.device | None) -> DeviceImages | None:
    """Return a place for the images on a device; None: it is no CUDA device, or they don't fit."""
    free = None if device is None else free_memory(device)
    size = len(images) * images.channels * math.prod(images.size)
    if device is None or free is None or size > SHARE * free:
        return None
    return DeviceImages(images, device)
