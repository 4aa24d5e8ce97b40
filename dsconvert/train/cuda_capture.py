"""Capture a function of tensors into a CUDA graph; a capture is a function, so that tests give one.

See :mod:`dsconvert.train.step_graph`, which decides about the content of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor

from dsconvert.kernels import replayed

WARM = 2
"""Runs on the stream of the capture before it: kernels and algorithms are chosen in them."""

Run = Callable[[], Sequence[Tensor]]
Capture = Callable[[Run], tuple[Sequence[Tensor], Callable[[], None]]]
"""``capture(run)`` returns the tensors of a captured run, and a function that renews them."""


class CudaCapture:
    """Captures functions whose graphs are always replayed in the order of their captures.

    They share their memory. A function may draw random numbers on the device, which follow
    ``torch.manual_seed`` at each replay, and must not copy from or to the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, run: Run) -> tuple[Sequence[Tensor], Callable[[], None]]:
        """Capture ``run``, which is also run before, for real."""
        with torch.cuda.device(self._device), replayed():
            if self._stream is None:
                self._stream = torch.cuda.Stream()
                self._pool = torch.cuda.graph_pool_handle()
            current = torch.cuda.current_stream()
            # Memory that ordinary steps have left belongs to their stream, and the runs on another
            # one can't use it.
            torch.cuda.empty_cache()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM):
                    run()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # The thread that pins batches of images may call CUDA meanwhile.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    made = run()
            finally:
                # torch leaves its own stream in place where the end of a capture fails.
                torch.cuda.set_stream(current)
        return made, graph.replay

    def recover(self) -> None:
        """After a capture that failed: free its memory, and draw from a state of its own again.

        A broken capture can leave the device's random generator in the state of a capture, and the
        allocator waiting for the capture's end, where it frees nothing. Each is mended whatever
        becomes of the others.
        """
        with suppress(Exception), torch.cuda.device(self._device):
            torch.cuda.synchronize()
        with suppress(Exception), torch.cuda.device(self._device):
            fresh = torch.Generator(device=self._device).graphsafe_get_state()
            index = torch.cuda.current_device()
            torch.cuda.default_generators[index].graphsafe_set_state(fresh)
        with suppress(Exception), torch.cuda.device(self._device):
            # The end of a broken capture raises before torch tells the allocator. If the allocator
            # knows, the first call raises, and the second one is left out.
            index, internals = torch.cuda.current_device(), cast("Any", torch._C)
            earlier = getattr(internals, "_cuda_endAllocateCurrentStreamToPool", None)  # torch 2.6
            (earlier or internals._cuda_endAllocateToPool)(index, self._pool)
            internals._cuda_releasePool(index, self._pool)
        with suppress(Exception), torch.cuda.device(self._device):
            torch.cuda.empty_cache()
