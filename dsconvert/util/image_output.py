"""Find the images in the value that a generator returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dsconvert.errors import AdapterError

if TYPE_CHECKING:
    import torch

_IMAGES = ("image", "images", "img", "sample")
"""Usual dictionary keys of the images, the most likely first."""


def image_path(output: Any, *, sounds: bool = False) -> tuple[int | str, ...]:
    """Return the indices and keys that lead to the images in a generator's return value.

    In a list or tuple, the image is the first tensor of four dimensions. In a dictionary it is the
    only one, or the one under a usual name (``image``, ``images``, ``img``, ``sample``).

    Args:
        output: the return value.
        sounds: whether sounds (N, C, T) serve where there are no images.

    Raises:
        AdapterError: there is no such tensor, or a dictionary holds several under other names.
    """
    found = list(_maps(output, (), 4))
    if sounds and not found:
        found = list(_maps(output, (), 3))
    if not found:
        raise AdapterError(
            f"the generator returns a {type(output).__name__}, not images (N, C, H, W)."
        )
    first = found[0]
    keys = list(dict.fromkeys(path[0] for path in found)) if isinstance(output, Mapping) else []
    if len(keys) < 2:
        return first
    known = next((k for k in _IMAGES if k in keys), None)
    if known is None:
        raise AdapterError(
            f"the generator returns several maps of four dimensions ({', '.join(map(str, keys))}) "
            "and does not say which is the image; wrap it in a module that returns the image alone."
        )
    return next(path for path in found if path[0] == known)


def _maps(
    output: Any, path: tuple[int | str, ...], dimensions: int
) -> Iterator[tuple[int | str, ...]]:
    import torch

    if isinstance(output, torch.Tensor):
        if output.dim() == dimensions:
            yield path
    elif isinstance(output, Mapping):
        for key, each in output.items():
            yield from _maps(each, (*path, key), dimensions)
    elif isinstance(output, list | tuple):
        for i, each in enumerate(output):
            yield from _maps(each, (*path, i), dimensions)


def image_tensor(output: Any, *, sounds: bool = False) -> torch.Tensor:
    """Return the images in a generator's return value; see :func:`image_path`.

    Raises:
        AdapterError: see :func:`image_path`.
    """
    found: Any = output
    for key in image_path(output, sounds=sounds):
        found = found[key]
    return found
