"""A model that writes into its arguments is treated as one that computes the same without that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsconvert
from dsconvert.config.files import Sampling
from dsconvert.core.analysis import analyse
from dsconvert.errors import MissingExtraError
from dsconvert.formats.paint import painter
from dsconvert.formats.safetensors.compare import same_images
from dsconvert.forms.flat_graph import flatten
from dsconvert.forms.verify import compare
from dsconvert.metrics.distance import sample_images
from dsconvert.search.layer_trials import layer_trials
from tests.awkward import Base, image

FIXED = image(32)


def inputs(n: int, _: torch.Generator) -> tuple[Tensor]:
    """The same tensor at each call: what a run writes into it, the next one reads."""
    return (FIXED[:n],)


class Scales(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.main(x.mul(1.5).sub(0.5))


class ScalesInPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.main(x.mul_(1.5).sub_(0.5))


def _examples(model: nn.Module) -> Any:
    found = analyse(model, example_inputs=inputs(1, torch.Generator()))
    return [(g.name, g.locked) for g in found.groups.groups]


def _groups(model: nn.Module) -> Any:
    return [(g.name, g.locked) for g in analyse(model, inputs=inputs).groups.groups]


def _curves(model: nn.Module) -> Any:
    return [torch.tensor(c.loss) for c in analyse(model, inputs=inputs).curves(0).by_group.values()]


def _trials(model: nn.Module) -> Any:
    analysis = analyse(model, inputs=inputs)
    found = layer_trials(analysis, picture=lambda m: m, features=None, latents=4)
    return [torch.tensor([t.image for t in layer.trials]) for layer in found.layers]


def _converted(model: nn.Module) -> Any:
    examples = inputs(1, torch.Generator())
    made = dsconvert.convert(model, preset="paper", example_inputs=examples, init="svd")
    return list(made.state_dict().values())


def _polished(model: nn.Module) -> Any:
    decided = dsconvert.plan(model, preset="paper", inputs=inputs)
    made = dsconvert.apply(model, decided, inputs=inputs, calibrate=8, polish_steps=1)
    assert made.polish is not None
    return [torch.tensor([made.psnr, made.polish.distance_before, made.polish.distance_after])]


def _sampled(model: nn.Module) -> Any:
    return [sample_images(model, inputs, samples=4, seed=0, batch=4) for _ in range(2)]


def _painted(model: nn.Module) -> Any:
    file: Any = SimpleNamespace(generator=model, picture=lambda: model, truncation=lambda _: {})
    paint = painter(file, Sampling(device="cpu"), device=torch.device("cpu"))
    return [paint((FIXED[:1],), 0) for _ in range(2)]


def _exported(model: nn.Module) -> Any:
    core = flatten(model, (FIXED[:1],), other=(FIXED[:2],), noise="zero")
    _, reach = compare(model, core, core.module, "the graph", inputs=inputs)
    return [torch.tensor(reach)]


def _loaded(model: nn.Module) -> Any:
    _, reach = same_images(model, copy.deepcopy(model), Path("g.safetensors"), inputs)
    return [torch.tensor(reach)]


USES = (
    _examples, _groups, _curves, _trials, _converted, _polished, _sampled, _painted, _exported,
    _loaded,
)  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_results_do_not_depend_on_writes(
    use: Callable[[nn.Module], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(**_: Any) -> None:
        raise MissingExtraError("the backbone takes time")

    monkeypatch.setattr("dsconvert.matching.setup.ProjectedMaps", missing)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain, writes = Scales().eval(), ScalesInPlace().eval()
    writes.load_state_dict(plain.state_dict())
    before = FIXED.clone()
    try:
        found, wanted = use(writes), use(plain)
        assert torch.equal(FIXED, before)
    finally:
        FIXED.copy_(before)
    if isinstance(found[0], Tensor):
        torch.testing.assert_close(found, wanted)
    else:
        assert found == wanted
