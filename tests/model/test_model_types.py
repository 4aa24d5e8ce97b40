"""What an adapter knows holds for a live model of the original code, too."""

from __future__ import annotations

from dsconvert_adapters.projected_gan import ADAPTER, blocks
from torch import nn

from dsconvert.model.model_types import types_of
from tests.made_models import moved_generator


def foreign(model: nn.Module) -> nn.Module:
    """``model`` with noise of a class that has only the name of ours: the original's."""
    parts = {"forward": blocks.NoiseInjection.forward, "noise_source": "official"}
    theirs = type("NoiseInjection", (nn.Module,), parts)
    theirs.__module__ = "pg_modules.blocks"
    for module in model.modules():
        if isinstance(module, blocks.NoiseInjection):
            module.__class__ = theirs
    return model


def test_classes_of_the_same_name_mean_the_same() -> None:
    model = foreign(moved_generator(ngf=2))
    types = types_of(model, ADAPTER)
    found = [m for m in model.modules() if isinstance(m, types.noises)]
    assert len(found) == sum(type(m).__name__ == "NoiseInjection" for m in model.modules()) > 0
    assert not any(isinstance(m, blocks.NoiseInjection) for m in found)
    assert types.noises[0] is blocks.NoiseInjection
    assert nn.Conv2d not in types.leaves


def test_without_an_adapter_only_the_callers_own() -> None:
    types = types_of(nn.Conv2d(1, 1, 1), None, noises=(nn.Dropout,))
    assert types.noises == (nn.Dropout,)
    assert types.leaves == types.norms == ()
