"""ONNX in half precision, or with 8-bit weights, by onnxruntime's own tools; measured in dB.

``fp16`` stores weights and computes in half precision; inputs and images stay 32-bit. ``int8``
stores the weights of convolutions and products as 8-bit numbers with a scale a channel, and
quantises the activations, whose ranges come from the inputs that a fit uses: with 8 bits, or, where
the images then miss the limit, with 16.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import adapter_for
from dsconvert.config.choices import ExportDtype
from dsconvert.core.held_out_psnr import held_out_psnr, held_out_snr
from dsconvert.errors import ExportError
from dsconvert.export.graphs import Run
from dsconvert.forms.flat_graph import Core, draw
from dsconvert.forms.verify import Reference
from dsconvert.model.inputs import Inputs, examples_of, held_out_inputs, values_of
from dsconvert.util.files import new_part
from dsconvert.util.first_line import typed_line

if TYPE_CHECKING:
    from collections.abc import Callable

_BATCH = 4
_CALIBRATION = 8
"""Batches whose activations say the ranges."""
_JUDGED = 4
"""Batches that the PSNR is measured on."""


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """The error of a graph of fewer bits, on inputs that it was not calibrated by."""

    psnr: float | None
    """Mean PSNR in dB of the images to the model's; None for sounds."""
    snr: float | None
    """Signal-to-noise ratio in dB of the sounds to the model's; None for images."""
    error: float
    """Largest difference of a pixel."""
    activation_bits: int
    """Of the activations: 16 (``fp16``; ``int8`` where 8 miss the limit) or 8."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """The model and its graph, on the same random inputs and noise."""

    model: nn.Module
    core: Core
    inputs: Inputs | None
    noise_types: tuple[type[nn.Module], ...] = ()

    def feeds(self) -> Iterator[dict[str, Any]]:
        """Yield the inputs of the graph for calibration, as the fit draws them, by name."""
        for i in range(_CALIBRATION):
            tensors, _, _ = self._drawn(self.inputs, seed=i)
            yield {k: t.cpu().numpy() for k, t in zip(self.core.inputs, tensors, strict=True)}

    def judge(self, run: Run) -> tuple[float | None, float | None, float]:
        """Return the PSNR of images, the ratio of sounds, and the largest difference."""
        judged = None if self.inputs is None else held_out_inputs(self.inputs)
        reference = Reference(self.model, self.core, self.noise_types)
        made: list[Tensor] = []
        wanted: list[Tensor] = []
        for i in range(_JUDGED):
            tensors, numbers, args = self._drawn(judged, seed=1000 + i)
            wanted.append(reference(args, numbers).float().cpu())
            made.append(run(*tensors).float().cpu())
        one, two = torch.cat(made), torch.cat(wanted)
        adapter = adapter_for(self.model)
        found = held_out_psnr((one, two), adapter, values_of(self.inputs))
        ratio = None if found is not None else held_out_snr((one, two), adapter)
        return found, ratio, float((one - two).abs().max())

    def _drawn(
        self, inputs: Inputs | None, *, seed: int
    ) -> tuple[list[Tensor], Tensor, tuple[Any, ...]]:
        core = self.core
        args = examples_of(self.model, inputs, n=_BATCH, seed=seed)
        tensors = list(core.select(args))
        generator = torch.Generator().manual_seed(seed)
        if core.noise == "random":
            numbers = draw(core.planes, _BATCH, generator)
        elif core.noise == "fixed":
            numbers = core.fixed_planes()
        else:
            numbers = torch.zeros(1, core.plane_numbers)
        numbers = numbers.to(tensors[0].device, core.dtype)
        if core.takes_noise:
            tensors.append(numbers)
        return tensors, numbers, args


def reduce_onnx(
    files: tuple[Path, ...],
    dtype: ExportDtype,
    *,
    sampled: Sampled,
    open_graph: Callable[[Path], Run],
    least_psnr: float,
    what: str,
) -> Reduced:
    """Replace a 32-bit ONNX file by one of fewer bits, and measure its error.

    Args:
        files: the file, which is replaced, and others that hold its weights, which are deleted.
        dtype: ``fp16`` or ``int8``.
        sampled: the model, its graph and its inputs.
        open_graph: opens a file to run it.
        least_psnr: the limit in dB.
        what: the name of the file, for errors.

    Raises:
        ExportError: the tools fail, the result can't run or be measured, or it misses the limit.
    """
    path, *others = files
    tries = (16,) if dtype == "fp16" else (8, 16)
    best = -float("inf")
    for bits in tries:
        made = new_part(path.parent)  # the file itself may have any name
        try:
            with _silent():
                if dtype == "fp16":
                    _halve(path, made)
                else:
                    _quantise(path, made, sampled, bits)
                psnr, snr, error = sampled.judge(open_graph(made))
        except (OSError, KeyboardInterrupt):
            raise
        except Exception as problem:  # the tools raise anything
            raise ExportError(
                f"{what} can't be written as {dtype}: {typed_line(problem)}. Nothing was written; "
                "leave --dtype out."
            ) from problem
        decibels = snr if psnr is None else psnr
        if decibels is None:
            raise ExportError(
                f"the error of {what} as {dtype} can't be measured in dB, since the model's output "
                "is no sound, nor an image in [-1, 1] or [0, 1]. Nothing was written; leave "
                "--dtype out."
            )
        if decibels >= least_psnr:
            _keep_facts(path, made)
            made.replace(path)
            for other in others:
                other.unlink()
            return Reduced(psnr=psnr, snr=snr, error=error, activation_bits=bits)
        best = max(best, decibels)
        made.unlink()
    raise ExportError(
        f"{what} as {dtype} is {best:.1f} dB from the model, below the limit of "
        f"{least_psnr:g} dB. Nothing was written; give a lower --least-psnr, or leave --dtype out."
    )


def _halve(source: Path, target: Path) -> None:
    onnx: Any = import_module("onnx")
    tool: Any = import_module("onnxruntime.transformers.float16")
    made = tool.convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    onnx.save(made, str(target))


def _quantise(source: Path, target: Path, sampled: Sampled, activation_bits: int) -> None:
    tools: Any = import_module("onnxruntime.quantization")
    prepare: Any = import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    ready = new_part(source.parent)
    feeds = sampled.feeds()

    class Reader(tools.CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    try:
        prepare(str(source), str(ready), skip_symbolic_shape=True)
        kinds = tools.QuantType
        tools.quantize_static(
            str(ready),
            str(target),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            weight_type=kinds.QInt8,
            activation_type=kinds.QUInt8 if activation_bits == 8 else kinds.QUInt16,
        )
    finally:
        ready.unlink(missing_ok=True)


def _keep_facts(source: Path, target: Path) -> None:
    """Copy the metadata of ``source``, which the tools drop, to ``target``."""
    onnx: Any = import_module("onnx")
    facts = onnx.load(str(source), load_external_data=False).metadata_props
    made = onnx.load(str(target))
    del made.metadata_props[:]
    made.metadata_props.extend(facts)
    onnx.save(made, str(target))


@contextmanager
def _silent() -> Generator[None, None, None]:
    """Keep the tools' advice from the log and from standard output."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
