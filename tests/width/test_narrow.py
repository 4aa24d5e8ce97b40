"""Narrower models: exact where channels are redundant, costed, planned, refused."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dsconvert_adapters.projected_gan import Generator
from torch import nn

from dsconvert import Plan, apply, convert, cost, plan
from dsconvert.core.analysis import analyse
from dsconvert.errors import PlanError, UsageError
from dsconvert.model.inputs import Inputs
from dsconvert.records import Conversion
from dsconvert.width import curves, narrow
from dsconvert.width.groups import folded_copy
from tests import models
from tests.made_models import moved, moved_generator


def fastgan(**config: Any) -> Generator:
    return moved(Generator.from_config(resolution=64, ngf=8, z_dim=16, **config)).eval()


def image(g: nn.Module, seed: int = 0) -> torch.Tensor:
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    with torch.no_grad():
        return g(z, torch.zeros(3, 0))


def redundant(g: nn.Module, inputs: Inputs | None = None) -> nn.Module:
    """A copy in which the second half of every group's channels repeats the first half."""
    made = folded_copy(g)
    groups = analyse(made, inputs=inputs).groups
    places = groups.channels
    with torch.no_grad():
        for group in groups.free():
            units = groups.units[group.name]
            half = len(units) // 2
            for table in (places.rows, places.entries):
                for name, labels in table.items():
                    roots = places.labels.roots(labels)
                    for first, second in zip(units[:half], units[half:], strict=True):
                        _copy(made.get_submodule(name), roots == first, roots == second)
    return made.eval()


def _copy(module: nn.Module, source: Any, target: Any) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim and isinstance(module, nn.ConvTranspose2d) and tensor.ndim == 4:
            tensor[:, target] = tensor[:, source]
        elif tensor.ndim and target.any():
            tensor[target] = tensor[source]


@pytest.mark.slow
def test_full_width_changes_nothing() -> None:
    g = fastgan()
    assert plan(g, preset="fast", width=1.0) == plan(g, preset="fast")


Halves = Callable[[str], tuple[Generator, Conversion]]


@pytest.fixture(scope="module")
def halves() -> Halves:
    """A function of a preset: a generator, and its conversion to half of every width.

    Each is made once.
    """

    @functools.cache
    def made(preset: str) -> tuple[Generator, Conversion]:
        g, latents = fastgan(), {"exact": 64, "balanced": 8}[preset]
        return g, apply(g, plan(g, preset=preset, width=0.5), calibrate=latents)

    return made


@pytest.mark.slow
@pytest.mark.parametrize("preset", [pytest.param("exact", marks=pytest.mark.extended), "balanced"])
def test_the_result_runs_and_costs_what_the_plan_says(halves: Halves, preset: str) -> None:
    g, result = halves(preset)
    assert {w.kept / w.channels for w in result.plan.widths} == {0.5}
    assert result.model(torch.randn(2, 16), torch.zeros(2, 0)).shape == (2, 3, 64, 64)
    convolutions = {d.site for d in result.plan.decisions}
    for d in result.plan.decisions:
        layer = result.model.get_submodule(d.site)
        assert sum(p.numel() for p in layer.parameters()) == d.params_after, d.site
    counted = cost(result.model)
    assert counted.macs is not None
    assert result.before.macs is not None
    assert counted.macs < 0.5 * result.before.macs
    assert convolutions
    # The original is as it was, and has every channel.
    assert cost(g).params == result.before.params


@pytest.mark.slow
@pytest.mark.extended
def test_conditional_generators_get_narrower() -> None:
    g = fastgan(classes=3)
    result = apply(g, plan(g, preset="exact", width=0.5), calibrate=16)
    c = nn.functional.one_hot(torch.tensor([0, 2]), 3).float()
    assert result.model(torch.randn(2, 16), c).shape == (2, 3, 64, 64)
    assert len(result.kept) >= 8


@pytest.mark.slow
@pytest.mark.extended
def test_fitted_beats_sliced(halves: Halves) -> None:
    g, fitted = halves("exact")
    sliced = analyse(g)
    bare = narrow(g, sliced.groups, fitted.kept)
    wanted = image(g)
    assert (image(fitted.model) - wanted).square().mean() < (
        0.7 * (image(bare) - wanted).square().mean()
    )


@pytest.mark.slow
def test_a_plan_goes_through_json_and_is_checked() -> None:
    g = fastgan()
    made = plan(g, preset="fast", width=0.5)
    assert Plan.from_json(made.to_json()) == made
    assert "widths" not in plan(g, preset="fast").to_json()
    one = made.widths[0]
    for change, said in (
        ({"group": "nobody"}, "no channel group called nobody"),
        ({"kept": 0}, "outside 1.."),
        ({"channels": 3}, "channels, not 3"),
    ):
        wrong = dataclasses.replace(made, widths=(dataclasses.replace(one, **change),))
        with pytest.raises(PlanError, match=said):
            apply(g, wrong)
    with pytest.raises(PlanError, match="decided twice"):
        apply(g, dataclasses.replace(made, widths=(one, one)))
    with pytest.raises(PlanError, match="is not a whole number"):
        Plan.from_json(made.to_json().replace(f'"kept": {one.kept}', '"kept": 0.5'))


@pytest.mark.slow
def test_kept_modules_keep_their_channels() -> None:
    g = fastgan()
    made = plan(g, preset="fast", width=0.5, keep=["synthesis.feat_32.5"])
    groups = {w.group for w in made.widths}
    assert not groups & {"synthesis.feat_32.1", "synthesis.feat_32.5"}
    result = apply(g, made, calibrate=8)
    before, after = (m.get_submodule("synthesis.feat_32.5").state_dict() for m in (g, result.model))
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.0, -1.0, 1.5, float("nan")])
def test_shares_out_of_range(width: float) -> None:
    with pytest.raises(PlanError, match="share"):
        plan(fastgan(), width=width)


@pytest.mark.slow
def test_without_latents_nothing_can_be_chosen() -> None:
    g = fastgan()
    made = plan(g, preset="fast", width=0.5)
    with pytest.raises(UsageError, match="--calibrate 0"):
        apply(g, made, calibrate=0)
    assert apply(g, made, init="random").kept  # to train anew, any will do


@pytest.mark.slow
def test_an_own_model_with_its_inputs() -> None:
    model = models.decoder()
    made_plan = plan(model, width=0.5, inputs=models.latents)
    result = apply(model, made_plan, inputs=models.latents, calibrate=8)
    # The map that the latent makes has no channels to spare.
    assert [w.group for w in result.plan.widths] == ["block1.1"]
    assert models.output(result.model, torch.randn(2, 16)).shape == (2, 3, 16, 16)
    made = convert(model, width=0.5, inputs=models.latents, calibrate=8)
    assert models.output(made, torch.randn(2, 16)).shape == (2, 3, 16, 16)


@pytest.mark.slow
@pytest.mark.extended
def test_random_state_and_model_are_left_alone() -> None:
    g = moved_generator()
    before = {k: v.clone() for k, v in g.state_dict().items()}
    torch.manual_seed(4)
    wanted = torch.rand(1)
    torch.manual_seed(4)
    apply(g, plan(g, preset="exact", width=0.5), calibrate=8)
    assert torch.equal(torch.rand(1), wanted)
    assert all(torch.equal(before[k], v) for k, v in g.state_dict().items())


@pytest.mark.slow
def test_redundant_channels_cost_no_quality() -> None:
    g = redundant(fastgan())
    result = apply(g, plan(g, preset="exact", width=0.5), calibrate=64)
    assert len(result.kept) >= 9
    wanted = image(g)
    error = (image(result.model) - wanted).square().mean() / wanted.var()
    assert error < 1e-4


def pictures(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 16, 16, generator=generator),)


@pytest.mark.parametrize("width", [0.5, "auto"])
def test_channels_that_a_layer_reads_in_part(width: float | str) -> None:
    torch.manual_seed(0)
    model = redundant(models.UNet(), pictures)
    decided = plan(model, preset="exact", width=width, inputs=pictures)
    counts = {w.group: w.kept for w in decided.widths}
    assert max(counts["first"], counts["up"]) <= 8
    result = apply(model, decided, inputs=pictures, calibrate=16)
    assert result.psnr is not None
    assert result.psnr > (45 if width == 0.5 else 15)
    for d in result.plan.decisions:
        layer = result.model.get_submodule(d.site)
        assert sum(p.numel() for p in layer.parameters()) == d.params_after, d.site


@pytest.mark.slow
def test_the_default_with_a_polish_runs_where_a_layer_reads_in_part() -> None:
    torch.manual_seed(0)
    model = models.UNet().eval()
    made = convert(model, inputs=pictures, calibrate=16, polish_steps=2)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert (made(x) - model(x)).square().mean() < 0.5 * model(x).var()


def test_samples_are_those_that_were_used(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = analyse(models.UNet().eval(), inputs=pictures)
    assert analysis.curves(0).samples == curves.LATENTS == 64
    # A map of 32 channels and 16 x 16 pixels takes 32 KiB: as much as 20 samples may take.
    monkeypatch.setattr(curves, "_BUDGET", 20 * 32 * 16 * 16 * 4)
    assert analysis.curves(1).samples == 24


def test_a_loss_beside_the_image_is_no_image() -> None:
    class WithLoss(models.UNet):
        def forward(self, x: torch.Tensor) -> Any:
            made = super().forward(x)
            return made, made.square().mean()

    made = plan(WithLoss().eval(), preset="none", width="auto", inputs=pictures)
    assert apply(WithLoss().eval(), made, inputs=pictures, calibrate=8).model is not None
