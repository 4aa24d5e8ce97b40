"""The parts of a step that save launches and memory: gradients, optimiser, lean fallback."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dsconvert.train import NewGenerator, TrainConfig, new_generator
from dsconvert.train.checkpointing import _keep_implementation
from dsconvert.train.gradients import finite_gradients
from dsconvert.train.low_memory import IMAGES_GO, MemoryFallback, needs_less
from dsconvert.train.passes import DISCRIMINATOR, GENERATOR, PartInputs
from dsconvert.train.state import changing_buffers, latents_of, new_state
from dsconvert.train.step import Stepper
from dsconvert.util.processes import SingleProcess
from tests.train.loops import Plain, plain_pair


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


def stepped(
    monkeypatch: pytest.MonkeyPatch,
    recompute: Any,
    *,
    full: int = 0,
    release: Callable[[], bool] | None = None,
) -> list[Tensor]:
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
            MemoryFallback,
            "of",
            classmethod(lambda cls, _config, _procs, release: cls(active=True, release=release)),
        )
        state.run_g = fails
    whole: Any = data
    stepper = Stepper(
        config=settings, data=whole, latents=latents_of(generator), procs=procs, release=release
    )
    shown = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8,
                          generator=torch.Generator().manual_seed(0))  # fmt: skip
    for _ in range(2):
        sums = stepper.run(state, shown, torch.zeros(2, 0))
    if full and release is None:
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


@pytest.mark.slow
def test_full_memory_takes_the_images_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, given = stepped(monkeypatch, "none"), iter([True, False])
    with caplog.at_level(logging.WARNING):
        found = stepped(monkeypatch, "auto", full=1, release=lambda: next(given))
    assert [r.getMessage() for r in caplog.records] == [IMAGES_GO]
    assert list(given) == [False]  # the generator is still the ordinary one
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def passed(generator: nn.Module, settings: TrainConfig, *args: Tensor) -> list[Tensor]:
    """The gradients of the generator's pass."""
    torch.manual_seed(0)
    state = new_state(generator, Plain(), settings, torch.device("cpu"))
    learned, empty = GENERATOR.parameters(state), torch.zeros(2, 0)
    for p in learned:
        p.requires_grad_(True)
    torch.manual_seed(1)
    part = PartInputs(args=args, labels=empty, reals=torch.zeros(2, 3, 0, 0), real_labels=empty)
    GENERATOR.run(settings, state, part, 0.0, 1)
    return [p.grad for p in learned if p.grad is not None]


@pytest.mark.slow
def test_a_form_that_keeps_as_much_ends_in_advice_that_helps() -> None:
    wanted = NewGenerator(cfg="stylegan2", resolution=128, ngf=1, z_dim=4)
    generator = new_generator(wanted)[0]
    state = new_state(generator, Plain(), TrainConfig(), torch.device("cpu"))

    calls: list[int] = []

    def full() -> Tensor:
        calls.append(1)
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        MemoryFallback(active=True).run(GENERATOR, TrainConfig(), state, full)
    assert len(calls) == 1
    assert "--recompute blocks" in needs_less(TrainConfig())
    assert "--recompute" not in needs_less(TrainConfig(recompute="blocks"))
    z = torch.randn(2, 4)
    plain, again = (
        passed(copy.deepcopy(generator), TrainConfig(recompute=r), z, torch.zeros(2, 0))
        for r in ("none", "blocks")
    )
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))


class Watched(torch.autograd.Function):
    """Notes whether autocast is on."""

    seen: ClassVar[list[bool]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Watched.seen.append(torch.is_autocast_enabled("cpu"))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        Watched.seen.append(torch.is_autocast_enabled("cpu"))
        return grads[0]


def test_gradients_are_not_rounded_by_autocast() -> None:
    """On CUDA the thread of the backward pass inherits it, and ``addr`` rounds its factors."""

    class Judge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 4)

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return self.conv(Watched.apply(x)).flatten(1)

    class Draws(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return Watched.apply(super().forward(z)).view(-1, 3, 4, 4)

    settings, empty = TrainConfig(batch=2, precision="bf16"), torch.zeros(2, 0)
    state = new_state(Draws(4, 48), Judge(), settings, torch.device("cpu"))
    part = PartInputs(
        args=(torch.randn(2, 4),), labels=empty, real_labels=empty,
        reals=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
    )  # fmt: skip
    for phase in (GENERATOR, DISCRIMINATOR):
        for p in phase.parameters(state):
            p.requires_grad_(True)
        Watched.seen.clear()
        phase.run(settings, state, part, 0.0, 1)
        assert True in Watched.seen
        assert Watched.seen.count(False) == (2 if phase is GENERATOR else 0)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["none", "fast"])
def test_a_lean_pass_in_half_precision_computes_as_its_forward_pass(preset: Any) -> None:
    wanted = NewGenerator(cfg="fastgan", resolution=128, ngf=2, z_dim=8, preset=preset)
    generator, z = new_generator(wanted)[0], torch.randn(2, 8)
    plain, lean = (
        torch.cat(
            [
                g.flatten()
                for g in passed(
                    copy.deepcopy(generator),
                    TrainConfig(recompute=r, precision="bf16"),
                    z,
                    torch.zeros(2, 0),
                )
            ]
        )
        for r in ("none", "lean")
    )
    assert float((plain - lean).norm()) < 0.2 * float(plain.norm())


def test_an_average_that_is_given_has_the_layout_of_the_generator() -> None:
    """Of another layout it is moved tensor by tensor."""
    networks = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 1, 3)
    state = new_state(
        *networks, TrainConfig(channels_last=True), torch.device("cpu"), ema=nn.Conv2d(3, 4, 3)
    )
    assert state.generator.weight.stride() == state.ema.weight.stride()
    assert state.ema.weight.is_contiguous(memory_format=torch.channels_last)


def test_labels_are_not_read_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read them would wait for the whole step; they come from the CPU."""
    import dsconvert.train.step as module

    generator, judge = (
        nn.Sequential(nn.Linear(4, 48), nn.Unflatten(1, (3, 4, 4))),
        nn.Conv2d(3, 1, 4),
    )
    judge.forward = lambda x, c: nn.functional.conv2d(x, judge.weight)  # type: ignore[assignment]
    settings, procs, data = TrainConfig(batch=2), SingleProcess("cpu"), _Data()
    state = new_state(generator, judge, settings, procs.device)
    there: list[int] = []

    def to_device(t: Tensor, device: torch.device) -> Tensor:
        made = t.clone()
        there.append(id(made))
        return made

    monkeypatch.setattr(module, "to_device", to_device)
    moved: list[Tensor] = []
    monkeypatch.setattr(Stepper, "_move_means", lambda self, state, labels: moved.append(labels))
    whole: Any = data
    stepper = Stepper(
        config=settings, data=whole, procs=procs,
        latents=lambda labels, random: (torch.randn(len(labels), 4, generator=random),),
    )  # fmt: skip
    labels = torch.zeros(2, 0)
    stepper.run(state, torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels)
    assert there
    assert moved[0] is labels


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
