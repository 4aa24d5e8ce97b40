"""``convert`` on models that are no GAN of ours: every kind of convolution, and what is kept."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import dsconvert
from dsconvert.errors import DsconvertError, PlanError, TraceError
from dsconvert.records import Plan
from dsconvert.rules import rules
from tests.models import SITES, Decoder, One, decoder, latents, output


def exact_plan(model: nn.Module, rule, x: torch.Tensor, rank: int | None = None) -> Plan | None:
    """A plan that rewrites ``body`` by ``rule`` at full (or the given) rank."""
    from dsconvert.model.sites import find_sites
    from dsconvert.records import Decision

    site = find_sites(model, example_inputs=(x,))[0].convolutions[0]
    if rule.why_not(site) is not None:
        return None
    rank = rank or rule.max_rank(site)
    decision = Decision(
        site=site.name,
        action="rewrite",
        rule=rule.name,
        rank=rank,
        reason="test",
        params_before=site.params,
        params_after=rule.params(site, rank),
        macs_before=site.macs,
        macs_after=rule.macs(site, rank),
    )
    return Plan(model=type(model).__name__, preset="test", decisions=(decision,))


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("rule", ["dw-pw", "pw-dw"])
def test_full_rank_is_the_original(kind, rule):
    torch.manual_seed(0)
    model = One(SITES[kind]()).double().eval()
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    rule = next(r for r in rules() if r.name == rule)
    plan = exact_plan(model, rule, x)
    assert plan is not None
    result = dsconvert.apply(model, plan, example_inputs=(x,), init="svd")
    assert isinstance(result.model.body, nn.Sequential)
    wanted = model(x)
    assert (result.model(x) - wanted).abs().max() < 1e-9
    # The plan's promise is what the module costs.
    d = plan.decisions[0]
    assert d.params_after == sum(p.numel() for p in result.model.parameters())
    per_sample = dsconvert.cost(result.model, (x[:1],))
    assert per_sample.macs == d.macs_after
    merged = dsconvert.merge(result.model)
    assert isinstance(merged.body, nn.Conv2d | nn.ConvTranspose2d)
    assert (merged(x) - wanted).abs().max() < 1e-9


@pytest.mark.parametrize("rule", ["dw-pw", "pw-dw", "up-pw-dw", "up-merge"])
def test_behind_an_upsample(rule):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(12, 8, 3, padding=1))
    model = One(body).double().eval()
    x = torch.randn(2, 12, 6, 5, dtype=torch.float64)
    rule = next(r for r in rules() if r.name == rule)
    plan = exact_plan(model, rule, x)
    assert plan is not None
    result = dsconvert.apply(model, plan, example_inputs=(x,), init="svd").model
    assert (result(x) - model(x)).abs().max() < 1e-9
    assert (dsconvert.merge(result)(x) - model(x)).abs().max() < 1e-9
    assert isinstance(result.body[0], nn.Identity) == rule.absorbs_upsample


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "dtype"),
    [
        *((preset, torch.float32) for preset in ("exact", "balanced", "fast")),
        ("balanced", torch.bfloat16),
        pytest.param("balanced", torch.float16, marks=pytest.mark.extended),
        pytest.param("paper", torch.float32, marks=pytest.mark.extended),
        *(
            pytest.param(preset, dtype, marks=pytest.mark.extended)
            for preset in ("exact", "paper", "fast")
            for dtype in (torch.bfloat16, torch.float16)
        ),
    ],
)
def test_what_is_kept(preset, dtype):
    model = decoder().to(dtype)
    model.head.requires_grad_(False)
    model.block1.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calls = []
    model.shared.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    fast = dsconvert.convert(model, preset=preset, inputs=latents, calibrate=32)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(fast) is Decoder
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.block1.training
    assert not model.training
    assert fast.block1.training
    assert not fast.training
    assert {p.dtype for p in fast.parameters()} == {dtype}
    assert all(not p.requires_grad for p in fast.head.parameters())
    assert all(p.requires_grad for p in fast.block1.parameters())
    calls.clear()
    fast.eval()(torch.randn(1, 16, dtype=dtype))
    assert len(calls) == 2
    allowed = ("torch.nn", "tests.models")
    assert all(type(m).__module__.startswith(allowed) for m in fast.modules())


@pytest.mark.slow
def test_exact_changes_no_image_and_drops_the_dead():
    model = decoder()
    z = torch.randn(4, 16)
    fast = dsconvert.convert(model, preset="exact", inputs=latents, remove=["dead"])
    assert (output(fast, z) - output(model, z)).abs().max() < 1e-5
    assert fast.dead is None  # a forward may still ask for it
    # Something else may call it: only on request does it go.
    whole = dsconvert.convert(model, preset="exact", inputs=latents)
    assert torch.equal(whole.dead.weight, model.dead.weight)
    with pytest.raises(PlanError, match=r"--remove: head runs"):
        dsconvert.plan(model, inputs=latents, remove=["head"])
    with pytest.raises(PlanError, match="dead can't be both kept and removed"):
        dsconvert.plan(model, inputs=latents, remove=["dead"], keep=["dead"])
    assert isinstance(fast.block1[1], nn.ConvTranspose2d)


def test_a_shared_module_stays_shared_and_grouped_is_kept():
    plan = dsconvert.plan(decoder(), preset="paper", inputs=latents)
    by = {d.site: d for d in plan.decisions}
    assert by["mix"].action == "keep"
    assert "grouped" in by["mix"].reason
    assert by["shared"].macs_before == 2 * 24 * 24 * 9 * 16 * 16


@pytest.mark.slow
def test_the_result_needs_no_dsconvert(tmp_path):
    fast = dsconvert.convert(decoder(), inputs=latents, calibrate=16)
    copy.deepcopy(fast)
    pickle.loads(pickle.dumps(fast))
    torch.save(fast, tmp_path / "fast.pt")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[2]); "
        "sys.modules['dsconvert'] = None; "
        "m = torch.load(sys.argv[1], weights_only=False); print(tuple(m(torch.randn(1, 16)).shape))"
    )
    tests = str(__import__("pathlib").Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "fast.pt"), tests],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "(1, 3, 16, 16)", run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", ["paper", pytest.param("balanced", marks=pytest.mark.extended), "fast"]
)
def test_every_trainable_parameter_gets_a_finite_gradient(preset):
    fast = dsconvert.convert(decoder(), preset=preset, inputs=latents, calibrate=16).train()
    fast(torch.randn(4, 16)).square().mean().backward()
    for name, p in fast.named_parameters():
        if name.startswith("dead."):  # 'paper' leaves the dead where they are
            continue
        assert p.grad is not None, (preset, name)
        assert torch.isfinite(p.grad).all(), (preset, name)


@pytest.mark.parametrize("norm", [False, True])
def test_weights_and_biases_stay_frozen_each_by_itself(norm):
    for weight, bias in ((False, True), (True, False)):
        model = One(SITES["spectral hook" if norm else "padded"]())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(bias if name.endswith("bias") else weight)
        x = torch.randn(1, 6, 9, 11)
        for options in ({}, {"init": "random"}):
            made = dsconvert.convert(model, rank=1, example_inputs=(x,), **options)
            assert isinstance(made.body, nn.Sequential)
            for result in (made, dsconvert.merge(made)):
                for name, parameter in result.named_parameters():
                    assert parameter.requires_grad == (bias if name.endswith("bias") else weight)


def test_without_inputs_it_falls_back_and_says_so():
    model = decoder()
    plan = dsconvert.plan(model)
    assert all(d.macs_after is None for d in plan.decisions)
    result = dsconvert.apply(model, plan)
    assert result.after.macs is None
    assert "example_inputs" in (result.after.note or "")
    assert any("not fitted" in n for n in result.undone)


def test_a_forward_pass_in_training_does_not_stop_a_conversion():
    torch.manual_seed(0)
    model = One(SITES["spectral hook"]()).train()
    model(torch.randn(1, 6, 8, 8)).sum().backward()  # leaves a non-leaf weight behind
    dsconvert.convert(model, preset="fast", example_inputs=(torch.randn(1, 6, 8, 8),))


def test_hooks_of_every_kind_are_carried():
    """With their options: one without is called with other arguments, or not at all."""
    torch.manual_seed(0)
    model, called = One(SITES["padded"]()), []
    body = model.body
    body.register_forward_pre_hook(lambda m, args: called.append("before"))
    body.register_forward_pre_hook(
        lambda m, args, kwargs: called.append("before, kwargs"), with_kwargs=True
    )
    body.register_forward_hook(lambda m, args, out: called.append("after"))
    body.register_forward_hook(
        lambda m, args, kwargs, out: called.append("after, kwargs"), with_kwargs=True
    )
    body.register_forward_hook(lambda m, args, out: called.append("always"), always_call=True)
    body.register_full_backward_pre_hook(lambda m, out: called.append("before backward"))
    body.register_full_backward_hook(lambda m, inp, out: called.append("after backward"))
    x = torch.randn(1, 6, 8, 8)
    model(x.clone().requires_grad_()).sum().backward()
    wanted, called[:] = list(called), []
    made = dsconvert.convert(model, rank=1, example_inputs=(x,))
    assert isinstance(made.body, nn.Sequential)
    for each in (made, dsconvert.merge(made)):
        assert called == []
        each(x.clone().requires_grad_()).sum().backward()
        assert called == wanted
        called.clear()
    with pytest.raises(RuntimeError):
        made(torch.zeros(1, 5, 8, 8))
    assert "always" in called


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        if x.sum() > 0:
            return self.conv(x)
        return self.conv(-x)


def test_what_cannot_be_traced_is_named():
    where = r"Untraceable\.forward can't be traced at .*test_convert.py:\d+"
    with pytest.raises(TraceError, match=where + ".*pass inputs= or example_inputs="):
        dsconvert.convert(Untraceable())
    with pytest.raises(TraceError, match=where + r".*Move the part that depends") as known:
        dsconvert.convert(Untraceable(), example_inputs=(torch.randn(1, 3, 9, 9),))
    assert "inputs=" not in str(known.value)
    # As a child it becomes a leaf by itself, and its convolution is still converted.
    holder = One(Untraceable())
    x = torch.randn(1, 3, 9, 9)
    plan = dsconvert.plan(holder, preset="fast", example_inputs=(x,))
    assert [d.site for d in plan.decisions] == ["body.conv"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"preset": "best"}, "best"),
        ({"rank": 0}, "rank 0"),
        ({"keep": ["nothing*"]}, "nothing"),
        ({"preset": "exact", "rank": 2}, "exact"),
        ({"leaves": ["nobody"]}, "nobody"),
        ({"example_inputs": (torch.randn(1, 3),)}, "example inputs"),
    ],
)
def test_bad_options(change, word):
    with pytest.raises(DsconvertError, match=word):
        dsconvert.plan(decoder(), **change)


def test_a_plan_for_another_model_changes_nothing():
    plan = dsconvert.plan(decoder(), inputs=latents)
    with pytest.raises(PlanError, match="no convolution called"):
        dsconvert.apply(One(SITES["plain"]()), plan)


def test_a_module_that_may_run_is_not_said_to_run():
    plan = dsconvert.plan(decoder(), inputs=latents, remove=["dead"])
    words = "may run: nothing says what the inputs look like"
    with pytest.raises(PlanError, match=f"dead is to be removed but {words}"):
        dsconvert.apply(decoder(), plan)
    with pytest.raises(PlanError, match=f"dead {words}"):
        dsconvert.plan(decoder(), remove=["dead"])


def test_convert_logs_the_notes_of_its_record(caplog):
    def logged(level, **options):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="dsconvert"):
            dsconvert.convert(decoder(), rank=1, **options)
        return [r.getMessage() for r in caplog.records if r.levelno == level]

    (warning,) = logged(logging.WARNING)
    assert warning.startswith("not fitted")
    assert not logged(logging.WARNING, init="svd", calibrate=0)
    options = {"inputs": latents, "init": "svd", "calibrate": 0, "keep": ["*"]}
    nothing = logged(logging.WARNING, **options)
    assert nothing == ["no convolution was rewritten"]
    told = logged(logging.INFO, inputs=latents, init="svd", calibrate=8)
    assert [t for t in told if t.startswith("statistics re-estimated: ")]


@pytest.mark.slow
def test_a_plan_survives_json_and_an_edit():
    model = decoder()
    plan = dsconvert.plan(model, inputs=latents)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.preset in str(plan)
    edited = re.sub(r'"rank": \d+', '"rank": 99', plan.to_json())
    with pytest.raises(PlanError, match="outside 1"):
        dsconvert.apply(model, Plan.from_json(edited), inputs=latents)
    for bad in ("", "[]", "{}", plan.to_json().replace('"reason"', '"because"')):
        with pytest.raises(PlanError):
            Plan.from_json(bad)


def test_leaves_and_keep():
    plan = dsconvert.plan(decoder(), keep=["block1"], inputs=latents, preset="paper")
    kept = [d.site for d in plan.decisions if d.requested]
    assert kept == ["block1.1", "block1.5"]


@pytest.mark.slow
def test_saved_and_loaded_state():
    fast = dsconvert.convert(decoder(), inputs=latents, calibrate=16)
    buffer = io.BytesIO()
    torch.save(fast.state_dict(), buffer)
    buffer.seek(0)
    other = copy.deepcopy(fast)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    z = torch.randn(2, 16)
    assert torch.equal(output(fast, z), output(other, z))
