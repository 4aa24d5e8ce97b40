"""What a training is: the official Projected GAN defaults, and what they leave open."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from dsconvert.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
Recompute = Literal["none", "blocks", "lean"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
RECOMPUTES: tuple[Recompute, ...] = ("none", "blocks", "lean")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run. The defaults are the official ones for ``cfg=fastgan``.

    A kimg is a thousand real images shown. ``batch`` is over all processes; ``micro_batch`` is what
    one process takes at a time, its gradients being accumulated.
    """

    kimg: float = 1000.0
    batch: int = 64
    micro_batch: int | None = None
    lr_generator: float = 2e-4
    lr_discriminator: float = 2e-4
    betas: tuple[float, float] = (0.0, 0.99)
    eps: float = 1e-8
    ema_kimg: float | None = None
    """Half-life of the average; None: ``batch * 10 / 32``, as official."""
    ema_rampup: float | None = 0.05
    """At most this share of the images seen is the half-life; None: no limit."""
    blur_init_sigma: float = 0.0
    blur_fade_kimg: float = 0.0
    mirror: bool = False
    seed: int = 0
    tick_kimg: float = 4.0
    """A line of statistics every so often."""
    snapshot_ticks: int = 50
    """A snapshot, a grid and a checkpoint every so many ticks."""
    checkpoint_minutes: float = 10.0
    """And a checkpoint at least so often."""
    keep_last: int = 2
    """Checkpoints and snapshots kept, beside the best; 0: all snapshots, one checkpoint."""
    evaluate: int = 0
    """Images a snapshot is judged by (FD-lite0 to the data, for "best"); 0: not at all."""
    precision: Precision = "fp32"
    channels_last: bool = False
    recompute: Recompute = "none"
    compile: bool = False
    workers: int = 3
    grid: int = 36
    deterministic: bool = False
    """Ask torch for deterministic kernels (a GPU has others by default)."""

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            UsageError: a setting out of range.
        """
        wrong: list[str] = []
        for name in ("kimg", "batch", "lr_generator", "lr_discriminator", "tick_kimg", "grid"):
            if not getattr(self, name) > 0:
                wrong.append(f"{name} is {getattr(self, name)}, not above 0")
        for name in ("kimg", "tick_kimg"):
            if 0 < getattr(self, name) * 1000 <= 0.5:
                wrong.append(f"{name} is {getattr(self, name)}, less than one image")
        if self.micro_batch is not None and self.micro_batch < 1:
            wrong.append(f"micro_batch is {self.micro_batch}, not 1 or more")
        for name in ("keep_last", "evaluate", "workers", "blur_init_sigma", "blur_fade_kimg"):
            if getattr(self, name) < 0:
                wrong.append(f"{name} is {getattr(self, name)}, below 0")
        if self.snapshot_ticks < 1:
            wrong.append(f"snapshot_ticks is {self.snapshot_ticks}, not 1 or more")
        if self.evaluate == 1:
            wrong.append("evaluate is 1; a distance needs 2 images or more")
        if self.precision not in PRECISIONS:
            wrong.append(f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}")
        if self.recompute not in RECOMPUTES:
            wrong.append(f"recompute {self.recompute!r} is none of {', '.join(RECOMPUTES)}")
        if wrong:
            raise UsageError(f"the training's settings make no sense: {'; '.join(wrong)}.")

    @property
    def images(self) -> int:
        """Length of the run in images, whole batches."""
        return -(-round(self.kimg * 1000) // self.batch) * self.batch

    @property
    def ema_images(self) -> float:
        """Half-life of the average in images."""
        kimg = self.batch * 10 / 32 if self.ema_kimg is None else self.ema_kimg
        return kimg * 1000

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainConfig:
        """Back from :meth:`to_dict`.

        Raises:
            UsageError: a field that is unknown or makes no sense.
        """
        return cls(**known_settings(cls, data))


def known_settings(cls: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    """What JSON held of the settings ``cls``, as its constructor takes it.

    Raises:
        UsageError: a field that is unknown.
    """
    unknown = sorted(set(data) - {f.name for f in fields(cls)})
    if unknown:
        raise UsageError(f"these settings are unknown: {', '.join(unknown)}.")
    # JSON knows lists only.
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


SAFE_TO_CHANGE = frozenset(
    {
        "kimg", "tick_kimg", "snapshot_ticks", "checkpoint_minutes", "keep_last", "evaluate",
        "workers", "compile", "recompute",
    }
)  # fmt: skip
"""Settings that a resumed run may change: no weight depends on them at a given image."""
