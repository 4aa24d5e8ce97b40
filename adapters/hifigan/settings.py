"""The settings of a HiFi-GAN: by names and shapes, and by ``config.json``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsconvert.errors import AdapterError

LAYERS = (
    "resblock", "upsample_rates", "upsample_kernel_sizes", "upsample_initial_channel",
    "resblock_kernel_sizes", "resblock_dilation_sizes",
)  # fmt: skip
SOUND: dict[str, Any] = {
    "sampling_rate": 22050,
    "n_fft": 1024,
    "hop_size": 256,
    "win_size": 1024,
    "fmin": 0,
    "fmax": 8000,
}
"""Settings of the spectrograms, with those of all released models."""
_DILATIONS = {("1", 3): [1, 3, 5]}
_VERSION_3 = ([3, 5, 7], [[1, 2], [2, 6], [3, 12]])
_FORMS = {"weight_v": "hook", "parametrizations.weight.original1": "param", "weight": "none"}


def _kernel(state: Mapping[str, Tensor], name: str) -> Tensor:
    for form in _FORMS:
        if (found := state.get(f"{name}.{form}")) is not None:
            return found
    raise ValueError(f"it has no kernel of {name}")


def config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the facts that names and shapes tell, and guesses of the rest.

    ``guessed`` says whether rates and dilations are those of a released model.

    Raises:
        ValueError: the tensors are not those of a HiFi-GAN.
    """
    norm = next((norm for form, norm in _FORMS.items() if f"conv_pre.{form}" in state), None)
    stages = len({k.split(".")[1] for k in state if k.startswith("ups.")})
    count = len({k.split(".")[1] for k in state if k.startswith("resblocks.")})
    if norm is None or not stages or count % stages:
        raise ValueError(f"it has {count} blocks in {stages} stages")
    channels, mels, _ = _kernel(state, "conv_pre").shape
    resblock = "1" if any(k.startswith("resblocks.0.convs1.") for k in state) else "2"
    list_name = "convs1" if resblock == "1" else "convs"
    places = [f"resblocks.{i}.{list_name}" for i in range(count // stages)]
    kernels = [_kernel(state, f"{p}.0").shape[2] for p in places]
    depth = [
        len({k.split(".")[3] for k in state if re.match(rf"{re.escape(p)}\.\d+\.", k)})
        for p in places
    ]
    ups = [_kernel(state, f"ups.{i}").shape[2] for i in range(stages)]
    guess = [_DILATIONS.get((resblock, d), list(range(1, d + 1))) for d in depth]
    known = resblock == "1" and set(depth) == {3}
    if resblock == "2" and kernels == _VERSION_3[0] and set(depth) == {2}:
        guess, known = _VERSION_3[1], True
    rates = [k // 2 for k in ups]
    return {
        **SOUND,
        "resblock": resblock,
        "upsample_rates": rates,
        "upsample_kernel_sizes": ups,
        "upsample_initial_channel": channels,
        "resblock_kernel_sizes": kernels,
        "resblock_dilation_sizes": guess,
        "num_mels": mels,
        "norm": norm,
        "guessed": known and math.prod(rates) == SOUND["hop_size"] and mels == 80,
    }


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``config`` with the values of ``config.json``.

    Raises:
        AdapterError: they do not fit the tensors, or are needed and missing.
    """
    found = {k: v for k, v in config.items() if k != "guessed"}
    if settings is None or "upsample_rates" not in settings:
        if config["guessed"]:
            return found
        raise AdapterError(
            "the tensors of this HiFi-GAN do not tell its upsampling rates and dilations: put the "
            "config.json that belongs to it beside it."
        )
    given = checked({**found, **{k: settings[k] for k in (*LAYERS, *SOUND) if k in settings}})
    fixed = ("resblock", "upsample_kernel_sizes", "upsample_initial_channel",
             "resblock_kernel_sizes")  # fmt: skip
    if wrong := [k for k in fixed if given[k] != found[k]]:
        raise AdapterError(
            f"config.json has another {wrong[0]} ({given[wrong[0]]}) than the checkpoint beside it "
            f"({found[wrong[0]]}); take the one that belongs to it."
        )
    return given


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with every value checked.

    Raises:
        AdapterError: one is missing, of a wrong type or out of bounds.
    """
    try:
        found: dict[str, Any] = {
            "resblock": str(config["resblock"]),
            "norm": str(config["norm"]),
            **{
                k: [int(n) for n in config[k]]
                for k in ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes")
            },
            "resblock_dilation_sizes": [
                [int(n) for n in row] for row in config["resblock_dilation_sizes"]
            ],
            **{k: int(config[k]) for k in ("upsample_initial_channel", "num_mels")},
            **{k: int(config[k]) for k in ("sampling_rate", "n_fft", "hop_size", "win_size")},
            "fmin": float(config["fmin"]),
            "fmax": None if config["fmax"] is None else float(config["fmax"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"this describes no HiFi-GAN ({error!r}).") from None
    rates, ups = found["upsample_rates"], found["upsample_kernel_sizes"]
    blocks, dilations = found["resblock_kernel_sizes"], found["resblock_dilation_sizes"]
    numbers = [*rates, *ups, *blocks, *(n for row in dilations for n in row)]
    numbers += [v for k, v in found.items() if type(v) is int and k != "fmin"]
    whole = all(1 <= n <= 1 << 20 for n in numbers) and len(numbers) < 1000
    fits = len(rates) == len(ups) and len(blocks) == len(dilations) and bool(rates) and bool(blocks)
    even = all(k >= r and (k - r) % 2 == 0 for k, r in zip(ups, rates, strict=False))
    if not whole or not fits or not even or found["upsample_initial_channel"] >> len(rates) < 1:
        raise AdapterError("this describes no HiFi-GAN: its sizes do not fit together.")
    if found["hop_size"] != math.prod(rates):
        raise AdapterError(
            f"this HiFi-GAN makes {math.prod(rates)} samples of a frame, and its hop_size is "
            f"{found['hop_size']}: config.json belongs to another model."
        )
    if found["win_size"] > found["n_fft"] or found["hop_size"] > found["n_fft"]:
        raise AdapterError("this describes no HiFi-GAN: its window is longer than n_fft.")
    return found
