"""Read the arguments of a generator off the names and shapes of its state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

State = Mapping[str, torch.Tensor]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_INNER = "model.1."
"""The prefix of a U-Net's second block, in its first; further ones are ``model.3.`` below it."""


def is_resnet(state: State) -> bool:
    """Return whether a state dict is that of a ResNet generator, also of a converted one."""
    return any(n.startswith("model.1.") for n in state) and any(
        n.startswith(("model.10.conv_block.", "model.12.conv_block.")) for n in state
    )


def is_unet(state: State) -> bool:
    """Return whether a state dict is that of a U-Net generator, also of a converted one."""
    return any(n.startswith("model.model.0.") for n in state) and any(
        n.startswith("model.model.1.model.3.model.") for n in state
    )


def cleaned(state: State) -> dict[str, torch.Tensor]:
    """Return a state dict without statistics of instance norms, which torch 0.3 saved."""
    stale = {
        name
        for name in state
        if name.endswith(_STATISTICS) and f"{name.rpartition('.')[0]}.weight" not in state
    }
    return {name: tensor for name, tensor in state.items() if name not in stale}


def config_of(state: State) -> dict[str, Any]:
    """Return the arguments of :meth:`CycleGan.make` for an original's state dict.

    Raises:
        LookupError: a part is missing.
        ValueError: the parts are no generator of these codebases.
    """
    return _unet(state) if is_unet(state) else _resnet(state)


def _convolutions(state: State, prefix: str) -> list[int]:
    """Return the indices of the convolutions directly below a prefix, in order."""
    found: list[int] = []
    for name, tensor in state.items():
        index, _, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and rest == "weight" and tensor.ndim == 4 and index.isdigit():
            found.append(int(index))
    return sorted(found)


def _norm_of(state: State, conv: str, norm: str) -> str:
    if f"{norm}.weight" in state:
        return "batch"
    return "instance" if f"{conv}.bias" in state else "none"


def _resnet(state: State) -> dict[str, Any]:
    first = state["model.1.weight"]
    if first.ndim != 4 or first.shape[2:] != (7, 7):
        raise ValueError(f"its first kernel is {list(first.shape)}, not 7x7")
    blur_down = "model.7.filt" in state
    start = 12 if blur_down else 10
    blocks = 0
    while any(n.startswith(f"model.{start + blocks}.conv_block.") for n in state):
        blocks += 1
    if not blocks:
        raise ValueError(f"it has no residual block at model.{start}")
    places = _convolutions(state, f"model.{start}.conv_block.")
    layouts = {(1, 5): (True, False), (1, 6): (True, True), (0, 3): (False, False),
               (0, 4): (False, True)}  # fmt: skip
    if tuple(places) not in layouts:
        raise ValueError(f"the convolutions of its blocks are at {places}")
    reflect, dropout = layouts[places[0], places[1]]
    last = _convolutions(state, "model.")[-1]
    return {
        "kind": "resnet",
        "input_nc": first.shape[1],
        "output_nc": state[f"model.{last}.weight"].shape[0],
        "ngf": first.shape[0],
        "norm": _norm_of(state, "model.1", "model.2"),
        "use_dropout": dropout,
        "n_blocks": blocks,
        "reflect": reflect,
        "blur_down": blur_down,
        "blur_up": f"model.{start + blocks}.filt" in state,
    }


def _unet(state: State) -> dict[str, Any]:
    first, downs = state["model.model.0.weight"], 1
    prefix = f"model.{_INNER}"
    while f"{prefix}model.1.weight" in state:
        downs += 1
        prefix += "model.3."
    second = f"model.{_INNER}model"
    return {
        "kind": "unet",
        "input_nc": first.shape[1],
        "output_nc": state["model.model.3.weight"].shape[1],
        "ngf": first.shape[0],
        "norm": _norm_of(state, f"{second}.1", f"{second}.2"),
        "num_downs": downs,
    }
