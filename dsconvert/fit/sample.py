"""The activations that one layer is fitted to, and the held-out ones that measure its error."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dsconvert.fit.moments import channel_mean


@dataclass(frozen=True)
class Sample:
    """Student inputs and teacher outputs of one layer, batch by batch.

    Maps are (N, C, H, W). An input is what the replacement receives in the rewritten model, after
    the layers before it have been fitted; a wanted output is the original's, for the same latents.

    Attributes:
        inputs: the batches to fit to.
        wanted: the output of the original for each of them.
        held_input: one more batch, which :meth:`error` alone uses.
        held_wanted: the output of the original for it.
        centred: whether a batch normalisation follows, whose statistics are re-estimated: a
            constant a channel is then free, and errors are measured without it.
    """

    inputs: list[Tensor]
    wanted: list[Tensor]
    held_input: Tensor
    held_wanted: Tensor
    centred: bool

    def double(self) -> Sample:
        """Return the same sample in float64."""
        return replace(
            self,
            inputs=[x.double() for x in self.inputs],
            wanted=[y.double() for y in self.wanted],
            held_input=self.held_input.double(),
            held_wanted=self.held_wanted.double(),
        )

    def error(self, module: nn.Module) -> float:
        """Return ``|y - y'|^2 / |y - mean|^2`` on the held-out batch."""
        if any(p.dtype != self.held_input.dtype for p in module.parameters()):
            module = copy.deepcopy(module).to(self.held_input.dtype)
        difference = module(self.held_input) - self.held_wanted
        spread = self.held_wanted - self.held_wanted.mean((0, 2, 3), keepdim=True)
        if self.centred:
            difference = difference - difference.mean((0, 2, 3), keepdim=True)
        elif float(spread.square().sum()) == 0.0:
            spread = self.held_wanted
        total = float(spread.square().sum(dtype=torch.float64))
        value = float(difference.square().sum(dtype=torch.float64))
        return value / total if total > 0 else (0.0 if value == 0 else float("inf"))

    def shift(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
        """Return the bias of ``conv`` (or zeros), which the kernel need not reproduce."""
        return (
            conv.bias.detach()
            if conv.bias is not None
            else self.wanted[0].new_zeros(self.wanted[0].shape[1])
        )

    def match_mean(self, module: nn.Module, last: nn.Module) -> None:
        """Add the mean error of ``module`` to the bias of ``last``, if it has one."""
        if not isinstance(last, nn.Conv2d | nn.ConvTranspose2d) or last.bias is None:
            return
        got = [module(x) for x in self.inputs]
        last.bias.add_(channel_mean(self.wanted) - channel_mean(got))
