"""Distances between the images of generators, and to real images."""

from __future__ import annotations

from dsconvert.metrics.distance import FeatureDistance, feature_distance, sample_images
from dsconvert.metrics.features import LiteFeatures
from dsconvert.metrics.frechet import (
    Comparison,
    compare_features,
    compare_sets,
    frechet_distance,
)

__all__ = [
    "Comparison",
    "FeatureDistance",
    "LiteFeatures",
    "compare_features",
    "compare_sets",
    "feature_distance",
    "frechet_distance",
    "sample_images",
]
