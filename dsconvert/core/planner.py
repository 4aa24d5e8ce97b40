"""Trace -> Plan: what happens to each convolution, and why. Touches no weight.

A preset is a function from the sites to choices ``(rule, rank, norm)``. The ranks are chosen from
the curves measured in ``benchmarks/results/rank_curve.md``: behind a nearest upsample a rank costs
a quarter, and the layers nearest to the image need it most (their loss is texture, which nothing
behind them can put back).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from dsconvert.config.choices import PRESETS
from dsconvert.errors import PlanError
from dsconvert.records import Decision, Plan, Site, Trace, within
from dsconvert.rules import Rule, rule_named

BALANCED_RATIO = 5.03
"""``balanced`` spends what a five-fold reduction of the model's MACs leaves, with a margin for what
a rewrite changes beside its convolution."""
PROMISED_RATIO = 5.0
"""How many times fewer MACs ``balanced`` promises."""
_REST = "what is no convolution"
_IMAGE_CHANNELS = 4
_IDLE = "not called by forward; kept, since something else may use it (--remove takes it out)"


@dataclass(frozen=True)
class _Choice:
    rule: Rule | None
    rank: int | None
    reason: str
    norm: Literal["keep", "fold"] = "fold"


@dataclass(frozen=True)
class _Request:
    """What a preset is asked for: one rank for all, or its own choice beside a fixed cost."""

    rank: int | None
    rest: int
    """MACs that the model spends outside its convolutions, whatever becomes of these."""
    first: str | None = None
    """The convolution that runs first."""
    image: str | None = None
    """The one whose output is the image, as far as one can tell."""


def _keep(reason: str, norm: Literal["keep", "fold"] = "fold") -> _Choice:
    return _Choice(None, None, reason, norm)


def structural(site: Site, *, image: bool = False) -> str | None:
    """Why no preset would touch this convolution, or None; ``image``: its output is the image."""
    if (why := rule_named("dw-pw").refuses(site)) is not None:
        return why
    if site.out_channels <= _IMAGE_CHANNELS and site.batchnorm is None:
        if image:
            return (
                f"makes the image ({site.out_channels} channels): little cost, all of the quality"
            )
        return f"writes {site.out_channels} channels: little to gain"
    if site.in_channels <= _IMAGE_CHANNELS:
        return f"reads {site.in_channels} channels: little to gain"
    return None


def _one_pixel(site: Site) -> bool:
    """A k x k convolution that ends in, or a transposed one that starts from, a single pixel."""
    shape = site.input_shape if site.kind == "transposed" else site.output_shape
    return shape is not None and shape[-1] == shape[-2] == 1


def _block(site: Site, request: _Request) -> str | None:
    """Why a site is not one of the generator's spatial block convolutions, or None."""
    if (why := structural(site, image=site.name == request.image)) is not None:
        return why
    if site.kind == "transposed" and site.input_shape is None:
        return "transposed, of an unknown size (no example inputs); only 'fast' separates it"
    if site.kind == "transposed" and _one_pixel(site):
        what = (
            "turns the latent into the first map"
            if site.name == request.first
            else ("reads a single pixel")
        )
        return f"{what}; only 'fast' separates it"
    if _one_pixel(site):
        return (
            "writes a single pixel (as in an excitation branch): few MACs; only 'fast' separates it"
        )
    return None


def _exact(sites: Sequence[Site], request: _Request) -> dict[str, _Choice]:
    if request.rank is not None:
        raise PlanError("preset 'exact' has no rank to choose: it changes no image. Leave it out.")
    merge = rule_named("up-merge")
    return {
        s.name: _keep(f"nothing exact saves anything here ({why})")
        if (why := merge.refuses(s)) is not None
        else _Choice(merge, 1, "upsample and convolution merged: the same image, 16/36 of the MACs")
        for s in sites
    }


def _paper(sites: Sequence[Site], request: _Request) -> dict[str, _Choice]:
    rule = rule_named("dw-pw")
    choices: dict[str, _Choice] = {}
    for s in sites:
        if (why := _block(s, request)) is not None:
            choices[s.name] = _keep(why, norm="keep")
            continue
        spectral = s.norm.startswith("spectral")
        reason = "depthwise, then pointwise, as in Faster Projected GAN"
        norm: Literal["keep", "fold"] = "keep" if spectral and s.absorbs_scale else "fold"
        if spectral and norm == "fold":
            reason += "; spectral norm folded: nothing behind it of its own undoes the scale"
        choices[s.name] = _Choice(rule, _clip(rule, s, request.rank or 1), reason, norm)
    return choices


def _clip(rule: Rule, site: Site, rank: int) -> int:
    return max(1, min(rank, rule.max_rank(site)))


def _separable(site: Site) -> Rule:
    up = rule_named("up-pw-dw")
    if up.refuses(site) is None:
        return up
    return rule_named("pw-dw" if _grows(site) else "dw-pw")


def _grows(site: Site) -> bool:
    """A transposed convolution with a stride: its pointwise is cheap in front of the growth."""
    return site.kind == "transposed" and max(site.stride) > 1


def _balanced(sites: Sequence[Site], request: _Request) -> dict[str, _Choice]:
    choices: dict[str, _Choice] = {}
    ranks: dict[str, int] = {}
    block = [s for s in sites if _block(s, request) is None]
    for s in sites:
        if (why := _block(s, request)) is not None:
            choices[s.name] = _keep(why)
    for s in block:
        rule = _separable(s)
        start = 4 if rule.absorbs_upsample or _grows(s) else 2
        ranks[s.name] = _clip(rule, s, request.rank or start)
    if request.rank is None and all(s.macs is not None for s in sites):
        _spend(sites, block, ranks, request.rest)
    for s in block:
        rule = _separable(s)
        low = rule.absorbs_upsample or _grows(s)
        where = "pointwise at the low resolution" if low else "dw -> pw"
        gain = _cheaper(s, rule, ranks[s.name])
        choices[s.name] = (
            _Choice(rule, ranks[s.name], f"{where}; rank spent where it is cheap")
            if gain is None
            else _keep(gain)
        )
    return choices


def _cheaper(site: Site, rule: Rule, rank: int) -> str | None:
    """Why a rewrite would not save MACs (or parameters, where shapes are unknown), or None."""
    before, after = site.macs, rule.macs(site, rank)
    if before is None or after is None:
        before, after = site.params, rule.params(site, rank)
    return None if after < before else f"{rule.name} at rank {rank} would cost as much"


def _spend(sites: Sequence[Site], block: Sequence[Site], ranks: dict[str, int], rest: int) -> None:
    """Fit the ranks to the budget: cut from the input side, spend from the image side."""
    whole = rest + sum(s.macs or 0 for s in sites)
    fixed = whole - sum(s.macs or 0 for s in block)
    budget = whole / BALANCED_RATIO - fixed

    def spent() -> int:
        return sum(_separable(s).macs(s, ranks[s.name]) or 0 for s in block)

    if block:
        # The last convolution before the image is worth a rank taken from the first ones.
        last = block[-1]
        ranks[last.name] = _clip(_separable(last), last, ranks[last.name] + 1)
    while spent() > budget and any(r > 1 for r in ranks.values()):
        for s in block:
            ranks[s.name] = max(1, ranks[s.name] - 1)
            if spent() <= budget:
                break
    raised = True
    while raised:
        raised = False
        for s in reversed(block):
            rule = _separable(s)
            if ranks[s.name] >= rule.max_rank(s):
                continue
            ranks[s.name] += 1
            if spent() > budget or _cheaper(s, rule, ranks[s.name]) is not None:
                ranks[s.name] -= 1
            else:
                raised = True


def _fast(sites: Sequence[Site], request: _Request) -> dict[str, _Choice]:
    choices: dict[str, _Choice] = {}
    for s in sites:
        if (why := structural(s, image=s.name == request.image)) is not None:
            choices[s.name] = _keep(why)
            continue
        # The first layer and the excitation branches are parameters more than MACs: there the
        # fewer channels get the spatial filters, and a white latent is kept best by pw -> dw.
        rule = rule_named("pw-dw") if _one_pixel(s) else _separable(s)
        r = _clip(rule, s, request.rank or 1)
        smaller = _one_pixel(s) and rule.params(s, r) < s.params
        gain = None if smaller else _cheaper(s, rule, r)
        choices[s.name] = (
            _Choice(rule, r, "the whole generator at one rank") if gain is None else _keep(gain)
        )
    return choices


_PRESETS: dict[str, Callable[[Sequence[Site], _Request], dict[str, _Choice]]] = {
    "exact": _exact,
    "paper": _paper,
    "balanced": _balanced,
    "fast": _fast,
}


def make_plan(
    trace: Trace,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    total_macs: int | None = None,
) -> Plan:
    """Decide for every convolution of ``trace``.

    Args:
        trace: what :func:`dsconvert.model.trace.trace` found.
        preset: ``exact``, ``paper``, ``balanced`` or ``fast``.
        rank: the rank of every rewrite (clipped to what is exact) instead of the preset's own.
        keep: globs of modules whose bytes stay as they are, with all that is inside them.
        refit: globs of modules that are kept, too, but may be refitted to their new inputs.
        remove: globs of modules that ``forward`` does not call, to be taken out.
        total_macs: what the whole model costs; ``balanced`` reckons with what is not a convolution
            (normalisations, resampling filters, linear layers). None: nothing else counts.

    Raises:
        PlanError: unknown preset, a rank below 1, a glob that matches no module, or a module to
            be removed that runs.
    """
    if preset not in _PRESETS:
        raise PlanError(f"no preset is called {preset!r}; choose {', '.join(PRESETS)}.")
    if rank is not None and rank < 1:
        raise PlanError(f"rank {rank} is below 1; 1 is the smallest, k^2 (9 for 3x3) is exact.")
    _check_globs(trace, keep=keep, refit=refit, remove=remove)
    keep, refit = _by_first_name(trace, keep), _by_first_name(trace, refit)
    pinned = _pinned(trace.modules, keep, refit)
    trace = trace.holding(pinned)
    held = frozenset(s.name for s in trace.sites if _matches(s.name, (*keep, *refit)))
    removed = _removed(trace, remove, by_itself=preset != "paper", pinned=pinned)
    dead = {s.name for s in trace.sites if s.calls == 0}
    live = [s for s in trace.sites if s.name not in dead]
    request = _Request(
        rank,
        max(0, (total_macs or 0) - sum(s.macs or 0 for s in live)),
        first=trace.order[0] if trace.order else None,
        image=_image(trace),
    )
    free = [s for s in live if s.name not in held and s.locked is None]
    choices = _PRESETS[preset](free, request)
    norm: Literal["keep", "fold"] = "keep" if preset == "paper" else "fold"
    decisions = tuple(_decide(s, choices, removed, held, norm, trace.unused) for s in trace.sites)
    notes = [trace.note] if trace.note else []
    if preset == "balanced" and rank is None and total_macs is not None:
        notes += _missed(decisions, request.rest)
    return Plan(
        model=trace.model,
        preset=preset,
        decisions=decisions,
        remove=removed,
        keep=pinned,
        note="; ".join(notes) or None,
    )


def _image(trace: Trace) -> str | None:
    """The last convolution to run with an image's channels and the largest map of all."""
    sites = {s.name: s for s in trace.sites}
    order = [sites[name] for name in trace.order]
    sizes = [0 if s.output_shape is None else s.output_shape[-1] for s in order]
    found = [
        s.name
        for s, size in zip(order, sizes, strict=True)
        if s.out_channels <= _IMAGE_CHANNELS and size == max(sizes) and not _one_pixel(s)
    ]
    return found[-1] if found else None


def _missed(decisions: Sequence[Decision], rest: int) -> list[str]:
    """A sentence where ``balanced`` can't reach what it promises, and which layers are why."""
    before = rest + sum(d.macs_before or 0 for d in decisions)
    after = rest + sum(d.macs_after or 0 for d in decisions)
    if not after or before / after >= PROMISED_RATIO:
        return []
    parts = {d.site: d.macs_after or 0 for d in decisions} | {_REST: rest}
    largest = sorted(parts, key=lambda name: -parts[name])[:3]
    shares = ", ".join(f"{name} ({100 * parts[name] / after:.0f} %)" for name in largest)
    most = 2 * sum(parts[name] for name in largest) > after
    where = "most of the MACs that remain are" if most else "the largest shares that remain are"
    return [
        f"balanced aims at {PROMISED_RATIO:g}x fewer MACs and reaches about "
        f"{before / after:.1f}x here: {where} in {shares}"
    ]


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, g) or fnmatchcase(name, f"{g}.*") for g in globs)


def _check_globs(trace: Trace, **globs: Sequence[str]) -> None:
    for option, given in globs.items():
        # What is removed goes by the name under which it stands in the plan.
        others = () if option == "remove" else (name for name, _ in trace.aliases)
        names = (*trace.modules, *others)
        idle = [g for g in given if not any(_matches(m, [g]) for m in names)]
        if idle:
            like = ", ".join(s.name for s in trace.sites[:4])
            raise PlanError(
                f"--{option} {', '.join(repr(g) for g in idle)} matches no module; "
                f"names look like {like}, ..."
            )


def _by_first_name(trace: Trace, globs: Sequence[str]) -> tuple[str, ...]:
    """``globs``, and the first names of modules that they name by another."""
    firsts = (first for other, first in trace.aliases if _matches(other, globs))
    return tuple(dict.fromkeys((*globs, *firsts)))


def _pinned(modules: Sequence[str], keep: Sequence[str], refit: Sequence[str]) -> tuple[str, ...]:
    """The topmost modules that match ``keep`` and hold nothing that may be refitted."""
    loose = [m for m in modules if _matches(m, refit)]
    found: list[str] = []
    for m in modules:
        free = any(name == m or name.startswith(f"{m}.") for name in loose)
        if _matches(m, keep) and not free and not within(m, found):
            found.append(m)
    return tuple(found)


def _removed(
    trace: Trace, asked: Sequence[str], *, by_itself: bool, pinned: Sequence[str]
) -> tuple[str, ...]:
    """Modules that go: those that an adapter knows never to run, and those asked for.

    Raises:
        PlanError: one that was asked for runs, or is to be kept as well.
    """
    names: list[str] = []
    for m in trace.modules:
        if _matches(m, asked) and not within(m, names):
            names.append(m)
    running = [m for m in names if not within(m, trace.dead)]
    if running:
        why = "runs" if trace.shapes_known else "may run: nothing says what the inputs look like"
        raise PlanError(
            f"--remove: {', '.join(running)} {why}. Only modules that never run can go."
        )
    if by_itself:
        names += [u for u in trace.unused if within(u, trace.dead) and not within(u, names)]
    kept = [n for n in names if any(within(p, [n]) or within(n, [p]) for p in pinned)]
    clash = [n for n in kept if _matches(n, asked)]
    if clash:
        raise PlanError(f"{', '.join(clash)} can't be both kept and removed; drop one option.")
    return tuple(n for n in names if n not in kept)


def _decide(
    site: Site,
    choices: dict[str, _Choice],
    removed: Sequence[str],
    held: frozenset[str],
    norm: Literal["keep", "fold"],
    unused: Sequence[str],
) -> Decision:
    common: dict[str, Any] = {"params_before": site.params, "macs_before": site.macs}
    never = within(site.name, unused)
    if within(site.name, removed):
        return Decision(
            site=site.name,
            action="remove",
            reason="never runs at this resolution"
            if never
            else "not called by forward; removed on request",
            params_before=site.params,
            params_after=0,
            macs_before=site.macs,
            macs_after=0 if site.macs is not None else None,
        )
    requested = site.name in held
    if requested:
        pinned = site.locked is not None
        reason = f"kept on request ({'--keep' if pinned else '--refit'})"
        choice = _keep(reason, "keep" if pinned else norm)
    elif site.calls == 0:
        reason = "never runs at this resolution" if never else _IDLE
        # Whoever calls it finds it as it was.
        choice = _keep(reason, "keep")
    elif site.locked is not None:
        choice = _keep(site.locked, "keep")
    else:
        choice = choices[site.name]
    if choice.rule is None or choice.rank is None:
        return Decision(
            site=site.name,
            action="keep",
            norm=choice.norm,
            reason=choice.reason,
            params_after=site.params,
            macs_after=site.macs,
            requested=requested,
            **common,
        )
    return Decision(
        site=site.name,
        action="rewrite",
        rule=choice.rule.name,
        rank=choice.rank,
        norm=choice.norm,
        reason=choice.reason,
        params_after=choice.rule.params(site, choice.rank),
        macs_after=choice.rule.macs(site, choice.rank),
        **common,
    )
