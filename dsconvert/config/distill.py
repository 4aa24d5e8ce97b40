"""Settings of ``distill``: when it ends, how the student learns, and the terms of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dsconvert.config.base import BaseSettings
from dsconvert.config.choices import Clock, Optimiser, Statistics
from dsconvert.config.files import Device, Messages, Output, Source
from dsconvert.config.pictures import Calibrated
from dsconvert.config.setting import Group, part, setting
from dsconvert.config.values import seed
from dsconvert.errors import UsageError

WARMUP_SHARE = 0.2
"""The rate rises during at most this share of a run, however short the run is."""
_MUON = (2, 9)
"""The first torch with Muon."""
_TINY = 1e-9
ENDS = Group("When to stop (at least one)")
HOW = Group("How (the defaults are for a fitted conversion)")
RUN = Group("The run")


def default_optimiser() -> Optimiser:
    """The better optimiser that the installed torch has; torch is not imported."""
    from importlib.metadata import PackageNotFoundError, version  # slow, and --help needs none

    try:
        numbers = version("torch").split(".")[:2]
    except PackageNotFoundError:
        return "adam"
    return "muon" if tuple(int(n) for n in numbers) >= _MUON else "adam"


@dataclass(frozen=True, kw_only=True)
class DistillConfig(BaseSettings):
    """Settings of a distillation. At least one of the three ends must be set.

    The terms of the loss are mean squared errors, each divided by the variance of the teacher's
    output (channel by channel, where there are channels): 1 is the error of a constant.
    """

    subject: ClassVar[str] = "the distillation's settings"

    minutes: float | None = setting(
        None,
        help="end after so long; the rate falls to zero towards the end",
        above=0,
        group=ENDS,
        metavar="M",
        resumable=True,
    )
    steps: int | None = setting(
        None,
        help="end after so many steps; such a run resumes to the last bit",
        above=0,
        group=ENDS,
        resumable=True,
    )
    patience: int = setting(
        0,
        help="end when N held-out evaluations in a row improve by less than one percent; 0: never",
        at_least=0,
        group=ENDS,
        resumable=True,
    )
    clock: Clock = setting(
        "wall",
        help="the minutes' clock: on the wall, or of the processor (all threads)",
        group=ENDS,
        resumable=True,
    )
    batch: int = setting(8, help="latents a step", at_least=1, group=HOW)
    reuse: bool = setting(
        False,
        help="every second step uses the latents of a few steps before, without running the "
        "teacher again",
        group=HOW,
    )
    lr: float = setting(
        1.5e-3,
        help="relative to the root mean square of each tensor",
        above=0,
        metavar="RATE",
        group=HOW,
    )
    """Relative because factors differ in scale a hundredfold: a step that suits one of them would
    destroy another, and with it the start that the fit has given."""
    betas: tuple[float, float] = setting((0.9, 0.99), option=None, help="of Adam")
    optimiser: Optimiser = setting(
        factory=default_optimiser,
        help="muon (torch 2.9 and newer): pointwise factors by Muon, the rest by Adam; or adam",
        default_text="muon where torch has it",
        group=HOW,
    )
    warmup: int = setting(
        20,
        option=None,
        help="steps in which the rate rises to lr; at most a fifth of the run",
        at_least=0,
    )
    hold: float = setting(
        0.0,
        option=None,
        help="share of the run before the rate begins to fall",
        at_least=0,
        at_most=1,
    )
    blockwise: float = setting(
        0.0,
        help="share of the run in which each block learns alone, on the teacher's inputs",
        at_least=0,
        at_most=1,
        metavar="SHARE",
        group=HOW,
    )
    """Below 1, at least one step trains the whole network. Patience does not count the evaluations
    of this stage."""
    image: float = setting(1.0, help="weight of the image", at_least=0, metavar="WEIGHT", group=HOW)
    blocks: float = setting(
        1.0, help="weight of each block's output", at_least=0, metavar="WEIGHT", group=HOW
    )
    features: float = setting(
        1.0,
        help="weight of the four maps of the discriminator's backbone (0 needs no extra installed)",
        at_least=0,
        metavar="WEIGHT",
        group=HOW,
    )
    adversarial: float = setting(
        0.0,
        help="weight of a projected discriminator's judgement; 0 builds none",
        at_least=0,
        metavar="WEIGHT",
        group=HOW,
    )
    lr_discriminator: float = setting(
        2e-4, option=None, help="learning rate of that discriminator", above=0
    )
    feature_size: int = setting(
        128,
        option=None,
        help="images are reduced to this side for the backbone (never enlarged)",
        at_least=32,
    )
    statistics: Statistics = setting(
        "frozen",
        help="frozen: normalisations keep the statistics of the fit, and only their gains and "
        "biases learn; batch: the statistics follow the batches",
        group=HOW,
    )
    held_out: int = setting(
        32, option=None, help="latents that are never trained on and judge the student", at_least=2
    )
    evaluations: int = setting(
        20,
        option=None,
        help="number of held-out evaluations over the whole run (one every 100 steps where only "
        "patience ends it)",
        at_least=1,
        resumable=True,
    )
    checkpoint_minutes: float = setting(
        5.0, option=None, help="a checkpoint at least this often", above=0, resumable=True
    )
    keep_last: int = setting(
        2, option=None, help="checkpoints that are kept", at_least=1, resumable=True
    )
    seed: int = setting(0, help="of every random draw", read=seed, group=HOW)

    def contradictions(self) -> list[str]:
        """Problems that no single range tells."""
        wrong: list[str] = []
        if self.minutes is None and self.steps is None and not self.patience:
            wrong.append("nothing ends it (set minutes, steps or patience)")
        if self.blockwise and self.minutes is None and self.steps is None:
            wrong.append(
                "blockwise is a share of a run of unknown length (set minutes or steps beside "
                "patience)"
            )
        if not (self.image or self.blocks or self.features):
            wrong.append("image, blocks and features are all 0: nothing ties it to the teacher")
        return wrong

    def progress(self, steps: int, seconds: float) -> float:
        """The share of the run that is done, 0 to 1; 0 where only patience ends it."""
        shares = [0.0]
        if self.steps is not None:
            shares.append(steps / self.steps)
        if self.minutes is not None:
            shares.append(seconds / (60 * self.minutes))
        return min(1.0, max(shares))

    def rate(self, steps: int, progress: float, *, began: float = 0.0) -> float:
        """The factor on ``lr``: a rise over ``warmup``, a plateau over ``hold``, a fall to zero.

        Args:
            steps: made so far.
            progress: see :meth:`progress`.
            began: the progress at the first step, since the minutes count from before it.
        """
        rises = [(steps + 1) / self.warmup if self.warmup else 1.0]
        if self.steps is not None:
            rises.append((steps + 1) / (WARMUP_SHARE * self.steps))
        if self.minutes is not None:
            rises.append(_since(progress, began) / WARMUP_SHARE)
        left = 1.0 - self.hold
        fall = 1.0 if progress <= self.hold or not left else (1.0 - progress) / left
        return min(1.0, max(rises)) * fall

    def alone(self, steps: int, progress: float, *, began: float = 0.0) -> bool:
        """Whether the next step is of the blockwise stage; arguments as in :meth:`rate`."""
        # A step that does not fit into its share as a whole is the whole network's.
        fits = self.steps is None or (steps + 1) / self.steps <= self.blockwise + _TINY
        return fits and _since(progress, began) < self.blockwise


def _since(progress: float, began: float) -> float:
    """The share of the training that is done, 0 to 1, where set-up took ``began`` of the run."""
    return (progress - began) / (1.0 - began) if began < 1.0 else 1.0


@dataclass(frozen=True, kw_only=True)
class DistillJob(Device, Output, Messages, Source, Calibrated):
    """Let a converted generator learn from its original; needs no data where it makes its own."""

    keeps_memory: ClassVar[bool] = True
    snapshot: str = setting(help="the original: the teacher", positional=True, completes="file")
    student: str = setting(help="its conversion", positional=True, completes="file")
    config: DistillConfig = part()
    run: str | None = setting(
        None,
        help="folder of curves, grids and report",
        default_text="the name of --out and -run",
        metavar="FOLDER",
        completes="dir",
        group=RUN,
    )
    resume: bool = setting(False, help="continue the run in that folder", group=RUN)

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse a run without an end, and options of pictures where no pictures are named."""
        super().check_typed(typed)
        if not any(typed.get(o) for o in ("--minutes", "--steps", "--patience")):
            raise UsageError("distill needs an end: --minutes M, --steps N or --patience N.")
        if "--clock" in typed and not typed.get("--minutes"):
            raise UsageError("--clock is the clock of --minutes M; add that, or leave it out.")
