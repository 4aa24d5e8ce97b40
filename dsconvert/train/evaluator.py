"""The distance of a generator to its data during a run: FD-lite0, at one count of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.config.train import TrainConfig
from dsconvert.data.images import ImageSet
from dsconvert.data.stream import to_range
from dsconvert.errors import UsageError
from dsconvert.metrics import LiteFeatures, frechet_distance
from dsconvert.metrics.networks import extracted
from dsconvert.model.inputs import map_tensors
from dsconvert.model.observe import evaluating
from dsconvert.train.state import Latents

_BATCH = 25
_CPU = torch.device("cpu")
_SEED = 20211101
"""Seed of the latents and of the choice of images, the same for all snapshots and all runs."""


def check_evaluation(config: TrainConfig, data: ImageSet) -> None:
    """Check that a run that is to be evaluated has enough images.

    Raises:
        UsageError: it has one.
    """
    if config.evaluate and len(data) < 2:
        raise UsageError(
            f"evaluate: a distance needs 2 images or more, and {data.path} has {len(data)}; set "
            "evaluate to 0 (--evaluate 0), or add images."
        )


class FDLite0Evaluator:
    """Measures FD-lite0 of a generator to a data set.

    With fewer images than the 1280 features, the value is far above that of more images: compare
    values of one count only.

    Args:
        data: the real images.
        count: number of images on each side; at most the size of ``data``.
        device: where the networks work.

    Raises:
        MissingExtraError: timm or the weights are not installed.
    """

    def __init__(self, data: ImageSet, *, count: int, device: torch.device) -> None:
        self.count, self._data, self._device = min(count, len(data)), data, device
        self._features = LiteFeatures(device)
        random = torch.Generator().manual_seed(_SEED)
        order = torch.randperm(len(data), generator=random)
        self._chosen, rest = order[: self.count], order[self.count : 2 * self.count]
        self._others = rest if len(rest) == self.count else None
        self._reals: Tensor | None = None
        self.floor: float | None = None
        """Distance of the real images to as many others, known after a call; None: the data set
        is too small."""

    def __call__(self, model: nn.Module, latents: Latents) -> float:
        """Return the distance; the model and the random state do not change."""
        if self._reals is None:
            self._reals = self._real_features(self._chosen)
            if self._others is not None:
                self.floor = frechet_distance(self._real_features(self._others), self._reals)
        random = torch.Generator().manual_seed(_SEED)
        made: list[Tensor] = []
        with evaluating(model), torch.random.fork_rng():
            torch.manual_seed(_SEED)
            for rows in self._chosen.split(_BATCH):
                args: tuple[Any, ...] = latents(self._data.label(rows), random)
                moved = map_tensors(lambda t: t.to(self._device), args)
                made.append(extracted(self._features, image_tensor(model(*moved)).float().cpu()))
        return frechet_distance(torch.cat(made), self._reals)

    def _real_features(self, chosen: Tensor) -> Tensor:
        parts = [
            self._features(to_range(torch.stack([self._data.image(int(i))[0] for i in rows]), _CPU))
            for rows in chosen.split(_BATCH)
        ]
        return torch.cat(parts)
