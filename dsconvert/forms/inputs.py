"""The sampler type and the example arguments; see :mod:`dsconvert.model.inputs`."""

from __future__ import annotations

from dsconvert.model.inputs import Inputs, examples_of

__all__ = ["Inputs", "examples_of"]
