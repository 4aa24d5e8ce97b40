"""An adapter for a GAN codebase of your own, from the model to a converted file.

An adapter tells dsconvert the names of a codebase's classes in its files, the inputs of its
generator, and which of its modules are special. Here it is passed as an argument. In a package, an
entry point lets every function and the command line find it; that is three lines of
``pyproject.toml``::

    [project.entry-points."dsconvert.adapters"]
    tiny_gan = "tiny_gan_dsconvert:ADAPTER"

    python examples/custom_adapter.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from dsconvert import convert, cost, new_snapshot, open_file, save_snapshot
from dsconvert.adapter import Adapter
from dsconvert.testing import check_adapter


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


class TinyGan(Adapter):
    """The adapter: the required members, and ``classes`` for files that hold modules."""

    name = "tiny_gan"

    @property
    def classes(self) -> Mapping[tuple[str, str], type[nn.Module]]:
        """Names as the codebase's files spell them, to classes of ours with the same parts."""
        return {("tiny_gan.networks", "Generator"): TinyGenerator}

    def matches(self, model: nn.Module) -> bool:
        """Return whether this is a generator of the codebase (yours, or the original class)."""
        kind = type(model)
        return kind is TinyGenerator or (kind.__module__, kind.__name__) in self.classes

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Return facts from names and shapes for ``dsconvert inspect`` (also when converted)."""
        model: Any = generator
        return {"cfg": "tiny", "resolution": 32, "z_dim": model.z_dim}

    def sampler(
        self, model: nn.Module
    ) -> Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]:
        """Return random inputs: with them the conversion is fitted to activations, without data."""
        facts: Any = model
        z_dim = int(facts.z_dim)
        return lambda n, generator: (torch.randn(n, z_dim, generator=generator),)


ADAPTER = TinyGan()


def main() -> None:
    """Check the adapter, convert a live model, then a file."""
    torch.manual_seed(0)
    model = TinyGenerator().eval().requires_grad_(False)
    check_adapter(ADAPTER, model)

    fast = convert(model, preset="balanced", calibrate=64, adapter=ADAPTER)
    z = torch.randn(8, model.z_dim)
    error = (fast(z) - model(z)).square().mean().sqrt()
    before, after = cost(model, adapter=ADAPTER), cost(fast, adapter=ADAPTER)
    print(f"live model: {before.macs} > {after.macs} MACs, RMS change of the image {error:.4f}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_snapshot(new_snapshot(model, adapter=ADAPTER), model, folder / "tiny.pkl")
        snap = open_file(folder / "tiny.pkl", adapters=[ADAPTER])
        save_snapshot(snap, fast, folder / "tiny-fast.pkl")
        again = open_file(folder / "tiny-fast.pkl", adapters=[ADAPTER])
        same = torch.equal(again.generator(z), fast(z))
        known = again.adapter.name if again.adapter is not None else None
        print(f"file: adapter {known}, {dict(again.config)}, same images: {same}")


if __name__ == "__main__":
    main()
