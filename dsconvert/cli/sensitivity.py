"""``report --sensitivity``: the loss of every layer by itself against its cost, both dials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from dsconvert.cli.measuring import lite_features
from dsconvert.cli.output import Bars
from dsconvert.core.analysis import analyse
from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.model.inputs import RandomPixels, needs_pictures
from dsconvert.report.curves import Curve, Panel, curves_svg
from dsconvert.report.layout import Name, compact
from dsconvert.search.channel_trials import SHARES
from dsconvert.search.layer_trials import RANKS, layer_trials
from dsconvert.search.trial_rig import LayerTrials, Sensitivity, Trial
from dsconvert.util.numbers import amount, counted

_DIALS = {"rank": "rank", "width": "channels kept"}


def measured(file: GeneratorFile, bars: Bars) -> Sensitivity:
    """Return the trials of a file's main generator.

    Raises:
        UsageError: the generator can't be run.
    """
    inputs = file.inputs()
    if inputs is None:
        raise UsageError(
            f"--sensitivity runs the generator, and nothing says what the inputs of {file.path} "
            "look like; give --input 256."
        )
    if isinstance(inputs, RandomPixels):
        raise UsageError(f"{needs_pictures(f'the generator of {file.path}', inputs)}.")
    found = layer_trials(
        analyse(file.generator, inputs=inputs, adapter=file.adapter),
        picture=file.picture,
        # The network of the features has learned from pictures.
        features=None if file.sounds() is not None else lite_features(torch.device("cpu")),
        progress=bars,
    )
    if not found.layers:
        raise UsageError(
            f"--sensitivity: no convolution of {file.path} can be rewritten, and no map narrowed."
        )
    return found


def as_dict(found: Sensitivity) -> dict[str, Any]:
    """For ``--json``."""
    return asdict(found)


def tables(found: Sensitivity, *, verbose: bool) -> list[Table | str]:
    """Return a table for each dial, in the order of execution."""
    features = any(t.features is not None for layer in found.layers for t in layer.trials)
    what = "of the image / of FD-lite0's features" if features else "of the image"
    parts: list[Table | str] = [
        f"loss in % of the variance, {what}, where one layer alone is rewritten (fitted by itself) "
        f"or one group of maps narrower; {counted(found.latents, 'latent')}"
    ]
    for kind, steps in (("rank", [f"rank {r}" for r in RANKS]),
                        ("width", [f"{s:.0%} kept" for s in SHARES])):  # fmt: skip
        rows = [layer for layer in found.layers if layer.kind == kind]
        if not rows:
            continue
        name = "convolution" if kind == "rank" else "maps, by their first writer"
        table = compact(name, [], ["MACs", *steps])
        for layer in rows:
            table.add_row(Name(layer.name), amount(round(layer.macs or 0)), *_cells(layer, steps))
        parts += ["", table]
    return [*parts, "", *(_details(found.layers) if verbose else [])]


def _cells(layer: LayerTrials, steps: Sequence[str]) -> list[str]:
    if layer.kind == "width":
        return [_loss(t) for t in layer.trials]
    by_rank = {t.step: t for t in layer.trials}
    return [_loss(by_rank[r]) if r in by_rank else "" for r, _ in zip(RANKS, steps, strict=True)]


def _loss(trial: Trial) -> str:
    shown = [trial.image] + ([] if trial.features is None else [trial.features])
    return " / ".join(f"{100 * v:.3g}" for v in shown)


def _details(layers: Sequence[LayerTrials]) -> list[Table]:
    table = compact("every trial", ["dial"], ["step", "MACs", "own error", "image", "features"])
    for layer in layers:
        for t in layer.trials:
            figures = (t.error, t.image, t.features)
            table.add_row(
                Name(layer.name),
                layer.kind,
                f"{t.step} of {layer.whole}",
                amount(round(t.macs or 0)),
                *("" if v is None else f"{v:.3g}" for v in figures),
            )
    return [table]


def picture(found: Sensitivity, title: str) -> str:
    """Return the curves as SVG: losses of image and features against the share of MACs."""
    panels: list[Panel] = []
    for kind, dial in _DIALS.items():
        for what in ("image", "features"):
            curves = tuple(
                Curve(name=layer.name, points=_points(layer, of_features=what == "features"))
                for layer in found.layers
                if layer.kind == kind
            )
            if any(c.points for c in curves):
                panels.append(
                    Panel(
                        title=f"{title}: {dial}",
                        x="share of the layer's MACs",
                        y=f"loss of the {what}, share of variance",
                        curves=curves,
                    )
                )
    return curves_svg(panels)


def _points(layer: LayerTrials, *, of_features: bool) -> tuple[tuple[float, float], ...]:
    pairs = [
        ((t.macs or 0) / layer.macs, t.features if of_features else t.image)
        for t in layer.trials
        if layer.macs
    ]
    return tuple((share, loss) for share, loss in pairs if loss is not None and loss > 0)
