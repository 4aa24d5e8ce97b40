"""The widths of a plan: one share for all maps, or shares by loss and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsconvert.config.choices import Width as Share
from dsconvert.config.convert import Fitting
from dsconvert.core.analysis import Analysis
from dsconvert.core.presets import WIDTH_LOSS, one_pixel
from dsconvert.errors import NoGradientsError, PlanError
from dsconvert.records import Width
from dsconvert.util.progress import Progress
from dsconvert.width import cost_model, equal_widths, held, share_out

Chooser = Callable[[Sequence[str]], tuple[Width, ...]]
"""Returns the channel groups that get narrower, given the modules that are kept."""


def width_chooser(
    analysis: Analysis,
    *,
    preset: str,
    width: Share | None = None,
    init: str = Fitting.init,
    calibrate: int | None = None,
    polished: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chooser | None:
    """Return the choice of widths for a plan; None: every map keeps its channels.

    Args:
        analysis: of the model.
        preset: of the plan, which says how much loss ``auto`` may cause.
        width: the share of its channels that every map keeps, or ``auto``; None: see
            :func:`default_width`, and 1 where the model can't be run.
        init: how the result is to be fitted; with ``random`` no weight says which channels matter.
        calibrate: number of samples of the fit; with 0 nothing may be run.
        polished: whether a polish follows.
        seed: of the samples.
        progress: called with ``(stage, done, total, detail)``.

    Raises:
        PlanError: the share is out of range.
        NoGradientsError: (by the choice) ``auto`` is asked for, and needs gradients.
    """
    asked = width is not None
    if width is None:
        possible = analysis.sampler is not None and calibrate != 0 and init != "random"
        # The channels of a trained vocoder are all in use: ranks cost it less.
        possible = possible and not analysis.sounds
        width = default_width(preset, polished=polished) if possible else 1
    if width == "auto" and init == "random":
        # Random weights look as redundant as they are random: take what a trained network spares.
        width = UNTRAINED_SHARE
    if width == 1:
        return None
    if width != "auto":
        share = width
        if not 0 < share <= 1:
            raise PlanError(f"width {share:g} is no share above 0, up to 1 (all channels).")
        return lambda keep: equal_widths(analysis.groups, share, keep, whole=first_map(analysis))
    loss = WIDTH_LOSS.get(preset, WIDTH_LOSS["balanced"])

    def chosen(keep: Sequence[str]) -> tuple[Width, ...]:
        try:
            return _by_loss(analysis, loss, keep, seed, progress)
        except NoGradientsError:
            if asked:
                raise
            return ()  # a polish that follows says why

    return chosen


def default_width(preset: str, *, polished: bool) -> Share:
    """Return the width of a preset where none is given.

    A least-squares fit restores less of removed channels than of removed ranks (stamps-128-ngf32:
    2.2 against 1.4 times the noise floor), and a polish restores both. So the widths change where a
    polish follows.
    """
    return "auto" if polished and preset in WIDTH_LOSS else 1


def first_map(analysis: Analysis) -> tuple[str, ...]:
    """Return the convolution that turns the latent into the first map, if there is one.

    An equal share for all maps leaves this one alone: its channels are projections of a white
    latent, of which none predicts another (stamps-128-ngf32: half of them cost 5 dB, and save 7 %
    of the MACs).
    """
    order = analysis.sites.order
    return tuple(
        s.name
        for s in analysis.sites.convolutions
        if order and s.name == order[0] and s.kind == "transposed" and one_pixel(s)
    )


UNTRAINED_SHARE = 0.5
"""Share of channels for a network that is to be trained anew, which the trained
generator ``stamps-128-ngf32`` spares in most maps at the loss of ``balanced``."""


def _by_loss(
    analysis: Analysis, loss: float, keep: Sequence[str], seed: int, progress: Progress | None
) -> tuple[Width, ...]:
    groups = [g for g in analysis.groups.free() if held(g, keep) is None]
    if not groups:
        return ()
    curves = analysis.curves(seed, progress).by_group
    counts = share_out(groups, curves, cost_model(analysis.groups, analysis.sites), loss=loss)
    return tuple(
        Width(
            group=g.name,
            channels=g.channels,
            kept=counts[g.name],
            reason=f"loss {curves[g.name].loss[counts[g.name]]:.2g}, chosen by loss and cost",
        )
        for g in groups
        if counts.get(g.name, g.channels) < g.channels
    )
