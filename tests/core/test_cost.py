"""Counting: fvcore against torch's own counter, and what the record says beside the total."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from dsconvert_adapters.projected_gan import Generator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dsconvert
from dsconvert.core.cost import NO_INPUTS, count, outside
from dsconvert.core.pipeline import cost
from dsconvert.errors import TraceError

CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 8, 3),
    "padded": nn.Conv2d(6, 8, 3, padding=1),
    "same": nn.Conv2d(6, 8, 3, padding="same"),
    "reflect": nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "strided": nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(6, 8, 3, dilation=2),
    "grouped": nn.Conv2d(6, 12, 3, groups=3),
    "depthwise": nn.Conv2d(6, 24, 3, groups=6),
    "rectangular": nn.Conv2d(6, 8, (1, 3), stride=(2, 1)),
    "transposed": nn.ConvTranspose2d(6, 8, 4, 2, 1),
    "transposed from 1x1": nn.ConvTranspose2d(6, 8, 4),
    "transposed grouped": nn.ConvTranspose2d(6, 12, 4, 2, 1, groups=3),
    "transposed depthwise": nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6),
    "transposed multiplier": nn.ConvTranspose2d(6, 18, 4, 2, 1, groups=6),
    "transposed dilated": nn.ConvTranspose2d(6, 8, 3, 2, 1, output_padding=1, dilation=2),
    "spectral norm": nn.utils.spectral_norm(nn.Conv2d(6, 8, 3)),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 8, 3)),
}


def flops(model: nn.Module, *inputs: torch.Tensor) -> int:
    """What torch counts: two for a multiply-accumulate."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.random.fork_rng():
        model(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_torch_counts_the_same(name):
    model = CONVOLUTIONS[name]
    side = 1 if name == "transposed from 1x1" else 9
    x = torch.randn(1, 6, side, side + 2 if side > 1 else 1)
    counted = count(model, (x,))
    assert counted.macs
    assert 2 * counted.macs == flops(model, x)


def test_a_transposed_convolution_costs_its_input_positions():
    counted = count(nn.ConvTranspose2d(6, 12, 4, 2, 1, groups=3), (torch.randn(1, 6, 9, 7),))
    assert counted.macs == 9 * 7 * 4 * 4 * 6 * 12 // 3


@pytest.mark.slow
@pytest.mark.parametrize("cfg", ["fastgan", "fastgan_lite"])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_whole_generator(cfg, classes):
    made = Generator.from_config(cfg=cfg, resolution=128, ngf=4, z_dim=16, classes=classes)
    inputs = (torch.randn(1, 16), torch.eye(max(1, classes))[:1, :classes])
    counted = count(made, inputs)
    assert counted.params == sum(p.numel() for p in made.parameters())
    convolutions = [
        layer.macs
        for layer in counted.layers
        if layer.type in ("Conv2d", "ConvTranspose2d", "Linear") and layer.macs
    ]
    assert 2 * sum(convolutions) == flops(made, *inputs)
    # The rest are normalisations and resampling.
    assert sum(convolutions) < counted.macs
    for layer in counted.layers:
        if layer.type in ("BatchNorm2d", "Upsample") and layer.name not in counted.uncalled:
            assert layer.macs, layer.name
    assert {"aten::mul", "aten::sigmoid"} <= set(counted.unsupported)
    # At 128 px the official code has these and never runs them.
    assert any(name.startswith("synthesis.feat_256") for name in counted.uncalled)


class Fork(nn.Module):
    """One module under two names, one that never runs, an operator without a count."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3)
        self.same = self.one
        self.dead = nn.Conv2d(1, 1, 1)
        self.drop = nn.Dropout()
        self.nothing = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(self.one(x), self.drop(self.nothing(self.same(x))) + torch.rand(1))


def test_layers_unsupported_and_uncalled():
    counted = count(Fork(), (torch.randn(1, 3, 5, 5),))
    assert [(layer.name, layer.params, layer.macs) for layer in counted.layers] == [
        ("one", 112, 2 * 9 * 3 * 4 * 9),
        ("dead", 2, 0),
        ("drop", 0, 0),
        ("nothing", 0, 0),
    ]
    assert counted.unsupported["aten::cdist"] == 1
    assert counted.uncalled == ("dead",)


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.inner.weight)


def test_convolutions_that_are_no_modules_are_told_by_their_place():
    model = nn.Sequential(Reads(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(18, 5))
    counted = count(model, (torch.randn(1, 3, 5, 5),))
    assert counted.functional == {"0": 9 * 3 * 4 * 9}
    assert counted.products == 18 * 5
    called = "convolutions called as functions (as F.conv2d) in 0, which no rule rewrites"
    assert outside(counted) == {called: 9 * 3 * 4 * 9, "matrix products": 90}


def test_what_is_inside_a_named_leaf_is_not_reported_as_uncalled():
    model, x = nn.Sequential(Reads()), torch.randn(1, 3, 5, 5)
    assert dsconvert.cost(model, (x,)).uncalled == ("0.inner",)
    assert dsconvert.cost(model, (x,), leaves=["0"]).uncalled == ()
    with pytest.raises(TraceError, match="nobody"):
        dsconvert.cost(model, (x,), leaves=["nobody"])


def test_the_model_and_the_world_are_left_alone(caplog, capfd):
    model = Fork().train()
    model.one.eval()
    before = torch.get_rng_state()
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    level = logging.getLogger("fvcore.nn.jit_analysis").level
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        count(model, (torch.randn(1, 3, 5, 5, generator=torch.Generator()),))
    assert torch.equal(before, torch.get_rng_state())
    assert hooks == [len(m._forward_pre_hooks) for m in model.modules()]
    assert [m.training for m in (model, model.one, model.drop)] == [True, False, True]
    assert logging.getLogger("fvcore.nn.jit_analysis").level == level
    assert (raised, caplog.records, *capfd.readouterr()) == ([], [], "", "")


def test_a_batch_is_counted_for_one_sample():
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8))
    x = torch.randn(5, 6, 9, 9)
    assert count(model, (x,)) == count(model, (x[:1],))


def test_without_inputs_it_says_why():
    counted = count(nn.Conv2d(6, 8, 3))
    assert (counted.params, counted.macs, counted.note) == (440, None, NO_INPUTS)
    assert count(nn.Sequential(nn.Conv2d(6, 8, 3))).layers[0].macs is None


def test_what_fvcore_cannot_run_is_a_note_not_a_crash():
    model = nn.Conv2d(6, 8, 3).train()
    counted = count(model, (torch.randn(1, 5, 9, 9),))
    assert counted.macs is None
    assert "expected input[1, 5, 9, 9] to have 6 channels" in str(counted.note)
    assert model.training


def test_a_tensor_by_itself_is_the_only_argument():
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8))
    for n in (1, 2):
        x = torch.randn(n, 6, 9, 9)
        assert cost(model, x) == cost(model, (x,)) == cost(model, inputs=lambda *_: x)  # noqa: B023
        assert cost(model, x).macs
