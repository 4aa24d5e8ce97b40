"""Layers whose parameters do not say all that they do make the same image in every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dsconvert_adapters.projected_gan import ADAPTER
from dsconvert_adapters.projected_gan.blocks import NoiseInjection
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dsconvert import kernels
from dsconvert.forms import deploy, lean
from dsconvert.forms.lean_training import LeanBatchNorm2d, Passed
from tests.forms.generators import image


def maps(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(n, 3, 16, 16, generator=generator),)


class Equalised(nn.Conv2d):
    """Scales its weights in each call, as ProGAN does."""

    def forward(self, x: Tensor) -> Tensor:
        weight = 0.3 * self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class SamePadding(nn.Conv2d):
    """Pads by itself, as timm's ``Conv2dSame`` does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class Upsamples(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        return 2 * super().forward(x, output_size)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OwnGate(nn.GLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Net(nn.Module):
    """Convolution, normalisation, gate, convolution, by names that a case replaces."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor] | None = None, **parts: Any) -> None:
        super().__init__()
        self.run = run
        self.front = nn.Conv2d(3, 4, 1)
        self.conv: Any = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.norm: Any = nn.BatchNorm2d(8)
        self.gate: Any = nn.GLU(1)
        self.last: Any = nn.Conv2d(4, 3, 1)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        if self.run is not None:
            return self.run(self, x)
        return self.last(self.gate(self.norm(self.conv(x))))


def replaced(name: str) -> Net:
    """One instance has a ``forward`` of its own, as accelerate's."""
    model = Net()
    part = getattr(model, name)
    plain = part.forward
    part.forward = lambda x: 2 * plain(x)
    return model


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrised(name: str, tensor: str) -> Net:
    model = Net()
    parametrize.register_parametrization(getattr(model, name), tensor, Double())
    return model


def tied(norm: nn.Module) -> Net:
    return Net(
        lambda m, x: F.conv_transpose2d(m.norm(m.conv(x)), m.conv.weight, padding=1, groups=4),
        norm=norm,
    )


def upsampled() -> Net:
    up = nn.Upsample(scale_factor=2)
    plain = up.forward
    up.forward = lambda x: 2 * plain(x)  # type: ignore[method-assign]
    return Net(lambda m, x: m.last(m.conv(m.up(x))), up=up, last=nn.Conv2d(8, 3, 1))


class Shared(nn.Module):
    """A module with a branch that torch.fx can't trace: it is called as a whole."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.abs().max()) < 0 else self.conv(x)


def shared() -> Net:
    model = Net(lambda m, x: m.last(m.whole(m.gate(m.norm(m.conv(x))))), last=nn.Conv2d(8, 3, 1))
    model.whole = Shared(model.conv)
    return model


CASES: dict[str, Callable[[], nn.Module]] = {
    "equalised": lambda: Net(conv=Equalised(4, 8, 3, padding=1)),
    "equalised pointwise": lambda: Net(front=Equalised(3, 4, 1), last=Equalised(4, 3, 1)),
    "equalised depthwise": lambda: Net(conv=Equalised(4, 8, 3, padding=1, groups=4)),
    "equalised to an image": lambda: Net(last=Equalised(4, 3, 3, padding=1)),
    "same padding": lambda: Net(conv=SamePadding(4, 8, 3)),
    "standardised": lambda: Net(conv=Standardised(4, 8, 3, padding=1)),
    "transposed": lambda: Net(
        lambda m, x: m.last(m.conv(x)), conv=Upsamples(4, 4, 4, 2, 1, groups=4)
    ),
    "norm": lambda: Net(norm=OwnNorm(8)),
    "gate": lambda: Net(gate=OwnGate(1)),
    **{f"an instance, {n}": lambda n=n: replaced(n) for n in ("conv", "norm", "gate", "last")},
    "an instance, upsample": upsampled,
    "parametrised kernel": lambda: parametrised("conv", "weight"),
    "parametrised bias": lambda: parametrised("conv", "bias"),
    "parametrised norm": lambda: parametrised("norm", "weight"),
    "tied kernel": lambda: tied(nn.BatchNorm2d(8)),
    "reads a bias": lambda: Net(lambda m, x: m.last(m.gate(m.conv(x))) * m.conv.bias.sum()),
    "shared with a leaf": shared,
    "gate over the width": lambda: Net(
        lambda m, x: m.last(F.glu(m.conv(x))),
        conv=nn.Conv2d(4, 8, 3, padding=1), last=nn.Conv2d(8, 3, 1),
    ),
    "named arguments": lambda: Net(
        lambda m, x: m.last(m.gate(m.norm(input=m.conv(input=x))))
    ),
    "output size": lambda: Net(
        lambda m, x: m.last(m.gate(m.norm(m.conv(x, output_size=(33, 33))))),
        front=nn.Conv2d(3, 8, 1), conv=nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8),
    ),
}  # fmt: skip


def made(name: str) -> nn.Module:
    """A case with settled statistics, in eval mode."""
    torch.manual_seed(0)
    model = CASES[name]().train()
    with torch.no_grad():
        for seed in range(5):
            model(*maps(8, torch.Generator().manual_seed(seed)))
    return model.eval()


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deploy": lambda m: deploy(m, inputs=maps),
    "plain": lambda m: deploy(m, inputs=maps, fused=False),
    "gpu": lambda m: deploy(m, inputs=maps),
    "lean": lambda m: lean(m, inputs=maps),
}


def check(model: nn.Module, form: str) -> nn.Module:
    args = maps(2, torch.Generator().manual_seed(7))
    with kernels.using("eager" if form == "gpu" else "auto"):
        made = FORMS[form](model)
        got, want = image(made, args), image(model, args)
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    return made


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("name", list(CASES))
def test_the_image_is_the_same(name: str, form: str) -> None:
    check(made(name), form)


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "output": lambda m: m.register_forward_hook(lambda _m, _i, out: 2 * out),
    "input": lambda m: m.register_forward_pre_hook(lambda _m, args: (2 * args[0],)),
    "gradient": lambda m: m.register_full_backward_hook(lambda _m, grads, _o: (2 * grads[0],)),
}


@pytest.mark.parametrize("hook", list(HOOKS))
@pytest.mark.parametrize("name", ["conv", "norm", "gate"])
def test_lean_keeps_hooks(name: str, hook: str) -> None:
    model = Net().eval()
    HOOKS[hook](getattr(model, name))
    slim = check(model, "lean")
    # Without a hook on a convolution or gate, the normalisation still performs what is left.
    assert isinstance(slim.norm, LeanBatchNorm2d) == (name == "conv")
    found = [
        torch.autograd.grad(m(*maps(2, torch.Generator())).sum(), [m.front.weight])
        for m in (model, slim)
    ]
    assert torch.allclose(found[1][0], found[0][0], rtol=1e-4, atol=1e-4)


def test_lean_writes_into_no_map_that_a_hook_has_seen() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Conv2d(3, 8, 1), NoiseInjection(), nn.BatchNorm2d(8), nn.GLU(1)).eval()
    model[1].weight.data.fill_(1.0)
    model[0].register_forward_hook(lambda _m, _i, out: seen.append(out))
    slim = lean(model, inputs=maps, adapter=ADAPTER)
    assert isinstance(slim[1], Passed)
    args = maps(2, torch.Generator().manual_seed(7))
    seen.clear()
    image(slim, args)
    assert torch.allclose(seen[0], F.conv2d(*args, model[0].weight, model[0].bias), atol=1e-6)


class Twofold(NoiseInjection):
    """Noise with its own ``forward``."""

    def forward(self, feat: Tensor, noise: Tensor | None = None) -> Tensor:
        return 2 * super().forward(feat, noise)


NOISES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "own forward": lambda m, x: m.gate(m.norm(m.twofold(m.conv(x)))),
    "by keyword": lambda m, x: m.gate(m.norm(m.noise(feat=m.conv(x)))),
    "without a plane": lambda m, x: m.gate(m.norm(m.noise(m.conv(x), None))),
    "with a plane": lambda m, x: m.gate(m.norm(m.noise(m.conv(x), noise=x[:, :1]))),
    "gate by keyword": lambda m, x: m.named(m.norm(m.noise(m.conv(x))), x=None),
}


class NamedGate(nn.Module):
    """A gate whose ``forward`` has an argument that it does not need."""

    def forward(self, halves: Tensor, x: Any = None) -> Tensor:
        return F.glu(halves, 1)


@pytest.mark.parametrize("form", ["lean", "deploy"])
@pytest.mark.parametrize("name", list(NOISES))
def test_noise_is_replaced_only_where_it_is_all_that_a_call_does(name: str, form: str) -> None:
    torch.manual_seed(0)
    call = NOISES[name]
    model = Net(
        lambda m, x: m.last(call(m, x)), noise=NoiseInjection(), twofold=Twofold(),
        named=NamedGate(),
    ).eval()  # fmt: skip
    for part in (model.noise, model.twofold):
        part.weight.data.fill_(0.5)
    forms: dict[str, Any] = {"lean": lean, "deploy": deploy}
    made = forms[form](model, inputs=maps, adapter=ADAPTER)
    args = maps(2, torch.Generator().manual_seed(7))
    assert torch.allclose(image(made, args), image(model, args), atol=1e-5)


def test_deploy_keeps_the_hook_of_a_gate() -> None:
    model = Net().eval()
    HOOKS["output"](model.gate)
    check(model, "deploy")


def test_hooks_that_only_look_are_no_obstacle_to_half_precision() -> None:
    model = Net().eval()
    model.conv.register_forward_hook(lambda *_: None)
    made = deploy(model, inputs=maps, dtype=torch.bfloat16)
    args = maps(2, torch.Generator().manual_seed(7))
    want = image(model, args)
    assert (image(made, args) - want).abs().max() <= 0.05 * want.abs().max()
