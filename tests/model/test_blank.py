"""Architectures without values have the shapes of real ones."""

from __future__ import annotations

import torch
from dsconvert_adapters.projected_gan import Generator
from torch import nn

from dsconvert.model.blank import blank


def test_names_and_shapes_are_those_of_a_real_one() -> None:
    before = torch.get_rng_state()
    with blank():
        made = Generator.from_config(resolution=64, ngf=2, z_dim=8)
    assert torch.equal(torch.get_rng_state(), before)
    real = Generator.from_config(resolution=64, ngf=2, z_dim=8).state_dict()
    state = made.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.dtype) for k, v in real.items()
    }
    assert all(v.is_meta for v in state.values())


def test_tensors_with_values_are_left_alone() -> None:
    with blank():
        assert nn.functional.normalize(torch.ones(4, device="cpu"), dim=0).sum() == 2
        assert torch.ones(2, device="cpu").fill_(3).sum() == 6
