"""Compile the Triton programs of a model side by side, before its first call."""

from __future__ import annotations

import contextlib
import copy
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dsconvert.kernels import use
from dsconvert.kernels.use import Job


def compile_ahead(
    model: nn.Module, *args: Any, backward: bool = False, threads: int | None = None, **kwargs: Any
) -> int:
    """Compile what ``model(*args, **kwargs)`` needs; return how many programs that are.

    Without it each operation's programs are compiled at its first call, one operation after the
    other. The model runs once on tensors without data: nothing is computed, drawn or changed.
    On other devices than CUDA there is nothing to compile. A program that can't be compiled is not
    counted; its operation is left to torch, with a warning, at the first call.

    Args:
        model: runs by the operators of :mod:`dsconvert.kernels`: deployed, or in its lean form.
        *args: of a call.
        backward: whether the gradients are wanted as well.
        threads: that compile; None: one a processor.
        **kwargs: of a call.

    Raises:
        RuntimeError: the model needs the data of its tensors.
    """
    tensors = [*model.parameters(), *model.buffers(), *pytree.tree_leaves((args, kwargs))]
    if not any(isinstance(t, Tensor) and t.is_cuda for t in tensors):
        return 0
    jobs = distinct(collected(model, args, kwargs, backward=backward))
    device = torch.cuda.current_device()

    def compiled(job: Job) -> bool:
        # The current device belongs to a thread.
        with contextlib.suppress(Exception), torch.cuda.device(device):
            job.program.warmup(*job.args, grid=(1,), **job.constants)
            return True
        return False

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return sum(pool.map(compiled, jobs))


def collected(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, backward: bool
) -> list[Job]:
    """Return the launches of a call, of every candidate that would be timed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, Tensor) else value

    memo: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers, vars(module)):
            memo |= {id(t): fake(t) for t in table.values() if isinstance(t, Tensor)}
    made = copy.deepcopy(model, memo)
    given, named = pytree.tree_map(fake, (args, kwargs))
    with mode, torch.set_grad_enabled(backward), use.collecting() as jobs:
        found = pytree.tree_leaves(made(*given, **named))
        if backward:
            outputs = [t for t in found if isinstance(t, Tensor) and t.requires_grad]
            torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
    return jobs


def distinct(jobs: list[Job]) -> list[Job]:
    """Return one job of each program that is compiled: numbers do not count."""
    found: dict[Any, Job] = {}
    for job in jobs:
        types = tuple(a if isinstance(a, torch.dtype) else a is None for a in job.args)
        key = (id(job.program), types, tuple(job.constants.items()))
        found.setdefault(key, job)
    return list(found.values())
