"""Differentiate a model, with a sentence where that can't be done."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from dsconvert.errors import NoGradientsError
from dsconvert.util.first_line import first_line
from dsconvert.util.full_memory import is_memory_full


@contextmanager
def differentiating() -> Generator[None, None, None]:
    """Record gradients inside, whatever mode the caller is in. It may also decorate a function.

    Raises:
        NoGradientsError: for a ``RuntimeError`` inside, such as torch's of a map that was written
            in place before its gradient was computed. A full memory keeps its own error.
    """
    try:
        with torch.enable_grad():
            yield
    except RuntimeError as error:
        if is_memory_full(error):
            raise
        raise NoGradientsError(
            f"the model's gradients can't be computed ({first_line(error)[:200]}). Without them it "
            "can neither be trained nor lose channels: leave out the polish (--polish 0, polish=0) "
            "and --width."
        ) from error
