"""Compilation of a model's programs before its first call, without a card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsconvert import kernels
from dsconvert.kernels import use
from dsconvert.kernels.ahead import collected, distinct

pytest.importorskip("triton")


class Block(nn.Module):
    """A depthwise convolution behind an upsample, noise, batch normalisation and gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        filters: Any = kernels.filters_of(self.conv)
        out, mean, _ = kernels.batch_norm_gate(
            x, self.norm.weight, self.norm.bias, weight=filters, noise=x.new_ones(1),
            plane=torch.randn(x.shape[0], 1, 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype),
        )  # fmt: skip
        self.norm.running_mean.lerp_(mean, 0.5)  # type: ignore[union-attr]
        return out


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operators take the tensors of a CPU."""
    monkeypatch.setattr(use, "why_not", lambda *_: None)


def names(jobs: list[use.Job]) -> list[str]:
    return [getattr(j.program, "fn", j.program).__name__ for j in jobs]


@pytest.mark.slow
@pytest.mark.usefixtures("on_card")
def test_a_step_is_collected_and_nothing_runs_or_changes() -> None:
    model, x = Block(), torch.randn(2, 4, 8, 8)
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    jobs = collected(model, (x,), {}, backward=True)
    assert names(jobs) == [
        "statistics", "merged", "forward", "sums", "gradient", "filter_gradients"
    ]  # fmt: skip
    assert not any(isinstance(a, Tensor) for job in jobs for a in job.args)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert use.jobs() is None
    assert len(collected(model, (x,), {}, backward=False)) == 3


@pytest.mark.usefixtures("on_card")
def test_every_candidate_once_and_no_other_batch_or_width() -> None:
    def programs(*sizes: tuple[int, int]) -> int:
        jobs: list[use.Job] = []
        for n, width in sizes:
            jobs += collected(Block(), (torch.randn(n, 4, 32, width),), {}, backward=False)
        return len(distinct(jobs))

    # Two candidates of both programs; the third merges.
    assert programs((1, 32)) == programs((1, 32), (7, 32), (7, 64)) == 5


def test_elsewhere_there_is_nothing_to_compile() -> None:
    assert kernels.compile_ahead(Block(), torch.randn(1, 4, 2, 2), backward=True) == 0


def test_jobs_are_compiled_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Program:
        def __init__(self) -> None:
            self.made: list[Any] = []

        def warmup(self, *args: Any, grid: Any, **constants: Any) -> None:
            self.made.append((args, grid, constants))

    one = Program()
    jobs = [
        use.Job(program=one, args=(torch.float32, 3, None), constants={"BP": 64}),
        use.Job(program=one, args=(torch.float32, 5, None), constants={"BP": 64}),
        use.Job(program=one, args=(torch.float32, 5, torch.float32), constants={"BP": 64}),
        use.Job(program=one, args=(torch.bfloat16, 3, None), constants={"BP": 64}),
        use.Job(program=one, args=(torch.float32, 3, None), constants={"BP": 128}),
    ]
    monkeypatch.setattr("dsconvert.kernels.ahead.collected", lambda *_, **__: jobs)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    assert kernels.compile_ahead(Block(), threads=2) == len(one.made) == 4
