"""Spectral norms that are computed together: the numbers of the hooks, with fewer operators."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

from dsconvert.train.recompute import without_power_iteration
from dsconvert.train.spectral_norms import normalised_together


def network() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        spectral_norm(nn.ConvTranspose2d(3, 6, 4, bias=False)),
        nn.ReLU(),
        spectral_norm(nn.Conv2d(6, 6, 3, padding=1, groups=6)),
        spectral_norm(nn.Conv2d(6, 5, 1)),
        nn.Flatten(),
        spectral_norm(nn.Linear(80, 2)),
    )
    return made.train()


class Counter(TorchDispatchMode):
    """Counts the operators that a device would launch: views are left out."""

    VIEWS = ("view", "t", "transpose", "detach", "split", "unbind", "select", "expand", "alias",
             "as_strided", "permute", "slice", "split_with_sizes", "_unsafe_view", "squeeze",
             "unsqueeze", "empty", "new_empty", "empty_like")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in self.VIEWS
        return func(*args, **(kwargs or {}))


def step(model: nn.Module, x: Tensor, *, together: bool) -> tuple[Tensor, int]:
    with Counter() as counter:
        if together:
            with normalised_together(model):
                y = model(x)
        else:
            y = model(x)
        y.square().sum().backward()
    return y, counter.count


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_numbers_are_those_of_the_hooks(layout: torch.memory_format) -> None:
    ordinary = network().to(memory_format=layout)
    ours = copy.deepcopy(ordinary)
    keys = list(ours.state_dict())
    x = torch.randn(2, 3, 1, 1)
    counts = (0, 0)
    for _ in range(3):  # gradients add up, and the vectors go on
        (y, many), (z, few) = step(ordinary, x, together=False), step(ours, x, together=True)
        assert torch.allclose(y, z, rtol=1e-5, atol=1e-6)
        counts = (many, few)
    for (name, a), b in zip(ordinary.named_parameters(), ours.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6), name
    for (name, a), b in zip(ordinary.named_buffers(), ours.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name
    assert list(ours.state_dict()) == keys
    assert counts[1] < 0.75 * counts[0]
    # The hooks are back: the next ordinary call iterates.
    before = ours.state_dict()["5.weight_u"].clone()
    ours(x)
    ordinary(x)
    assert not torch.equal(before, ours.state_dict()["5.weight_u"])
    assert torch.allclose(ours[5].weight, ordinary[5].weight, atol=1e-6)


def test_the_gradient_of_a_kernel_in_double_precision() -> None:
    class Only(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    from dsconvert.train.spectral_norms import _Divided, _Norms

    for layer in (nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(2, 3, 2)):
        norms = _Norms(Only(spectral_norm(layer)).double())
        raw = norms.layers[0].raw.detach().double().requires_grad_(True)
        u, v = torch.randn(3).double(), torch.randn(8).double()

        def divided(w: Tensor, norms: Any = norms, u: Tensor = u, v: Tensor = v) -> Tensor:
            dim = norms.dims[0]
            matrix = w.detach().transpose(0, dim).flatten(1)
            sigma = u @ matrix @ v
            return _Divided.apply(norms, u, v, sigma[None], w)[0]

        def plain(w: Tensor, norms: Any = norms, u: Tensor = u, v: Tensor = v) -> Tensor:
            return w / (u @ w.transpose(0, norms.dims[0]).flatten(1) @ v)

        weights = torch.randn_like(raw)
        (ours,) = torch.autograd.grad((divided(raw) * weights).sum(), raw)
        (theirs,) = torch.autograd.grad((plain(raw) * weights).sum(), raw)
        assert torch.allclose(ours, theirs, rtol=1e-10)


def test_layers_that_must_not_iterate_keep_their_hooks() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 3, 1, 1)
    with torch.no_grad():
        with without_power_iteration(model), normalised_together(model):
            model(x)
        model.eval()
        with normalised_together(model):
            model(x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with normalised_together(nn.ReLU()), normalised_together(lambda: None):
        pass


def test_an_error_in_a_call_leaves_the_hooks_in_place() -> None:
    model = network()
    with pytest.raises(RuntimeError), normalised_together(model):
        model(torch.randn(2, 4, 1, 1))
    names = [type(h).__name__ for m in model for h in m._forward_pre_hooks.values()]
    assert names == ["SpectralNorm"] * 4


def test_a_layer_that_a_call_does_not_use_stays_as_it_is() -> None:
    """Files have blocks of resolutions that never run; they must not enter Adam's state."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = spectral_norm(nn.Conv2d(3, 4, 3))
            self.unused = spectral_norm(nn.Conv2d(3, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    torch.manual_seed(0)
    ordinary, x = Half().train(), torch.randn(2, 3, 5, 5)
    ours = copy.deepcopy(ordinary)
    step(ordinary, x, together=False)
    step(ours, x, together=True)
    assert ours.unused.weight_orig.grad is None
    assert ours.used.weight_orig.grad is not None
    for (name, a), b in zip(ordinary.named_buffers(), ours.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name


def test_a_network_without_gradients_is_normalised_as_well() -> None:
    model = network()
    model.requires_grad_(False)
    x = torch.randn(2, 3, 1, 1, requires_grad=True)
    with normalised_together(model):
        model(x).sum().backward()
    assert x.grad is not None
