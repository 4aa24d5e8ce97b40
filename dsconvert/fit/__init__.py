"""Fit modules to activations: the pass that records them, and the solvers that rules use.

``activation_stream`` runs the original and the rewritten model side by side, and ``copy_on_write``
keeps their writes in place apart; a :class:`Sample` holds the activations of one layer; ``moments``
condenses them to what least squares needs; ``least_squares`` solves for kernels,
``product_kernel`` for products of two factors; ``positions`` says which positions of large maps
enter; ``statistics`` corrects batch normalisations;
``overflow`` guards all of that against values that are not finite; ``threads`` runs small
operations on one thread.
"""

from __future__ import annotations

from dsconvert.fit.least_squares import MAX_UNKNOWNS, RIDGES, fit_dense, pick, ridge_towards
from dsconvert.fit.moments import (
    Moments,
    channel_mean,
    channel_variance,
    moments,
    second_moment,
    taps_per_phase,
)
from dsconvert.fit.sample import Sample
from dsconvert.fit.transposed import fit_transposed

__all__ = [
    "MAX_UNKNOWNS",
    "RIDGES",
    "Moments",
    "Sample",
    "channel_mean",
    "channel_variance",
    "fit_dense",
    "fit_transposed",
    "moments",
    "pick",
    "ridge_towards",
    "second_moment",
    "taps_per_phase",
]
