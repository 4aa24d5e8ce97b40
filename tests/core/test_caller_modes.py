"""Modes of the caller, such as a default device: a conversion works, with the same result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import dsconvert
from tests import awkward

pytestmark = pytest.mark.slow


def inputs(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(n, 3, 8, 8, generator=generator, device=generator.device),)


def converted(model: torch.nn.Module) -> torch.nn.Module:
    return dsconvert.convert(model, rank=1, width=0.5, inputs=inputs, calibrate=8)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, default_device])
def test_the_result_is_that_without_the_mode(mode: Any) -> None:
    model, _ = awkward.made("norm of vectors")
    entered: AbstractContextManager[Any] = mode()
    want = converted(model)
    with entered:
        made = converted(model)
    for (name, got), wanted in zip(made.named_parameters(), want.parameters(), strict=True):
        assert torch.equal(got, wanted), name
        assert got.requires_grad, name
        assert not got.is_inference(), name


def test_merge_in_inference_mode_gives_a_model_that_can_be_trained() -> None:
    made = converted(awkward.made("norm of vectors")[0])
    with torch.inference_mode():
        merged = dsconvert.merge(made)
    assert not any(t.is_inference() for t in (*merged.parameters(), *merged.buffers()))


def test_a_model_made_in_inference_mode_converts() -> None:
    with torch.inference_mode():
        model, _ = awkward.made("norm of vectors")
    made = converted(model)
    assert not any(p.is_inference() for p in made.parameters())
    assert all(p.is_inference() for p in model.parameters())
