"""Samplers of a wrong form, and arguments that do not fit, are said in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsconvert import convert, cost, deploy, lean
from dsconvert.bench.subject import arguments
from dsconvert.errors import TraceError, UsageError
from dsconvert.metrics import sample_images
from tests.models import Conditional, decoder, latents

WRONG: dict[str, tuple[Any, str]] = {
    "no generator": (lambda n: (torch.randn(n, 16),), r"takes \(n\)"),
    "one more": (lambda n, generator, size: (torch.randn(n, size),), "takes"),
    "no function": (torch.zeros(1, 16), "is a Tensor"),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "convert": lambda inputs: convert(decoder(), inputs=inputs),
    "cost": lambda inputs: cost(decoder(), inputs=inputs),
    "deploy": lambda inputs: deploy(decoder(), inputs=inputs),
    "lean": lambda inputs: lean(decoder(), inputs=inputs),
    "images": lambda inputs: sample_images(decoder(), inputs, samples=1, seed=0),
    "bench": lambda inputs: arguments(inputs, 1),
}


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("name", list(WRONG))
def test_a_sampler_of_a_wrong_form(name: str, place: str) -> None:
    inputs, said = WRONG[name]
    with pytest.raises(UsageError, match=said + r".*inputs\(n, generator\)"):
        PLACES[place](inputs)


def test_an_error_within_a_sampler_stays_what_it_is() -> None:
    def broken(n: int, generator: torch.Generator) -> tuple[Tensor]:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        cost(decoder(), inputs=broken)


def test_samplers_may_have_other_names_and_defaults() -> None:
    wanted = cost(decoder(), inputs=latents).macs
    for inputs in (lambda *a: latents(*a), lambda count, rng, size=16: latents(count, rng)):
        assert cost(decoder(), inputs=inputs).macs == wanted


def test_a_sampler_that_returns_no_arguments() -> None:
    with pytest.raises(UsageError, match="gives a NoneType for one call"):
        cost(decoder(), inputs=lambda n, generator: None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"z": torch.zeros(1, 8), "y": torch.zeros(1)}, r"\(\{'z': \[1, 8\], 'y': \[1\]\}\)"),
        (([torch.zeros(1, 8)], (torch.zeros(1), 3, None)), r"\(\(\[1, 8\]\), \(\[1\], 3, None\)\)"),
        ((object(), "a"), r"\(a object, 'a'\)"),
    ],
)
def test_a_call_that_fails_is_described_by_shapes(given: Any, said: str) -> None:
    with pytest.raises(TraceError, match=f"fails on its example inputs {said}.*Mend inputs=") as e:
        convert(Conditional(), example_inputs=given, init="svd", calibrate=0)
    assert "tensor(" not in str(e.value)
