# pyright: reportUnnecessaryIsInstance=false
"""Check a rule against the contract of :class:`dsconvert.rules.Rule`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsconvert.core.cost import count
from dsconvert.core.rewrite import kernel_of
from dsconvert.fit import Sample
from dsconvert.fit.overflow import fit_or_restore
from dsconvert.model.observe import undisturbed
from dsconvert.model.sites import find_sites
from dsconvert.records import Site
from dsconvert.rules import Rule
from dsconvert.testing.problems import Problems

Convolution = nn.Conv2d | nn.ConvTranspose2d
_CONVOLUTIONS: dict[str, Callable[[], Convolution]] = {
    "3x3": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "3x3 without bias": lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False),
    "3x3 without padding": lambda: nn.Conv2d(6, 8, 3),
    "3x3 'same'": lambda: nn.Conv2d(6, 8, 3, padding="same"),
    "3x3 stride 2": lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "3x3 dilated": lambda: nn.Conv2d(6, 8, 3, dilation=2, padding=2),
    "3x3 reflect": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "5x5": lambda: nn.Conv2d(6, 30, 5, padding=2),
    "1x3": lambda: nn.Conv2d(6, 8, (1, 3), padding=(0, 1)),
    "3x3 of 16 channels": lambda: nn.Conv2d(16, 16, 3, padding=1),
    "1x1": lambda: nn.Conv2d(6, 8, 1),
    "grouped": lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2),
    "transposed 4x4": lambda: nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1),
    "transposed 3x3": lambda: nn.ConvTranspose2d(6, 8, 3, 2, 1, output_padding=1),
}
_EXACT = 1e-8


def check_rule(rule: Rule) -> None:
    """Check every member of ``rule`` on convolutions of all kinds.

    The convolutions have 6 input channels, and one has 16. A rule that applies to none of them
    fails the check. At each convolution that the rule applies to: full rank computes the same
    function; costs are those of the built module; modules are of ``torch.nn`` and of the kernel's
    type; the fit does not raise the held-out error; ``rank_of`` and ``merge`` invert ``build``.

    Args:
        rule: need not be registered.

    Raises:
        ConformanceError: at least one member breaks its contract.
    """
    problems = Problems(f"the rule {getattr(rule, 'name', type(rule).__name__)!r}")
    inherits = isinstance(rule, Rule)
    problems.expect(inherits, "it does not inherit dsconvert.rules.Rule")
    problems.report()
    named: object = rule.name
    problems.expect(isinstance(named, str) and bool(named), f"name is {named!r}, not a text")
    applied, reasons = 0, dict[str, str]()
    with undisturbed():
        for before, upsample in _BEFORE.items():
            for kind, make in _CONVOLUTIONS.items():
                where = f"{kind}{before}"
                torch.manual_seed(0)
                with problems.during(where):
                    why = _check_site(rule, make(), where, problems, upsample=upsample)
                    applied += why is None
                    if why is not None:
                        reasons.setdefault(why, where)
    said = "; ".join(f"{where}: {why}" for why, where in reasons.items())
    problems.expect(applied > 0, f"it applies to no convolution of the check ({said})")
    problems.report()


def _check_site(
    rule: Rule, conv: Convolution, where: str, problems: Problems, *, upsample: nn.Module | None
) -> str | None:
    """Check one convolution, in float64; return the reason if the rule does not apply to it."""
    model = nn.Sequential(conv) if upsample is None else nn.Sequential(upsample, conv)
    model = model.double().eval()
    x = torch.randn(3, conv.in_channels, 9, 10, dtype=torch.float64)
    sites, _ = find_sites(model, example_inputs=(x[:1],))
    (site,) = sites.convolutions
    why: object = rule.why_not(site)
    if why is not None:
        problems.expect(isinstance(why, str) and bool(why), f"{where}: why_not is {why!r}")
        return str(why)
    if rule.absorbs_upsample and site.upsample is None:
        problem = "it applies, but there is no upsample to absorb"
        problems.expect(False, f"{where}: {problem}")
        return problem
    highest = rule.max_rank(site)
    problems.expect(highest >= 1, f"{where}: max_rank is {highest}")
    last = 1.0
    for rank in sorted({1, max(1, highest // 2), highest}):
        with problems.during(f"{where}, rank {rank}:"), torch.no_grad():
            exact = rule.exact or rank == highest
            last = _check_rank(
                rule, model, site, x, f"{where}, rank {rank}", problems, rank, last, exact=exact
            )
    unknown, _ = find_sites(model)
    macs = rule.macs(unknown.convolutions[0], highest)
    problems.expect(macs is None, f"{where}: macs is {macs} without shapes, not None")
    return None


def _check_rank(
    rule: Rule, model: nn.Sequential, site: Site, x: Tensor, where: str, problems: Problems,
    rank: int, last: float, *, exact: bool,
) -> float:  # fmt: skip
    conv = model[-1]
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
    kernel, bias = kernel_of(conv).clone(), conv.bias
    before, state = kernel.clone(), torch.get_rng_state()
    built = rule.build(site, kernel, bias, rank)
    module = built.module.eval()
    problems.expect(torch.equal(kernel, before), f"{where}: build changes the kernel")
    drew = not torch.equal(torch.get_rng_state(), state)
    problems.expect(not drew, f"{where}: build draws from the global random state")
    foreign = {type(m).__name__ for m in module.modules() if not _of_torch(m)}
    problems.expect(not foreign, f"{where}: build makes {foreign}, which are not of torch.nn")
    types = {p.dtype for p in module.parameters()}
    problems.expect(types == {torch.float64}, f"{where}: parameters are {types}, kernel float64")
    # The input of the module itself.
    entering = _upsampled(x) if _stays(rule, site) else x
    wanted, made = model(x), module(entering)
    size = float(wanted.abs().max())
    problems.expect(made.shape == wanted.shape, f"{where}: the output is {list(made.shape)}")
    if exact:
        error = float((made - wanted).abs().max())
        problems.expect(error <= _EXACT * size, f"{where}: differs by {error:.2g}, not exact")
        problems.expect(built.residual < _EXACT, f"{where}: residual is {built.residual:.2g}")
    within = -_EXACT <= built.residual <= last + _EXACT
    problems.expect(within, f"{where}: residual is {built.residual:.3g}, not in 0..{last:.3g}")
    cost = count(module, (entering[:1],))
    params, macs = rule.params(site, rank), rule.macs(site, rank)
    problems.expect(params == cost.params, f"{where}: params says {params}, it has {cost.params}")
    problems.expect(macs == cost.macs, f"{where}: macs says {macs}, fvcore counts {cost.macs}")
    found = rule.rank_of(module)
    problems.expect(found in (None, rank), f"{where}: rank_of returns {found}")
    dense = rule.merge(module)
    if dense is not None:
        error = float((dense(entering) - made).abs().max())
        problems.expect(error <= _EXACT * size, f"{where}: merge differs by {error:.2g}")
    if rule.fit is not None and rank == 1:
        _check_fit(rule, site, model, module, where, problems)
    return built.residual


def _check_fit(
    rule: Rule, site: Site, model: nn.Module, module: nn.Module, where: str, problems: Problems
) -> None:
    """Fit to inputs as generators have them: few independent channels, smooth in space."""
    method = rule.fit
    assert method is not None
    mixing = torch.randn(site.in_channels, 2, dtype=torch.float64)
    batches: list[Tensor] = []
    for _ in range(5):
        coarse = torch.randn(4, 2, 5, 5, dtype=torch.float64)
        smooth = nn.functional.interpolate(coarse, (9, 10), mode="bilinear")
        batches.append(torch.einsum("oi,nihw->nohw", mixing, smooth))
    outputs = [model(x) for x in batches]
    if _stays(rule, site):
        batches = [_upsampled(x) for x in batches]
    sample = Sample(
        inputs=batches[1:],
        wanted=outputs[1:],
        held_input=batches[0],
        held_wanted=outputs[0],
        centred=False,
    )
    before = sample.error(module)
    solved = fit_or_restore(lambda: method.run(module, sample), module, sample)
    problems.expect(solved, f"{where}: the fit gives values that are not finite")
    after = sample.error(module)
    problems.expect(
        after <= before * (1 + 1e-6) + _EXACT,
        f"{where}: the fit raises the held-out error from {before:.3g} to {after:.3g}",
    )


class _Doubling(nn.Module):
    """A functional upsample, as models have it in their own code."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


_BEFORE = {
    "": None,
    " behind an upsample": nn.Upsample(scale_factor=2),
    " behind F.interpolate": _Doubling(),
}
"""The modules in front of a checked convolution, by the end of their description."""


def _stays(rule: Rule, site: Site) -> bool:
    """Return whether an upsample in front of the convolution stays in front of its replacement."""
    return site.doubled or (site.upsample is not None and not rule.absorbs_upsample)


def _upsampled(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
