"""Small convolutional models with every feature that a conversion must survive."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm


def conv(**kwargs) -> nn.Conv2d:
    """A 6 -> 8 channel 3x3 convolution with options."""
    return nn.Conv2d(6, 8, 3, **kwargs)


SITES = {
    "plain": lambda: conv(),
    "padded": lambda: conv(padding=1),
    "same": lambda: conv(padding="same"),
    "strided": lambda: conv(stride=2, padding=1),
    "dilated": lambda: conv(dilation=2, padding=2),
    "reflect": lambda: conv(padding=1, padding_mode="reflect"),
    "replicate": lambda: conv(padding=1, padding_mode="replicate"),
    "circular": lambda: conv(padding=1, padding_mode="circular"),
    "no bias": lambda: conv(padding=1, bias=False),
    "rectangular": lambda: nn.Conv2d(6, 8, (1, 3), padding=(0, 1)),
    "large": lambda: nn.Conv2d(6, 30, 5, padding=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1),
    "transposed odd": lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1),
    "transposed dilated": lambda: nn.ConvTranspose2d(6, 8, 3, dilation=2, bias=False),
    "spectral hook": lambda: spectral_norm(conv(padding=1)),
    "spectral hook transposed": lambda: spectral_norm(nn.ConvTranspose2d(6, 8, 4, 2, 1)),
    "spectral parametrization": lambda: parametrizations.spectral_norm(conv(padding=1)),
    "weight norm hook": lambda: weight_norm(conv(padding=1)),
    "weight norm parametrization": lambda: parametrizations.weight_norm(conv(padding=1)),
}


class One(nn.Module):
    """One convolution under a name, as a user's class."""

    def __init__(self, site: nn.Module) -> None:
        super().__init__()
        self.body = site

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Noise(nn.Module):
    """Draws noise of a traced shape, as the official NoiseInjection does: a leaf by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight * torch.randn(x.shape[0], 1, x.shape[2], x.shape[3], dtype=x.dtype)


class Gate(nn.Module):
    """Asserts on a shape, as the official GLU does: a leaf by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.size(1) % 2 == 0
        a, b = x.chunk(2, 1)
        return a * torch.sigmoid(b)


class UNet(nn.Module):
    """A residual block on a concatenation, a part of which the encoder reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 1, 1)
        self.down = nn.Conv2d(16, 24, 3, 2, 1)
        self.up = nn.ConvTranspose2d(24, 16, 4, 2, 1)
        self.outer = nn.Conv2d(32, 32, 3, 1, 1)
        self.inner = nn.Conv2d(32, 32, 3, 1, 1)
        self.last = nn.Conv2d(32, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.cat([torch.relu(self.up(torch.relu(self.down(x)))), x], 1)
        x = x + self.inner(torch.relu(self.outer(x)))
        return torch.tanh(self.last(x))


class Decoder(nn.Module):
    """A latent to a 32 px image: transposed start, upsample blocks, noise, a skip, a dead block."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.ConvTranspose2d(16, 32, 4, bias=False)
        self.block1 = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 48, 3, 1, 1, bias=False),
            Noise(),
            nn.BatchNorm2d(48),
            Gate(),
            nn.Conv2d(24, 48, 3, 1, 1, bias=False),
            nn.BatchNorm2d(48),
            Gate(),
        )
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.shared = nn.Conv2d(24, 24, 3, 1, 1)
        self.mix = nn.Conv2d(24, 24, 3, 1, 1, groups=4)
        self.head = nn.Conv2d(24, 3, 3, 1, 1)
        self.dead = nn.Conv2d(24, 24, 3)

    def forward(self, z: torch.Tensor, flag: bool = False) -> torch.Tensor:
        x = torch.relu(self.start(z[:, :, None, None]))
        x = self.block1(x)
        if flag:
            x = self.dead(x)
        x = torch.relu(self.shared(self.up(x)))
        x = torch.relu(self.shared(x)) + x
        return self.head(torch.relu(self.mix(x)))


def decoder() -> Decoder:
    """A decoder with settled statistics, in eval mode."""
    torch.manual_seed(0)
    model = Decoder().train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 16))
    return model.eval()


class Conditional(nn.Module):
    """A latent (N, 8) and a class, an integer (N,) or one-hot (N, 5), to an 8 px image."""

    def __init__(self, one_hot: bool = False) -> None:
        super().__init__()
        self.start = nn.ConvTranspose2d(8, 16, 4)
        self.shift = nn.Linear(5, 16, bias=False) if one_hot else nn.Embedding(5, 16)
        self.main = nn.Sequential(
            nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(16, 16, 3, 1, 1),
            nn.ReLU(), nn.Conv2d(16, 3, 3, 1, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.main(self.start(z[:, :, None, None]) + self.shift(y)[:, :, None, None])


def one_hot_conditional() -> Conditional:
    """One with one-hot classes."""
    return Conditional(one_hot=True)


class NarrowDecoder(Decoder):
    """Half of the channels or less in every map but the image, as a channel pruner makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.ConvTranspose2d(16, 8, 4, bias=False)
        self.block1[1] = nn.Conv2d(8, 24, 3, 1, 1, bias=False)
        self.block1[3] = nn.BatchNorm2d(24)
        self.block1[5] = nn.Conv2d(12, 24, 3, 1, 1, bias=False)
        self.block1[6] = nn.BatchNorm2d(24)
        self.shared = nn.Conv2d(12, 12, 3, 1, 1)
        self.mix = nn.Conv2d(12, 12, 3, 1, 1, groups=4)
        self.head = nn.Conv2d(12, 3, 3, 1, 1)


def narrow_decoder() -> NarrowDecoder:
    """A narrow decoder with random weights, not trained on anything."""
    torch.manual_seed(3)
    return NarrowDecoder().eval()


def latents(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    """The decoder's input sampler."""
    return (torch.randn(n, 16, generator=generator),)


def output(model: nn.Module, *args: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """The model's output with its own noise seeded."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(*args)
