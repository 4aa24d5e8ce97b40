"""The inputs of an exported graph as a page fills them, and the range of its images.

A page draws normal numbers as NumPy's ``RandomState`` does, input after input: of an official
snapshot a seed makes the latents that ``dsconvert generate`` and the official code draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dsconvert.adapter import image_tensor
from dsconvert.config.choices import Values
from dsconvert.data.array_inputs import ArrayInputs
from dsconvert.errors import ExportError, UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.forms.call import call_of
from dsconvert.model.inputs import like
from dsconvert.model.observe import evaluating

_SAMPLES = 64
_LARGEST_CONSTANT = 4096
_LARGEST_TABLE = 1 << 18
_REACHES = (2.0,)
"""Where codebases truncate their normal latents."""
_NOISE = 0x9E3779B9
"""Exclusive-or of an image's seed, for the seed of its noise."""
_UNFIT = (
    "a page can't fill the input {name} of {path}: it is neither latents nor a class. "
    "Export it to another format."
)


@dataclass(frozen=True, kw_only=True)
class PageInput:
    """One input of a graph: normal latents, a class, its numbers, noise, or constant numbers."""

    name: str
    kind: Literal["latent", "class", "table", "noise", "constant"]
    shape: tuple[int, ...]
    """Of one image."""
    values: tuple[float, ...] = ()
    """Of a constant; of a table those of each class, one class after the other."""
    reach: float | None = None
    """Latents farther than this from zero are drawn anew."""


def inputs_of(file: GeneratorFile, names: Mapping[str, tuple[int | str, ...]]) -> list[PageInput]:
    """Return how a page fills the inputs of the exported generator of ``file``.

    Args:
        file: an opened file.
        names: the graph's inputs in their order, with their shapes.

    Raises:
        UsageError: the generator reads pictures or sounds, or its latents are not normal.
        ExportError: an input is neither latents, nor a class, nor a small constant.
    """
    check_drawable(file)
    classes = file.classes
    draw = file.draws(0 if classes else None)
    model = file.generator
    call = call_of(model, like(draw(0), model), None)
    given = tuple(n for n in names if n in call.tensors)
    drawn = [call.select(call.given(*like(draw(s), model)), given) for s in range(_SAMPLES)]
    second = file.draws(1)(0) if classes > 1 else draw(0)
    other = call.select(call.given(*like(second, model)), given)
    found: list[PageInput] = []

    def of_classes(i: int) -> Tensor:
        rows = (like(file.draws(label)(0), model) for label in range(classes))
        return torch.cat([call.select(call.given(*row), given)[i] for row in rows])

    for name, shape in names.items():
        if name not in given:
            found.append(PageInput(name=name, kind="noise", shape=_sizes(shape)))
            continue
        if shape[0] != "batch":
            raise ExportError(_UNFIT.format(name=name, path=file.path))
        i = given.index(name)
        samples = torch.stack([d[i] for d in drawn])
        by_class = not torch.equal(other[i], samples[0]) and torch.equal(samples[0], samples[1])
        found.append(_input(file, name, samples, partial(of_classes, i) if by_class else None))
    return found


def check_drawable(file: GeneratorFile) -> None:
    """Check that the generator of ``file`` makes images of latents.

    Raises:
        UsageError: it reads pictures or spectrograms, or the rows of a file.
    """
    if isinstance(file.given, ArrayInputs):
        raise UsageError(
            f"--calibration {file.given.path}: a page draws latents of its own; leave the option "
            "out."
        )
    reads = "spectrograms" if file.sounds() is not None else None
    if reads is None and (file.given is not None or file.pictures() is not None):
        reads = "pictures"
    if reads is not None:
        raise UsageError(
            f"the generator of {file.path} reads {reads}, and a page draws latents: export it to "
            "another format."
        )


def _sizes(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(int(size) for size in shape[1:])


def _input(
    file: GeneratorFile, name: str, samples: Tensor, of_classes: Callable[[], Tensor] | None
) -> PageInput:
    """Return one input; ``of_classes`` gives its values for each class, if it follows the class."""
    shape = tuple(samples.shape[2:])
    if of_classes is not None:
        if _is_one_hot(samples):
            return PageInput(name=name, kind="class", shape=shape)
        if samples.is_floating_point():
            return _table(file, name, of_classes())
    elif not torch.equal(samples[0], samples[1]):
        if samples.is_floating_point():
            for reach in (*_REACHES, None):
                if _is_normal(samples, reach):
                    return PageInput(name=name, kind="latent", shape=shape, reach=reach)
        raise UsageError(
            f"the latents {name} of {file.path} are no standard normal numbers, nor truncated at "
            "2, which are all that a page draws: export it to another format."
        )
    elif samples.is_floating_point() and samples[0].numel() <= _LARGEST_CONSTANT:
        values = tuple(float(v) for v in samples[0].flatten())
        return PageInput(name=name, kind="constant", shape=shape, values=values)
    raise ExportError(_UNFIT.format(name=name, path=file.path))


def _table(file: GeneratorFile, name: str, rows: Tensor) -> PageInput:
    if rows.numel() > _LARGEST_TABLE:
        raise ExportError(_UNFIT.format(name=name, path=file.path))
    values = tuple(round(float(v), 7) for v in rows.flatten())
    return PageInput(name=name, kind="table", shape=tuple(rows.shape[1:]), values=values)


def _is_one_hot(samples: Tensor) -> bool:
    first = samples[0, 0]
    return first.ndim == 1 and float(first.sum()) == 1 == float(first.max())


def _is_normal(samples: Tensor, reach: float | None) -> bool:
    """Whether the moments of many numbers are those of normal ones, drawn anew beyond ``reach``."""
    flat = samples.double().flatten()
    margin = 5 / flat.numel() ** 0.5
    second, fourth = 1.0, 3.0
    if reach is not None:
        if float(flat.abs().max()) > reach:
            return False
        density = 2 * reach * math.exp(-(reach**2) / 2) / math.sqrt(2 * math.pi)
        second -= density / math.erf(reach / math.sqrt(2))
        fourth = 3 * second - reach**2 * (1 - second)
    return (
        abs(float(flat.mean())) < margin
        and abs(float(flat.square().mean()) - second) < 2 * margin
        and abs(float(flat.pow(4).mean()) - fourth) < 10 * margin
    )


def range_of(file: GeneratorFile) -> Values:
    """Return the range of the image that the generator itself returns.

    Raises:
        ExportError: it is no image of 1, 3 or 4 channels in [-1, 1] or [0, 1].
    """
    args = file.draws(0 if file.classes else None)(0)
    images: list[Tensor] = []
    for module in (file.generator, file.picture()):
        with evaluating(module), torch.random.fork_rng():
            torch.manual_seed(0)
            images.append(image_tensor(module(*like(args, file.generator))).float())
    raw, shown = images[0], images[1].clamp(-1, 1)
    if raw.shape[1] in (1, 3, 4):
        if torch.allclose(raw.clamp(-1, 1), shown, atol=1e-4):
            return "signed"
        if torch.allclose((raw * 2 - 1).clamp(-1, 1), shown, atol=1e-4):
            return "unit"
    raise ExportError(
        f"a page can't show the output of {file.path}, which is no image of 1, 3 or 4 channels in "
        "[-1, 1] or [0, 1]. Export it to another format."
    )


def page_arguments(inputs: list[PageInput], seed: int, label: int = 0) -> list[Tensor]:
    """Return the tensors of one image, exactly as the page fills them."""
    numbers = np.random.RandomState(seed)
    tensors: list[Tensor] = []
    for each in inputs:
        size = int(np.prod(each.shape))
        if each.kind == "latent":
            values: Any = _normals(numbers, size, each.reach)
        elif each.kind == "noise":
            values = np.random.RandomState(seed ^ _NOISE).randn(size)
        elif each.kind == "class":
            values = np.eye(size)[label]
        elif each.kind == "table":
            values = np.asarray(each.values).reshape(-1, size)[label]
        else:
            values = np.asarray(each.values)
        tensors.append(torch.from_numpy(values.reshape(1, *each.shape)).float())
    return tensors


def _normals(numbers: np.random.RandomState, size: int, reach: float | None) -> Any:
    """Return normal numbers; those beyond ``reach`` are drawn anew, in turn, until none is left."""
    values = numbers.randn(size)
    if reach is not None:
        while (beyond := np.flatnonzero(np.abs(values) > reach)).size:
            values[beyond[0]] = numbers.randn()
    return values
