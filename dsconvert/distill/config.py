"""What a distillation is: how long, how fast, and what the student is held to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dsconvert.distill.optim import has_muon
from dsconvert.errors import UsageError
from dsconvert.train.config import known_settings

Clock = Literal["wall", "cpu"]
Statistics = Literal["frozen", "batch"]
Kind = Literal["muon", "adam"]
KINDS: tuple[Kind, ...] = ("muon", "adam")
CLOCKS: tuple[Clock, ...] = ("wall", "cpu")
STATISTICS: tuple[Statistics, ...] = ("frozen", "batch")
WARMUP_SHARE = 0.2
"""The rate rises during at most this share of a run, however short the run is."""


def default_optimiser() -> Kind:
    """The better one that this torch has."""
    return "muon" if has_muon() else "adam"


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of a distillation. At least one of the three ends must be set.

    The terms of the loss are mean squared errors, each divided by the variance of what the teacher
    makes (channel by channel, where there are channels): 1 is as far off as a constant would be.
    """

    minutes: float | None = None
    """End after so long; the rate falls to zero towards it."""
    steps: int | None = None
    """End after so many steps; a run that ends by steps can be resumed to the last bit."""
    patience: int = 0
    """End after so many evaluations in a row in which the held-out distance to the teacher did
    not fall by one percent; 0: never."""
    clock: Clock = "wall"
    """What ``minutes`` are: time on the wall, or of the processor (all threads)."""
    batch: int = 8
    lr: float = 1.5e-3
    """Relative to the root mean square of each tensor: factors differ in scale a hundredfold, and
    a step that suits one would wreck another (and with it the start that the fit has given)."""
    betas: tuple[float, float] = (0.9, 0.99)
    optimiser: Kind = field(default_factory=default_optimiser)
    """``muon`` (torch 2.9 and newer): pointwise factors by Muon, the rest by Adam; or ``adam``."""
    warmup: int = 20
    """Steps in which the rate rises to ``lr``; at most a fifth of the run (``WARMUP_SHARE``)."""
    hold: float = 0.0
    """Share of the run before the rate begins to fall."""
    blockwise: float = 0.0
    """Share of the run in which each block learns alone, on the teacher's inputs; below 1, at least
    one step trains the whole network. Patience does not count the evaluations in it."""
    image: float = 1.0
    blocks: float = 1.0
    features: float = 1.0
    """Weight of the projected feature space: the four maps of the discriminator's backbone."""
    adversarial: float = 0.0
    """Weight of a projected discriminator's judgement; 0 builds none."""
    lr_discriminator: float = 2e-4
    feature_size: int = 128
    """Images are brought to this side for the backbone (never enlarged)."""
    statistics: Statistics = "frozen"
    """``frozen``: normalisations keep the statistics of the fit, and only their gains and biases
    learn, so that what is trained is what will run; ``batch``: they follow the batches."""
    held_out: int = 32
    """Latents that are never trained on and judge the student."""
    evaluations: int = 20
    """How often they do, over the whole run (every 100 steps where only ``patience`` ends it)."""
    checkpoint_minutes: float = 5.0
    keep_last: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            UsageError: no end, or a setting out of range; all problems at once.
        """
        wrong: list[str] = []
        if self.minutes is None and self.steps is None and not self.patience:
            wrong.append("nothing ends it (set minutes, steps or patience)")
        for name in ("minutes", "steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                wrong.append(f"{name} is {value}, not above 0")
        for name in ("lr", "lr_discriminator", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                wrong.append(f"{name} is {getattr(self, name)}, not above 0")
        for name, least in (("batch", 1), ("feature_size", 32), ("held_out", 2),
                            ("evaluations", 1), ("keep_last", 1), ("patience", 0),
                            ("warmup", 0), ("image", 0), ("blocks", 0), ("features", 0),
                            ("adversarial", 0)):  # fmt: skip
            if not getattr(self, name) >= least:
                wrong.append(f"{name} is {getattr(self, name)}, below {least}")
        for name in ("hold", "blockwise"):
            if not 0 <= getattr(self, name) <= 1:
                wrong.append(f"{name} is {getattr(self, name)}, not a share between 0 and 1")
        if self.blockwise and self.minutes is None and self.steps is None:
            wrong.append("blockwise is a share of a run whose length nothing says (set minutes or "
                         "steps beside patience)")  # fmt: skip
        if not (self.image or self.blocks or self.features):
            wrong.append("image, blocks and features are all 0: nothing ties it to the teacher")
        if self.clock not in CLOCKS:
            wrong.append(f"clock {self.clock!r} is none of {', '.join(CLOCKS)}")
        if self.optimiser not in KINDS:
            wrong.append(f"optimiser {self.optimiser!r} is none of {', '.join(KINDS)}")
        if self.statistics not in STATISTICS:
            wrong.append(f"statistics {self.statistics!r} is none of {', '.join(STATISTICS)}")
        if wrong:
            raise UsageError(f"the distillation's settings make no sense: {'; '.join(wrong)}.")

    def progress(self, steps: int, seconds: float) -> float:
        """How much of the run is behind, 0 to 1; 0 where only patience ends it."""
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DistillConfig:
        """Back from :meth:`to_dict`.

        Raises:
            UsageError: a field that is unknown or makes no sense.
        """
        return cls(**known_settings(cls, data))


def _since(progress: float, began: float) -> float:
    """How much of the training is behind, 0 to 1, where set-up took ``began`` of the run."""
    return (progress - began) / (1.0 - began) if began < 1.0 else 1.0


_TINY = 1e-9
SAFE_TO_CHANGE = frozenset(
    {"minutes", "steps", "patience", "evaluations", "checkpoint_minutes", "keep_last", "clock"}
)
"""Settings that a resumed run may change."""
