"""The records of trials, and the rig that runs an original with one change at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.model.call_arguments import in_order
from dsconvert.model.inputs import fresh_args
from dsconvert.model.one_dimensional import map_as_2d
from dsconvert.records import Site
from dsconvert.rules import Rule

Features = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [-1, 1] to pooled features (N, F)."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The loss of one form of one layer.

    Attributes:
        step: the rank, or the number of channels kept.
        macs: of the layer in this form, one sample; of the original where maps get narrower, times
            the share that is kept. None: unknown.
        error: relative squared error of the layer's own output after its fit, held out; None for
            channels.
        image: squared error of the image, as a share of the images' variance.
        features: the same of the pooled features; None where no network was given.
    """

    step: int
    macs: float | None
    error: float | None
    image: float
    features: float | None


@dataclass(frozen=True, kw_only=True)
class LayerTrials:
    """The trials of one layer (``kind`` rank) or of one group of channels (``kind`` width).

    ``whole`` is the step without loss: the exact rank, or all channels; ``macs`` are the
    original's.
    """

    name: str
    kind: str
    rule: str | None
    whole: int
    macs: float | None
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """All trials of one model, on ``latents`` latents; ``power`` is the variance of a pixel."""

    layers: tuple[LayerTrials, ...]
    latents: int
    power: float


class Rig:
    """The original, run with one change at a time.

    Args:
        model: the original; may be hooked.
        shown: the same as a module that returns images in [-1, 1].
        args: of one call of the model.
        features: of the images; None: the image alone counts.
        seed: of the model's own draws.
    """

    def __init__(
        self, model: nn.Module, shown: nn.Module, args: Any, features: Features | None, seed: int
    ) -> None:
        self.model = model
        self._shown, self._args, self._features, self._seed = shown.eval(), args, features, seed
        self._image, self._pooled = self._run()
        self._spread = variance(self._image)
        self.power = self._spread / self._image[0].numel()

    def _run(self) -> tuple[Tensor, Tensor | None]:
        torch.manual_seed(self._seed)
        image = image_tensor(self._shown(*fresh_args(self._args))).float().clamp(-1, 1)
        return image, None if self._features is None else self._features(image)

    def loss(self) -> tuple[float, float | None]:
        """Return the losses of the image and of its features for the model as it is now."""
        image, pooled = self._run()
        own = float((image - self._image).double().square().flatten(1).sum(1).mean())
        if pooled is None or self._pooled is None:
            return own / self._spread, None
        far = float((pooled - self._pooled).double().square().sum(1).mean())
        return own / self._spread, far / variance(self._pooled)

    @contextmanager
    def instead(
        self, site: Site, module: nn.Module, rule: Rule, shift: Tensor | None
    ) -> Generator[None, None, None]:
        """Let ``module``, made by ``rule``, compute the output of ``site``; add ``shift`` (O,)."""
        conv = self.model.get_submodule(site.name)
        before: list[Tensor] = []
        handles: list[Any] = []
        if rule.absorbs_upsample and site.upsample is not None:
            up = self.model.get_submodule(site.upsample)

            def kept(up: nn.Module, args: Any, named: Any) -> None:
                before.append(in_order(up, args, named)[0][0])

            handles.append(up.register_forward_pre_hook(kept, with_kwargs=True))

        def replaced(conv: nn.Module, args: Any, named: Any, out: Tensor) -> Tensor:
            given = before.pop() if before else in_order(conv, args, named)[0][0]
            made: Tensor = module(map_as_2d(given))
            made = made if shift is None else made + shift[:, None, None]
            return made.reshape(out.shape)  # also that of one dimension

        handles.append(conv.register_forward_hook(replaced, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def variance(rows: Tensor) -> float:
    """Return the variance of one row over the batch, summed over its elements."""
    flat = rows.double().flatten(1)
    return max(1e-12, float((flat - flat.mean(0)).square().sum() / max(1, len(flat) - 1)))
