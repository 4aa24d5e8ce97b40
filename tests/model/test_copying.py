"""A copy owns its classes, tensors and attributes."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from dsconvert.errors import UsageError
from dsconvert.model.copying import copy_tensors, own_classes, owned_copy, tensors_by_name
from tests.awkward import OwnStateDict

NORMS = (parametrizations.spectral_norm, parametrizations.weight_norm, spectral_norm, weight_norm)


@pytest.mark.parametrize("norm", NORMS[:2])
def test_a_parametrization_taken_off_the_copy_stays_on_the_original(norm) -> None:
    net = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), norm(nn.Conv2d(4, 3, 1))).eval()
    twin = copy.deepcopy(net)
    x = torch.randn(1, 3, 8, 8)
    want, kinds = net(x), [type(m) for m in net.modules()]
    made = owned_copy(net)
    assert torch.equal(made(x), want)
    for conv in (made[0], made[2]):
        parametrize.remove_parametrizations(conv, "weight")
        assert type(conv) is nn.Conv2d
    assert torch.allclose(made(x), want)
    assert [type(m) for m in net.modules()] == kinds
    assert torch.equal(net(x), want)
    assert torch.equal(twin(x), want)


def test_modules_of_one_model_that_share_a_class_get_one_each() -> None:
    first = parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)).eval()
    net = nn.Sequential(first, copy.deepcopy(first))
    assert type(net[0]) is type(net[1])
    own_classes(net)
    assert type(net[0]) is not type(net[1])
    assert type(net[0]).__name__ == "ParametrizedConv2d"
    parametrize.remove_parametrizations(net[0], "weight")
    net(torch.randn(1, 3, 4, 4))
    # A copy of the copy can be made, too.
    owned_copy(owned_copy(net))(torch.randn(1, 3, 4, 4))


@pytest.mark.parametrize("norm", NORMS)
def test_after_a_pass_in_training(norm) -> None:
    net = nn.Sequential(norm(nn.Conv2d(3, 3, 3))).train()
    x = torch.randn(1, 3, 8, 8)
    net(x)
    made = owned_copy(net).eval()
    net.eval()
    assert torch.allclose(made(x), net(x))
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            tensor.zero_()
    assert net(x).abs().max() > 0.01


def test_tensors_with_a_history_are_detached_and_owned() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.register_buffer("last", torch.zeros(1))
            self.maps: list[torch.Tensor] = []
            self.drawn = torch.Generator().manual_seed(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = self.conv(x)
            self.maps = [self.last, {"deep": self.last * 2}]
            self.maps.append(self.maps)  # type: ignore[arg-type]
            return self.last

    net = Keeps()
    net(torch.randn(1, 3, 4, 4))
    made = owned_copy(net)
    assert torch.equal(made.last, net.last)
    assert made.maps[0] is made.last
    assert not made.last.requires_grad
    made.last.zero_()
    assert net.last.abs().max() > 0
    assert net.last.grad_fn is not None
    torch.randn(3, generator=made.drawn)
    assert torch.equal(
        torch.randn(2, generator=net.drawn),
        torch.randn(2, generator=torch.Generator().manual_seed(5)),
    )


def test_what_the_memo_names_is_shared() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    shared = net[0].weight
    made = owned_copy(net, {id(shared): shared})
    assert made[0].weight is shared
    assert made[1].weight is not net[1].weight


def test_what_cannot_be_copied_is_said() -> None:
    net = nn.Conv2d(3, 3, 1)
    net.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"this Conv2d can't be copied: .*lock"):
        owned_copy(net)


def test_tensors_pass_between_copies_whatever_a_state_dict_leaves_out() -> None:
    model = OwnStateDict()
    model.register_buffer("cache", torch.ones(1), persistent=False)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.add_(1)
    copy_tensors(tensors_by_name(twin), model)
    assert torch.equal(model.extra.weight, twin.extra.weight)
    assert torch.equal(model.cache, torch.ones(1)), "no state dict holds it"
    with pytest.raises(ValueError, match=r"extra\.weight, extra\.bias"):
        copy_tensors(twin.state_dict(), model)
