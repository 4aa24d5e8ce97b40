"""The loss of a whole generator where one group of maps alone is narrower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from dsconvert.core.analysis import Analysis
from dsconvert.errors import NoGradientsError
from dsconvert.model.call_arguments import in_order
from dsconvert.model.inputs import fresh_args
from dsconvert.search.trial_rig import LayerTrials, Rig, Trial
from dsconvert.util.progress import Progress
from dsconvert.width.absorb import predicting, second_moments

SHARES = (1 / 4, 1 / 2, 3 / 4)
"""Shares of a group's channels that are tried."""


def can_narrow(analysis: Analysis, seed: int, progress: Progress | None) -> bool:
    """Return whether channels of the model can be chosen: that needs its gradients.

    An equal share for all maps needs them, too. ``seed`` and ``progress`` are as for
    :meth:`~dsconvert.core.analysis.Analysis.curves`.
    """
    try:
        analysis.curves(seed, progress)
    except NoGradientsError:
        return False
    return True


def moments(model: nn.Module, names: Sequence[str], batches: Sequence[Any]) -> dict[str, Tensor]:
    """Return the second moments of the channels that each consumer reads."""
    found: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, named: Any) -> None:
            args, _ = in_order(module, args, named)
            own = second_moments([args[0]], linear=isinstance(module, nn.Linear))
            found[name] = found.get(name, 0) + own

        return hook

    handles = [
        model.get_submodule(n).register_forward_pre_hook(record(n), with_kwargs=True) for n in names
    ]
    try:
        for batch in batches:
            model(*fresh_args(batch))
    finally:
        for handle in handles:
            handle.remove()
    return found


def width_trials(
    rig: Rig,
    analysis: Analysis,
    name: str,
    second: dict[str, Tensor],
    seed: int,
    progress: Progress | None,
) -> LayerTrials | None:
    """Return the trials of the group ``name``; None where its channels have no order of choice.

    Args:
        rig: of the original.
        analysis: of the original.
        name: of the group.
        second: from :func:`moments`.
        seed: of the latents that the order of choice is measured on.
        progress: called with ``(stage, done, total, detail)``.
    """
    group = next(g for g in analysis.groups.groups if g.name == name)
    curve = analysis.curves(seed, progress).by_group.get(name)
    if curve is None:
        return None
    own = [s.macs or 0 for s in analysis.sites.convolutions if s.name in group.consumers]
    trials: list[Trial] = []
    for share in SHARES:
        count = max(1, round(group.channels * share))
        kept = {name: tuple(sorted(curve.order[:count]))}
        with predicting(rig.model, analysis.groups, group.consumers, kept, second):
            image, features = rig.loss()
        trials.append(
            Trial(
                step=count, macs=sum(own) * count / group.channels, error=None, image=image,
                features=features,
            )
        )  # fmt: skip
    return LayerTrials(
        name=name, kind="width", rule=None, whole=group.channels, macs=float(sum(own)),
        trials=tuple(trials),
    )  # fmt: skip
