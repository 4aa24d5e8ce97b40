"""The deployed form: the same images, under the same random state, whatever the batch."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from dsconvert_adapters.projected_gan import Generator
from torch import nn

from dsconvert.errors import UsageError
from dsconvert.formats.official import load_snapshot
from dsconvert.forms import deploy
from dsconvert.forms.batchnorm import absorb, affine_of
from dsconvert.forms.flat_graph import flatten
from dsconvert.forms.gates import is_gate
from dsconvert.forms.layers import FewChannels, GatedPointwise, GatedUpsample
from dsconvert.forms.packed import PackedLinear
from dsconvert.model.inputs import examples_of
from tests.forms.generators import image, inputs_of
from tests.models import Gate, Noise, decoder, latents

if TYPE_CHECKING:
    from pathlib import Path

SNAPSHOTS = (
    "fastgan-128",
    "fastgan-256",
    "fastgan_lite-256",
    "fastgan-cond10-256",
    "stamps-128-ngf32",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fused"),
    [
        *((name, True) for name in SNAPSHOTS[:-1]),
        ("fastgan-256", False),
        *(
            pytest.param(name, False, marks=pytest.mark.extended)
            for name in SNAPSHOTS
            if name != "fastgan-256"
        ),
        pytest.param(SNAPSHOTS[-1], True, marks=pytest.mark.extended),
    ],
)
def test_real_snapshots_make_the_official_image(
    shared_snapshots: Path, name: str, fused: bool
) -> None:
    model = load_snapshot(shared_snapshots / f"{name}.pkl").generator
    expected = torch.load(shared_snapshots / f"{name}.expected.pt", weights_only=True)
    z = expected["z"]
    c = torch.zeros(len(z), 0) if expected["c"] is None else expected["c"]
    made = image(deploy(model, fused=fused), (z, c))
    want = image(model, (z, c))
    assert (made - want).abs().max() <= 2e-5 * want.abs().max()
    # The file holds the official code's image in half precision.
    assert (made - expected["image"].float()).abs().max() <= 5e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", [pytest.param("plain", marks=pytest.mark.extended), "fast", "conditional"]
)
def test_a_batch_in_chunks_is_the_same_batch(which: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    made = deploy(model)
    args = inputs_of(model, 5)
    want = image(model, args)
    for chunk in (None, 1, 2, 5, 8):
        made.chunk = chunk
        assert (image(made, args) - want).abs().max() <= 2e-5 * want.abs().max(), chunk


def test_nothing_of_the_model_changes_and_nothing_is_shared(fast: nn.Module) -> None:
    before = copy.deepcopy(fast.state_dict())
    made = deploy(fast)
    for parameter in made.parameters():
        parameter.data.fill_(7.0)
    after = fast.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_it_is_called_like_the_original(fast: nn.Module) -> None:
    made = deploy(fast)
    z, c = inputs_of(fast, 1)
    assert made.z_dim == fast.z_dim
    assert made.img_resolution == fast.img_resolution
    want = image(fast, (z, c))
    torch.manual_seed(0)
    with torch.no_grad():
        got = made(z, c=c, truncation_psi=0.7, noise_mode="const")
    assert torch.allclose(got, want, atol=1e-5)
    assert not made.training
    assert not any(p.requires_grad for p in made.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["random", "zero"])
def test_it_can_be_pickled_and_copied(fast: nn.Module, noise: str) -> None:
    made = deploy(fast, noise=noise)
    args = inputs_of(fast, 2)
    want = image(made, args)
    for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert torch.equal(image(again, args), want)


@pytest.mark.slow
def test_batch_normalisation_and_norms_are_gone(fast: nn.Module) -> None:
    for fused in (False, True):
        made = deploy(fast, fused=fused)
        kinds = {type(m) for m in made.modules()}
        assert nn.BatchNorm2d not in kinds
        assert not any(k.endswith(("weight_orig", "running_mean")) for k in made.state_dict())
        own = {GatedUpsample, GatedPointwise}
        assert own <= kinds if fused else not own & kinds


@pytest.mark.slow
def test_zero_and_fixed_noise(fast: nn.Module) -> None:
    args = inputs_of(fast, 2)
    silent = copy.deepcopy(fast)
    for module in silent.modules():
        if type(module).__name__ == "NoiseInjection":
            module.weight.data.zero_()
    want = image(silent, args)
    assert torch.allclose(image(deploy(fast, noise="zero"), args, seed=3), want, atol=1e-5)
    fixed = deploy(fast, noise="fixed", seed=4)
    first, second = image(fixed, args, seed=0), image(fixed, args, seed=1)
    assert torch.equal(first, second)
    assert (first - want).abs().max() > 1e-3
    assert torch.equal(image(deploy(fast, noise="fixed", seed=4), args), first)
    assert not torch.equal(image(deploy(fast, noise="fixed", seed=5), args), first)
    # One image alone: the fixed planes are those that its seed draws.
    one = tuple(a[:1] for a in args)
    assert torch.allclose(image(fast, one, seed=4), first[:1], atol=1e-5)
    with pytest.raises(UsageError, match="pink"):
        deploy(fast, noise="pink")  # type: ignore[arg-type]


def test_a_model_that_no_adapter_knows() -> None:
    model = decoder()
    with pytest.raises(UsageError, match="Decoder"):
        deploy(model)
    args = latents(3, torch.Generator().manual_seed(0))
    made = deploy(model, inputs=latents, noise_types=(Noise,))
    want = image(model, args)
    assert (image(made, args) - want).abs().max() <= 1e-5 * want.abs().max()
    kinds = [type(m) for m in made.modules()]
    assert nn.BatchNorm2d not in kinds
    assert Gate not in kinds  # known as a gated linear unit by what it does
    with pytest.raises(TypeError, match="colour"):
        made(*args, colour="red")


def test_half_precision_and_a_training_model_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    model = Generator.from_config(cfg="fastgan_lite", resolution=128, ngf=2, z_dim=8)
    model.bfloat16().train()
    made = deploy(model)
    assert model.training
    assert next(made.parameters()).dtype is torch.bfloat16
    assert image(made, examples_of(model, n=2)).isfinite().all()


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_folding_is_exact(kind: type[nn.Module], bias: bool, groups: int) -> None:
    torch.manual_seed(1)
    conv = kind(6, 12, 3, stride=2, padding=1, groups=groups, bias=bias).double()
    norm = nn.BatchNorm2d(12).double().eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.data.normal_()
    norm.running_var.uniform_(0.2, 2)
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        want = norm(conv(x))
        absorb(conv, *affine_of(norm))
        assert torch.allclose(conv(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16)])
def test_the_upsampling_part(size: tuple[int, int], noise: bool, gate: bool) -> None:
    torch.manual_seed(2)
    conv = nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, groups=6).requires_grad_(False)
    weight = torch.randn(6, 1, 1) if noise else None
    x = torch.randn(2, 6, *size)
    plane = torch.randn(2, 1, 2 * size[0], 2 * size[1])
    want = conv(x) + (weight * plane if weight is not None else 0)
    want = F.glu(want, 1) if gate else want
    got = GatedUpsample(conv, weight, gate=gate)(x, plane if noise else None)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("tile", [1, 1000, 1 << 30])
def test_the_pointwise_part(
    tile: int, noise: bool, gate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsconvert.forms.layers.TILE", tile)
    torch.manual_seed(3)
    conv = nn.Conv2d(5, 8, 1).requires_grad_(False)
    weight = torch.randn(1) if noise else None
    x, plane = torch.randn(2, 5, 7, 3), torch.randn(1, 1, 7, 3)
    want = conv(x) + (weight * plane if weight is not None else 0)
    want = F.glu(want, 1) if gate else want
    got = GatedPointwise(conv, weight, gate=gate)(x, plane if noise else None)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_packed_matrix(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(5)
    linear = nn.Linear(33, 17, bias=bias).to(dtype)
    packed = PackedLinear(linear.weight, linear.bias)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    for shape in ((33,), (1, 33), (2, 3, 33), (2, 5, 4, 33)):
        x = torch.randn(shape, dtype=dtype)
        with torch.no_grad():
            assert torch.allclose(packed(x), linear(x), atol=tolerance)
    x = torch.randn(2, 33, dtype=dtype, requires_grad=True)
    packed(x).sum().backward()
    assert x.grad is not None
    # What was packed follows the weight, and is not carried along.
    other = nn.Linear(33, 17, bias=bias).to(dtype)
    packed.load_state_dict(other.state_dict())
    with torch.no_grad():
        for now in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert torch.allclose(now(x), other(x), atol=tolerance)
        twice = packed.double()(x.double())
    assert torch.allclose(twice, other.double()(x.double()), atol=tolerance)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 2), (9, 7)])
def test_the_image_part(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(4)
    conv = nn.Conv2d(5, 3, 3, padding=1, bias=bias).requires_grad_(False)
    for x in (torch.randn(2, 5, *size), torch.randn(2, *size, 5).permute(0, 3, 1, 2)):
        assert torch.allclose(FewChannels(conv)(x), conv(x), atol=1e-5)


def test_what_does_not_fit_is_left_alone() -> None:
    assert not GatedUpsample.fits(nn.ConvTranspose2d(6, 6, 4, 2, 1))  # dense
    assert not GatedUpsample.fits(nn.ConvTranspose2d(6, 6, 4, 2, 0, groups=6))
    assert not GatedUpsample.fits(nn.ConvTranspose2d(6, 12, 4, 2, 1, groups=6))
    assert not FewChannels.fits(nn.Conv2d(6, 3, 3))
    assert not FewChannels.fits(nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect"))
    assert not FewChannels.fits(nn.Conv2d(6, 8, 3, padding=1))


def test_gates_are_known_by_what_they_do() -> None:
    class Swapped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, 1)
            return b * torch.sigmoid(a)

    assert is_gate(Gate())
    assert is_gate(nn.GLU(1))
    assert not is_gate(nn.GLU(-1))
    assert not is_gate(Swapped())
    assert not is_gate(nn.Identity())
    assert not is_gate(nn.Sequential())


def test_a_shared_convolution_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.norm(self.conv(x)))

    model = Shared().eval()
    model.norm.running_mean.normal_()
    x = torch.randn(2, 3, 8, 8)
    core = flatten(model, (x,))
    with torch.no_grad():
        assert torch.allclose(core.module(x), model(x), atol=1e-6)


def test_instance_norms_keep_the_layout_and_the_image() -> None:
    torch.manual_seed(0)
    norm = torch.nn.InstanceNorm2d(6, affine=True)
    torch.nn.init.normal_(norm.weight)
    stored = torch.nn.InstanceNorm2d(8, track_running_stats=True)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1), norm, torch.nn.ReLU(),
        torch.nn.Conv2d(6, 8, 3, padding=1), stored, torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 1), torch.nn.InstanceNorm2d(8), torch.nn.Conv2d(8, 3, 3, padding=1),
    ).eval()  # fmt: skip
    made = deploy(model, inputs=lambda n, g: (torch.rand(n, 3, 16, 12, generator=g),))
    kinds = [type(m) for m in made.modules()]
    assert kinds.count(torch.nn.GroupNorm) == 2
    assert kinds.count(torch.nn.InstanceNorm2d) == 1
    x = torch.rand(2, 3, 16, 12)
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
