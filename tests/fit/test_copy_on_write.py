"""Operations that write in place: each side of the fit, and each batch, writes its own memory."""

from __future__ import annotations

import pytest
import torch

import dsconvert
from dsconvert.data.pictures import psnr
from dsconvert.fit.activation_stream import ActivationStream
from dsconvert.model.copying import isolated_copy
from dsconvert.model.sites import find_sites
from tests import awkward


@pytest.mark.parametrize("name", awkward.WRITERS)
def test_both_sides_run_as_the_models_themselves(name):
    model, (x,) = awkward.made(name)
    student = isolated_copy(model)
    with torch.no_grad():
        student.body.weight.mul_(0.5)
    shared = awkward.image(4)
    batches = [(shared,), (shared,), (2 * shared,)]  # a sampler may return one tensor twice
    with torch.no_grad():
        wanted = [[m(args[0].clone()) for args in batches] for m in (student, model)]
    seen = []

    def visit(call):
        if call.name == "tail":
            seen.extend(call.wanted)

    _, graph = find_sites(model, example_inputs=(x,))
    constants = {k: v.clone() for k, v in graph.constants.items()}
    with torch.no_grad():
        stream = ActivationStream(
            graph, model, student, batches,
            visit=visit, changed=frozenset({"body"}), watch=frozenset({"tail"}),
        )  # fmt: skip
        stream.run()
    for got, side in zip(stream.held_out, wanted, strict=True):
        assert torch.equal(got, side[0]), name
    assert len(seen) == 3, "the readers of a written value differ, too"
    if name != "writes its input":
        for got, want in zip(seen, wanted[1], strict=True):
            assert torch.equal(got, want), name
    assert torch.equal(shared, awkward.image(4))
    assert all(torch.equal(graph.constants[k], v) for k, v in constants.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adds in place", "fills a map"])
def test_the_reported_psnr_is_that_of_the_images(name):
    model, _ = awkward.made(name)

    def inputs(n, generator):
        return (torch.randn(n, 3, 8, 8, generator=generator),)

    plan = dsconvert.plan(model, rank=1, inputs=inputs)
    result = dsconvert.apply(model, plan, inputs=inputs, calibrate=32)
    (x,) = inputs(64, torch.Generator().manual_seed(9))
    with torch.no_grad():
        real = float(psnr(result.model(x), model(x)).mean())
    assert result.psnr == pytest.approx(real, abs=2)
    assert any("tail" in note for note in result.notes), "what follows is refitted"
