"""The options of a polish, and the checks before the work of a conversion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from dsconvert.adapter import image_tensor
from dsconvert.core.analysis import Analysis
from dsconvert.errors import AdapterError, PolishError, UsageError
from dsconvert.model.copying import isolated_copy
from dsconvert.model.inputs import (
    RandomPixels,
    fresh_args,
    map_tensors,
    needs_pictures_to_fit,
)
from dsconvert.model.observe import evaluating, meta_copy
from dsconvert.records import PolishForecast


@dataclass(frozen=True, kw_only=True)
class PolishOptions:
    """How long a polish may take.

    Attributes:
        minutes: the most that it may take.
        steps: its length instead, whatever time that takes.
        forecast: called with the expectation, before the first step.
    """

    minutes: float = 0.0
    steps: int | None = None
    forecast: Callable[[PolishForecast], None] | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is to be a polish at all."""
        return self.minutes > 0 or self.steps is not None


def polish_options(
    minutes: float,
    steps: int | None,
    *,
    init: str,
    forecast: Callable[[PolishForecast], None] | None = None,
) -> PolishOptions:
    """Check and return the options of a polish before any work.

    Raises:
        UsageError: they make no sense.
    """
    if not minutes >= 0:
        raise UsageError(f"polish is {minutes!r} minutes; give 0 (none) or more.")
    if steps is not None and steps < 1:
        raise UsageError(f"polish_steps is {steps!r}; give 1 or more, or leave it out.")
    options = PolishOptions(minutes=minutes, steps=steps, forecast=forecast)
    if options.wanted and init == "random":
        raise UsageError(
            "a polish improves a fitted model, and init 'random' starts a training from scratch; "
            "drop one of the two."
        )
    return options


def check_polishable(analysis: Analysis) -> None:
    """Check that a polish can compare images, before the work of a conversion.

    Raises:
        PolishError: the inputs are unknown, or the output is no image (N, C, H, W).
    """
    name = type(analysis.model).__name__
    if analysis.sampler is None:
        raise PolishError(
            f"can't polish this {name}: nothing says what its inputs look like. Pass "
            "inputs=callable (in a command --input SHAPE), or do without polish."
        )
    if isinstance(analysis.sampler, RandomPixels):
        raise PolishError(needs_pictures_to_fit(analysis.model, analysis.sampler))
    try:
        image = image_tensor(_dry_run(analysis))
    except AdapterError as error:
        raise PolishError(
            f"can't polish this {name}: {str(error).rstrip('.')}. Do without polish."
        ) from error
    if not image.is_floating_point():
        raise PolishError(
            f"can't polish this {name}: its images are of type {image.dtype}, which has no "
            "gradient. Do without polish."
        )


def _dry_run(analysis: Analysis) -> Any:
    """Return the output of one call, without data if the model allows that."""
    args = analysis.examples or ()
    try:
        made = as_pictures(analysis, meta_copy(analysis.model))
        with evaluating(made):
            return made(*map_tensors(lambda t: t.to("meta"), args))
    except Exception:  # the model needs data, and may raise any error without
        made = as_pictures(analysis, isolated_copy(analysis.model))
        with evaluating(made):
            return made(*fresh_args(args))


def as_pictures(analysis: Analysis, model: nn.Module) -> nn.Module:
    """Return ``model`` as a module that returns its image, if an adapter knows how."""
    return model if analysis.adapter is None else analysis.adapter.picture(model)
