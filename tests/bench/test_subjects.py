"""Timing and memory: what is counted, in this process and in another. No absolute time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dsconvert.bench import (
    LocalSubject,
    Measurement,
    Operation,
    RemoteSubject,
    Settings,
    Timing,
    compare,
    facts,
    limits,
    remote,
    settle,
)
from dsconvert.bench.memory import kept_for_backward
from dsconvert.errors import MeasureError, UsageError

FORWARD = Operation(kind="forward", batch=2)
STEP = Operation(kind="step", batch=3)
ONE_THREAD = Settings(device="cpu", threads=1)


def pixels(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 16, 16, generator=generator),)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval()


class Fails(nn.Module):
    """Runs for one sample only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            raise RuntimeError("one at a time, please")
        return x


class Dies(nn.Module):
    """Takes its process with it, as the system does when memory runs out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        return x


# What is counted --------------------------------------------------------------------------------


def test_kept_counts_each_storage_once_and_no_parameter() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    x = torch.randn(2, 3, 16, 16)
    y = conv(x)
    # The convolution keeps its input; relu keeps its output; the product keeps that output again.
    used = kept_for_backward(lambda: torch.relu(conv(x)).square(), conv.parameters())
    assert used == 4 * (x.numel() + y.numel())


def test_kept_of_a_step_scales_with_the_batch() -> None:
    subject = LocalSubject("m", small(), pixels, ONE_THREAD)
    one, three = (subject.kept(Operation(kind="step", batch=n)) for n in (1, 3))
    per_sample = 4 * 16 * 16 * (3 + 8 + 8)
    assert three - one == pytest.approx(2 * per_sample, rel=0.02)


def test_a_step_differentiates_whatever_the_caller_has_set() -> None:
    subject = LocalSubject("m", small(), pixels, ONE_THREAD)
    with torch.no_grad():
        assert subject.seconds(STEP) > 0
        kept = subject.kept(STEP)
    assert kept == subject.kept(STEP) > 0


def test_the_model_is_left_as_it_was() -> None:
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    subject = LocalSubject("m", model, pixels, ONE_THREAD)
    assert subject.seconds(FORWARD) > 0
    assert subject.seconds(STEP) > 0
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_step_reaches_every_parameter_and_leaves_no_gradient() -> None:
    subject = LocalSubject("m", small().requires_grad_(False), pixels, ONE_THREAD)
    seen: list[str] = []
    for name, parameter in subject._model.named_parameters():
        parameter.requires_grad_(True)
        parameter.register_hook(lambda _, name=name: seen.append(name))
    subject.seconds(STEP)
    assert set(seen) == {n for n, _ in subject._model.named_parameters()}
    assert all(p.grad is None for p in subject._model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_type_runs_in_that_of_the_settings(dtype: torch.dtype) -> None:
    model = small().to(dtype)
    subject = LocalSubject("m", model, pixels, ONE_THREAD)
    assert subject._once(Operation(kind="forward", batch=1))().dtype == torch.float32
    assert subject.seconds(STEP) > 0
    assert next(model.parameters()).dtype == dtype


def test_amp_runs_in_a_narrow_type_with_wide_weights() -> None:
    subject = LocalSubject("m", small(), pixels, Settings(device="cpu", dtype="amp", threads=1))
    assert {p.dtype for p in subject._model.parameters()} == {torch.float32}
    assert subject._once(Operation(kind="forward", batch=1))().dtype == torch.bfloat16
    assert subject.seconds(STEP) > 0


def test_channels_last_reaches_the_weights() -> None:
    subject = LocalSubject("m", small(), pixels, Settings(device="cpu", channels_last=True))
    conv = subject._model[0]
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert subject._once(FORWARD)().is_contiguous(memory_format=torch.channels_last)


def test_every_run_gets_the_same_values() -> None:
    """Also of a model that writes into its arguments: values that grow would overflow."""
    seen: list[float] = []

    class Doubles(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(float(x.abs().max()))
            return super().forward(x.mul_(2))

    subject = LocalSubject("m", Doubles(3, 3, 1), pixels, ONE_THREAD)
    step = Operation(kind="step", batch=2)
    for _ in range(2):
        subject.seconds(FORWARD)
        subject.seconds(step)
    subject.seconds_of_each(FORWARD, 2)
    subject.kept(step)
    assert len(seen) == 7
    assert len(set(seen)) == 1


# A process of its own ---------------------------------------------------------------------------


@pytest.mark.slow
def test_remote_agrees_with_local_and_knows_its_peak() -> None:
    here = LocalSubject("here", small(), pixels, ONE_THREAD)
    there = RemoteSubject("there", small(), pixels, ONE_THREAD)
    try:
        assert there.params == here.params == 3 * 8 * 9 + 8 + 16
        assert there.kept(STEP) == here.kept(STEP)
        assert there.seconds(FORWARD) > 0
        assert here.peak(FORWARD) is None
        large = there.peak(Operation(kind="step", batch=512))
        small_peak = there.peak(FORWARD)
        if large is None or small_peak is None:
            pytest.skip("this system does not tell resident memory")
        # 512 samples keep 512 * 19 KiB; two samples keep next to nothing.
        assert large - small_peak > 512 * 4 * 16 * 16 * 19 * 0.8
    finally:
        there.close()
    with pytest.raises(MeasureError, match="closed"):
        there.seconds(FORWARD)


@pytest.mark.slow
def test_a_failing_model_is_named_with_what_it_did() -> None:
    there = RemoteSubject("frail", Fails(), pixels, ONE_THREAD)
    try:
        with pytest.raises(MeasureError, match=r"frail fails in forward, batch 2.*one at a time"):
            there.seconds(FORWARD)
        assert there.seconds(Operation(kind="forward", batch=1)) > 0
    finally:
        there.close()


@pytest.mark.slow
def test_a_dead_process_is_one_sentence() -> None:
    there = RemoteSubject("heavy", Dies(), pixels, ONE_THREAD)
    try:
        with pytest.raises(MeasureError, match=r"heavy was killed by signal 9.*smaller batch"):
            there.seconds(FORWARD)
    finally:
        there.close()


@pytest.mark.slow
def test_a_class_no_other_process_finds_is_timed_here() -> None:
    class Hidden(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    subject = remote("hidden", Hidden(), pixels, ONE_THREAD)
    assert isinstance(subject, LocalSubject)
    assert "without its peak memory" in subject.notes[0]
    assert subject.seconds(FORWARD) > 0


# Interleaving --------------------------------------------------------------------------------


class Scripted:
    """A subject that only writes down when it was asked."""

    notes: tuple[str, ...] = ()
    params = 1

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def seconds(self, operation: Operation) -> float:
        self._log.append(self.name)
        return float(len(self._log))

    def kept(self, operation: Operation) -> int:
        return 7

    def peak(self, operation: Operation) -> int | None:
        return None

    def close(self) -> None:
        pass


def test_runs_are_interleaved_and_turned_round() -> None:
    log: list[str] = []
    found = compare([Scripted("a", log), Scripted("b", log)], [STEP], repeats=3, warmup=0)
    assert log == ["a", "b", *"ab", *"ba", *"ab"]
    assert found[0].times[STEP].seconds == (3.0, 6.0, 7.0)
    assert found[0].times[STEP].median == 6.0
    assert found[1].kept == {STEP: 7}


def test_a_spent_limit_ends_the_rounds_after_the_third() -> None:
    log: list[str] = []
    found = compare([Scripted("a", log)], [FORWARD], repeats=50, warmup=0, limit=0.0)
    assert len(found[0].times[FORWARD].seconds) == 3


def test_one_name_for_two_models_is_refused() -> None:
    with pytest.raises(UsageError, match="same name"):
        compare([Scripted("a", []), Scripted("a", [])], [FORWARD])


def test_spread_is_the_interquartile_range() -> None:
    assert Timing.of([4.0, 1.0, 2.0, 3.0, 5.0]).quartiles == (2.0, 4.0)
    assert Timing.of([3.0, 1.0]).quartiles == (1.0, 3.0)
    assert isinstance(Measurement(name="x", params=0).times, dict)


# The machine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"device": "gpu9"}, r"device 'gpu9' can't be used.*--device"),
        ({"device": "meta"}, r"device 'meta'.*holds no data"),
        ({"device": "cpu", "dtype": "float8"}, r"float8.*float32"),
        ({"device": "cpu", "threads": 0}, "0 threads"),
    ],
)
def test_bad_settings_are_one_sentence(wrong: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settle(Settings(**wrong))


@pytest.mark.slow
def test_facts_and_limits_are_about_this_machine() -> None:
    known = facts(settle(ONE_THREAD))
    assert known["threads"] == 1
    assert known["torch"] == torch.__version__
    best = limits(settle(ONE_THREAD))
    # A product can't be faster than its work alone, nor a copy of nothing take time.
    assert best.floor(best.macs_per_second, 0) == pytest.approx(1)
    assert best.floor(0, 2 * best.bytes_per_second) == pytest.approx(2)
