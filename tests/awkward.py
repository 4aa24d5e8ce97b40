"""Modules that real code has and that are easily harmed: each a fault that once happened."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

Made = tuple[nn.Module, tuple[Any, ...]]
"""A model in eval mode (mostly), and the arguments of one call."""


def image(n: int = 1) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Base(nn.Module):
    """Three convolutions of which the middle one is worth a rewrite."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.Conv2d(12, 12, 3, padding=1)
        self.tail = nn.Conv2d(12, 3, 3, padding=1)

    def main(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.body(torch.relu(self.head(x)))))

    def forward(self, x: Tensor) -> Any:
        return self.main(x)


class StoresTensor(Base):
    """EDSR keeps its mean as a plain attribute and moves it in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.full((1, 3, 1, 1), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.shift = self.shift.type_as(x)
        return self.main(x - self.shift) + self.shift


class Remembers(Base):
    """Counts its calls, collects what it saw, and keeps a moving average, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.history, self.seen = 0, [], {}
        self.register_buffer("average", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        y = torch.relu(self.head(x))
        self.history.append(y)
        self.seen["last"] = y
        self.average.mul_(0.9).add_(y.mean((0, 2, 3)).detach(), alpha=0.1)
        return self.tail(torch.relu(self.body(y)))


class ReadsWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(torch.relu(self.head(x)))
        return self.tail(y / self.body.weight.square().sum().sqrt())


class ReadsWidth(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(torch.relu(self.head(x)))
        return self.tail(y / self.body.in_channels)


class Tied(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(torch.relu(self.head(x)))
        return self.tail(F.conv_transpose2d(y, self.body.weight, padding=1))


class SharedParameter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(12, 12, 3, padding=1)
        self.again.weight = self.body.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.again(torch.relu(self.body(torch.relu(self.head(x)))))))


class ReadsInside(Base):
    """The reader is a module that torch.fx can't look into."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(12, 12, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.abs().max()) < 0:
                return x
            return self.conv(x) / self.conv.weight.square().sum().sqrt()

    def __init__(self) -> None:
        super().__init__()
        self.body = self.Inner()


class ClampsWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.body.weight.data.clamp_(-0.05, 0.05)
        return self.main(x)


class CallsForward(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body.forward(torch.relu(self.head(x))))


class Draws(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.1 * torch.randn(x.shape)
        return self.main(x) * (1 + 0.1 * random.random() + 0.1 * float(np.random.rand()))


class Embeds(Base):
    """BigGAN: the embedding of the classes is called outside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(10, 3)


class Checks(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.shape[-1] % 8 or self.training:
            x = F.pad(x, (0, 8 - x.shape[-1] % 8))
        b, c, *rest = x.shape
        scale = sum(1.0 for _ in range(c)) / len(rest)
        return self.main(x.reshape(b, c, *rest)) * scale


class Lists(Base):
    def forward(self, xs: list[Tensor], layers: list[int] = [], *, scale=(1.0,), **kw: Any) -> Any:  # noqa: B006
        return {"image": self.main(xs[0] * scale[0]), "layers": [xs[0] for _ in layers]}


class Fails(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.head(x)
        raise RuntimeError("no such picture")


class Failing(Base):
    """What replaces a convolution fails here, in a way that only a run shows."""

    def __init__(self) -> None:
        super().__init__()
        self.names = ["weight"]

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        y = self.body(y) * len(dict(self.body.named_parameters(recurse=False)))
        if not dict(self.body.named_parameters(recurse=False)):
            raise RuntimeError("the convolution has no parameters")
        return self.tail(y)


class Equalised(nn.Conv2d):
    """ProGAN's: the kernel is scaled in each call."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.conv2d(input, self.weight * 0.5, self.bias, self.stride, self.padding)


class OwnLayers(Base):
    """The parameters of these layers do not say all that they do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Equalised(12, 12, 3, padding=1)
        self.norm, self.gate = nn.BatchNorm2d(12), nn.GLU(1)
        self.tail = Equalised(6, 3, 1)
        self.gate.register_forward_hook(lambda m, i, o: 2 * o)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.gate(self.norm(self.body(torch.relu(self.head(x))))))


class AddsInPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        y.add_(self.body(y))
        return self.tail(y)


class FillsMap(Base):
    """As inverse wavelet transforms do."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        made = torch.zeros_like(y)
        made[:, :6] = self.body(y)[:, :6]
        made[:, 6:] = y[:, 6:]
        return self.tail(made)


class WritesThroughView(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        first, _ = y.chunk(2, 1)
        first[:, :, 1:].mul_(self.body(y)[:, :6, 1:])
        return self.tail(y)


class ActsInPlace(Base):
    """Activations in place, of which two are behind a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.head(x))
        z = F.relu(self.body(y), inplace=True)
        skip = F.leaky_relu(y[:, :6], 0.1, True)
        return self.tail(torch.cat([skip, z[:, 6:]], 1) + y)


class WritesOut(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        torch.mul(y, self.body(y), out=y)
        return self.tail(y)


class WritesInside(Base):
    """The writer is a module that torch.fx can't look into."""

    class Mix(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            if float(x.abs().max()) < 0:
                return x
            return x.add_(y)

    def __init__(self) -> None:
        super().__init__()
        self.mix = self.Mix()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        z = self.mix(y, self.body(y))
        return self.tail(z + y)


class WritesConstant(Base):
    """The constant is made without looking at the input: the trace holds one for all calls."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.head(x))
        scale = torch.ones(1, 12, 1, 1).mul_(self.body(y).mean())
        return self.tail(y * scale)


class WritesInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2).sub_(0.5)
        y = self.body(torch.relu(self.head(x)))
        return self.tail(y) + x.add_(y[:, :3])


class VectorNorm(Base):
    """A head on pooled maps, as encoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(self.main(x).mean((2, 3))))


class OwnStateDict(Base):
    """Leaves a part out of its files, as codebases do with a frozen encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        made = super().state_dict(*args, **options)
        return {name: value for name, value in made.items() if "extra" not in name}


class Takes(Base):
    """Beside its convolutions it holds a parameter that has no gradient, by its type."""

    def __init__(self) -> None:
        super().__init__()
        self.index = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x[:, self.index])


def _hooked(*, trained: bool = False) -> nn.Module:
    model, collected = Base(), []
    model.body.register_forward_hook(lambda m, i, o: collected.append(o))
    model.body.register_forward_hook(lambda m, i, k, o: collected.append(k), with_kwargs=True)
    model.body.register_full_backward_hook(lambda m, i, o: collected.append(o))
    model.register_forward_pre_hook(lambda m, i: collected.append(i))
    if trained:
        model(image(2)).sum().backward()
    else:
        model.collected = collected
    return model


def _normed(norm: Callable[[nn.Module], nn.Module], *, trained: bool = False) -> nn.Module:
    model = Base()
    model.head, model.body = norm(model.head), norm(model.body)
    if trained:
        model.train()(image(2)).sum().backward()
    return model


def _own_forward() -> nn.Module:
    model = Base()
    plain = model.forward
    model.forward = lambda x: plain(x) * 2  # as accelerate does
    return model


def _frozen() -> nn.Module:
    model = Base()
    model.body.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.note = {"epochs": [1, 2, 3]}
    return model.train()


def _batch_norm() -> nn.Module:
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12, momentum=None), nn.ReLU()]
    layers += [nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12, track_running_stats=False)]
    return nn.Sequential(*layers, nn.Conv2d(12, 3, 1)).train()


WRITERS: dict[str, Callable[[], nn.Module]] = {
    "adds in place": AddsInPlace,
    "fills a map": FillsMap,
    "writes through a view": WritesThroughView,
    "acts in place": ActsInPlace,
    "writes out": WritesOut,
    "writes inside a leaf": WritesInside,
    "writes a constant": WritesConstant,
    "writes its input": WritesInput,
}
AWKWARD: dict[str, Callable[[], nn.Module]] = {
    "stores a tensor": StoresTensor,
    "remembers": Remembers,
    "reads a weight": ReadsWeight,
    "reads a width": ReadsWidth,
    "tied": Tied,
    "shared parameter": SharedParameter,
    "reads inside a leaf": ReadsInside,
    "clamps its weight": ClampsWeight,
    "calls forward": CallsForward,
    "draws": Draws,
    "embeds outside forward": Embeds,
    "checks shapes": Checks,
    "lists": Lists,
    "fails": Fails,
    "fails when converted": Failing,
    "norm of vectors": VectorNorm,
    "state dict of its own": OwnStateDict,
    **WRITERS,
    "layers of its own": OwnLayers,
    "integer parameter": Takes,
    "hooks": _hooked,
    "hooks, trained": lambda: _hooked(trained=True),
    "spectral norm": lambda: _normed(parametrizations.spectral_norm),
    "weight norm": lambda: _normed(parametrizations.weight_norm),
    "spectral norm, hook": lambda: _normed(spectral_norm),
    "weight norm, hook": lambda: _normed(weight_norm),
    "spectral norm, trained": lambda: _normed(parametrizations.spectral_norm, trained=True),
    "spectral norm, hook, trained": lambda: _normed(spectral_norm, trained=True),
    "forward of its own": _own_forward,
    "frozen": _frozen,
    "batch norm": _batch_norm,
}


def made(name: str) -> Made:
    """A model by its name, with arguments of one call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AWKWARD[name]()
    if name not in ("frozen", "batch norm"):
        model.eval()
    return model, ([image()],) if name == "lists" else (image(),)
