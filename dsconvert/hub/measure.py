"""Measure a generator for its model card: cost, time here, and quality against the original.

Of a conditional generator of N classes, seed i has class i mod N.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dsconvert.bench.machine import device_name, seconds_of
from dsconvert.config.files import Drawing
from dsconvert.core.pipeline import cost
from dsconvert.data.pictures import psnr
from dsconvert.data.spectrograms import is_sound, stft_distance
from dsconvert.errors import UsageError
from dsconvert.formats.alike import check_same_inputs
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.paint import painter
from dsconvert.metrics import LiteFeatures, feature_distance
from dsconvert.model.inputs import held_out_inputs
from dsconvert.records.sounds import MelSpec

SHOWN = 8
"""Seeds in the picture."""
_JUDGED = 32
"""Seeds of the PSNR."""
_RUNS = 7
Calls = Callable[[int], Callable[[], Tensor]]
"""``calls(seed)`` draws the arguments of a seed, and returns a function that makes its image."""


@dataclass(frozen=True, kw_only=True)
class CardCost:
    """The cost of one generator."""

    parameters: int
    macs: int | None
    """Of one image, as fvcore counts them."""
    seconds: float
    """Median of one image on this machine; the models take turns."""


@dataclass(frozen=True, kw_only=True)
class CardQuality:
    """The images against the original's."""

    seeds: int
    psnr_db: float | None
    """Mean over the seeds, at equal latents and noise; None: of sounds."""
    psnr_db_worst: float | None
    stft_distance: float | None
    """Mean multi-resolution STFT distance over the seeds; None: of images."""
    stft_distance_worst: float | None
    distance: dict[str, Any] | None
    """FD-lite0, its floor and the interval of their difference; None: not measured."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The facts of a model card."""

    device: str
    threads: int
    costs: dict[str, CardCost]
    """By role: ``generator``, and ``original`` where there is one."""
    quality: CardQuality | None
    rows: dict[str, Tensor]
    """Images (N, C, H, W) for the picture, or sounds (N, 1, 1, T), by role."""
    sounds: MelSpec | None
    """The spectrograms that the generator reads, where it makes sounds."""
    classes: int
    """Of a conditional generator; 0: it has none."""


def measure(
    file: GeneratorFile, original: GeneratorFile | None, *, distance: int | None
) -> CardFacts:
    """Measure the generator of ``file``, alone or against ``original``'s.

    Args:
        file: an opened file.
        original: the file that it was made from; None: there is none at hand.
        distance: images for FD-lite0; None: it is not measured.

    Raises:
        UsageError: the two have other inputs or images of other sizes; the generator makes sounds,
            and FD-lite0 is asked for, or the sounds are too short for their distance.
        MissingExtraError: FD-lite0 is asked for, and its network is not installed.
    """
    sounds = file.sounds()
    if sounds is not None and distance:
        raise UsageError(
            f"the generator of {file.path} makes sounds, and --distance measures pictures; leave "
            "it out."
        )
    features = LiteFeatures(torch.device("cpu")) if distance else None
    files = {"generator": file} if original is None else {"original": original, "generator": file}
    if original is not None:
        check_same_inputs(file, original, otherwise="their images can't be compared")
    seeds = tuple(range(SHOWN if original is None else _JUDGED))
    calls = {role: _calls(each) for role, each in files.items()}
    made = {role: torch.cat([call(seed)() for seed in seeds]) for role, call in calls.items()}
    quality = None
    if original is not None:
        one, two = made["generator"], made["original"]
        if one.shape != two.shape:
            raise UsageError(
                f"{file.path} makes {list(one.shape[1:])} images and {original.path} "
                f"{list(two.shape[1:])}: they can't be compared."
            )
        quality = replace(
            _alike(one, two) if sounds is None else _sound_alike(one, two),
            distance=_distance(file, original, distance, features),
        )
    seconds = _seconds(calls)
    costs: dict[str, CardCost] = {}
    for role, each in files.items():
        counted = cost(each.generator, inputs=each.inputs())
        costs[role] = CardCost(parameters=counted.params, macs=counted.macs, seconds=seconds[role])
    return CardFacts(
        device=device_name("cpu"),
        threads=torch.get_num_threads(),
        costs=costs,
        quality=quality,
        rows={role: images[:SHOWN] for role, images in made.items()},
        sounds=sounds,
        classes=file.classes,
    )


def _calls(file: GeneratorFile) -> Calls:
    paint, classes = painter(file, Drawing(), device=torch.device("cpu")), file.classes

    def call(seed: int) -> Callable[[], Tensor]:
        return partial(paint, file.draws(seed % classes if classes else None)(seed), seed)

    return call


def _alike(made: Tensor, wanted: Tensor) -> CardQuality:
    values = psnr(made, wanted)
    return CardQuality(
        seeds=len(made),
        psnr_db=float(values.mean()),
        psnr_db_worst=float(values.min()),
        stft_distance=None,
        stft_distance_worst=None,
        distance=None,
    )


def _sound_alike(made: Tensor, wanted: Tensor) -> CardQuality:
    if not is_sound(wanted):
        raise UsageError(
            f"the sounds have {wanted.shape[-1]} samples, too few for a distance; make longer "
            "crops (--crop FRAMES)."
        )
    values = stft_distance(made.flatten(1), wanted.flatten(1))
    return CardQuality(
        seeds=len(made),
        psnr_db=None,
        psnr_db_worst=None,
        stft_distance=float(values.mean()),
        stft_distance_worst=float(values.max()),
        distance=None,
    )


def _distance(
    file: GeneratorFile,
    original: GeneratorFile,
    samples: int | None,
    features: LiteFeatures | None,
) -> dict[str, Any] | None:
    inputs = original.inputs()
    if samples is None or features is None or inputs is None:
        return None
    found = feature_distance(
        file.picture(),
        original.picture(),
        held_out_inputs(inputs),
        samples=samples,
        features=features,
    )
    return {**vars(found), "distinguishable": found.distinguishable}


def _seconds(calls: dict[str, Calls]) -> dict[str, float]:
    """Return the median seconds of one image by each call; they run in turns, and have run."""
    times: dict[str, list[float]] = {role: [] for role in calls}
    for seed in range(_RUNS):
        for role, call in calls.items():
            times[role].append(seconds_of(call(seed), "cpu"))
    return {role: statistics.median(found) for role, found in times.items()}
