"""One layer at a time: what its call looks like, and how many dimensions its maps have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsconvert.core.analysis import analyse
from dsconvert.search.candidates import samples
from dsconvert.search.layer_trials import layer_trials
from dsconvert.search.trial_rig import Sensitivity
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
