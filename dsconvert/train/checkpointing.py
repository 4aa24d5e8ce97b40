"""Save and restore the state of a training, so that a resumed run ends with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dsconvert.config.train import TrainConfig
from dsconvert.errors import TrainingError
from dsconvert.runs.checkpoint import (
    load_newest,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from dsconvert.runs.folder import RunFolder
from dsconvert.train.state import TrainState

_MODULES = ("generator", "discriminator", "ema", "opt_g", "opt_d", "scaler")


def save_state(
    state: TrainState, *, folder: RunFolder, config: TrainConfig, seconds: float
) -> None:
    """Write a checkpoint with everything that the next step depends on.

    Args:
        state: of the training.
        folder: of the run.
        config: of the run; it is stored, and says how many checkpoints remain.
        seconds: that the run has taken so far.

    Raises:
        OutputError: the disk can't take it.
    """
    payload = {
        **{name: getattr(state, name).state_dict() for name in _MODULES},
        "images": state.images,
        "step": state.step,
        "best": state.best,
        "sums": state.sums,
        "steps": state.steps,
        "seconds": seconds,
        "random": random_states(),
        "config": config.to_dict(),
    }
    save_checkpoint(folder, state.images, payload, keep=config.keep_last)


def _keep_implementation(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Let a saved optimiser run as the present one does: the device decides, not the run's."""
    for mine, theirs in zip(optimiser.param_groups, saved["param_groups"], strict=False):
        theirs.update({k: mine[k] for k in ("fused", "foreach", "capturable") if k in mine})


def check_settings(config: TrainConfig, stored: Mapping[str, Any]) -> None:
    """Check that a run may go on with ``config``.

    Args:
        config: the settings to go on with.
        stored: those of the run, as plain data.

    Raises:
        TrainingError: one that a weight depends on differs.
    """
    changed = config.fixed_changes(stored)
    if changed:
        raise TrainingError(
            "a resumed run keeps its settings; these differ: "
            + ", ".join(f"{k} was {then}, is {now}" for k, (then, now) in changed.items())
            + ". Start a new run from its snapshot instead (finetune)."
        )


def restore_state(state: TrainState, *, folder: RunFolder, config: TrainConfig) -> float:
    """Load the newest checkpoint into ``state``; set the random generators.

    Returns:
        the seconds that the run took until then.

    Raises:
        TrainingError: there is no checkpoint, or it has other settings or networks.
    """
    found = folder.checkpoints()
    if not found:
        raise TrainingError(
            f"there is no checkpoint in {folder.checkpoint_folder} to resume from; start the run "
            "anew."
        )
    data = load_newest(found)
    check_settings(config, data["config"])
    try:
        for name in _MODULES:
            target = getattr(state, name)
            if isinstance(target, torch.optim.Optimizer):
                _keep_implementation(target, data[name])
            target.load_state_dict(data[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(
            f"the checkpoints in {folder.path} are of other networks than these: "
            f"{str(error)[:300]}."
        ) from error
    state.images, state.step, state.best = data["images"], data["step"], data["best"]
    state.sums, state.steps = dict(data["sums"]), data["steps"]
    restore_random_states(data["random"])
    return float(data["seconds"])
