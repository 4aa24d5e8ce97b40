"""A function of tensors as CUDA graphs: one launch for all kernels of a small batch.

At batch 1 a generator's kernels are shorter than the time in which Python starts them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dsconvert.kernels import is_collecting, replayed

WARM = 3
"""Runs before the capture, as torch's documentation asks for; kernels are tuned in the first."""


class Replayed:
    """Calls a function through a CUDA graph for each shape, captured at the first call.

    Args:
        most: the largest batch that is captured; a graph keeps the memory of its maps. Larger
            ones run as they are.
    """

    def __init__(self, *, most: int) -> None:
        self.most = most
        self._graphs: dict[Any, tuple[Any, list[Tensor], Tensor]] = {}

    def __call__(self, run: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Return ``run(*tensors)``, a new tensor.

        ``run`` is the same function at each call, on one CUDA device. It may draw random numbers
        there (a replay draws new ones, and follows ``torch.manual_seed``), and must not copy from
        or to the CPU.
        """
        first = tensors[0]
        if first.device.type != "cuda" or len(first) > self.most:
            return run(*tensors)
        # No data, or into somebody else's graph.
        if is_collecting() or torch.cuda.is_current_stream_capturing():
            return run(*tensors)
        key = tuple((t.shape, t.dtype, t.device) for t in tensors)
        if key not in self._graphs:
            self._graphs[key] = self._capture(run, tensors)
        graph, inputs, output = self._graphs[key]
        for mine, given in zip(inputs, tensors, strict=True):
            mine.copy_(given)
        graph.replay()
        # The next replay overwrites it.
        return output.clone()

    def _capture(
        self, run: Callable[..., Tensor], tensors: tuple[Tensor, ...]
    ) -> tuple[Any, list[Tensor], Tensor]:
        with torch.cuda.device(tensors[0].device), replayed():
            inputs = [t.clone() for t in tensors]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            state = torch.cuda.get_rng_state()
            with torch.cuda.stream(stream):
                for _ in range(WARM):
                    run(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            # The first call draws the numbers that it would draw without a graph.
            torch.cuda.set_rng_state(state)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = run(*inputs)
        return graph, inputs, output

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the graphs, which belong to this process."""
        return {**self.__dict__, "_graphs": {}}
