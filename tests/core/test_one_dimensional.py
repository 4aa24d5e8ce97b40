"""Convolutions of one dimension: sites, rules, fit, counts, widths, merge, recipes, weight norm."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from dsconvert import apply, convert, cost, plan
from dsconvert.core.analysis import analyse
from dsconvert.core.merge import merge
from dsconvert.formats.restructure import describe_changes, restructure
from dsconvert.model.one_dimensional import as_1d, as_2d
from dsconvert.records import Plan
from dsconvert.rules.recognise import structure_of


def hooked(conv: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(conv)


class Vocoder(nn.Module):
    """A small vocoder with both forms of weight norm."""

    def __init__(self, norms: bool = True) -> None:
        super().__init__()
        hook: Any = hooked if norms else lambda m: m
        param: Any = parametrizations.weight_norm if norms else lambda m: m
        self.pre = hook(nn.Conv1d(8, 16, 7, padding=3))
        self.up = hook(nn.ConvTranspose1d(16, 12, 8, 4, padding=2))
        self.mid = param(nn.Conv1d(12, 12, 5, padding="same", dilation=2, padding_mode="reflect"))
        self.norm = nn.BatchNorm1d(12)
        self.odd = param(nn.ConvTranspose1d(12, 12, 3, 2, padding=1, output_padding=1))
        self.post = hook(nn.Conv1d(12, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.up(self.pre(x)), 0.1)
        x = F.leaky_relu(self.norm(self.mid(x)), 0.1) + x
        return torch.tanh(self.post(F.leaky_relu(self.odd(x), 0.1)))


def vocoder(norms: bool = True) -> Vocoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Vocoder(norms).eval()


def mels(n: int, generator: torch.Generator) -> tuple[Tensor]:
    """Smooth inputs, as spectrograms are."""
    coarse = torch.randn(n, 8, 6, generator=generator)
    return (F.interpolate(coarse, scale_factor=4, mode="linear"),)


X = mels(2, torch.Generator().manual_seed(9))[0]
RANKS = {"pre": 7, "up": 8, "mid": 5, "odd": 3}


def separable(model: nn.Module, rule: str) -> Plan:
    """Every convolution at the rank that is exact."""
    base = plan(model, preset="balanced", example_inputs=(X,))
    decisions = [
        replace(d, action="rewrite", rule=rule, rank=RANKS[d.site]) if d.site in RANKS else d
        for d in base.decisions
    ]
    return replace(base, decisions=tuple(decisions))


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["dw-pw", "pw-dw"])
def test_full_rank_is_the_original_and_the_counts_agree(rule: str) -> None:
    model = vocoder()
    wanted = run(model)
    made = apply(model, separable(model, rule), init="svd", calibrate=0, example_inputs=(X,))
    assert (run(made.model) - wanted).abs().max() < 1e-5
    assert (run(merge(made.model)) - wanted).abs().max() < 1e-5
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    assert not any(isinstance(m, kinds) for m in made.model.modules())
    # The dense sites, by our formula and by fvcore; two mean-subtracting norms come on top.
    said = sum(d.macs_after or 0 for d in made.plan.decisions)
    counted = sum(c.macs or 0 for c in made.after.layers if "." not in c.name and c.name != "norm")
    assert said == counted
    before = sum(d.macs_before or 0 for d in made.plan.decisions)
    dense = {c.name: c.macs for c in cost(model, (X,)).layers}
    assert before == sum(dense[n] or 0 for n in (*RANKS, "post"))
    assert sum(structure_of(made.model).rewritten.values()) == len(RANKS)
    assert structure_of(made.model).convolutions == len(RANKS) + 1


@pytest.mark.slow
def test_the_fit_and_fewer_channels_come_nearer_than_the_kernels() -> None:
    model = vocoder(norms=False)
    wanted = run(model)

    def error(made: nn.Module) -> float:
        return float((run(made) - wanted).square().mean() / wanted.var())

    base = plan(model, preset="balanced", example_inputs=(X,), rank=2)
    options: dict[str, Any] = {"inputs": mels}
    fitted = apply(model, base, calibrate=16, **options)
    svd = apply(model, base, calibrate=0, init="svd", **options)
    assert error(fitted.model) < 0.5 * error(svd.model)
    assert all((f.fitted or 0) <= (f.svd or 0) for f in fitted.fits)
    narrow = convert(model, preset="balanced", width=0.5, calibrate=8, **options)
    recipe = describe_changes(vocoder(norms=False), narrow)
    again = restructure(vocoder(norms=False), recipe)
    again.load_state_dict(narrow.state_dict())
    assert torch.equal(run(again), run(narrow))
    assert sum(p.numel() for p in narrow.parameters()) < sum(
        p.numel() for p in svd.model.parameters()
    )


def test_sites_have_height_one() -> None:
    sites = {s.name: s for s in analyse(vocoder(), example_inputs=(X,)).sites.convolutions}
    up = sites["up"]
    assert (up.dims, up.kind, up.kernel_size, up.stride, up.padding) == (
        1, "transposed", (1, 8), (1, 4), (0, 2),
    )  # fmt: skip
    assert up.input_shape == (2, 16, 1, 24)
    assert up.macs == 16 * 12 * 8 * 24
    assert (sites["pre"].norm, sites["mid"].norm) == ("weight-hook", "weight-param")
    assert sites["mid"].batchnorm == "norm"


def test_both_forms_compute_the_same_and_share_their_memory() -> None:
    conv = nn.Conv1d(4, 6, 3, 2, padding=2, dilation=2)
    flat: Any = as_2d(conv)
    x = torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(flat(x[:, :, None])[:, :, 0], conv(x), atol=1e-6)
    with torch.no_grad():
        flat.weight.zero_()
    assert not conv.weight.any()
    back: Any = as_1d(flat)
    assert (back.kernel_size, back.stride, back.padding) == ((3,), (2,), (2,))
    with pytest.raises(ValueError, match="no one-dimensional form"):
        as_1d(nn.Conv2d(4, 4, 3))
    plain = nn.Sequential(nn.Conv2d(4, 4, 3))
    assert as_2d(plain) is plain
