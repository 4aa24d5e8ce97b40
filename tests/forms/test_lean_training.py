"""The training form: the same function, gradients, statistics and state dict, less memory kept."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from dsconvert_adapters.projected_gan import Generator
from torch import Tensor, nn

from dsconvert.core.pipeline import apply, plan
from dsconvert.formats.official import load_snapshot
from dsconvert.forms import lean
from dsconvert.forms.layers import UpsampleDepthwise
from dsconvert.forms.lean_training import LeanBatchNorm2d, LeanConditionalNorm, Passed
from dsconvert.forms.recompute import NormGate
from tests.forms.generators import image, inputs_of
from tests.models import decoder, latents

if TYPE_CHECKING:
    from pathlib import Path


def made(preset: str | None, **config: object) -> nn.Module:
    """A generator in double precision, in training mode, noise on."""
    torch.manual_seed(0)
    model: nn.Module = Generator.from_config(**{"resolution": 128, "ngf": 4, "z_dim": 8, **config})
    for module in model.modules():
        if type(module).__name__ == "NoiseInjection":
            module.weight.data.fill_(0.3)
    if preset is not None:
        model = apply(model, plan(model, preset=preset), init="svd", calibrate=0).model
    return model.requires_grad_(True).train().double()


def step(model: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Images and the gradients of a random projection of them."""
    torch.manual_seed(3)
    images = model(*args)
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    (images * weights.to(images.dtype)).sum().backward()
    return images, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "preset", "training"),
    [
        ({}, "fast", True),
        ({}, "fast", False),
        ({}, None, True),
        ({"classes": 3}, "fast", True),
        ({"classes": 3}, "fast", False),
        ({"cfg": "fastgan_lite"}, None, True),
        *(
            pytest.param(config, preset, training, marks=pytest.mark.extended)
            for config, preset, training in (
                ({}, "paper", True),
                ({}, "paper", False),
                ({}, None, False),
                ({"classes": 3}, "paper", True),
                ({"classes": 3}, "paper", False),
                ({"classes": 3}, None, True),
                ({"classes": 3}, None, False),
                ({"cfg": "fastgan_lite"}, None, False),
                ({"cfg": "fastgan_lite"}, "fast", True),
                ({"cfg": "fastgan_lite"}, "fast", False),
                ({"cfg": "fastgan_lite"}, "paper", True),
                ({"cfg": "fastgan_lite"}, "paper", False),
            )
        ),
    ],
)
def test_images_gradients_and_statistics(
    config: dict[str, object], preset: str | None, training: bool
) -> None:
    model = made(preset, **config).train(training)
    args = tuple(a.double() for a in inputs_of(model, 3))
    slim = lean(model)
    assert any(isinstance(m, LeanBatchNorm2d | LeanConditionalNorm) for m in slim.modules())
    before = copy.deepcopy(slim.state_dict())
    (want, wanted), (got, gradients) = step(model, args), step(slim, args)
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        size = gradient.abs().max()
        assert (gradients[name] - gradient).abs().max() <= 1e-9 * size + 1e-12, name
    ours, theirs = slim.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name].double(), tensor.double(), rtol=1e-9, atol=1e-12), name
    moved = [k for k in before if k.endswith(("running_mean", "stored_mean"))]
    moved = [k for k in moved if "256" not in k]  # never runs at 128 px
    assert moved
    assert all(torch.equal(before[k], ours[k]) != training for k in moved)


@pytest.mark.slow
def test_the_state_dict_moves_both_ways(fast: nn.Module) -> None:
    slim = lean(fast)
    other = copy.deepcopy(fast)
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    slim.load_state_dict(other.state_dict())
    args = inputs_of(fast, 2)
    assert torch.allclose(image(slim.eval(), args), image(other, args), atol=1e-5)
    back = copy.deepcopy(fast)
    back.load_state_dict(slim.state_dict())
    assert torch.allclose(image(back, args), image(other, args), atol=1e-6)


@pytest.mark.slow
def test_a_copy_stands_on_its_own(fast: nn.Module) -> None:
    slim = lean(fast)
    twin = copy.deepcopy(slim)
    args = inputs_of(fast, 2)
    want = image(slim.eval(), args)
    for parameter in slim.parameters():
        parameter.data.zero_()
    assert torch.allclose(image(twin.eval(), args), want, atol=1e-6)
    again = copy.deepcopy(twin).double()
    assert torch.allclose(image(again, tuple(a.double() for a in args)).float(), want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fastgan-256",
        "fastgan-cond10-256",
        pytest.param("stamps-128-ngf32", marks=pytest.mark.extended),
    ],
)
def test_real_snapshots(shared_snapshots: Path, name: str) -> None:
    model = load_snapshot(shared_snapshots / f"{name}.pkl").generator
    args = inputs_of(model, 2)
    want = image(model, args)
    got = image(lean(model), args)
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()


def kept(model: nn.Module, args: tuple[Tensor, ...]) -> int:
    """Bytes kept for the backward pass: unique storages, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            found[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(*args)
    return sum(t.untyped_storage().nbytes() for t in found.values())


@pytest.mark.slow
def test_it_keeps_less_than_half() -> None:
    model = made("fast", ngf=16).float()
    args = inputs_of(model, 4)
    assert kept(lean(model), args) < 0.5 * kept(model, args)


def upsample(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    return UpsampleDepthwise.apply(x, kernel, bias)


@pytest.mark.slow
def test_gradcheck_of_the_upsampling() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 3, 2, dtype=torch.double, requires_grad=True)
    kernel = torch.randn(3, 1, 4, 4, dtype=torch.double, requires_grad=True)
    bias = torch.randn(3, dtype=torch.double, requires_grad=True)
    want = nn.functional.conv_transpose2d(x, kernel, bias, stride=2, padding=1, groups=3)
    assert torch.allclose(upsample(x, kernel, bias), want)
    assert torch.autograd.gradcheck(upsample, (x, kernel, bias))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spatial", "sampled", "training"),
    [
        # Every two of the three together; all three are in whole generators above.
        (None, True, True),
        (None, False, False),
        (upsample, True, False),
        (upsample, False, True),
        *(
            pytest.param(*each, marks=pytest.mark.extended)
            for each in (
                (None, True, False),
                (None, False, True),
                (upsample, True, True),
                (upsample, False, False),
            )
        ),
    ],
)
@pytest.mark.parametrize(
    "layout",
    [torch.contiguous_format, pytest.param(torch.channels_last, marks=pytest.mark.extended)],
)
def test_gradcheck_of_the_step(
    layout: torch.memory_format,
    spatial: object,
    sampled: bool,
    training: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Several tiles, of which the last is smaller.
    monkeypatch.setattr("dsconvert.forms.recompute.TILE", 8 * 4 * 4 * 3)
    torch.manual_seed(0)
    n, c, h, w = 2, 4, 4, 4
    small = (n, c, h // 2, w // 2) if spatial else (n, c, h, w)
    x = torch.randn(small, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    kernel = torch.randn(c, 1, 4, 4, dtype=torch.double, requires_grad=True) if spatial else None
    weight = torch.randn(1, dtype=torch.double, requires_grad=True)
    plane = torch.randn(n, 1, h, w, dtype=torch.double)
    shape = (n, c) if sampled else (c,)
    gain = torch.randn(shape, dtype=torch.double, requires_grad=True)
    bias = torch.randn(shape, dtype=torch.double, requires_grad=True)
    mean, var = torch.randn(c).double(), torch.rand(c).double() + 0.5

    def run(x: Tensor, kernel: Tensor | None, weight: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        # Fresh statistics: each of gradcheck's calls must be the same function.
        return NormGate.apply(
            x, kernel, None, weight, plane, gain, bias, mean.clone(), var.clone(), spatial,
            False, training, 0.1, 1e-5,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, (x, kernel, weight, gain, bias))


@pytest.mark.slow
def test_a_second_derivative_is_refused_not_wrong() -> None:
    model = lean(made("fast"))
    args = tuple(a.double() for a in inputs_of(model, 2))
    z = args[0].requires_grad_()
    (gradient,) = torch.autograd.grad(model(z, *args[1:]).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_what_is_used_elsewhere_goes_on_working() -> None:
    """A noise whose other call has no normalisation behind it keeps doing its work."""
    from dsconvert_adapters.projected_gan.blocks import GLU

    model = decoder().train()
    slim = lean(model, inputs=latents)
    # No adapter: the noise is nobody's to take over, so only what needs none is fused.
    assert not any(isinstance(m, Passed) for m in slim.modules())
    assert sum(isinstance(m, LeanBatchNorm2d) for m in slim.modules()) == 2
    args = latents(4, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    want = model(*args)
    torch.manual_seed(1)
    assert torch.allclose(slim(*args), want, atol=1e-5)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.gate = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), GLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(torch.cat([self.gate(self.norm(self.conv(x)))] * 2, 1))

    twice = Twice()

    def pictures(n: int, generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(n, 3, 4, 4, generator=generator),)

    assert not any(isinstance(m, LeanBatchNorm2d) for m in lean(twice, inputs=pictures).modules())
