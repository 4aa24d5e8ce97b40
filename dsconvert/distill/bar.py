"""How far a distillation has got, in the unit of what ends it."""

from __future__ import annotations

from dsconvert.distill.config import DistillConfig


def position(config: DistillConfig, steps: int, seconds: float) -> tuple[str, int, int]:
    """(stage, done, total) towards the end: in steps, in seconds, or in percent if both may end it.

    Where only patience ends a run, nobody knows its total: it is one step ahead.
    """
    if config.steps is not None and config.minutes is not None:
        return "distil, percent", int(100 * config.progress(steps, seconds)), 100
    if config.steps is not None:
        return "distil, steps", steps, config.steps
    if config.minutes is not None:
        total = max(1, round(60 * config.minutes))
        return "distil, seconds", min(round(seconds), total), total
    return "distil, steps", steps, steps + 1


def detail(config: DistillConfig, steps: int, *, loss: float | None, held: float | None) -> str:
    """What stands beside it: the step, the mean loss of the last steps, the held-out distance."""
    parts = [] if config.steps is not None and config.minutes is None else [f"step {steps}"]
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    if held is not None:
        parts.append(f"held-out distance {held:.4f}")
    if config.steps is None and config.minutes is None:
        parts.append(f"until {config.patience} evaluations bring nothing")
    return ", ".join(parts)
