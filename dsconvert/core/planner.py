"""Sites -> Plan: the decision for each convolution, with its reason. No weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from dsconvert.config.choices import PRESETS
from dsconvert.config.convert import Rewriting
from dsconvert.core.presets import (
    BALANCED_RATIO,
    CHOOSERS,
    IMAGE_CHANNELS,
    PROMISED_RATIO,
    SOUND_PROMISE,
    SOUND_RATIO,
    Choice,
    Request,
    one_pixel,
)
from dsconvert.core.presets import (
    keep as keep_as_it_is,
)
from dsconvert.errors import PlanError
from dsconvert.records import Decision, Plan, Site, Sites, Width, within
from dsconvert.width import ChannelGroups, narrow_sites

_REST = "what is no convolution"
_IDLE = "not called by forward; kept, since something else may use it (--remove takes it out)"


def make_plan(
    sites: Sites,
    *,
    preset: str = Rewriting.preset,
    rank: int | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    total_macs: int | None = None,
    widths: Callable[[Sequence[str]], tuple[Width, ...]] | None = None,
    groups: ChannelGroups | None = None,
    sounds: bool = False,
    losses: Mapping[str, Mapping[int, float]] | None = None,
) -> Plan:
    """Decide for every convolution of ``sites``.

    Args:
        sites: from :func:`dsconvert.model.sites.find_sites`.
        preset: ``none``, ``exact``, ``paper``, ``balanced`` or ``fast``.
        rank: the rank of every rewrite (clipped to what is exact) instead of the preset's own.
        keep: globs of modules whose bytes stay as they are, with all that is inside them.
        refit: globs of modules that are kept, too, but may be refitted to their new inputs.
        remove: globs of modules that ``forward`` does not call, to be taken out.
        widths: returns the channel groups that get narrower, given the modules that are kept;
            None: none does.
        groups: the model's channel groups, for ``widths``.
        sounds: the model is a vocoder, of which ``balanced`` asks less.
        losses: by convolution, the measured loss at each rank, by which ``balanced`` chooses; None
            or empty: none was measured.
        total_macs: of the whole model; the budget of ``balanced`` includes layers that are no
            convolutions (normalisations, resampling filters, linear layers). None: without them.

    Raises:
        PlanError: unknown preset, a rank below 1, a glob that matches no module, or a module to
            be removed that runs.
    """
    if preset not in CHOOSERS:
        raise PlanError(f"no preset is called {preset!r}; choose {', '.join(PRESETS)}.")
    if rank is not None and rank < 1:
        raise PlanError(f"rank {rank} is below 1; 1 is the smallest, k^2 (9 for 3x3) is exact.")
    _check_globs(sites, keep=keep, refit=refit, remove=remove)
    keep, refit = _by_first_name(sites, keep), _by_first_name(sites, refit)
    pinned = _pinned(sites.modules, keep, refit)
    sites = sites.holding(pinned)
    original = {s.name: s for s in sites.convolutions}
    narrower = () if widths is None else widths(pinned)
    if groups is not None:
        sites = narrow_sites(sites, groups, narrower)
    held = frozenset(s.name for s in sites.convolutions if _matches(s.name, (*keep, *refit)))
    removed = _removed(sites, remove, by_itself=preset != "paper", pinned=pinned)
    dead = {s.name for s in sites.convolutions if s.calls == 0}
    live = [s for s in sites.convolutions if s.name not in dead]
    request = Request(
        rank,
        max(0, (total_macs or 0) - sum(original[s.name].macs or 0 for s in live)),
        original=sum(original[s.name].macs or 0 for s in live) if narrower else None,
        first=sites.order[0] if sites.order else None,
        image=_image(sites),
        ratio=SOUND_RATIO if sounds else BALANCED_RATIO,
        losses=losses or {},
    )
    free = [s for s in live if s.name not in held and s.locked is None]
    choices = CHOOSERS[preset](free, request)
    norm: Literal["keep", "fold"] = "keep" if preset == "paper" else "fold"
    decisions = tuple(
        _decide(s, original[s.name], choices, removed, held, norm, sites.unused)
        for s in sites.convolutions
    )
    notes = [sites.note] if sites.note else []
    if preset == "balanced" and rank is None and total_macs is not None:
        promise = SOUND_PROMISE if sounds else PROMISED_RATIO
        notes += _missed(decisions, request.rest, promise)
    return Plan(
        model=sites.model,
        preset=preset,
        decisions=decisions,
        remove=removed,
        keep=pinned,
        note="; ".join(notes) or None,
        widths=narrower,
    )


def _image(sites: Sites) -> str | None:
    """Return the last convolution to run with an image's channels and the largest map of all."""
    by_name = {s.name: s for s in sites.convolutions}
    order = [by_name[name] for name in sites.order]
    sizes = [0 if s.output_shape is None else s.output_shape[-1] for s in order]
    found = [
        s.name
        for s, size in zip(order, sizes, strict=True)
        if s.out_channels <= IMAGE_CHANNELS and size == max(sizes) and not one_pixel(s)
    ]
    return found[-1] if found else None


def _missed(decisions: Sequence[Decision], rest: int, promise: float) -> list[str]:
    """Return a note if ``balanced`` misses its promise, with the layers that cause it."""
    before = rest + sum(d.macs_before or 0 for d in decisions)
    after = rest + sum(d.macs_after or 0 for d in decisions)
    if not after or before / after >= promise:
        return []
    parts = {d.site: d.macs_after or 0 for d in decisions} | {_REST: rest}
    largest = sorted(parts, key=lambda name: -parts[name])[:3]
    shares = ", ".join(f"{name} ({100 * parts[name] / after:.0f} %)" for name in largest)
    most = 2 * sum(parts[name] for name in largest) > after
    where = "most of the MACs that remain are" if most else "the largest shares that remain are"
    return [
        f"balanced aims at {promise:g}x fewer MACs and reaches about "
        f"{before / after:.1f}x here: {where} in {shares}"
    ]


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, g) or fnmatchcase(name, f"{g}.*") for g in globs)


def _check_globs(sites: Sites, **globs: Sequence[str]) -> None:
    for option, given in globs.items():
        # A plan names a removed module by its first name.
        others = () if option == "remove" else (name for name, _ in sites.aliases)
        names = (*sites.modules, *others)
        idle = [g for g in given if not any(_matches(m, [g]) for m in names)]
        if idle:
            like = ", ".join(s.name for s in sites.convolutions[:4])
            raise PlanError(
                f"--{option} {', '.join(repr(g) for g in idle)} matches no module; "
                f"names look like {like}, ..."
            )


def _by_first_name(sites: Sites, globs: Sequence[str]) -> tuple[str, ...]:
    """Return ``globs`` and the first names of modules that they match by another name."""
    firsts = (first for other, first in sites.aliases if _matches(other, globs))
    return tuple(dict.fromkeys((*globs, *firsts)))


def _pinned(modules: Sequence[str], keep: Sequence[str], refit: Sequence[str]) -> tuple[str, ...]:
    """Return the topmost modules that match ``keep`` and hold nothing that may be refitted."""
    loose = [m for m in modules if _matches(m, refit)]
    found: list[str] = []
    for m in modules:
        free = any(name == m or name.startswith(f"{m}.") for name in loose)
        if _matches(m, keep) and not free and not within(m, found):
            found.append(m)
    return tuple(found)


def _removed(
    sites: Sites, asked: Sequence[str], *, by_itself: bool, pinned: Sequence[str]
) -> tuple[str, ...]:
    """Return the modules to remove: those that never run, by the adapter, and those asked for.

    Raises:
        PlanError: one that was asked for runs, or is to be kept as well.
    """
    names: list[str] = []
    for m in sites.modules:
        if _matches(m, asked) and not within(m, names):
            names.append(m)
    running = [m for m in names if not within(m, sites.dead)]
    if running:
        raise PlanError(
            f"--remove: {', '.join(running)} {sites.not_dead}. Only modules that never run can go."
        )
    if by_itself:
        names += [u for u in sites.unused if within(u, sites.dead) and not within(u, names)]
    kept = [n for n in names if any(within(p, [n]) or within(n, [p]) for p in pinned)]
    clash = [n for n in kept if _matches(n, asked)]
    if clash:
        raise PlanError(f"{', '.join(clash)} can't be both kept and removed; drop one option.")
    return tuple(n for n in names if n not in kept)


def _decide(
    site: Site,
    original: Site,
    choices: dict[str, Choice],
    removed: Sequence[str],
    held: frozenset[str],
    norm: Literal["keep", "fold"],
    unused: Sequence[str],
) -> Decision:
    common: dict[str, Any] = {"params_before": original.params, "macs_before": original.macs}
    never = within(site.name, unused)
    if within(site.name, removed):
        return Decision(
            site=site.name,
            action="remove",
            reason="never runs at this resolution"
            if never
            else "not called by forward; removed on request",
            params_after=0,
            macs_after=0 if site.macs is not None else None,
            **common,
        )
    requested = site.name in held
    if requested:
        pinned = site.locked is not None
        reason = f"kept on request ({'--keep' if pinned else '--refit'})"
        choice = keep_as_it_is(reason, "keep" if pinned else norm)
    elif site.calls == 0:
        reason = "never runs at this resolution" if never else _IDLE
        # Other code may call it, so it does not change.
        choice = keep_as_it_is(reason, "keep")
    elif site.locked is not None:
        choice = keep_as_it_is(site.locked, "keep")
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
