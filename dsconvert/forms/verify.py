"""Compare an export with the model that it was made from, on random latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter, adapter_for, image_tensor
from dsconvert.errors import ExportError
from dsconvert.forms.flat_graph import Core
from dsconvert.forms.noise import DRAWS, draw
from dsconvert.model.copying import isolated_copy
from dsconvert.model.editing import replace
from dsconvert.model.inputs import Inputs, examples_of, fresh_args
from dsconvert.model.model_types import types_of
from dsconvert.model.observe import evaluating
from dsconvert.util.first_line import typed_line

BATCHES = (2, 1, 3)
"""Batch sizes that are compared. Programs are traced with the first; the others detect a fixed
batch size."""
_TOLERANCE = {torch.float16: 3e-2, torch.bfloat16: 1e-1, torch.float64: 1e-6}


class _Given(nn.Module):
    """A noise injection that takes its plane from a list instead of drawing it."""

    def __init__(self, weight: Tensor, planes: list[Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._planes = planes

    def forward(self, *args: Tensor, **named: Tensor) -> Tensor:
        # The map is the first argument, by any name; StyleGAN2 passes a noise mode, too.
        x = args[0] if args else next(iter(named.values()))
        return x + self.weight * self._planes.pop(0)


class Reference:
    """The original, in eval mode, with the noise as an argument."""

    def __init__(
        self,
        model: nn.Module,
        core: Core,
        noise_types: tuple[type[nn.Module], ...] = (),
        *,
        adapter: Adapter | None = None,
    ) -> None:
        known = adapter_for(model) if adapter is None else adapter
        types = types_of(model, known, noises=noise_types).noises
        self._core = core
        self._queue: list[Tensor] = []
        self._model = isolated_copy(model).eval()
        for module in list(self._model.modules()):
            if isinstance(module, types):
                weight: Any = module.weight
                replace(self._model, module, _Given(weight.detach(), self._queue))

    def __call__(self, args: tuple[Any, ...], numbers: Tensor) -> Tensor:
        """Return images for the model's own ``args`` and noise ``numbers`` (N or 1, K)."""
        self._queue[:] = [
            part.reshape(-1, 1, p.height, p.width)
            for p, part in zip(
                self._core.planes,
                numbers.split([p.height * p.width for p in self._core.planes], 1),
                strict=True,
            )
        ]
        with evaluating(self._model):
            return image_tensor(self._model(*fresh_args(args)), sounds=True)


def compare(
    model: nn.Module,
    core: Core,
    run: Callable[..., Tensor],
    what: str,
    *,
    inputs: Inputs | None = None,
    noise_types: tuple[type[nn.Module], ...] = (),
    batches: Sequence[int] = BATCHES,
    seed: int = 1,
    adapter: Adapter | None = None,
) -> tuple[float, float]:
    """Run ``run`` and ``model`` on the same random inputs, for several batch sizes.

    Args:
        model: the original.
        core: the exported graph.
        run: takes the tensors of ``core.inputs``, returns images.
        what: a name for ``run``, for errors.
        inputs: sampler of the model's arguments, where no adapter knows it.
        noise_types: as for :func:`dsconvert.forms.flat_graph.flatten`.
        batches: batch sizes.
        seed: of the inputs.
        adapter: the model's adapter; None: the installed one that knows the model.

    Returns:
        the largest difference of a pixel, and the largest magnitude of a pixel of the original.

    Raises:
        ExportError: the images differ by more than float tolerance, or ``run`` fails.
    """
    reference = Reference(model, core, noise_types, adapter=adapter)
    generator = torch.Generator().manual_seed(seed)
    worst, reach = 0.0, 0.0
    for i, n in enumerate(batches):
        args = examples_of(model, inputs, n=n, seed=seed + i, adapter=adapter)
        tensors = list(core.select(args))
        first = tensors[0]
        if core.noise == "random":
            numbers = draw(core.planes, n, generator)
        elif core.noise == "fixed":
            numbers = core.fixed_planes()
        else:
            numbers = torch.zeros(1, core.plane_numbers)
        numbers = numbers.to(first.device, core.dtype)
        if core.takes_noise:
            tensors.append(numbers)
        want = reference(args, numbers)
        try:
            with torch.no_grad():
                got = run(*tensors)
        except Exception as error:
            raise ExportError(
                f"{what}, loaded again, fails on a batch of {n}: {typed_line(error)}. Nothing was "
                "written."
            ) from error
        if got.shape != want.shape:
            raise ExportError(
                f"{what}, loaded again, makes {list(got.shape)} of what is {list(want.shape)} from "
                "the model. Nothing was written."
            )
        check_finite(want, what, batch=n)
        error = (got.to(want.device).double() - want.double()).abs().max().item()
        size = want.double().abs().max().item()
        # A comparison with NaN is false, and fails the check.
        if not error <= _TOLERANCE.get(core.dtype, 1e-3) * max(size, 1e-3):
            raise ExportError(
                f"{what}, loaded again, differs from the model by {error:.3g} (batch {n}, images "
                f"reach {size:.3g}). {_why(reference, args, numbers)}Nothing was written."
            )
        worst, reach = max(worst, error), max(reach, size)
    return worst, reach


def _why(reference: Reference, args: tuple[Any, ...], numbers: Tensor) -> str:
    """Return the reason if the model makes another image at each call, or an empty text."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one = reference(args, numbers)
        torch.manual_seed(1)
        two = reference(args, numbers)
    if torch.equal(one, two):
        return ""
    return f"The reason: {DRAWS}or export to torch. "


def check_finite(wanted: Tensor, what: object, *, batch: int) -> None:
    """Check that the model's own images can be compared with those of ``what``.

    Raises:
        ExportError: they hold NaN or infinity.
    """
    if not wanted.isfinite().all():
        raise ExportError(
            f"the model itself makes values that are not finite (batch {batch}), so that nothing "
            f"can be compared with {what}. Nothing was written."
        )
