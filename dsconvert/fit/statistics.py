"""Correct the statistics of batch normalisations behind rewritten convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dsconvert.fit.moments import channel_mean, channel_variance
from dsconvert.fit.overflow import widened


def buffers_of(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return mean and variance of a ``BatchNorm2d``, or of a conditional one (``stored_*``)."""
    for mean, var in (("running_mean", "running_var"), ("stored_mean", "stored_var")):
        a, b = getattr(norm, mean, None), getattr(norm, var, None)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a, b
    return None


def correct_statistics(
    norm: nn.Module, student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> tuple[float, float] | None:
    """Shift the statistics as the inputs' statistics shifted, where held-out inputs agree.

    The teacher's buffers need not equal its present statistics (they are averages from training):
    so the student's mean is shifted by the difference of means, its variance scaled by the ratio
    of variances. The first batch of each is held out; a change is kept only where it brings the
    normalised held-out statistics nearer to the teacher's, and is finite in the buffers' own type.

    Returns:
        the held-out mismatch (mean square over channels) before and after, or None where the
        module has no statistics.
    """
    buffers = buffers_of(norm)
    if buffers is None or len(student) < 2:
        return None
    mean, var = buffers
    student, teacher = widened(student), widened(teacher)
    eps = float(getattr(norm, "eps", 1e-5))
    got, want = channel_mean(student[1:]), channel_mean(teacher[1:])
    got_var, want_var = channel_variance(student[1:], got), channel_variance(teacher[1:], want)
    ratio = (got_var + eps) / (want_var + eps)
    held = _summary(student[:1]), _summary(teacher[:1])
    old = mean.clone(), var.clone()
    before = _mismatch(held, old, old, eps)
    # The mean that the normalisation removes scales with the input's spread around it.
    new_mean = got + (old[0] - want) * ratio.sqrt()
    new_var = ((old[1] + eps) * ratio - eps).clamp_min(0)
    after = _mismatch(held, (new_mean, new_var), old, eps)
    made = new_mean.to(mean.dtype), new_var.to(var.dtype)
    if after < before and all(bool(m.isfinite().all()) for m in made):
        mean.copy_(new_mean)
        var.copy_(new_var)
        return before, after
    return before, before


def _summary(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    mean = channel_mean(values)
    return mean, channel_variance(values, mean)


def _mismatch(
    held: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    eps: float,
) -> float:
    """Return the distance of the normalised held-out mean and deviation from the teacher's."""
    (s_mean, s_var), (t_mean, t_var) = held
    s_scale, t_scale = (student[1] + eps).rsqrt(), (teacher[1] + eps).rsqrt()
    means = (s_mean - student[0]) * s_scale - (t_mean - teacher[0]) * t_scale
    spreads = s_var.sqrt() * s_scale - t_var.sqrt() * t_scale
    return float((means.square() + spreads.square()).mean())
