"""The parts of a step that save launches and memory: gradients, optimiser, lean fallback."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsconvert.train import TrainConfig
from dsconvert.train.checkpointing import _keep_implementation
from dsconvert.train.gradients import finite_gradients
from dsconvert.train.low_memory import MemoryFallback
from dsconvert.train.passes import GENERATOR
from dsconvert.train.state import changing_buffers, latents_of, new_state
from dsconvert.train.step import Stepper
from dsconvert.util.processes import SingleProcess
from tests.train.loops import plain_pair


def parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    made: list[nn.Parameter] = []
    for shape in ((1,), (4, 3), (8, 3, 2, 2), (5, 2, 3, 3), (7,), (2, 2)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=random)
        made.append(p)
    for i, value in ((0, float("nan")), (1, float("inf")), (2, float("-inf")), (4, 2e7)):
        made[i].grad.view(-1)[0] = value  # pyright: ignore[reportOptionalMemberAccess]
    made[3].grad = made[3].grad.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    made[5].grad = None
    return made


def test_one_buffer_gives_the_gradients_of_each() -> None:
    one, many = parameters(), parameters()
    finite_gradients(one, torch.device("cpu"))
    finite_gradients(many, torch.device("cuda"))
    for a, b in zip(one[:-1], many[:-1], strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
        assert a.grad.isfinite().all()
        assert a.grad.stride() == b.grad.stride()
    assert many[0].grad is not None
    assert many[1].grad is not None
    first, second = (p.grad.untyped_storage().data_ptr() for p in many[:2])  # type: ignore[union-attr]
    assert first == second
    assert many[5].grad is None
    assert float(one[4].grad.max()) == 2e7  # type: ignore[union-attr]


def test_a_run_of_a_gpu_goes_on_with_this_device_s_optimiser() -> None:
    one, other = (torch.optim.Adam([nn.Parameter(torch.ones(2))], fused=f) for f in (True, None))
    one.param_groups[0]["params"][0].grad = torch.ones(2)
    one.step()
    saved = one.state_dict()
    _keep_implementation(other, saved)
    other.load_state_dict(saved)
    assert not other.param_groups[0]["fused"]
    assert other.state_dict()["state"][0]["exp_avg"].tolist() == pytest.approx([0.1, 0.1])


class _Data:
    def __len__(self) -> int:
        return 10

    def label(self, indices: Tensor) -> Tensor:
        return torch.zeros(len(indices), 0)


def stepped(monkeypatch: pytest.MonkeyPatch, recompute: Any, *, full: int = 0) -> list[Tensor]:
    """Two steps; in the pass ``full`` of the generator (from 1) the memory is full."""
    generator, judge = plain_pair()
    settings, procs, data = TrainConfig(batch=2, recompute=recompute), SingleProcess("cpu"), _Data()
    state = new_state(generator, judge, settings, procs.device)
    plain, calls = state.run_g, [0]

    def fails(*args: Any) -> Any:
        calls[0] += 1
        made = plain(*args)
        if calls[0] == full:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return made

    if full:
        monkeypatch.setattr(
            MemoryFallback, "of", classmethod(lambda cls, *_: cls(active=True))
        )  # fmt: skip
        state.run_g = fails
    whole: Any = data
    stepper = Stepper(config=settings, data=whole, latents=latents_of(generator), procs=procs)
    shown = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8,
                          generator=torch.Generator().manual_seed(0))  # fmt: skip
    for _ in range(2):
        sums = stepper.run(state, shown, torch.zeros(2, 0))
    if full:
        assert calls[0] == full  # the plain form is not called again
        assert type(state.run_g) is not type(generator) or state.run_g is not generator
    return [sums, *changing_buffers(state)]


@pytest.mark.slow
@pytest.mark.parametrize("full", [1, pytest.param(2, marks=pytest.mark.extended)])
def test_full_memory_makes_the_generator_lean_and_loses_nothing(
    full: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the first pass, all steps are lean ones; buffers were not updated twice."""
    lean = stepped(monkeypatch, "lean")
    with caplog.at_level(logging.WARNING):
        found = stepped(monkeypatch, "auto", full=full)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "recompute lean" in said
    for a, b in zip(lean, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3 if full > 1 else 0, atol=1e-4 * (full > 1))


def test_other_errors_and_untraceable_generators_stop() -> None:
    state: Any = SimpleNamespace(
        generator=nn.Linear(2, 2), discriminator=nn.Linear(2, 2), run_g=None, run_d=None,
        opt_g=SimpleNamespace(param_groups=[]),
    )  # fmt: skip

    def raising(error: Exception) -> Any:
        def run() -> Tensor:
            raise error

        return run

    fallback = MemoryFallback(active=True)
    with pytest.raises(ValueError, match="mine"):
        fallback.run(GENERATOR, TrainConfig(), state, raising(ValueError("mine")))
    with pytest.raises(torch.OutOfMemoryError, match="full"):  # no adapter: no lean form
        fallback.run(GENERATOR, TrainConfig(), state, raising(torch.OutOfMemoryError("full")))
    card: Any = SimpleNamespace(world=1, device=torch.device("cuda"))
    many: Any = SimpleNamespace(world=2, device=torch.device("cuda"))
    assert MemoryFallback.of(TrainConfig(), card).active
    assert not MemoryFallback.of(TrainConfig(), many).active
    assert not MemoryFallback.of(TrainConfig(), SingleProcess("cpu")).active
    assert not MemoryFallback.of(TrainConfig(recompute="none"), card).active
