"""Measures that make the fit fast leave its results, its draws and its judge as they were."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

import dsconvert
from dsconvert.core import fit_layers, fit_model
from dsconvert.fit import activation_stream
from dsconvert.fit.activation_stream import ActivationStream
from dsconvert.fit.least_squares import fit_dense, ridge_towards
from dsconvert.fit.moments import channel_mean, channel_variance
from dsconvert.fit.sample import Sample
from dsconvert.fit.threads import LARGE, all_threads, one_thread
from dsconvert.model.sites import find_sites
from tests.models import decoder, latents


def outputs(seed: int) -> list[torch.Tensor]:
    """Return the outputs of a model with noise, batch by batch, as the stream draws them."""
    model = decoder()
    generator = torch.Generator().manual_seed(0)
    batches = [latents(4, generator) for _ in range(3)]
    seen: list[torch.Tensor] = []
    _, graph = find_sites(model, example_inputs=batches[0])
    with torch.no_grad():
        ActivationStream(
            graph, model, model, batches,
            visit=lambda call: seen.extend(call.wanted), changed=frozenset({"head"}), seed=seed,
        ).run()  # fmt: skip
    return seen


@pytest.mark.slow
def test_draws_are_those_of_manual_seed() -> None:
    quick = outputs(7)
    with mock.patch.object(activation_stream.torch, "default_generator") as generator:
        generator.manual_seed = torch.manual_seed
        slow = outputs(7)
    assert len(quick) == 3
    assert all(torch.equal(a, b) for a, b in zip(quick, slow, strict=True))
    assert not torch.equal(quick[0], outputs(8)[0])


@pytest.mark.parametrize("shape", [(4, 512, 8, 8), (2, 3, 300, 500), (4, 100, 1, 1)])
def test_sums_by_parts_are_those_of_the_whole(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = [torch.randn(*shape) + 3 for _ in range(3)]
    count = sum(v.numel() // v.shape[1] for v in values)
    total = sum((v.sum((0, 2, 3), dtype=torch.float64) for v in values), torch.tensor(0.0))
    mean = (total / count).float()
    torch.testing.assert_close(channel_mean(values), mean, rtol=1e-7, atol=0)
    spread = sum(
        ((v - mean[:, None, None]).square().sum((0, 2, 3), dtype=torch.float64) for v in values),
        torch.tensor(0.0),
    )
    wanted = (spread / count).float()
    torch.testing.assert_close(channel_variance(values, mean), wanted, rtol=1e-7, atol=0)


def test_few_samples_give_the_same_ridge_as_the_large_system() -> None:
    """33 positions and 72 unknowns: the system of the samples has the solution of the other."""
    torch.manual_seed(0)
    conv, other = (nn.Conv2d(8, 5, 3).double() for _ in range(2))
    inputs = [torch.randn(11, 8, 3, 3, dtype=torch.float64) for _ in range(3)]
    with torch.no_grad():
        wanted = [other(x) for x in inputs]
        sample = Sample(
            inputs=inputs, wanted=wanted, held_input=inputs[0], held_wanted=wanted[0], centred=True
        )
        start = conv.weight.permute(2, 3, 1, 0).reshape(-1, 5).clone()
        x = torch.cat(inputs).permute(0, 2, 3, 1).flatten(1)
        y = torch.cat(wanted).flatten(1)
        x, y = x - x.mean(0), y - y.mean(0)
        best = ridge_towards(start, x.t() @ x / 33, x.t() @ y / 33, 1e-6)
        fit_dense(conv, sample)
    found = conv.weight.permute(2, 3, 1, 0).reshape(-1, 5)
    torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-8)


def test_a_singular_system_is_solved_without_a_large_decomposition() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 60)
    xx = (x.t() @ x).double() - 1e-3 * torch.eye(60, dtype=torch.float64)  # rounding, exaggerated
    wanted = torch.randn(60, 3, dtype=torch.float64)
    found = ridge_towards(torch.zeros(60, 3, dtype=torch.float64), xx, xx @ wanted, 1e-6)
    assert bool(found.isfinite().all())
    assert float((xx @ (found - wanted)).norm()) < 0.05 * float((xx @ wanted).norm())


def plain() -> nn.Module:
    """Return a generator without normalisations."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 3, 3, padding=1), nn.Tanh(),
    ).eval()  # fmt: skip


def maps(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 8, 8, generator=generator),)


def test_statistics_that_do_not_exist_are_not_sampled() -> None:
    """Errors and PSNR, which the held-out batch gives, stay the same."""
    plan = dsconvert.plan(plain(), preset="paper", inputs=maps)
    drawn: list[int] = []

    def counted(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
        drawn.append(n)
        return maps(n, generator)

    quick = dsconvert.apply(plain(), plan, inputs=counted, init="svd", calibrate=64)
    assert sum(drawn) < 16
    with mock.patch.object(fit_model, "_has_statistics", return_value=True):
        drawn.clear()
        slow = dsconvert.apply(plain(), plan, inputs=counted, init="svd", calibrate=64)
    assert sum(drawn) >= 64
    assert [f.svd for f in quick.fits] == [f.svd for f in slow.fits]
    assert quick.fits[0].svd is not None
    assert quick.psnr == slow.psnr
    for a, b in zip(quick.model.parameters(), slow.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_statistics_of_a_network_that_has_them_are_sampled() -> None:
    plan = dsconvert.plan(decoder(), preset="paper", inputs=latents)
    drawn: list[int] = []

    def counted(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
        drawn.append(n)
        return latents(n, generator)

    dsconvert.apply(decoder(), plan, inputs=counted, init="svd", calibrate=64)
    assert sum(drawn) >= 64


def test_latents_are_dropped_where_a_few_have_enough_pixels() -> None:
    model = decoder()
    generator = torch.Generator().manual_seed(0)
    batches = [latents(4, generator) for _ in range(8)]
    counts: list[int] = []
    _, graph = find_sites(model, example_inputs=batches[0])
    with torch.no_grad(), mock.patch.object(activation_stream, "FEWEST", 3):
        ActivationStream(
            graph, model, model, batches,
            visit=lambda call: counts.append(len(call.wanted)),
            changed=frozenset({"start", "block1.1", "head"}), positions=1000,
        ).run()  # fmt: skip
    assert counts == [8, 4, 3]  # 4, 8 and 16 px: 4 batches of 256 pixels are enough


def test_one_thread_for_small_operations_and_all_for_large_ones() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_thread():
            assert torch.get_num_threads() == 1
            with all_threads(LARGE - 1):
                assert torch.get_num_threads() == 1
            with one_thread(), all_threads(LARGE):
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with all_threads(LARGE):
            assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="stop"), one_thread():
            raise ValueError("stop")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_fit_sets_the_number_of_threads_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    fitted = fit_layers.fit_or_restore

    def noted(*args: object) -> bool:
        seen.append(torch.get_num_threads())
        return fitted(*args)  # pyright: ignore[reportArgumentType]

    try:
        torch.set_num_threads(2)
        with mock.patch.object(fit_layers, "fit_or_restore", noted):
            dsconvert.convert(plain(), preset="paper", inputs=maps, calibrate=8)
        assert torch.get_num_threads() == 2
        assert seen
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(before)
