"""Our StyleGAN2 against StyleGAN2 by the book, and what a separable kernel makes of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from dsconvert_adapters.stylegan2 import ADAPTER, Generator, network
from torch import Tensor, nn

import dsconvert
from dsconvert import export_model, load_generator
from dsconvert.adapter import Adapter, Follows
from dsconvert.core.merge import merge, merged_module
from dsconvert.core.pipeline import apply, cost
from dsconvert.core.pipeline import plan as plan_of
from dsconvert.errors import AdapterError
from dsconvert.model.sites import find_sites
from dsconvert.records import Plan
from tests.adapters.stylegan2_files import made
from tests.adapters.stylegan2_reference import image


def inputs(g: Generator, n: int = 2) -> tuple[Tensor, Tensor]:
    return ADAPTER.sampler(g)(n, torch.Generator().manual_seed(4))


def ranked(g: nn.Module, rule_rank: dict[str, tuple[str, int]]) -> nn.Module:
    """``g`` with rules and ranks of one's own: ``{suffix: (rule, rank)}``."""
    plan = plan_of(g, preset="fast")
    data: Any = __import__("json").loads(plan.to_json())
    for row in data["decisions"]:
        for part, (rule, rank) in rule_rank.items():
            if part in row["site"]:
                row.update(action="rewrite", rule=rule, rank=rank)
    edited = Plan.from_json(__import__("json").dumps(data))
    return apply(g, edited, init="svd", calibrate=0).model


@pytest.mark.parametrize(
    ("architecture", "classes"),
    [
        *((architecture, 0) for architecture in ("skip", "resnet", "orig")),
        ("skip", 3),
        *(pytest.param(a, 3, marks=pytest.mark.extended) for a in ("resnet", "orig")),
    ],
)
def test_the_image_is_the_one_by_the_book(architecture: str, classes: int) -> None:
    g = made(architecture=architecture, c_dim=classes, conv_clamp=1.5)
    z, c = inputs(g)
    cases: tuple[tuple[float, int | None, str], ...] = (
        (1.0, None, "const"), (0.6, None, "none"), (0.3, 2, "random"),
    )  # fmt: skip
    for psi, cut, mode in cases:
        torch.manual_seed(1)
        wanted = image(g, z, c, psi=psi, cut=cut, mode=mode)
        torch.manual_seed(1)
        got = g(z, c, truncation_psi=psi, truncation_cutoff=cut, noise_mode=mode)
        assert wanted.std() > 0.1
        assert (got - wanted).abs().max() < 1e-4
        with torch.no_grad():  # in place, then
            torch.manual_seed(1)
            again = g(z, c, truncation_psi=psi, truncation_cutoff=cut, noise_mode=mode)
        assert (again - wanted).abs().max() < 1e-4


def test_the_parts_that_metrics_call() -> None:
    g = made()
    z, c = inputs(g)
    ws = g.mapping(z, c, truncation_psi=0.5)
    assert ws.shape == (2, g.num_ws, 16)
    whole = g(z, c, truncation_psi=0.5, noise_mode="const")
    assert torch.equal(g.synthesis(ws, noise_mode="const", force_fp32=True), whole)
    before = g.mapping.w_avg.clone()
    g.mapping(z, c, update_emas=True)
    assert not torch.equal(before, g.mapping.w_avg)
    with pytest.raises(ValueError, match="noise_mode is 'loud'"):
        g(z, c, noise_mode="loud")


class _Plain(Tensor):
    """A tensor that is no plain one: the layer then takes the form that torch.fx traces."""


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["dw-pw", "pw-dw"])
@pytest.mark.parametrize("rank", [1, 2, pytest.param(3, marks=pytest.mark.extended)])
def test_scaled_factors_equal_scaled_maps(rule: str, rank: int) -> None:
    """Styles and demodulation in the factors, depthwise and FIR merged: the same numbers."""
    g = ranked(made(), {"demod.conv": (rule, rank)})
    torch.manual_seed(0)
    for block in (g.synthesis.b8, g.synthesis.b16):  # type: ignore[union-attr]
        for layer in (block.conv0, block.conv1):
            side = layer.resolution // layer.up
            for n in (1, 3):
                x, w = torch.randn(n, layer.in_channels, side, side), torch.randn(n, 16)
                plain = layer(x.as_subclass(_Plain), w, "const").as_subclass(Tensor)
                assert (layer(x, w, "const") - plain).abs().max() < 1e-5
                assert plain.std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["dw-pw", "pw-dw"])
def test_full_rank_is_the_original(rule: str) -> None:
    g = made(architecture="resnet", c_dim=3, channel_base=160)
    full = ranked(g, {"demod.conv": (rule, 9)})
    pairs = [m for m in full.modules() if isinstance(m, network.Demodulation)]
    assert pairs
    assert all(isinstance(m.conv, nn.Sequential) for m in pairs)
    z, c = inputs(g)
    wanted = g(z, c, noise_mode="const")
    assert (full(z, c, noise_mode="const") - wanted).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["dw-pw", "pw-dw"])
@pytest.mark.parametrize("rank", [1, 4])
def test_demodulation_knows_the_effective_kernel(rule: str, rank: int) -> None:
    g = ranked(made(), {"demod.conv": (rule, rank)})
    for demod in (m for m in g.modules() if isinstance(m, network.Demodulation)):
        assert isinstance(demod.conv, nn.Sequential)
        dense = merged_module(demod.conv)
        # By the book, on the dense kernel that the pair stands for.
        kernel = dense.weight if isinstance(dense, nn.Conv2d) else dense.weight.transpose(0, 1)
        styles = torch.randn(3, kernel.shape[1])
        modulated = kernel[None] * styles[:, None, :, None, None]
        wanted = (modulated.square().sum((2, 3, 4)) + 1e-8).rsqrt()
        assert torch.allclose(demod(styles), wanted, rtol=1e-4)


@pytest.mark.slow
def test_a_converted_generator_can_be_merged_back() -> None:
    g = made()
    fast = ranked(g, {"demod.conv": ("dw-pw", 2)})
    z, c = inputs(g)
    assert (merge(fast)(z, c, noise_mode="none") - fast(z, c, noise_mode="none")).abs().max() < 1e-4


def test_sites_and_presets() -> None:
    g = made()
    plan = plan_of(g, preset="fast")
    assert [d.site.removeprefix("synthesis.") for d in plan.decisions] == [
        "b4.conv1.demod.conv", "b4.torgb.conv", "b8.conv0.demod.conv", "b8.conv1.demod.conv",
        "b8.torgb.conv", "b16.conv0.demod.conv", "b16.conv1.demod.conv", "b16.torgb.conv",
    ]  # fmt: skip
    assert all((d.action == "rewrite") == ("demod" in d.site) for d in plan.decisions)
    # Where the map grows, the pointwise comes first, at a quarter of the cost.
    assert {d.rule for d in plan.decisions if "conv0" in d.site} == {"pw-dw"}
    assert {d.rule for d in plan.decisions if "conv1" in d.site} == {"dw-pw"}
    assert plan_of(g, preset="exact").decisions[0].action == "keep"


@pytest.mark.slow
def test_the_fit_beats_the_svd_and_nothing_is_said_not_to_run() -> None:
    g = made(channel_max=8)
    # Correlated channels, as trained generators have: otherwise there is nothing to fit to.
    with torch.no_grad():
        for demod in (m for m in g.modules() if isinstance(m, network.Demodulation)):
            mixed = demod.conv.weight.mean((0, 1), keepdim=True)  # type: ignore[operator, union-attr]
            demod.conv.weight.mul_(0.4).add_(2.0 * mixed)  # type: ignore[operator, union-attr]
    plan = plan_of(g, preset="fast")
    svd = apply(g, plan, init="svd", calibrate=0)
    fit = apply(g, plan, init="fit", calibrate=48)
    assert fit.after.uncalled == ()
    assert all(f.fitted is not None and f.svd is not None and f.fitted <= f.svd for f in fit.fits)
    z, c = inputs(g, 16)
    wanted = g(z, c, noise_mode="const")
    errors = [
        float((x.model(z, c, noise_mode="const") - wanted).square().mean()) for x in (svd, fit)
    ]
    assert errors[1] < 0.8 * errors[0]
    gains = [m.gain for m in fit.model.modules() if isinstance(m, network.Demodulation)]
    assert any((gain != 1).any() for gain in gains)


def test_the_gain_follows_only_where_held_out_outputs_agree() -> None:
    demod = network.Demodulation(nn.Conv2d(4, 6, 3, padding=1, bias=False), 6)
    teacher = copy.deepcopy(demod)
    with torch.no_grad():
        teacher.conv.weight.mul_(torch.linspace(0.5, 2, 6)[:, None, None, None])
    assert isinstance(demod, Follows)
    styles = [torch.rand(3, 4) + 0.5 for _ in range(4)]
    raw = [torch.randn(3, 6, 5, 5) for _ in range(4)]
    wanted = [teacher(s) for s in styles]
    args = list(zip(styles, raw, strict=True))
    demod.follow(args, args, wanted)
    # The same raw outputs: the gain makes up for the kernels' different energies.
    assert torch.allclose(demod(styles[0]), wanted[0], rtol=1e-3)
    kept = demod.gain.clone()
    off = [wanted[0], *(-w for w in wanted[1:])]
    demod.follow(args, args, off)
    assert torch.equal(demod.gain, kept)


@pytest.mark.slow
def test_default_256_px_costs_five_times_less_at_rank_one() -> None:
    """The target of issue 5: official defaults (channel_base 32768, channel_max 512)."""
    g = Generator(img_resolution=256)
    plan = plan_of(g, preset="fast", rank=1)
    before = sum(d.macs_before or 0 for d in plan.decisions)
    after = sum(d.macs_after or 0 for d in plan.decisions)
    assert 44.5e9 < before < 45.5e9
    assert before > 8 * after


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    ["skip", *(pytest.param(a, marks=pytest.mark.extended) for a in ("resnet", "orig"))],
)
def test_balanced_reckons_with_filters_and_linear_layers(architecture: str) -> None:
    """Five times fewer MACs of the whole model, as fvcore counts it, not of its convolutions."""
    g = Generator(
        img_resolution=64, channel_base=8192, channel_max=256, architecture=architecture
    ).eval()  # fmt: skip
    done = apply(g, plan_of(g, preset="balanced"), init="svd", calibrate=0)
    ratio = (done.before.macs or 0) / (done.after.macs or 1)
    # Not far beyond either: what is left over is spent on quality.
    assert 5.0 <= ratio < 5.3


@pytest.mark.slow
def test_macs_are_those_that_run() -> None:
    """A layer's MACs by hand: affine, energy, two factors, merged FIR."""
    g = made()
    plan = plan_of(g, preset="fast", rank=1)
    fast = apply(g, plan, init="svd", calibrate=0)
    layer = fast.model.synthesis.b16.conv0  # type: ignore[union-attr]
    rows = {row.name: row.macs for row in fast.after.layers}
    inp, out, low = layer.in_channels, layer.out_channels, 8 * 8
    affine, energy = 16 * inp, inp * out
    gram = out * 9 + out * inp  # <D, D>, then times the pointwise
    merge_fir = out * 36 * 16
    pair = inp * out * low + 36 * out * low
    expected = affine + energy + gram + merge_fir + pair
    assert rows["synthesis.b16.conv0"] == pytest.approx(expected, rel=0.02)
    assert cost(g).macs == fast.before.macs


@pytest.mark.slow
def test_convert_leaves_the_original_alone() -> None:
    g = made()
    state = {k: v.clone() for k, v in g.state_dict().items()}
    fast = dsconvert.convert(g, preset="balanced", calibrate=8)
    assert type(fast) is Generator
    assert all(torch.equal(v, state[k]) for k, v in g.state_dict().items())
    assert (fast.z_dim, fast.num_ws) == (g.z_dim, g.num_ws)


@pytest.mark.slow
def test_the_adapter() -> None:
    assert isinstance(ADAPTER, Adapter)
    assert ADAPTER.source() is not None
    assert ADAPTER.can_truncate
    assert ADAPTER.can_build
    g = made(c_dim=3)
    facts = ADAPTER.describe(g)
    assert (facts["cfg"], facts["resolution"], facts["classes"]) == ("stylegan2", 16, 3)
    assert ADAPTER.describe(ranked(g, {}))["channel_base"] == facts["channel_base"] == 8 * 16
    with pytest.raises(AdapterError, match="no StyleGAN2 generator"):
        ADAPTER.describe(nn.Identity())


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"c_dim": 3, "conv_clamp": 256.0, "num_fp16_res": 2},
        pytest.param({"architecture": "resnet", "use_noise": False}, marks=pytest.mark.extended),
        pytest.param(
            {"architecture": "orig", "mapping_kwargs": {"num_layers": 3, "lr_multiplier": 0.1}},
            marks=pytest.mark.extended,
        ),
    ],
)
def test_it_is_stored_as_safetensors(config: dict[str, Any], tmp_path: Path) -> None:
    """Every tensor and attribute comes back, of the original and of narrower, converted ones."""
    pytest.importorskip("safetensors")
    g = made(**config)
    narrow = apply(g, plan_of(g, preset="fast", width=0.5), calibrate=8).model
    for i, model in enumerate((g, ranked(g, {}), narrow)):
        made_file = export_model(model, tmp_path / f"{i}.safetensors")
        assert made_file.error < 1e-6
        again = load_generator(tmp_path / f"{i}.safetensors")
        for name, module in model.named_modules():
            for field in (*getattr(module, "FIELDS", {}), *getattr(module, "OPTIONS", {})):
                twin = again.get_submodule(name)
                assert getattr(twin, field) == getattr(module, field), (name, field)


@pytest.mark.parametrize("wrong", [{"resolution": 24}, {"w_dim": 0}, {"architecture": "new"}])
def test_facts_of_no_generator_are_refused(wrong: dict[str, Any]) -> None:
    facts = {**ADAPTER.describe(made()), **wrong}
    with pytest.raises(AdapterError, match="no facts of a StyleGAN2"):
        ADAPTER.build(facts)


def test_the_graph_asks_for_what_is_given_only() -> None:
    g = made(c_dim=3)
    _, traced = find_sites(g, example_inputs=inputs(g), leaf_types=ADAPTER.leaves())
    found = traced.graph
    assert [n.name for n in found.nodes if n.op == "placeholder"] == ["z", "c"]
    assert not [n for n in found.nodes if "assert" in str(n.target)]


@pytest.mark.slow
def test_it_trains() -> None:
    """Gradients reach both factors, also through the demodulation."""
    fast = ranked(made(), {"demod.conv": ("dw-pw", 1)}).requires_grad_(True)
    z, c = inputs(fast)  # type: ignore[arg-type]
    fast(z, c).square().mean().backward()
    lost = [n for n, p in fast.named_parameters() if p.grad is None]
    assert lost == []
