"""Settings of the two networks that a training makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsconvert.config.base import BaseSettings
from dsconvert.config.choices import POLICIES, PRESETS, Spectral
from dsconvert.config.setting import Group, setting

RECIPE = Group("Recipe (official defaults)")


@dataclass(frozen=True, kw_only=True)
class NewGenerator(BaseSettings):
    """A generator with random weights; ``preset`` "none" is the dense one."""

    subject: ClassVar[str] = "the settings of the new generator"

    cfg: str = setting(
        "fastgan", help="fastgan, fastgan_lite or stylegan2", metavar="NAME", default_text=""
    )
    preset: str = setting("none", help="how the generator is converted", choices=PRESETS)
    rank: int | None = setting(None, help="one rank for every rewrite", at_least=1)
    width: float = setting(
        1.0, help="share of its channels that every map has", metavar="SHARE", above=0, at_most=1
    )
    resolution: int = setting(256, help="of the images", metavar="PX", at_least=1)
    ngf: int = setting(128, help="channel multiplier", at_least=1)
    z_dim: int | None = setting(
        None, help="latent size", default_text="256; 64 of stylegan2", at_least=1
    )
    img_channels: int = setting(3, option="--channels", help="of an image", choices=(1, 3, 4))
    classes: int = setting(0, option=None, help="number of classes; 0: unconditional", at_least=0)
    spectral: Spectral = setting(
        "keep",
        help="spectral norm on the factors of a rewritten convolution: as official training has "
        "it, or none",
    )

    def contradictions(self) -> list[str]:
        """Settings of rewritten convolutions where the preset takes none."""
        wrong: list[str] = []
        if self.rank is not None and self.preset in ("none", "exact"):
            wrong.append(f"rank is {self.rank}, and preset {self.preset} has no rank to choose")
        if self.spectral != "keep" and self.preset in ("none", "exact"):
            wrong.append(
                f"spectral is {self.spectral}, and preset {self.preset} makes no factors to apply "
                "it to"
            )
        return wrong


@dataclass(frozen=True, kw_only=True)
class DiscriminatorFacts(BaseSettings):
    """The structure of a discriminator."""

    subject: ClassVar[str] = "the settings of the discriminator"

    resolution: int = setting(option=None, help="of the images")
    classes: int = setting(0, option=None, help="number of classes")
    cout: int = setting(64, option=None, help="channels of the projection")
    expand: bool = setting(True, option=None, help="whether the projection mixes scales")
    num_discs: int = setting(
        4, option="--discs", help="discriminator heads", choices=(1, 2, 3, 4), group=RECIPE
    )
    rows: int | None = setting(None, option=None, help="rows of the class embedding")
    separable: bool | None = setting(
        None, option=None, help="heads of separable convolutions; None: as the codebase has them"
    )
    augment: tuple[str, ...] = setting(
        POLICIES, option="--no-augment", flag=(), help="no DiffAugment", group=RECIPE
    )
