"""Generators to export, and the arguments of one call."""

from __future__ import annotations

import pytest
import torch
from dsconvert_adapters.projected_gan import ADAPTER
from torch import Tensor, nn

from dsconvert.core.pipeline import apply, plan
from tests.made_models import moved_generator


def inputs_of(model: nn.Module, n: int, seed: int = 1) -> tuple[Tensor, ...]:
    return ADAPTER.sampler(model)(n, torch.Generator().manual_seed(seed))


def image(model: nn.Module, args: tuple[Tensor, ...], seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(*args)


def converted(model: nn.Module) -> nn.Module:
    return apply(model, plan(model, preset="fast"), init="svd", calibrate=0).model.eval()


@pytest.fixture(scope="session")
def plain() -> nn.Module:
    """Unconditional, 128 px, as in a file: spectral norms, noise that is not zero."""
    return moved_generator()


@pytest.fixture(scope="session")
def fast(plain: nn.Module) -> nn.Module:
    """The same, converted with the preset fast."""
    return converted(plain)


@pytest.fixture(scope="session")
def conditional() -> nn.Module:
    """Three classes, converted."""
    return converted(moved_generator(ngf=2, classes=3))
