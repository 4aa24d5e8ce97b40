"""An adapter for a GAN codebase of your own, from the model to a converted file.

An adapter tells dsconvert what a codebase's classes are called in its files, what its generator
eats, and which of its modules are special. It is found through the entry-point group
``dsconvert.adapters``; in a package of yours that is three lines of ``pyproject.toml``::

    [project.entry-points."dsconvert.adapters"]
    tiny_gan = "tiny_gan_dsconvert:ADAPTER"

This script has no package, so it writes that entry itself (``advertise``) and then uses the same
door.

    python examples/custom_adapter.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from dsconvert import convert, cost, load_snapshot, new_snapshot, save_snapshot


class TinyGenerator(nn.Module):
    """Stands for the generator of a foreign codebase: z (N, 16) -> image (N, 3, 32, 32)."""

    FIELDS: ClassVar[dict[str, type]] = {"z_dim": int}
    """Plain attributes that a file must hold for this class, with their types."""

    def __init__(self, z_dim: int = 16, width: int = 32) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.first = nn.ConvTranspose2d(z_dim, width, 8)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.middle = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.SiLU()
        self.up2 = nn.Upsample(scale_factor=2, mode="nearest")
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.act2 = nn.SiLU()
        self.image = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Latents to images."""
        x = self.first(z[:, :, None, None])
        x = self.act(self.norm(self.middle(self.up(x))))
        return torch.tanh(self.image(self.act2(self.last(self.up2(x)))))


class TinyGan:
    """The adapter: every member of :class:`dsconvert.adapter.Adapter`, nothing to inherit."""

    name = "tiny_gan"

    @property
    def classes(self) -> Mapping[tuple[str, str], type[nn.Module]]:
        """Names as the codebase's files spell them, to classes of ours with the same parts."""
        return {("tiny_gan.networks", "Generator"): TinyGenerator}

    def matches(self, model: nn.Module) -> bool:
        """Whether this is a generator of the codebase (yours, or the original class)."""
        kind = type(model)
        return kind is TinyGenerator or (kind.__module__, kind.__name__) in self.classes

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts for ``dsconvert inspect``, read off names and shapes (also of a converted one)."""
        model: Any = generator
        return {"cfg": "tiny", "resolution": 32, "z_dim": model.z_dim}

    def sampler(
        self, model: nn.Module
    ) -> Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]:
        """Random inputs: with it the conversion is fitted to activations, without any data."""
        facts: Any = model
        z_dim = int(facts.z_dim)
        return lambda n, generator: (torch.randn(n, z_dim, generator=generator),)

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """Classes that torch.fx must not look into (what can't be traced is found by itself)."""
        return ()

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        """Classes that add fresh noise, scaled by a ``weight``."""
        return ()

    def norm_types(self) -> tuple[type[nn.Module], ...]:
        """Batch normalisations of the codebase's own."""
        return ()


ADAPTER = TinyGan()


def advertise(folder: Path) -> None:
    """What ``pip install`` of a package with the entry point above leaves on the disk."""
    info = folder / "tiny_gan_dsconvert-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-gan-dsconvert\nVersion: 0.1\n"
    )
    (info / "entry_points.txt").write_text(
        f"[dsconvert.adapters]\n{ADAPTER.name} = {__name__}:ADAPTER\n"
    )
    sys.path.insert(0, str(folder))


def main() -> None:
    """Convert a live model, then a file."""
    torch.manual_seed(0)
    model = TinyGenerator().eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        advertise(folder)

        fast = convert(model, preset="balanced", calibrate=64)
        z = torch.randn(8, model.z_dim)
        error = (fast(z) - model(z)).square().mean().sqrt()
        before, after = cost(model), cost(fast)
        print(f"live model: {before.macs} > {after.macs} MACs, RMS change of the image {error:.4f}")

        save_snapshot(new_snapshot(model), model, folder / "tiny.pkl")
        snap = load_snapshot(folder / "tiny.pkl")
        save_snapshot(snap, fast, folder / "tiny-fast.pkl")
        again = load_snapshot(folder / "tiny-fast.pkl")
        same = torch.equal(again.generator(z), fast(z))
        print(f"file: adapter {again.adapter.name}, {dict(again.config)}, same images: {same}")


if __name__ == "__main__":
    main()
