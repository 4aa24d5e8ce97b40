"""Layers of BigGAN, state-dict compatible with ajbrock/BigGAN-PyTorch.

Written afresh after Brock et al., "Large Scale GAN Training for High Fidelity Natural Image
Synthesis" (ICLR 2019), and Zhang et al., "Self-Attention GANs" (2019), for the attention.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.1
EPS = 1e-5


class _Spectral:
    """A layer that divides its kernel by one step of power iteration from the buffer ``u0``.

    ``sv0`` is a record of the last value in training. Further vectors (``u1``...) are kept as they
    are: the original computes them for its logs alone.
    """

    training: bool
    u0: Tensor
    sv0: Tensor

    def _track(self, outputs: int, vectors: int) -> None:
        module: Any = self
        for i in range(vectors):
            module.register_buffer(f"u{i}", torch.randn(1, outputs))
            module.register_buffer(f"sv{i}", torch.ones(1))

    def _normalised(self, *, update: bool) -> Tensor:
        layer: Any = self
        weight: Tensor = layer.weight
        matrix = weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.u0 @ matrix, eps=1e-12)
            u = F.normalize(v @ matrix.t(), eps=1e-12)
            if update:
                self.u0.copy_(u)
        sigma = (v @ matrix.t() @ u.t()).squeeze()
        if update:
            self.sv0.copy_(sigma.detach())
        return weight / sigma

    def applied_weight(self) -> Tensor:
        """Return the kernel as applied in eval mode."""
        return self._normalised(update=False)

    def fold(self) -> None:
        """Become the plain layer with the applied kernel."""
        module: Any = self
        plain = nn.Conv2d if isinstance(self, nn.Conv2d) else nn.Linear
        made = nn.Parameter(self.applied_weight().detach().clone(), module.weight.requires_grad)
        for name in [n for n in module._buffers if n.strip("0123456789") in ("u", "sv")]:
            delattr(module, name)
        module.__class__ = plain
        module.weight = made


class SNConv2d(_Spectral, nn.Conv2d):
    """A convolution with stride 1 that keeps the size."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True, vectors: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self._track(outputs, vectors)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """(N, I, H, W) -> (N, O, H, W)."""
        return self._conv_forward(input, self._normalised(update=self.training), self.bias)


class SNLinear(_Spectral, nn.Linear):
    """A linear layer."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, vectors: int = 1) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self._track(outputs, vectors)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(N, I) -> (N, O)."""
        return F.linear(input, self._normalised(update=self.training), self.bias)


def conv(inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True, vectors: int) -> Any:
    """A convolution with spectral norm by so many ``vectors``; without for 0."""
    if vectors:
        return SNConv2d(inputs, outputs, kernel, bias=bias, vectors=vectors)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def linear(inputs: int, outputs: int, *, bias: bool = True, vectors: int) -> nn.Module:
    """A linear layer; see :func:`conv`."""
    if vectors:
        return SNLinear(inputs, outputs, bias=bias, vectors=vectors)
    return nn.Linear(inputs, outputs, bias=bias)


class _Statistics(nn.Module):
    """Batch normalisation with statistics of its own."""

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps, self.momentum = EPS, MOMENTUM
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def scaled(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        """Normalise (N, C, H, W) and apply gain and bias (N or 1, C)."""
        out = F.batch_norm(
            x, self.stored_mean, self.stored_var, None, None, self.training, MOMENTUM, self.eps
        )
        return out * gain[:, :, None, None] + bias[:, :, None, None]


class MyBN(_Statistics):
    """Normalisation with a gain and a bias that its caller computes (option ``mybn``)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("accumulation_counter", torch.zeros(1))

    def forward(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        """Normalise (N, C, H, W); gain and bias are (N, C)."""
        return self.scaled(x, gain, bias)


class _Nested(nn.Module):
    """Normalisation by a child: ``mybn``, or ``cross_replica``."""

    def __init__(self, channels: int, *, mine: bool) -> None:
        super().__init__()
        self.bn = MyBN(channels) if mine else nn.BatchNorm2d(channels, affine=False)
        self.eps = EPS

    @property
    def stored_mean(self) -> Tensor:
        """The child's mean (C,)."""
        return self.bn.get_buffer("stored_mean" if isinstance(self.bn, MyBN) else "running_mean")

    @property
    def stored_var(self) -> Tensor:
        """The child's variance (C,)."""
        return self.bn.get_buffer("stored_var" if isinstance(self.bn, MyBN) else "running_var")

    def scaled(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        """Normalise (N, C, H, W) and apply gain and bias (N or 1, C)."""
        if isinstance(self.bn, MyBN):
            return self.bn(x, gain.expand(x.shape[0], -1), bias.expand(x.shape[0], -1))
        # The original adds the gain, too, outside of parallel training: so are its images made.
        return self.bn(x) + gain[:, :, None, None] + bias[:, :, None, None]


def _conditional(channels: int, condition: int, *, embedded: bool, vectors: int) -> nn.Module:
    if embedded:
        return nn.Embedding(condition, channels)
    return linear(condition, channels, bias=False, vectors=vectors)


class CCBN(_Statistics):
    """Batch normalisation whose gain and bias depend on class and latents.

    Args:
        channels: of the map.
        condition: values of the condition; with ``embedded``, the number of classes.
        embedded: gain and bias are looked up by class, and not linear in a condition.
        vectors: of the spectral norm of the linear layers.
    """

    def __init__(self, channels: int, condition: int, *, embedded: bool, vectors: int) -> None:
        super().__init__(channels)
        self.gain = _conditional(channels, condition, embedded=embedded, vectors=vectors)
        self.bias = _conditional(channels, condition, embedded=embedded, vectors=vectors)

    def affine(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and bias (N, C)."""
        return 1 + self.gain(y), self.bias(y)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Normalise ``x`` (N, C, H, W) by the condition ``y``: (N, E), or classes (N,)."""
        return self.scaled(x, *self.affine(y))


class NestedCCBN(_Nested):
    """The same with the statistics in a child, ``bn``."""

    def __init__(
        self, channels: int, condition: int, *, embedded: bool, vectors: int, mine: bool
    ) -> None:
        super().__init__(channels, mine=mine)
        self.gain = _conditional(channels, condition, embedded=embedded, vectors=vectors)
        self.bias = _conditional(channels, condition, embedded=embedded, vectors=vectors)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Normalise ``x`` (N, C, H, W) by the condition ``y``: (N, E), or classes (N,)."""
        return self.scaled(x, 1 + self.gain(y), self.bias(y))


class BN(_Statistics):
    """Batch normalisation of the output, the same for all classes."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        return self.scaled(x, self.gain[None], self.bias[None])


class NestedBN(_Nested):
    """The same with the statistics in a child, ``bn``."""

    def __init__(self, channels: int, *, mine: bool) -> None:
        super().__init__(channels, mine=mine)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        return self.scaled(x, self.gain[None], self.bias[None])


class Attention(nn.Module):
    """Self-attention over the map; keys and values are read at half the resolution."""

    def __init__(self, channels: int, *, vectors: int) -> None:
        super().__init__()
        eighth, half = channels // 8, channels // 2
        self.theta = conv(channels, eighth, 1, bias=False, vectors=vectors)
        self.phi = conv(channels, eighth, 1, bias=False, vectors=vectors)
        self.g = conv(channels, half, 1, bias=False, vectors=vectors)
        self.o = conv(half, channels, 1, bias=False, vectors=vectors)
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(N, C, H, W), kept."""
        theta = self.theta(x).flatten(2)
        phi = F.max_pool2d(self.phi(x), 2).flatten(2)
        g = F.max_pool2d(self.g(x), 2).flatten(2)
        beta = torch.bmm(theta.transpose(1, 2), phi).softmax(-1)
        mixed = torch.bmm(g, beta.transpose(1, 2)).unflatten(2, (x.shape[2], x.shape[3]))
        return self.gamma * self.o(mixed) + x


class GBlock(nn.Module):
    """The residual block of BigGAN, which doubles the size."""

    def __init__(self, inputs: int, outputs: int, norm: Any, *, vectors: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, vectors=vectors)
        self.conv2 = conv(outputs, outputs, vectors=vectors)
        self.conv_sc = conv(inputs, outputs, 1, vectors=vectors)
        self.bn1, self.bn2 = norm(inputs), norm(outputs)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, 2H, 2W)."""
        h = F.interpolate(F.relu(self.bn1(x, y)), scale_factor=2)
        x = F.interpolate(x, scale_factor=2)
        h = self.conv1(h)
        h = self.conv2(F.relu(self.bn2(h, y)))
        return h + self.conv_sc(x)


class DeepGBlock(nn.Module):
    """The bottleneck block of BigGAN-deep; its shortcut drops channels instead of mixing them."""

    def __init__(
        self, inputs: int, outputs: int, inner: int, norm: Any, *, doubles: bool, vectors: int
    ) -> None:
        super().__init__()
        self.outputs, self.doubles = outputs, doubles
        self.conv1 = conv(inputs, inner, 1, vectors=vectors)
        self.conv2 = conv(inner, inner, vectors=vectors)
        self.conv3 = conv(inner, inner, vectors=vectors)
        self.conv4 = conv(inner, outputs, 1, vectors=vectors)
        self.bn1 = norm(inputs)
        self.bn2, self.bn3, self.bn4 = norm(inner), norm(inner), norm(inner)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, H, W), or twice the size."""
        h = self.conv1(F.relu(self.bn1(x, y)))
        h = F.relu(self.bn2(h, y))
        x = x[:, : self.outputs]
        if self.doubles:
            h = F.interpolate(h, scale_factor=2)
            x = F.interpolate(x, scale_factor=2)
        h = self.conv2(h)
        h = self.conv3(F.relu(self.bn3(h, y)))
        return self.conv4(F.relu(self.bn4(h, y))) + x
