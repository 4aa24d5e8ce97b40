"""The conformance checks: what is built in passes, and every problem is named at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from dsconvert_adapters import (
    cyclegan,
    fastgan_pytorch,
    lightweight_gan,
    projected_gan,
    rosinality,
    stylegan2,
)
from torch import nn

from dsconvert.adapter import Adapter, as_adapter
from dsconvert.errors import AdapterError, PlanError
from dsconvert.rules import Built, FitMethod, Rule, register, rule_named, rules
from dsconvert.testing import ConformanceError, check_adapter, check_rule
from tests.adapters.stylegan2_files import made
from tests.made_models import drifted, fastgan_content, moved, moved_generator
from tests.models import Decoder, Noise, decoder, latents


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(r.name, marks=[pytest.mark.extended] * (r.name in ("dw-pw", "pw-dw")))
        for r in rules()
    ],
)
def test_the_built_in_rules(name: str) -> None:
    check_rule(rule_named(name))


def fastgan() -> nn.Module:
    return moved(fastgan_pytorch.Generator(ngf=4, nz=16, im_size=256))


def lightweight() -> nn.Module:
    return moved(
        lightweight_gan.Generator(
            latent_dim=16, channels=[16, 16, 8, 8], out_channels=3, gates={}, attention={},
            antialias=False,
        )
    )  # fmt: skip


def image_to_image() -> nn.Module:
    return moved(cyclegan.ResnetGenerator(ngf=4, n_blocks=1, blur_down=True))


def styled() -> nn.Module:
    g = moved(rosinality.Generator([12, 8], 8, 2))
    return g.requires_grad_(False)


FURTHER = ("projected, conditional", "cyclegan")
MODELS: dict[str, tuple[Adapter, Callable[[], nn.Module]]] = {
    "projected": (projected_gan.ADAPTER, lambda: moved_generator().eval()),
    "projected, conditional": (
        projected_gan.ADAPTER,
        lambda: moved_generator(ngf=2, classes=3, resolution=64).eval(),
    ),
    "fastgan": (fastgan_pytorch.ADAPTER, fastgan),
    "lightweight": (lightweight_gan.ADAPTER, lightweight),
    "style": (stylegan2.ADAPTER, lambda: made(c_dim=3)),
    "rosinality": (rosinality.ADAPTER, styled),
    "cyclegan": (cyclegan.ADAPTER, image_to_image),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.extended] * (n in FURTHER)) for n in MODELS],
)
def test_the_built_in_adapters(name: str) -> None:
    adapter, make = MODELS[name]
    model = make()
    checkpoint: dict[str, Any] | None = None
    if name == "fastgan":
        checkpoint = fastgan_content(model, drifted(model))
    if name == "lightweight":
        checkpoint = {"GAN": {f"GE.{k}": v for k, v in model.state_dict().items()}}
    if name == "rosinality":
        checkpoint = {"g_ema": model.state_dict(), "latent_avg": torch.zeros(8)}
    if name == "cyclegan":
        checkpoint = model.state_dict()
    check_adapter(adapter, model, checkpoint=checkpoint)


class Good(Adapter):
    """Knows the decoder of these tests."""

    name = "good"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, Decoder)

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        return {"latents": 16}

    def sampler(self, model: nn.Module) -> Any:
        return latents

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        return (Noise,)


class Duck:
    """Has the members, and inherits nothing."""

    name = "duck"
    matches, describe, sampler = Good.matches, Good.describe, Good.sampler
    noise_types = Good.noise_types

    def unused(self, generator: nn.Module) -> tuple[str, ...]:
        return ("dead",)


class Bad(Good):
    def matches(self, model: nn.Module) -> bool:
        return True

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        return {"weights": list(generator.parameters())}

    def sampler(self, model: nn.Module) -> Any:
        return lambda n, generator: (torch.randn(n, 16),)

    def unused(self, generator: nn.Module) -> tuple[str, ...]:
        return ("head", "nowhere")


@pytest.mark.slow
def test_a_small_adapter_and_one_that_inherits_nothing() -> None:
    check_adapter(Good(), decoder())
    check_adapter(Duck(), decoder())  # type: ignore[arg-type]
    known = as_adapter(Duck())
    assert isinstance(known, Adapter)
    assert known.unused(decoder()) == ("dead",)
    assert not known.can_build
    assert known.states({}) == {}
    with pytest.raises(AdapterError, match="lacks describe, sampler"):
        as_adapter(type("Half", (), {"name": "half", "matches": Good.matches})())


@pytest.mark.slow
def test_every_problem_of_an_adapter_is_named() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_adapter(Bad(), decoder())
    said = str(caught.value)
    for problem in (
        "matches(nn.Linear(1, 1)) is not False",
        "describe(model) is not plain data",
        "the sampler differs between two generators of one seed",
        "draws globally",
        "unused(model) names unknown modules: ['nowhere']",
    ):
        assert problem in said


class Silent(Good):
    """Does not tell of the noise."""

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        return ()


@pytest.mark.slow
def test_a_noise_layer_must_be_declared() -> None:
    with pytest.raises(ConformanceError, match=r"noise_types\(\) lacks Noise, which draws"):
        check_adapter(Silent(), decoder())


class Lossy(Rule):
    """Keeps the kernel, but for one tap, and counts wrong."""

    name = "lossy"
    fit = FitMethod(name="none", run=lambda module, sample: None)

    def why_not(self, site: Any) -> str | None:
        return None if site.kind == "conv" and site.groups == 1 else "only plain ones"

    def max_rank(self, site: Any) -> int:
        return 1

    def params(self, site: Any, rank: int) -> int:
        return 7

    def macs(self, site: Any, rank: int) -> int | None:
        return 7

    def build(self, site: Any, kernel: torch.Tensor, bias: Any, rank: int) -> Built:
        conv = nn.Conv2d(
            site.in_channels, site.out_channels, site.kernel_size, site.stride, site.padding,
            site.dilation, bias=bias is not None, padding_mode=site.padding_mode,
            dtype=kernel.dtype,
        )  # fmt: skip
        kernel[..., 0, 0] = 0
        conv.weight.data.copy_(kernel)
        return Built(module=conv, residual=0.0)


@pytest.mark.slow
def test_every_problem_of_a_rule_is_named() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_rule(Lossy())
    said = str(caught.value)
    for problem in (
        "3x3, rank 1: differs by",
        "build changes the kernel",
        "build draws from the global random state",
        "params says 7",
        "macs says 7, fvcore counts",
        "macs is 7 without shapes",
    ):
        assert problem in said


def test_a_rule_must_inherit() -> None:
    with pytest.raises(PlanError, match=r"does not inherit dsconvert\.rules\.Rule"):
        register(Duck())  # type: ignore[arg-type]
    assert "duck" not in {r.name for r in rules()}
    with pytest.raises(ConformanceError, match="does not inherit"):
        check_rule(Duck())  # type: ignore[arg-type]


class Nowhere(Lossy):
    """Applies to nothing."""

    name = "nowhere"

    def why_not(self, site: Any) -> str | None:
        return f"{site.in_channels} channels are not 7"


@pytest.mark.slow
def test_a_rule_that_applies_nowhere_hears_why() -> None:
    with pytest.raises(ConformanceError, match=r"no convolution of the check \(3x3: 6 ch.*16"):
        check_rule(Nowhere())


def test_an_unknown_rule_is_answered_with_the_remedy() -> None:
    with pytest.raises(PlanError, match=r"'nowhere'; known: dw-pw.*rules\.register"):
        rule_named("nowhere")
