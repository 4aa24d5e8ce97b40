"""Settings of the jobs that measure: time and memory, and the quality of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dsconvert.config.base import BaseSettings
from dsconvert.config.choices import METRICS, Dtype, Metric
from dsconvert.config.files import Device, Messages, Source
from dsconvert.config.pictures import Calibrated
from dsconvert.config.setting import part, setting
from dsconvert.config.values import seed, seeds
from dsconvert.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Settings(BaseSettings):
    """Where and how models run while they are measured."""

    subject: ClassVar[str] = "the settings of the measurement"

    device: str = setting(
        "auto",
        help="cpu, cuda, cuda:1, ...; auto: the accelerator, the CPU where there is none",
        metavar="NAME",
    )
    dtype: Dtype = setting(
        "float32", help="of the weights; amp: autocast in the device's usual type"
    )
    channels_last: bool = setting(False, help="run in that memory layout")
    compile: bool = setting(
        False, help="through torch.compile; compilation is not timed with the runs"
    )
    threads: int | None = setting(
        None, help="CPU threads of torch", default_text="as many as torch uses by itself"
    )
    keep_freed: bool = setting(
        False, help="keep freed memory instead of returning it to the system, as training here does"
    )


KID_LIMIT = 12_000
"""The most images a side of KID: three matrices of their square are in memory."""


@dataclass(frozen=True, kw_only=True)
class BenchJob(Messages, Source, Calibrated):
    """Measure time and memory on this machine: forward, forward + backward."""

    snapshots: tuple[str, ...] = setting(
        help="files with generators; the first is the baseline",
        positional=True,
        option="snapshot",
        repeat=True,
        completes="file",
    )
    batch: int = setting(8, help="beside batch 1", at_least=0)
    train_batch: int = setting(4, help="of forward + backward; 0: leave it out", at_least=0)
    repeats: int = setting(9, help="timed runs", at_least=0)
    measuring: Settings = part()

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse measurements of nothing."""
        super().check_typed(typed)
        if typed.get("--batch") == 0:
            raise UsageError("--batch 0 runs nothing; give 1 or more.")
        if typed.get("--repeats") == 0:
            raise UsageError("--repeats 0 measures nothing; give 1 or more.")
        snapshots = typed["snapshot"]
        if len(set(snapshots)) < len(snapshots):
            raise UsageError("a snapshot is named twice; name each once.")


def metrics(text: str) -> tuple[Metric, ...]:
    """Read ``"fid,kid"``.

    Raises:
        ValueError: an unknown metric, or none.
    """
    names = tuple(dict.fromkeys(t.strip().lower() for t in text.split(",") if t.strip()))
    unknown = [n for n in names if n not in METRICS]
    if unknown or not names:
        raise ValueError(f"{', '.join(unknown) or 'nothing'} is not among {', '.join(METRICS)}")
    return tuple(m for m in names if m in METRICS)


def classes(text: str) -> tuple[int, ...]:
    """Read ``"0-9"``, or ``all`` as no class in particular.

    Raises:
        ValueError: it is neither.
    """
    return () if text.strip().lower() == "all" else seeds(text)


@dataclass(frozen=True, kw_only=True)
class EvalJob(Device, Messages, Source, Calibrated):
    """Measure distances to real images, to the original, or both, with their noise floors."""

    keeps_memory: ClassVar[bool] = True
    snapshot: str = setting(help="the file with the generator", positional=True, completes="file")
    data: str | None = setting(None, help="real images", metavar="DIR|ZIP", completes="file")
    against: str | None = setting(None, help="the original", metavar="FILE", completes="file")
    metrics: tuple[Metric, ...] = setting(
        ("fd-lite0",),
        help="of fid, kid (both download Inception once), fd-lite0; pr-lite0: precision and "
        "recall; pd-lite0: perceptual distance to the original, latent by latent; fd-backbone, "
        "pr-backbone",
        metavar="LIST",
        read=metrics,
    )
    backbone: str | None = setting(
        None,
        help="a second network of timm, in whose features fd-backbone (added by itself) and "
        "pr-backbone are measured; a file holds its weights",
        metavar="NAME[=FILE]",
    )
    per_class: tuple[int, ...] | None = setting(
        None,
        help="also each of these classes of a conditional generator, beside the original's",
        metavar="0-9|all",
        read=classes,
    )
    trunc: float = setting(
        1.0, help="truncation psi of a StyleGAN2 generator, as in generate", metavar="PSI"
    )
    draws: int = setting(
        1,
        help="repeat with so many independent draws of latents, for intervals over draws",
        at_least=1,
    )
    samples: int | None = setting(
        None,
        help="images on each side, 2 or more",
        at_least=2,
        default_text="1000, at most half of the real images",
    )
    bootstrap: int = setting(
        100, help="resamples; fewer than 20 give no 95 % interval", at_least=20
    )
    seed: int = setting(1, help="of every random draw", read=seed)

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse a measurement against nothing."""
        super().check_typed(typed)
        if not typed.get("--data") and not typed.get("--against"):
            raise UsageError("eval needs something to measure against: --data, --against, or both.")
        asked: tuple[Metric, ...] = typed.get("--metrics", ())
        second = [m for m in asked if m.endswith("-backbone")]
        if second and "--backbone" not in typed:
            raise UsageError(f"{', '.join(second)}: name the network, with --backbone NAME[=FILE].")
        if "kid" in asked and (typed.get("--samples") or 0) > KID_LIMIT:
            raise UsageError(
                f"--samples {typed['--samples']}: KID takes at most {KID_LIMIT} images a side; "
                "give fewer, or leave kid out of --metrics."
            )
        if typed.get("--against"):
            return
        idle = [o for o in ("--per-class",) if o in typed]
        idle += [m for m in asked if m == "pd-lite0"]
        if idle:
            raise UsageError(f"{', '.join(idle)}: only with the original, --against FILE.")

    @property
    def measured(self) -> tuple[Metric, ...]:
        """The metrics, with ``fd-backbone`` where a second network is named."""
        if self.backbone is None or any(m.endswith("-backbone") for m in self.metrics):
            return self.metrics
        return (*self.metrics, "fd-backbone")
