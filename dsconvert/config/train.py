"""Settings of ``train`` and ``finetune``: networks, recipe, and the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dsconvert.config.base import BaseSettings, Job, refuse_fixed
from dsconvert.config.choices import (
    CudaGraph,
    Precision,
    Recompute,
    Weights,
)
from dsconvert.config.files import Messages
from dsconvert.config.networks import RECIPE, DiscriminatorFacts, NewGenerator
from dsconvert.config.setting import Group, part, setting
from dsconvert.config.values import seed
from dsconvert.errors import UsageError

WATCHING = Group("Records of the run")
SPEED = Group("Speed and memory")
BACKBONE_HELP = "source of the ImageNet weights of the discriminator's backbone"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(BaseSettings):
    """Settings of a run. The defaults are the official ones.

    A kimg is a thousand real images shown. ``batch`` is over all processes; ``micro_batch`` is the
    part that one process takes at a time, with its gradients accumulated.
    """

    subject: ClassVar[str] = "the training's settings"

    kimg: float = setting(
        1000.0, help="length, thousands of images", above=0, group=RECIPE, resumable=True
    )
    batch: int = setting(64, help="over all processes", at_least=1, group=RECIPE)
    micro_batch: int | None = setting(
        None, help="at a time; gradients add up", default_text="all", at_least=1, group=RECIPE
    )
    lr_generator: float | None = setting(
        None,
        option="--lr",
        help="learning rate of both networks",
        default_text="0.0002; 0.002 of StyleGAN2 and StyleGAN3",
        above=0,
        metavar="X",
        group=RECIPE,
    )
    lr_discriminator: float | None = setting(
        None,
        option="--lr",
        help="learning rate of the discriminator",
        default_text="0.0002; 0.002 of StyleGAN2 and StyleGAN3",
        above=0,
        metavar="X",
        group=RECIPE,
    )
    betas: tuple[float, float] = setting((0.0, 0.99), option=None, help="of Adam")
    eps: float = setting(1e-8, option=None, help="of Adam")
    ema_kimg: float | None = setting(
        None,
        help="half-life of G_ema",
        default_text="batch * 10 / 32, as official",
        above=0,
        group=RECIPE,
    )
    ema_rampup: float | None = setting(
        0.05,
        option=None,
        help="the half-life is at most this share of the images seen; None: no limit",
    )
    blur_init_sigma: float = setting(
        0.0,
        option="--blur-sigma",
        help="blur the first images that D sees; 0: off",
        at_least=0,
        metavar="PX",
        group=RECIPE,
    )
    blur_fade_kimg: float = setting(
        0.0,
        option="--blur-kimg",
        help="fade that blur out over so many kimg",
        at_least=0,
        group=RECIPE,
    )
    mirror: bool = setting(False, help="also show each image flipped")
    seed: int = setting(0, help="of every random draw", read=seed, group=RECIPE)
    tick_kimg: float = setting(
        4.0,
        option="--tick",
        help="a line of statistics every so often",
        above=0,
        metavar="KIMG",
        group=WATCHING,
        resumable=True,
    )
    snapshot_ticks: int = setting(
        50,
        option="--snap",
        help="a snapshot, a grid and a checkpoint every so many ticks",
        at_least=1,
        metavar="TICKS",
        group=WATCHING,
        resumable=True,
    )
    checkpoint_minutes: float = setting(
        10.0, help="a checkpoint at least this often", above=0, group=WATCHING, resumable=True
    )
    keep_last: int = setting(
        2,
        help="checkpoints and snapshots kept, beside the best; 0: all snapshots, one checkpoint",
        at_least=0,
        metavar="K",
        group=WATCHING,
        resumable=True,
    )
    evaluate: int = setting(
        0,
        help="judge each snapshot by FD-lite0 over N images, and keep the best; 0: off",
        at_least=0,
        group=WATCHING,
        resumable=True,
    )
    precision: Precision = setting(
        "fp32",
        help="of the passes; tf32: float32 whose products a GPU rounds to ten bits",
        group=SPEED,
    )
    channels_last: bool = setting(
        False, help="the memory layout that suits convolutions", group=SPEED
    )
    recompute: Recompute = setting(
        "auto",
        help="keep fewer activations of G: whole blocks run again for the backward pass, or (lean) "
        "only noise, normalisation, gate and depthwise convolution; auto: lean once a GPU's memory "
        "is full",
        group=SPEED,
        resumable=True,
    )
    compile: bool = setting(False, help="torch.compile both networks", group=SPEED, resumable=True)
    cuda_graph: CudaGraph = setting(
        "auto",
        help="replay the passes of a step as CUDA graphs; auto: on one GPU, where the settings and "
        "the networks allow it",
        group=SPEED,
        resumable=True,
    )
    workers: int = setting(
        3, help="threads that read images ahead", at_least=0, group=SPEED, resumable=True
    )
    grid: int = setting(36, option=None, help="images of a grid", at_least=1)
    deterministic: bool = setting(False, help="repeatable GPU kernels", group=SPEED)

    def contradictions(self) -> list[str]:
        """Problems that no single range tells."""
        wrong = [
            f"{name} is {value}, less than one image"
            for name, value in (("kimg", self.kimg), ("tick_kimg", self.tick_kimg))
            if 0 < value * 1000 <= 0.5
        ]
        if self.evaluate == 1:
            wrong.append("evaluate is 1; a distance needs 2 images or more")
        return wrong

    @property
    def images(self) -> int:
        """Length of the run in images, whole batches."""
        return -(-round(self.kimg * 1000) // self.batch) * self.batch

    @property
    def ema_images(self) -> float:
        """Half-life of the average in images."""
        kimg = self.batch * 10 / 32 if self.ema_kimg is None else self.ema_kimg
        return kimg * 1000


@dataclass(frozen=True, kw_only=True)
class _Run(Messages, Job):
    """Settings of a job that begins a run."""

    keeps_memory: ClassVar[bool] = True
    makes_runs: ClassVar[bool] = True
    data: str | None = setting(
        None, help="images; official zips work as they are", metavar="DIR|ZIP", completes="file"
    )
    out: str = setting("runs", help="folder of all runs", metavar="DIR", completes="dir")
    name: str | None = setting(
        None, help="of the run's folder", default_text="numbered", metavar="NAME"
    )
    # The generator or the file tells the resolution.
    discriminator: DiscriminatorFacts = part(only=("num_discs", "augment"), resolution=0)
    backbone: Weights = setting("auto", help=BACKBONE_HELP, group=RECIPE)
    device: str | None = setting(
        None,
        help="cpu, cuda, cuda:1, ...",
        default_text="a GPU if there is one",
        metavar="NAME",
        group=SPEED,
        resumable=True,
    )

    @property
    def output(self) -> str | None:
        """The folder of all runs."""
        return self.out

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse half of a pair of options."""
        if ("--blur-sigma" in typed) != ("--blur-kimg" in typed):
            raise UsageError("--blur-sigma and --blur-kimg go together.")


@dataclass(frozen=True, kw_only=True)
class TrainJob(_Run):
    """Train a generator from scratch, dense or converted, or continue a run."""

    generator: NewGenerator = part()
    config: TrainConfig = part()
    cond: bool = setting(False, help="use the data's labels")
    resume: str | None = setting(
        None,
        help="continue a run; the options that may then be given change no weight",
        metavar="RUN",
        completes="dir",
    )

    @property
    def output(self) -> str | None:
        """The folder of all runs; a resumed run stays where it is."""
        return self.out if self.resume is None else None

    @property
    def resumed(self) -> str | None:
        """The run that the job continues."""
        return self.resume

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options that a resumed run fixes, and a new run without data or cfg."""
        if typed.get("--resume"):
            refuse_fixed(cls, typed)
            return
        if not typed.get("--data") or not typed.get("--cfg"):
            raise UsageError("train needs --data DIR|ZIP and --cfg NAME (or --resume RUN).")
        super().check_typed(typed)


@dataclass(frozen=True, kw_only=True)
class FinetuneJob(_Run):
    """Continue the training of a file's generator, converted or not."""

    snapshot: str = setting(
        help="a snapshot, for example a converted one", positional=True, completes="file"
    )
    # The average starts from a trained one: official training that resumes has no ramp-up.
    config: TrainConfig = part(kimg=100.0, ema_rampup=None)
    new_discriminator: bool = setting(False, help="even where the file has one")

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse a run without data."""
        if not typed.get("--data"):
            raise UsageError("finetune needs --data DIR|ZIP.")
        super().check_typed(typed)
