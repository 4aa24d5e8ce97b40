"""The networks behind the metrics: which one each needs, and how they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dsconvert.config.choices import METRICS, Metric
from dsconvert.data.pictures import to_bytes
from dsconvert.errors import UsageError
from dsconvert.metrics.backbone import BackboneFeatures
from dsconvert.metrics.features import LiteFeatures
from dsconvert.metrics.inception import InceptionFeatures

NAMES: dict[Metric, str] = {
    "fid": "FID",
    "kid": "KID",
    "fd-lite0": "FD-lite0",
    "pr-lite0": "PR-lite0",
    "pd-lite0": "PD-lite0",
    "fd-backbone": "FD-backbone",
    "pr-backbone": "PR-backbone",
}
"""Names in reports."""
_NETWORKS: dict[Metric, str] = {
    "fid": "inception",
    "kid": "inception",
    "fd-lite0": "lite0",
    "pr-lite0": "lite0",
    "pd-lite0": "lite0",
    "fd-backbone": "backbone",
    "pr-backbone": "backbone",
}


class Extractor(Protocol):
    """Images ``(N, C, H, W)`` in [-1, 1] to features ``(N, F)``."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features."""
        ...


def network(metric: Metric) -> str:
    """Return the key of the metric's network in the result of :func:`extractors`."""
    return _NETWORKS[metric]


def is_distance(metric: Metric) -> bool:
    """Return whether it is one distance of two sets with a noise floor (FID, KID, FD)."""
    return not metric.startswith(("pr-", "pd-"))


def is_overlap(metric: Metric) -> bool:
    """Return whether it is precision and recall."""
    return metric.startswith("pr-")


def extractors(
    metrics: Sequence[Metric],
    *,
    backbone: str | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Extractor]:
    """Load the networks that the metrics need; fail early if one is missing.

    Args:
        metrics: their names.
        backbone: of ``fd-backbone`` and ``pr-backbone``; see
            :class:`dsconvert.metrics.backbone.BackboneFeatures`.
        device: where they work.

    Raises:
        UsageError: a metric is unknown, or there is none, or its network is not named.
        MissingExtraError: a package or weights are missing.
    """
    unknown = [m for m in metrics if m not in METRICS]
    if unknown or not metrics:
        raise UsageError(
            f"there is no metric {', '.join(unknown) or ''}; choose from {', '.join(METRICS)}."
        )
    needed = {network(m) for m in metrics}
    found: dict[str, Extractor] = {}
    if "backbone" in needed:
        if backbone is None:
            raise UsageError("fd-backbone and pr-backbone need a network; name one (--backbone).")
        found["backbone"] = BackboneFeatures(backbone, device)
    if "inception" in needed:
        found["inception"] = InceptionFeatures(device)
    if "lite0" in needed:
        found["lite0"] = LiteFeatures(device)
    return found


def extracted(net: Extractor, images: Tensor) -> Tensor:
    """Return the features (N, F) of images (N, C, H, W) in [-1, 1], on the CPU.

    The images are rounded to 256 levels first, as files of images are: every distance goes through
    here, so that all commands return the same one for the same images. The features of an image
    that holds NaN are NaN, not those of black.
    """
    found = net(to_bytes(images).float() / 127.5 - 1).cpu()
    broken = images.isnan().flatten(1).any(1).cpu()
    return found.masked_fill(broken[:, None], float("nan"))


def features_of(batches: Iterable[Tensor], nets: Mapping[str, Extractor]) -> dict[str, Tensor]:
    """Compute the features of batches of images with each network; see :func:`extracted`."""
    parts: dict[str, list[Tensor]] = {name: [] for name in nets}
    for images in batches:
        for name, net in nets.items():
            parts[name].append(extracted(net, images))
    return {name: torch.cat(rows) for name, rows in parts.items()}
