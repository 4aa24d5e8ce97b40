"""Settings of ``convert``: which rewrites, how they are fitted, and targets for a measured plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsconvert.config.base import BaseSettings
from dsconvert.config.choices import Init, Preset, Width
from dsconvert.config.files import Device, Messages, OptionalOutput, Source, Verbose
from dsconvert.config.measure import Settings
from dsconvert.config.pictures import Calibrated
from dsconvert.config.setting import Group, part, setting
from dsconvert.config.values import seed, width
from dsconvert.errors import UsageError

TARGETS = Group("Plans from measured time")
POLISH = Group("Polish")


@dataclass(frozen=True, kw_only=True)
class Rewriting(BaseSettings):
    """Which convolutions are rewritten, and how."""

    preset: Preset = setting("balanced", help="how strongly the generator is rewritten")
    rank: int | None = setting(None, help="one rank for every rewrite", at_least=1)
    width: Width | None = setting(
        None,
        help="share of its channels that every map keeps (0.5: half), or auto: by loss and cost",
        metavar="SHARE",
        default_text="auto if balanced or fast are polished, else 1",
        read=width,
    )
    keep: tuple[str, ...] = setting(
        (), help="leave these modules as they are, to the byte", metavar="GLOB", repeat=True
    )
    refit: tuple[str, ...] = setting(
        (),
        help="keep these modules, too, but refit them to their new inputs",
        metavar="GLOB",
        repeat=True,
    )
    remove: tuple[str, ...] = setting(
        (), help="remove these modules, which forward never calls", metavar="GLOB", repeat=True
    )


@dataclass(frozen=True, kw_only=True)
class Fitting(BaseSettings):
    """How the factors of rewritten convolutions are found."""

    init: Init = setting(
        "fit", help="fit: to activations (no data needed); svd: kernels only; random: to train anew"
    )
    calibrate: int | None = setting(
        None, help="latents for fit and statistics; 0: neither", at_least=0, default_text="enough"
    )
    seed: int = setting(0, help="of every random draw", read=seed)


@dataclass(frozen=True, kw_only=True)
class Polishing(BaseSettings):
    """How long the fitted model is trained on the original's images, as ``distill`` does."""

    polish: float = setting(
        0.0,
        help="train the result on the original's images until that brings little more, at most so "
        "long (no data needed; only after --init fit; on a GPU 3 by default); 0: not at all",
        at_least=0,
        metavar="MINUTES",
        group=POLISH,
    )
    polish_steps: int | None = setting(
        None,
        help="exactly so many steps instead, which makes a reported result again",
        at_least=1,
        metavar="N",
        group=POLISH,
    )


@dataclass(frozen=True, kw_only=True)
class Targets(BaseSettings):
    """What the plan must reach on the device at hand."""

    target: tuple[str, ...] = setting(
        (),
        help="instead of a preset: the least loss within latency=0.2x, train-time=2s, "
        "memory=500MiB, macs=3GMAC, params=10M (x: of the original)",
        metavar="METRIC=BOUND",
        repeat=True,
        group=TARGETS,
    )
    quality: tuple[str, ...] = setting(
        (),
        help="instead of a preset: the fastest form that holds fd=1.05x (FD-lite0, of its noise "
        "floor) or psnr=30dB after fit and polish, alone or within --target; found by tries, which "
        "are kept",
        metavar="METRIC=BOUND",
        repeat=True,
        group=TARGETS,
    )
    batch: int = setting(1, help="of latency", at_least=0, group=TARGETS)
    train_batch: int = setting(4, help="of train-time and memory", at_least=0, group=TARGETS)
    measuring: Settings = part(only=("dtype", "threads"), group=TARGETS)
    channels_last: bool = setting(
        False, help="try that memory layout too, for a model that will be run in it", group=TARGETS
    )
    remeasure: bool = setting(
        False,
        help="use no time (and no try of --quality) from an earlier run",
        group=TARGETS,
    )
    best_effort: bool = setting(
        False,
        help="where a target is missed, write the nearest file all the same (exit code 3 stays)",
        group=TARGETS,
    )


_OF_TARGETS = (
    "--batch", "--train-batch", "--dtype", "--threads", "--channels-last", "--remeasure",
    "--best-effort",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ConvertJob(Device, OptionalOutput, Verbose, Messages, Source, Calibrated):
    """Make a generator small and fast: the main job."""

    snapshot: str = setting(
        help="a snapshot (.pkl) or a checkpoint of a known codebase (.pth, .pt)",
        positional=True,
        completes="file",
    )
    rewriting: Rewriting = part()
    fitting: Fitting = part()
    # Python calls convert without a polish unless one is asked for; the command is the main job.
    polishing: Polishing = part(polish=5.0)
    plan: str | None = setting(
        None, help="use an edited plan instead of a preset", metavar="FILE", completes="file"
    )
    plan_only: bool = setting(False, help="show the plan (with --out: write it as JSON)")
    drop: tuple[str, ...] = setting(
        (), help="omit an entry (D, for example)", metavar="KEY", repeat=True
    )
    targets: Targets = part()
    measure: int | None = setting(
        None,
        help="measure the result's quality on so many images a side, 2 or more (FD-lite0 beside "
        "its noise floor, PSNR), on latents that no fit saw; 0: not at all",
        metavar="N",
        at_least=0,
        default_text="400 where that takes at most a fifth of the conversion's time",
    )

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options that contradict each other."""
        super().check_typed(typed)
        if not typed.get("--out") and "--plan-only" not in typed:
            raise UsageError("convert needs --out FILE (or --plan-only).")
        choices = ("--preset", "--rank", "--width", "--keep", "--refit", "--remove")
        if "--plan" in typed and any(o in typed for o in choices):
            raise UsageError(
                "--plan already holds every rank and choice; drop --preset, --rank, --width, "
                "--keep, --refit and --remove."
            )
        if typed.get("--polish") and "--polish-steps" in typed:
            raise UsageError(
                "--polish-steps N takes exactly N steps, whatever time they take; drop --polish."
            )
        if typed.get("--init") == "random" and (typed.get("--polish") or "--polish-steps" in typed):
            raise UsageError(
                "--init random is for a training from scratch, and a polish improves a fit; drop "
                "one of the two."
            )
        chosen = [o for o in ("--target", "--quality") if o in typed]
        if not chosen:
            idle = [o for o in _OF_TARGETS if o in typed]
            if idle:
                raise UsageError(f"{', '.join(idle)}: only together with --target or --quality.")
        elif any(o in typed for o in ("--plan", "--preset", "--rank")):
            raise UsageError(
                f"{chosen[-1]} chooses rules and ranks; drop --plan, --preset and --rank."
            )
        if "--quality" in typed and "--width" in typed:
            raise UsageError("--quality chooses widths; drop --width.")
        if "--quality" in typed and typed.get("--init", "fit") != "fit":
            raise UsageError("--quality is promised after a fit; drop --init.")
        if "--quality" in typed and typed.get("--calibrate") == 0:
            raise UsageError("--quality is promised after a fit; drop --calibrate 0.")
        if "--quality" in typed and typed.get("--measure") == 0:
            raise UsageError("--quality is measured, on 2 images or more; drop --measure 0.")
        if typed.get("--measure") == 1:
            raise UsageError("--measure 1: a distance needs 2 images or more.")
        if typed.get("--measure") and "--plan-only" in typed:
            raise UsageError("--plan-only makes nothing that --measure could measure; drop one.")
        for option in ("--batch", "--train-batch"):
            if typed.get(option) == 0:
                raise UsageError(f"{option} 0 runs nothing; give 1 or more.")
