"""The Projected GAN generator (cfg ``fastgan`` and ``fastgan_lite``), state-dict compatible.

Unlike the official code, the conditional generator also works above 256 px, and an embedding can
have more than 1000 rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm

from .blocks import (
    InitLayer,
    SEBlock,
    UpBlockBigCond,
    UpBlockSmallCond,
    _missing,
    conv,
    up_block_big,
    up_block_small,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RESOLUTIONS = (64, 128, 256, 512, 1024)
"""The official code runs none below 128; a 64 px generator is for this package alone."""
CHANNELS = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1, 256: 0.5, 512: 0.25, 1024: 0.125}
"""Feature map size to channels, in multiples of ``ngf``."""
EMBEDDING_ROWS = 1000
"""The official code makes as many rows whatever the number of classes."""


class DummyMapping(nn.Module):
    """The place of StyleGAN's mapping network; passes the latents through."""

    def forward(self, z: torch.Tensor, c: torch.Tensor, **_: object) -> torch.Tensor:  # noqa: ARG002
        """(N, Z) -> (N, 1, Z)."""
        return z.unsqueeze(1)


def _on_sphere(w: torch.Tensor) -> torch.Tensor:
    """(N, 1, Z) to (N, Z) of unit mean square (progressive growing, Karras et al. 2018)."""
    z = w[:, 0]
    return z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class _Synthesis(nn.Module):
    """What both synthesis networks share: the feature pyramid and its gates."""

    img_resolution: int
    z_dim: int
    # Children; declared so that type checkers know they can be called.
    init: nn.Module
    feat_8: nn.Module
    feat_16: nn.Module
    feat_32: nn.Module
    feat_64: nn.Module
    feat_128: nn.Module
    feat_256: nn.Module
    FIELDS: ClassVar[dict[str, type]] = {"img_resolution": int, "z_dim": int}

    def _grow(self, block: Callable[[int, int], nn.Module], ngf: int, channels: int) -> None:
        size = {k: int(v * ngf) for k, v in CHANNELS.items()}
        resolution = self.img_resolution
        self.init = InitLayer(self.z_dim, size[4])
        # At 128 px the 256 px block and gate exist in the files and never run.
        for low in (4, 8, 16, 32, 64, 128) if resolution > 64 else (4, 8, 16, 32):
            self.add_module(f"feat_{2 * low}", block(size[low], size[2 * low]))
        self.se_64 = SEBlock(size[4], size[64])
        if resolution > 64:
            self.se_128 = SEBlock(size[8], size[128])
            self.se_256 = SEBlock(size[16], size[256])
        self.to_big = conv(size[resolution], channels, 3, padding=1, bias=True)
        if resolution > 256:
            self.feat_512 = block(size[256], size[512])
            self.se_512 = SEBlock(size[32], size[512])
        if resolution > 512:
            self.feat_1024 = block(size[512], size[1024])

    def check_restored(self) -> str | None:
        """What is wrong with what came from a file, if anything."""
        resolution = self.img_resolution
        if resolution not in RESOLUTIONS:
            return f"has resolution {resolution}, which is none of {RESOLUTIONS}"
        feats = [f"feat_{s}" for s in (8, 16, 32, 64, 128, 256, 512, 1024) if s <= resolution]
        gates = [f"se_{s}" for s in (64, 128, 256, 512) if s <= resolution]
        return _missing(self, "init", *feats, *gates, "to_big")


class FastganSynthesis(_Synthesis):
    """Unconditional synthesis: w (N, 1, Z) -> image (N, C, R, R)."""

    def __init__(
        self,
        ngf: int = 128,
        z_dim: int = 256,
        nc: int = 3,
        img_resolution: int = 256,
        lite: bool = False,
    ) -> None:
        super().__init__()
        self.img_resolution, self.z_dim = img_resolution, z_dim
        self._grow(up_block_small if lite else up_block_big, ngf, nc)

    def forward(self, input: torch.Tensor, c: torch.Tensor, **_: object) -> torch.Tensor:  # noqa: A002, ARG002
        """Synthesise from ``input`` (N, 1, Z); ``c`` is not used."""
        x4 = self.init(_on_sphere(input))
        x8 = self.feat_8(x4)
        x16 = self.feat_16(x8)
        x32 = self.feat_32(x16)
        x = self.se_64(x4, self.feat_64(x32))
        if self.img_resolution >= 128:
            x = self.se_128(x8, self.feat_128(x))
        if self.img_resolution >= 256:
            x = self.se_256(x16, self.feat_256(x))
        if self.img_resolution >= 512:
            x = self.se_512(x32, self.feat_512(x))
        if self.img_resolution >= 1024:
            x = self.feat_1024(x)
        return self.to_big(x)


class FastganSynthesisCond(_Synthesis):
    """Class-conditional synthesis: w (N, 1, Z), one-hot c (N, classes) -> image (N, C, R, R)."""

    def __init__(
        self,
        ngf: int = 64,
        z_dim: int = 256,
        nc: int = 3,
        img_resolution: int = 256,
        num_classes: int = EMBEDDING_ROWS,
        lite: bool = False,
    ) -> None:
        super().__init__()
        self.img_resolution, self.z_dim = img_resolution, z_dim
        block = UpBlockSmallCond if lite else UpBlockBigCond
        self._grow(lambda i, o: block(i, o, z_dim), ngf, nc)
        self.embed = nn.Embedding(num_classes, z_dim)

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002 (the official name)
        c: torch.Tensor,
        update_emas: bool = False,  # noqa: ARG002
    ) -> torch.Tensor:
        """Synthesise from ``input`` (N, 1, Z) and one-hot classes ``c`` (N, classes)."""
        y = self.embed(c.argmax(1))
        x4 = self.init(_on_sphere(input))
        x8 = self.feat_8(x4, y)
        x16 = self.feat_16(x8, y)
        x32 = self.feat_32(x16, y)
        x = self.se_64(x4, self.feat_64(x32, y))
        if self.img_resolution >= 128:
            x = self.se_128(x8, self.feat_128(x, y))
        if self.img_resolution >= 256:
            x = self.se_256(x16, self.feat_256(x, y))
        if self.img_resolution >= 512:
            x = self.se_512(x32, self.feat_512(x, y))
        if self.img_resolution >= 1024:
            x = self.feat_1024(x, y)
        return self.to_big(x)

    def check_restored(self) -> str | None:
        """What is wrong with what came from a file, if anything."""
        if not isinstance(self._modules.get("embed"), nn.Embedding):
            return "has no embedding of its classes"
        return super().check_restored()


class Generator(nn.Module):
    """The whole generator: latents z (N, Z) and classes c (N, c_dim) to images in [-1, 1]."""

    FIELDS: ClassVar[dict[str, type]] = {
        "z_dim": int,
        "c_dim": int,
        "w_dim": int,
        "img_resolution": int,
        "img_channels": int,
    }

    def __init__(
        self,
        z_dim: int = 256,
        c_dim: int = 0,
        w_dim: int = 0,
        img_resolution: int = 256,
        img_channels: int = 3,
        ngf: int = 128,
        cond: bool | int = False,
        *,
        lite: bool = False,
    ) -> None:
        super().__init__()
        if img_resolution not in RESOLUTIONS:
            raise ValueError(f"img_resolution is {img_resolution}, not one of {RESOLUTIONS}")
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.mapping = DummyMapping()
        if cond:
            rows = max(EMBEDDING_ROWS, c_dim)
            self.synthesis: nn.Module = FastganSynthesisCond(
                ngf, z_dim, img_channels, img_resolution, rows, lite
            )
        else:
            self.synthesis = FastganSynthesis(ngf, z_dim, img_channels, img_resolution, lite)

    def forward(self, z: torch.Tensor, c: torch.Tensor, **_: object) -> torch.Tensor:
        """Images (N, C, R, R) from latents ``z`` (N, Z) and one-hot ``c`` (N, c_dim).

        Further keywords (``truncation_psi``, ``noise_mode``, ...) are accepted for the StyleGAN
        tools of the official code and, as there, without effect.
        """
        return self.synthesis(self.mapping(z, c), c)

    def check_restored(self) -> str | None:
        """What is wrong with what came from a file, if anything."""
        synthesis = self._modules.get("synthesis")
        if not isinstance(synthesis, _Synthesis):
            return "has no synthesis network of cfg fastgan or fastgan_lite"
        for name in ("img_resolution", "z_dim"):
            ours, theirs = getattr(self, name), getattr(synthesis, name)
            if ours != theirs:
                return f"has {name} {ours}, and its synthesis network {theirs}"
        return _missing(self, "mapping")

    @classmethod
    def from_config(
        cls,
        *,
        cfg: str = "fastgan",
        resolution: int = 256,
        ngf: int = 128,
        classes: int = 0,
        img_channels: int = 3,
        z_dim: int = 256,
    ) -> Generator:
        """A randomly initialised generator in eval mode, without gradients.

        Spectral norm starts from random vectors and settles during training; here it is settled
        at once, so that an untrained generator has finite, plausible activations.

        Raises:
            ValueError: an unknown ``cfg`` or ``resolution``.
        """
        if cfg not in ("fastgan", "fastgan_lite"):
            raise ValueError(f"cfg is {cfg!r}, not 'fastgan' or 'fastgan_lite'")
        made = cls(
            z_dim,
            classes,
            0,
            resolution,
            img_channels,
            ngf,
            cond=classes > 0,
            lite=cfg == "fastgan_lite",
        )
        settle_spectral_norm(made)
        return made.eval().requires_grad_(False)


@torch.no_grad()
def settle_spectral_norm(model: nn.Module, *, iterations: int = 15) -> None:
    """Run the power iterations of every spectral norm hook until sigma is about right.

    Weights on the meta device have no norm and are left as they are.
    """
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                # On the meta device every operation is Python: seconds for an architecture.
                if getattr(module, f"{hook.name}_orig").is_meta:
                    continue
                for _ in range(iterations):
                    hook.compute_weight(module, do_power_iteration=True)
                setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
