"""How far a converted generator's images are from the original's."""

from __future__ import annotations

from dsconvert.metrics.distance import (
    Comparison,
    FeatureDistance,
    compare_features,
    compare_sets,
    feature_distance,
    frechet_distance,
    sample_images,
)
from dsconvert.metrics.features import LiteFeatures

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
