"""Compare the generator of a written file with the original, and record the result."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.config.choices import Noise
from dsconvert.errors import ExportError
from dsconvert.forms.verify import BATCHES, check_finite
from dsconvert.model.inputs import Inputs, examples_of, fresh_args
from dsconvert.model.observe import evaluating
from dsconvert.records import Export


def exported(
    model: nn.Module,
    path: Path,
    inputs: Inputs | None,
    *,
    noise: Noise,
    size: int,
    compared: tuple[float, float],
    seconds: float,
) -> Export:
    """Return the record of a written safetensors file; ``compared`` is of :func:`same_images`."""
    error, reach = compared
    shapes: dict[str, tuple[int | str, ...]] = {
        f"argument {i}": ("batch", *a.shape[1:])
        for i, a in enumerate(examples_of(model, inputs))
        if isinstance(a, Tensor)
    }
    return Export(
        path=str(path),
        format="safetensors",
        files=(str(path),),
        bytes=size,
        inputs=shapes,
        noise=noise,
        planes=(),
        error=error,
        range=reach,
        batches=BATCHES,
        seconds=seconds,
    )


def same_images(
    model: nn.Module, loaded: nn.Module, path: Path, inputs: Inputs | None
) -> tuple[float, float]:
    """Check that ``loaded``, read from ``path``, makes the images of ``model``.

    Returns:
        the largest difference of a pixel, and the largest magnitude of a pixel of the original.

    Raises:
        ExportError: it makes others.
    """
    worst, reach = 0.0, 0.0
    loaded.to(next(model.parameters()).device)
    for i, n in enumerate(BATCHES):
        args = examples_of(model, inputs, n=n, seed=1 + i)
        images: list[Tensor] = []
        for each in (model, loaded):
            with evaluating(each):
                torch.manual_seed(i)
                images.append(image_tensor(each(*fresh_args(args)), sounds=True).double())
        check_finite(images[0], path, batch=n)
        error = (images[0] - images[1]).abs().max().item()
        worst, reach = max(worst, error), max(reach, images[0].abs().max().item())
        if not error <= 1e-6 * max(reach, 1e-3):
            raise ExportError(
                f"{path}, loaded again, differs from the model by {error:.3g} (batch {n}). Nothing "
                "was written."
            )
    return worst, reach
