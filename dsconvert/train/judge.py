"""How far a run's images are from the data (FD-lite0), with the same count on both sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.data.images import ImageSet
from dsconvert.data.stream import to_range
from dsconvert.metrics import LiteFeatures, frechet_distance
from dsconvert.model.observe import evaluating
from dsconvert.train.step import Latents

_BATCH = 25
_SEED = 20211101
"""Of latents and choice, so that two snapshots (and two runs) are judged by the same draws."""


class Judge:
    """FD-lite0 of a generator to a data set.

    With fewer images than 1280 features the value is far above what more images would give; it
    serves to compare, at one count.

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
        """Real images against as many others, where the data has so many; known after a call."""

    def __call__(self, model: nn.Module, latents: Latents) -> float:
        """The distance; the model and the random state are left as they were."""
        if self._reals is None:
            self._reals = self._real(self._chosen)
            if self._others is not None:
                self.floor = frechet_distance(self._real(self._others), self._reals)
        random = torch.Generator().manual_seed(_SEED)
        made: list[Tensor] = []
        with evaluating(model), torch.random.fork_rng():
            torch.manual_seed(_SEED)
            for rows in self._chosen.split(_BATCH):
                args: tuple[Any, ...] = latents(self._data.label(rows), random)
                moved = (a.to(self._device) if isinstance(a, Tensor) else a for a in args)
                made.append(self._features(image_tensor(model(*moved)).float().cpu()))
        return frechet_distance(torch.cat(made), self._reals)

    def _real(self, chosen: Tensor) -> Tensor:
        """Features of real images."""
        parts = [
            self._features(to_range(torch.stack([self._data.image(int(i))[0] for i in rows]), _CPU))
            for rows in chosen.split(_BATCH)
        ]
        return torch.cat(parts)


_CPU = torch.device("cpu")
