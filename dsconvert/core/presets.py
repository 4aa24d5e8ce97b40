"""The presets: which rule and rank each convolution gets.

A preset is a function from the sites to choices ``(rule, rank, norm)``. The ranks follow the curves
measured in ``benchmarks/results/rank_curve.md``: behind a nearest upsample a rank costs a quarter,
and the layers nearest to the image need it most (their loss is texture, which no later layer can
restore).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dsconvert.core.rank_choice import Option, least_loss_ranks
from dsconvert.errors import PlanError
from dsconvert.records import Site
from dsconvert.rules import Rule, rule_named

BALANCED_RATIO = 5.03
"""The budget of ``balanced`` is the original's MACs divided by this: five, and a margin for changes
beside the convolutions."""
PROMISED_RATIO = 5.0
"""The reduction of MACs that ``balanced`` promises."""
SOUND_RATIO, SOUND_PROMISE = 3.05, 3.0
"""The same two for vocoders: compact chains of up to a hundred convolutions, which a trained one
does not bear at 5x."""
NARROW_RATIO = 20.2
"""The most that ``balanced`` asks of widths and ranks together."""
IMAGE_CHANNELS = 4
WIDTH_LOSS = {"balanced": 0.15, "fast": 0.3}
"""The sum of losses (:class:`dsconvert.width.Curve`) that removed channels may cause with the width
``auto``; other presets take that of ``balanced``."""


@dataclass(frozen=True)
class Choice:
    """What becomes of one convolution: a rule at a rank, or (``rule`` None) no rewrite."""

    rule: Rule | None
    rank: int | None
    reason: str
    norm: Literal["keep", "fold"] = "fold"


@dataclass(frozen=True)
class Request:
    """The input of a preset beside the sites: one rank for all, or a cost outside of its choice."""

    rank: int | None
    rest: int
    """MACs of the model outside its convolutions, which no choice changes."""
    original: int | None = None
    """MACs of the original's convolutions, if the sites are narrower."""
    first: str | None = None
    """The convolution that runs first."""
    image: str | None = None
    """The convolution whose output is most likely the image."""
    ratio: float = BALANCED_RATIO
    """The budget of ``balanced`` is the MACs divided by this."""
    losses: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """By convolution, the measured loss at each rank; empty: none was measured."""


def keep(reason: str, norm: Literal["keep", "fold"] = "fold") -> Choice:
    """Return the choice to leave a convolution as it is."""
    return Choice(None, None, reason, norm)


def structural(site: Site, *, image: bool = False) -> str | None:
    """Return why every preset keeps a convolution, or None; ``image``: its output is the image.

    The reasons claim nothing about its cost, which may be large (a kernel of 7x7).
    """
    if (why := rule_named("dw-pw").why_not(site)) is not None:
        return why
    if site.out_channels <= IMAGE_CHANNELS and site.batchnorm is None:
        if image:
            return f"makes the image ({site.out_channels} channels), which shows all of its errors"
        # O k^2 MACs a channel read become k^2 + O.
        most = "nothing" if site.out_channels == 1 else f"less than {site.out_channels}x"
        return f"writes {site.out_channels} channels: a separable form saves {most}"
    if site.in_channels <= IMAGE_CHANNELS:
        return f"reads {site.in_channels} channels: a separable form has too few filters"
    return None


def one_pixel(site: Site) -> bool:
    """Return whether it ends in a single pixel, or (transposed) starts from one."""
    shape = site.input_shape if site.kind == "transposed" else site.output_shape
    return shape is not None and shape[-1] == shape[-2] == 1


def _block(site: Site, request: Request) -> str | None:
    """Return why a site is not one of the generator's spatial block convolutions, or None."""
    if (why := structural(site, image=site.name == request.image)) is not None:
        return why
    if site.kind == "transposed" and site.input_shape is None:
        return "transposed, of an unknown size (no example inputs); only 'fast' separates it"
    if site.kind == "transposed" and one_pixel(site):
        what = (
            "turns the latent into the first map"
            if site.name == request.first
            else ("reads a single pixel")
        )
        return f"{what}; only 'fast' separates it"
    if one_pixel(site):
        return "writes a single pixel (as in an excitation branch); only 'fast' separates it"
    return None


def _none(sites: Sequence[Site], request: Request) -> dict[str, Choice]:
    if request.rank is not None:
        raise PlanError("preset 'none' has no rank to choose: it rewrites nothing. Leave it out.")
    return {s.name: keep("no rewrite asked for", norm="keep") for s in sites}


def _exact(sites: Sequence[Site], request: Request) -> dict[str, Choice]:
    if request.rank is not None:
        raise PlanError("preset 'exact' has no rank to choose: it changes no image. Leave it out.")
    merge = rule_named("up-merge")
    return {
        s.name: keep(f"nothing exact saves anything here ({why})")
        if (why := merge.why_not(s)) is not None
        else Choice(merge, 1, "upsample and convolution merged: the same image, 16/36 of the MACs")
        for s in sites
    }


def _paper(sites: Sequence[Site], request: Request) -> dict[str, Choice]:
    rule = rule_named("dw-pw")
    choices: dict[str, Choice] = {}
    for s in sites:
        if (why := _block(s, request)) is not None:
            choices[s.name] = keep(why, norm="keep")
            continue
        spectral = s.norm.startswith("spectral")
        reason = "depthwise, then pointwise, as in Faster Projected GAN"
        norm: Literal["keep", "fold"] = "keep" if spectral and s.absorbs_scale else "fold"
        if spectral and norm == "fold":
            reason += "; spectral norm folded: nothing behind it of its own undoes the scale"
        choices[s.name] = Choice(rule, _clip(rule, s, request.rank or 1), reason, norm)
    return choices


def _clip(rule: Rule, site: Site, rank: int) -> int:
    return max(1, min(rank, rule.max_rank(site)))


_LOW = ("up-pw-dw", "low-pw-dw")
"""Rules whose pointwise runs at the low resolution, in front of an upsample."""


def separable(site: Site) -> Rule:
    """Return the rule that ``balanced`` separates a convolution by."""
    for rule in map(rule_named, _LOW):
        if rule.why_not(site) is None:
            return rule
    return rule_named("pw-dw" if _grows(site) else "dw-pw")


def _grows(site: Site) -> bool:
    """Return whether it is transposed with a stride: a pointwise in front of it is cheap."""
    return site.kind == "transposed" and max(site.stride) > 1


def _balanced(sites: Sequence[Site], request: Request) -> dict[str, Choice]:
    choices: dict[str, Choice] = {}
    ranks: dict[str, int] = {}
    block = [s for s in sites if _block(s, request) is None]
    for s in sites:
        if (why := _block(s, request)) is not None:
            choices[s.name] = keep(why)
    for s in block:
        rule = separable(s)
        start = 4 if rule.name in _LOW or _grows(s) else 2
        ranks[s.name] = _clip(rule, s, request.rank or start)
    measured: dict[str, int | None] = {}
    if request.rank is None and all(s.macs is not None for s in sites):
        if request.losses:
            measured = _spend_by_loss(sites, block, request)
        else:
            _spend(sites, block, ranks, request)
    for s in block:
        rule = separable(s)
        if s.name in measured:
            choices[s.name] = _by_loss(s, measured[s.name])
            continue
        low = rule.name in _LOW or _grows(s)
        where = "pointwise at the low resolution" if low else "dw -> pw"
        gain = _cheaper(s, rule, ranks[s.name])
        choices[s.name] = (
            Choice(rule, ranks[s.name], f"{where}; rank spent where it is cheap")
            if gain is None
            else keep(gain)
        )
    return choices


def _cheaper(site: Site, rule: Rule, rank: int) -> str | None:
    """Return why a rewrite would not save MACs (parameters, if shapes are unknown), or None."""
    before, after = site.macs, rule.macs(site, rank)
    if before is None or after is None:
        before, after = site.params, rule.params(site, rank)
    return None if after < before else f"{rule.name} at rank {rank} would cost as much"


def _spend(
    sites: Sequence[Site], block: Sequence[Site], ranks: dict[str, int], request: Request
) -> None:
    """Fit the ranks to the budget: lower them from the input, then raise them from the image."""
    budget = _budget(sites, block, request)

    def spent() -> int:
        return sum(separable(s).macs(s, ranks[s.name]) or 0 for s in block)

    if block:
        # A rank is worth more in the last convolution before the image than in the first ones.
        last = block[-1]
        ranks[last.name] = _clip(separable(last), last, ranks[last.name] + 1)
    while spent() > budget and any(r > 1 for r in ranks.values()):
        for s in block:
            ranks[s.name] = max(1, ranks[s.name] - 1)
            if spent() <= budget:
                break
    raised = True
    while raised:
        raised = False
        for s in reversed(block):
            rule = separable(s)
            if ranks[s.name] >= rule.max_rank(s):
                continue
            ranks[s.name] += 1
            if spent() > budget or _cheaper(s, rule, ranks[s.name]) is not None:
                ranks[s.name] -= 1
            else:
                raised = True


def _budget(sites: Sequence[Site], block: Sequence[Site], request: Request) -> float:
    """Return the MACs that the convolutions ``block`` may cost."""
    whole = request.rest + sum(s.macs or 0 for s in sites)
    fixed = whole - sum(s.macs or 0 for s in block)
    total = whole / request.ratio
    if request.original is not None:
        # Ranks need not take what widths have saved already.
        total = max(total, (request.rest + request.original) / NARROW_RATIO)
    return total - fixed


def _spend_by_loss(
    sites: Sequence[Site], block: Sequence[Site], request: Request
) -> dict[str, int | None]:
    """Return the rank of each convolution (None: dense), at the least loss within the budget."""
    options: list[list[Option]] = []
    for s in block:
        rule, losses = separable(s), request.losses.get(s.name, {})
        found = [(r, rule.macs(s, r) or 0, losses[r]) for r in losses]
        options.append([*found, (None, s.macs or 0, 0.0)])
    chosen = least_loss_ranks(options, _budget(sites, block, request))
    return {s.name: rank for s, rank in zip(block, chosen, strict=True)}


def _by_loss(site: Site, rank: int | None) -> Choice:
    if rank is None:
        return keep("dense by measured loss and cost: no rank is worth its loss")
    return Choice(separable(site), rank, "rank chosen by measured loss and cost")


def _fast(sites: Sequence[Site], request: Request) -> dict[str, Choice]:
    choices: dict[str, Choice] = {}
    for s in sites:
        if (why := structural(s, image=s.name == request.image)) is not None:
            choices[s.name] = keep(why)
            continue
        # The first layer and the excitation branches are parameters more than MACs: there the
        # fewer channels get the spatial filters, and a white latent is kept best by pw -> dw.
        rule = rule_named("pw-dw") if one_pixel(s) else separable(s)
        r = _clip(rule, s, request.rank or 1)
        smaller = one_pixel(s) and rule.params(s, r) < s.params
        gain = None if smaller else _cheaper(s, rule, r)
        choices[s.name] = (
            Choice(rule, r, "the whole generator at one rank") if gain is None else keep(gain)
        )
    return choices


Chooser = Callable[[Sequence[Site], Request], dict[str, Choice]]
CHOOSERS: dict[str, Chooser] = {
    "none": _none,
    "exact": _exact,
    "paper": _paper,
    "balanced": _balanced,
    "fast": _fast,
}
"""Each preset's choice for every convolution that is free to be rewritten."""
