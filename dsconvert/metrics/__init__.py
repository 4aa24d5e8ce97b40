"""How far a converted generator's images are from the original's."""

from __future__ import annotations

from dsconvert.metrics.distance import (
    FeatureDistance,
    compare_features,
    feature_distance,
    frechet_distance,
    sample_images,
)
from dsconvert.metrics.features import LiteFeatures

__all__ = [
    "FeatureDistance",
    "LiteFeatures",
    "compare_features",
    "feature_distance",
    "frechet_distance",
    "sample_images",
]
