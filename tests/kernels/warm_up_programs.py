"""Let Triton compile for an H100, without one, what the launches of small maps ask it for.

    TRITON_INTERPRET=0 python tests/kernels/warm_up_programs.py

Triton's own code binds and specialises the arguments as before a launch, and compiles them.
Nothing runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from dsconvert.kernels import launch
from dsconvert.kernels.geometry import tiles_of
from dsconvert.kernels.launch import Normal, Source


class Card:
    """As much of a CUDA driver as a compilation asks for."""

    def get_current_target(self) -> GPUTarget:
        """Return an H100."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Return the first."""
        return 0

    def get_current_stream(self, _: Any = None) -> int:
        """Return the default stream."""
        return 0


def compiled(
    x: Tensor, program: Any, grid: tuple[int], args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Compile in place of :func:`dsconvert.kernels.launch.launched`."""
    made = program.warmup(*args, grid=grid, **constants)
    assert "sm_90" in made.asm["ptx"]
    # What is compiled ahead, from types alone, is found again.
    types = (a.dtype if isinstance(a, Tensor) else a for a in args)
    assert program.warmup(*types, grid=grid, **constants) is made
    print(program.fn.__name__, grid, tuple(x.shape), constants.get("KIND"))


def main() -> None:
    """Compile all programs in both layouts, and with all sizes 1."""
    driver.set_active(Card())
    launch.launched = compiled
    maps = torch.randn(2, 6, 16, 16, dtype=torch.bfloat16)
    ones, grad = torch.ones(6), torch.ones(2, 3, 32, 32, dtype=torch.bfloat16)
    normal = Normal(mean=ones, rstd=ones, gain=torch.ones(2, 6), shift=torch.ones(2, 6))
    for x in (maps, maps.to(memory_format=torch.channels_last)):
        weight, plane = torch.ones(6, 1, 4, 4), torch.ones(2, 1, 32, 32)
        up = Source(x=x, weight=weight, noise=ones[:1], plane=plane, gate=True)
        tile = tiles_of(up.geometry)[-1]
        launch.forward(up, None, ones, tile)
        launch.statistics(up, tile)
        launch.sums(up, normal, grad, tile)
        launch.gradient(up, normal, ones, ones, grad, tile, of_noise=True)
        wide = torch.ones(2, 6, 32, 32, dtype=torch.bfloat16)
        launch.filter_gradients(x, weight, wide, tile, of_x=True, of_weight=True)
        launch.forward(Source(x=x, weight=None, noise=ones, plane=wide[:1, :1]), ones, None, tile)
    single = Source(x=torch.ones(1, 1, 1, 1), weight=torch.ones(1, 1, 3, 3))
    launch.forward(single, None, None, tiles_of(single.geometry)[0])


if __name__ == "__main__":
    main()
