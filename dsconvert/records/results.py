"""The results of a conversion and of an export."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log10
from typing import TYPE_CHECKING, Literal

from dsconvert.config.choices import ExportDtype, Noise
from dsconvert.records.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The error of one rewritten convolution against the original's output.

    ``svd`` and ``fitted`` are relative errors ``||y - y'||^2 / ||y - mean||^2`` of the
    convolution's output on held-out inputs, after the per-channel affine that the following
    batch normalisation undoes (if there is one); ``residual`` is the share of the kernel's energy
    that the SVD loses. None where that was not measured.
    """

    site: str
    rank: int
    residual: float | None
    svd: float | None
    fitted: float | None
    method: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Parameters and MACs (one sample) that belong to one named module, children included."""

    name: str
    type: str
    params: int
    macs: int | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a model: ``macs`` are counted by fvcore for one sample (not 'FLOPs')."""

    params: int
    macs: int | None
    layers: tuple[LayerCost, ...]
    unsupported: dict[str, int] = field(default_factory=dict)
    """Operators that fvcore does not count, with the number of calls."""
    uncalled: tuple[str, ...] = ()
    note: str | None = None
    """The reason if ``macs`` is None."""
    functional: dict[str, int] = field(default_factory=dict)
    """MACs of convolutions that a module calls as functions (``F.conv2d``), by module."""
    products: int = 0
    """MACs of matrix products."""


SOUND_LIMIT = 1.2
"""The STFT distance of a vocoder to its original above which a conversion warns. HiFi-GAN V1 of
LJSpeech is 1.22 from recordings."""
LOST_LIMIT, PSNR_LIMIT = 0.25, 20.0
"""The share of the outputs' variance that a conversion may lose (a constant is 6 dB worse), and the
PSNR, dB, that its images need; beyond either, it warns."""
_ALIKE = 40.0
"""PSNR, dB, of images that no eye tells apart, however little they vary."""
PolishEnd = Literal[
    "steps", "minutes", "settled", "exact", "interrupted", "diverged", "undifferentiable"
]
"""Why a polish ended: the steps asked for, the time, the held-out distance no longer fell, nothing
was left to improve, Ctrl-C or SIGTERM, the loss was no longer finite, or no gradients exist."""


@dataclass(frozen=True, kw_only=True)
class PolishForecast:
    """The expectation before a polish: its steps within the time, and the time that is useful."""

    steps: int
    step_seconds: float
    useful_steps: int
    useful_minutes: float


@dataclass(frozen=True, kw_only=True)
class Polish:
    """A short training of the fitted model on the original's images of random latents.

    Distances are the loss on latents that are never trained on (0: equal; 1: a constant, for each
    of its terms), with the PSNR of the images in dB (None where the output is no image). The model
    is that of the best evaluation, after ``best_step`` steps; 0: as it was fitted.
    """

    steps: int
    seconds: float
    ended: PolishEnd
    best_step: int
    distance_before: float | None
    distance_after: float | None
    psnr_before: float | None = None
    psnr_after: float | None = None
    repeat: int | None = None
    """The value of ``polish_steps`` that makes the same result again; None: none does, since the
    end was not the schedule's."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The measured quality of a converted model, on latents that no fit and no polish saw.

    ``fd`` is FD-lite0 of its images to the original's of other latents, ``floor`` that of the
    original's own images, ``ratio`` their quotient, each with ``samples`` images a side; None where
    the weights of the features are not installed. ``psnr`` is in dB, to the original's images of
    the same latents and noise, the mean over latents. Intervals are 95 %, by a bootstrap.
    """

    samples: int
    psnr: float
    psnr_interval: tuple[float, float]
    fd: float | None
    floor: float | None
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted model, its plan, its errors and its costs."""

    model: nn.Module
    plan: Plan
    fits: tuple[Fit, ...]
    before: Cost
    after: Cost
    notes: tuple[str, ...] = ()
    """What is worth knowing about the result."""
    undone: tuple[str, ...] = ()
    """What was asked for and not done, or not in full, with the reason."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by stage (trace, plan, width, factorise, fit, polish, ...)."""
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Per narrower channel group, the indices of the channels that stay."""
    psnr: float | None = None
    """Mean PSNR, dB, of the converted model's images to the original's on latents that were held
    out of the fit (of the polish, if there was one); None where nothing was fitted, or the output
    is no image."""
    stft: float | None = None
    """Mean multi-resolution STFT distance to the original's sounds on inputs that were held out of
    the fit (of the polish, if there was one); None where nothing was fitted, or the output is no
    sound."""
    output_error: float | None = None
    """Squared error of the output on the same inputs, as a share of its variance over inputs (0:
    equal; 1: the error of a constant, the mean output); None where nothing was fitted, the output
    does not vary, or it is a sound."""
    polish: Polish | None = None
    """The training after the fit; None: there was none."""
    quality: Quality | None = None
    """Measured after all else; None: it was not."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence, with the remedy, for each figure that says that the result is spoilt."""
        spoilt = self._spoilt_sounds() if self.stft is not None else self._spoilt_outputs()
        if spoilt is None:
            return ()
        errors = {f.site: f.svd if f.fitted is None else f.fitted for f in self.fits}
        worst = sorted(((e, site) for site, e in errors.items() if e), reverse=True)[:3]
        layers = ", ".join(f"{site} ({100 * e:.0f} %)" for e, site in worst)
        known = f" The largest errors of the fit are those of {layers}." if layers else ""
        polish = 5.0 if self.polish is None else 3 * self.polish.seconds / 60
        rank = max([3, *(d.rank or 0 for d in self.plan.decisions)]) + 1
        wider = "keep every channel (--width 1), " if self.plan.widths else ""
        return (
            f"{spoilt}.{known} Polish for longer (--polish {max(5, round(polish))}), {wider}give "
            f"higher ranks (--rank {rank}), or keep layers dense (--keep NAME).",
        )

    def _spoilt_sounds(self) -> str | None:
        if self.stft is None or self.stft <= SOUND_LIMIT:
            return None
        return (
            f"the sounds of this {self.plan.model} are {self.stft:.2f} (STFT distance) from the "
            f"original's, more than {SOUND_LIMIT:g}, the distance of a trained vocoder from "
            "recordings: they are likely to sound spoilt"
        )

    def _spoilt_outputs(self) -> str | None:
        """Return what is wrong with images, or with outputs that are neither images nor sounds."""
        psnr, lost = self.psnr, self.output_error
        far = psnr is not None and psnr < PSNR_LIMIT
        vague = lost is not None and lost > LOST_LIMIT and (psnr is None or psnr < _ALIKE)
        if not far and not vague:
            return None
        whose = f"the {'outputs' if psnr is None else 'images'} of this {self.plan.model}"
        parts = [] if psnr is None else [f"are {psnr:.1f} dB (PSNR) from the original's"]
        if lost is not None:
            parts.append(f"have an error of {100 * lost:.0f} % of the original's variance")
        constant = "" if lost is None else " (a constant output: 100 %)"
        if psnr is not None and lost:
            constant = f", where one constant image is at about {psnr + 10 * log10(lost):.1f} dB"
        return f"{whose} {' and '.join(parts)}{constant}: they are likely to be spoilt"


@dataclass(frozen=True, kw_only=True)
class Export:
    """A generator that was written to another format, loaded again and compared."""

    path: str
    format: str
    files: tuple[str, ...]
    bytes: int
    inputs: dict[str, tuple[int | str, ...]]
    """Names of the inputs, in order, with their shapes ("batch" is free)."""
    noise: Noise
    planes: tuple[tuple[str, int, int], ...]
    """Noise injections in execution order: module, height, width. Their planes, row by row, make up
    the input ``noise``."""
    error: float | None
    """Largest difference of a pixel to the model's image, over all the batches compared; None
    where the format does not run on this system (Core ML)."""
    range: float
    """Largest magnitude of a pixel of the model's images."""
    batches: tuple[int, ...]
    """The compared batch sizes."""
    seconds: float
    dtype: ExportDtype = "fp32"
    psnr: float | None = None
    """Mean PSNR in dB to the model's images, where ``dtype`` is not ``fp32``."""
    snr: float | None = None
    """Signal-to-noise ratio in dB to the model's sounds, in its place."""
    activation_bits: int = 32
