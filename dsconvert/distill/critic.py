"""The optional adversarial term: a projected discriminator of teacher and student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsconvert.matching.loss import TeacherOutput
from dsconvert.matching.outputs import seeded
from dsconvert.projected.discriminator import ProjectedDiscriminator
from dsconvert.projected.lite0 import Weights
from dsconvert.train import losses


class Critic:
    """A projected discriminator that takes the teacher's images as real.

    Args:
        example: one batch, for the size of the images and the classes.
        lr: learning rate (Adam, the official betas).
        weights: of the backbone.
    """

    def __init__(self, example: TeacherOutput, *, lr: float, weights: Weights = "auto") -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = ProjectedDiscriminator(
                resolution=example.image.shape[-1],
                classes=_classes(example).shape[1],
                weights=weights,
            )
        self.net.to(example.image.device)
        self.net.train()
        trained = [p for p in self.net.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(trained, lr=lr, betas=(0.0, 0.99))

    def generator_loss(self, image: Tensor, target: TeacherOutput) -> Tensor:
        """Return the generator's loss; gradients flow to ``image`` alone."""
        self.net.discriminator.requires_grad_(False)
        with seeded(target.seed):
            loss = losses.generator_loss(self.net(image, _classes(target)))
        self.net.discriminator.requires_grad_(True)
        return loss

    def step(self, image: Tensor, target: TeacherOutput) -> float:
        """Train the discriminator on one batch; return its loss."""
        c = _classes(target)
        with seeded(target.seed + 1):
            loss = losses.fake_loss(self.net(image, c)) + losses.real_loss(
                self.net(target.image, c)
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, without the frozen backbone."""
        return {
            "heads": self.net.discriminator.state_dict(),
            "projection": self.net.feature_network.scratch.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load the state of :meth:`state`."""
        self.net.discriminator.load_state_dict(state["heads"])
        self.net.feature_network.scratch.load_state_dict(state["projection"])
        self.optimiser.load_state_dict(state["optimiser"])


def _classes(target: TeacherOutput) -> Tensor:
    """Return the one-hot classes (N, classes): the second argument of a conditional generator."""
    given = target.args[1] if len(target.args) > 1 else None
    if isinstance(given, Tensor) and given.dim() == 2:
        return given
    return target.image.new_zeros(len(target.image), 0)
