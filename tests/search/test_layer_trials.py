"""One layer at a time: what its call looks like, and how many dimensions its maps have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsconvert.core.analysis import analyse
from dsconvert.search.candidates import samples
from dsconvert.search.layer_trials import layer_trials
from dsconvert.search.trial_rig import Sensitivity, Trial
from tests import awkward
from tests.core.test_one_dimensional import mels, vocoder
from tests.core.test_real_styles import Normed, NormedByKeyword, image


def _as_map(model: nn.Module) -> nn.Module:
    return nn.Sequential(model, nn.Unflatten(2, (1, -1)))


def test_a_network_of_one_dimension_has_its_trials() -> None:
    found = layer_trials(analyse(vocoder(), inputs=mels), picture=_as_map, features=None)
    ranked = [layer for layer in found.layers if layer.kind == "rank"]
    assert {layer.name for layer in ranked} == {"pre", "up", "mid", "odd", "post"}
    for layer in ranked:
        losses = [t.image for t in layer.trials]
        assert losses == sorted(losses, reverse=True)


def _both() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain, by_keyword = Normed().eval(), NormedByKeyword().eval()
    by_keyword.load_state_dict(plain.state_dict())
    return plain, by_keyword


def test_layers_that_are_called_by_keyword_have_the_same_trials() -> None:
    def trials(model: nn.Module) -> Sensitivity:
        return layer_trials(
            analyse(model, inputs=image), picture=lambda m: m, features=None, latents=2
        )

    plain, by_keyword = map(trials, _both())
    assert {layer.kind for layer in plain.layers} == {"rank", "width"}
    assert by_keyword == plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_layers_of_other_types_have_the_trials_of_float32(dtype: torch.dtype) -> None:
    def trials(dtype: torch.dtype) -> list[Trial]:
        model = _both()[0].half().to(dtype)  # the same weights in every type
        found = layer_trials(
            analyse(model, inputs=image), picture=lambda m: m, features=None, latents=2
        )
        assert {layer.kind for layer in found.layers} == {"rank", "width"}
        return [t for layer in found.layers for t in layer.trials]

    wanted = [t.image for t in trials(torch.float32)]
    assert [t.image for t in trials(dtype)] == pytest.approx(wanted, rel=0.02)


def test_a_model_without_gradients_has_the_trials_of_its_layers_alone() -> None:
    model, _ = awkward.made("writes out")
    found = layer_trials(
        analyse(model, inputs=image), picture=lambda m: m, features=None, latents=2
    )
    assert {layer.kind for layer in found.layers} == {"rank"}


@pytest.mark.parametrize(
    ("conv", "size", "shape"),
    [
        (nn.Conv1d(2, 3, 9, dilation=5), (100,), (1, 60)),
        (nn.Conv1d(2, 3, 3), (3000,), (1, 1022)),
        (nn.Conv2d(2, 3, 9, dilation=(5, 1)), (90, 90), (42, 24)),
    ],
)
def test_a_crop_has_outputs_of_any_kernel(
    conv: nn.Module, size: tuple[int, ...], shape: tuple[int, int]
) -> None:
    def maps(n: int, generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(n, 2, *size, generator=generator),)

    model = nn.Sequential(conv)
    sites = analyse(model, inputs=maps).sites.convolutions
    (sample,) = samples(model, sites, [maps(2, torch.Generator())]).values()
    assert sample.held_wanted.shape == (2, 3, *shape)


def test_samples_are_taken_without_the_hooks_of_the_original() -> None:
    _, model = _both()
    seen: list[Tensor] = []
    head = model.get_submodule("head")
    head.register_forward_hook(lambda _m, _a, output: seen.append(output))
    sites = [s for s in analyse(model, inputs=image).sites.convolutions if s.name == "head"]
    seen.clear()
    batches = [image(2, torch.Generator())]
    assert "head" in samples(model, sites, batches)
    assert len(seen) == len(batches)
