"""What ``gpu.py`` measures: generators, modes in which they run, operations, and their order."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peer_rows import Options, SkippedError, analysis_of, build, converted, official
from torch import nn

from dsconvert.config.choices import Dtype, NoiseSource, Precision
from dsconvert.config.train import NewGenerator, Recompute
from dsconvert.core.pipeline import sampler_of
from dsconvert.model.inputs import Inputs
from dsconvert.train.setup import new_generator


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How a generator runs.

    Attributes:
        dtype: of the weights in a forward pass.
        step_dtype: of forward + backward.
        precision: of a training step.
        tf32: whether float32 products may use TF32.
        noise: where noise is drawn.
        channels_last: the memory layout.
        compile: through ``torch.compile``.
        graph: CUDA graphs, replayed: of a forward pass, or of the passes of a training step.
        autotune: cuDNN's benchmark mode, which costs seconds for each new shape.
    """

    dtype: Dtype = "float32"
    step_dtype: Dtype = "float32"
    precision: Precision = "fp32"
    tf32: bool = False
    noise: NoiseSource = "device"
    channels_last: bool = False
    compile: bool = False
    graph: bool = False
    autotune: bool = False

    @property
    def rate(self) -> str:
        """The name of the card's limits that apply."""
        return "bfloat16" if self.dtype == "bfloat16" else "tf32" if self.tf32 else "float32"

    @property
    def bytes(self) -> int:
        """Bytes of an element."""
        return 2 if self.dtype == "bfloat16" else 4


_BF16 = Mode(dtype="bfloat16", step_dtype="amp-bfloat16", precision="bf16", channels_last=True)
SHIPPED, PLAIN = "FP32, noise on the CPU", "FP32"
MODES: dict[str, Mode] = {
    SHIPPED: Mode(noise="official"),
    PLAIN: Mode(),
    "TF32": Mode(tf32=True, channels_last=True),
    "BF16": _BF16,
    "FP32, graph": Mode(graph=True),
    "BF16, graph": replace(_BF16, graph=True),
    "FP32, compiled": Mode(compile=True, channels_last=True, autotune=True),
    "TF32, compiled": Mode(tf32=True, compile=True, channels_last=True, autotune=True),
    "BF16, compiled": replace(_BF16, compile=True, autotune=True),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """An operation (``forward``, ``backward``: G forward and backward, ``train``) and its batch."""

    kind: str
    batch: int
    seconds: float
    """A first guess of the time that its measurement takes, without compilation."""
    compiling: float
    """The same of the compilation."""

    @property
    def name(self) -> str:
        """The key in the results."""
        return f"{self.kind}_{self.batch}"


def works(*, small: bool) -> dict[str, Work]:
    """Return the operations by short names: F and f (forward), B (backward), T (train)."""
    large, single, back, step = (2, 1, 2, 2) if small else (32, 1, 16, 32)
    return {
        "F": Work(kind="forward", batch=large, seconds=4, compiling=60),
        "f": Work(kind="forward", batch=single, seconds=3, compiling=60),
        "B": Work(kind="backward", batch=back, seconds=5, compiling=120),
        "T": Work(kind="train", batch=step, seconds=12, compiling=240),
    }


@dataclass(kw_only=True)
class Row:
    """One generator: how it is made, and the form that it runs in.

    Attributes:
        made_of: the row in ``Bench`` whose model it is; its own name by default.
        form: ``deployed`` or ``lean``; None: as it is.
        new: what ``dsconvert train`` makes for it; None: it trains the model itself.
    """

    make: Callable[[nn.Module, Options], nn.Module] | None = None
    made_of: str | None = None
    form: str | None = None
    new: dict[str, Any] | None = field(default=None)
    recompute: Recompute = "none"


def _preset(preset: str, width: float = 1) -> Row:
    def make(original: nn.Module, options: Options) -> nn.Module:
        return converted(original, options, preset, width)

    return Row(make=make, new={"preset": preset, "width": width})


def _peer(name: str) -> Row:
    def make(original: nn.Module, options: Options) -> nn.Module:
        return build(name, original, options)[0].model

    return Row(make=make)


def _form(name: str, form: str) -> Row:
    row = Row(made_of=name, form=form)
    if form == "lean":
        return replace(row, new=ROWS[name].new, recompute="lean")
    return row


ROWS: dict[str, Row] = {
    "official": Row(make=lambda original, options: original, new={"preset": "none"}),  # noqa: ARG005
    "exact": _preset("exact"),
    "paper": _preset("paper"),
    "balanced": _preset("balanced"),
    "fast": _preset("fast"),
    "half width": _preset("none", 0.5),
    "half width, balanced": _preset("balanced", 0.5),
    "half width, fast": _preset("fast", 0.5),
    "BSConv": _peer("BSConv"),
    "Torch-Pruning, fast's MACs": _peer("Torch-Pruning, fast's MACs"),
    "Torch-Pruning, balanced's MACs": _peer("Torch-Pruning, balanced's MACs"),
}
for _name in ("fast", "balanced", "half width, balanced"):
    ROWS[f"{_name}, deployed"] = _form(_name, "deployed")
for _name in ("fast", "paper", "half width, balanced"):
    ROWS[f"{_name}, lean"] = _form(_name, "lean")

ORDER: tuple[tuple[str, str, str], ...] = (
    ("official", SHIPPED, "FfBT"),
    ("fast", PLAIN, "FfBT"),
    ("half width, balanced", PLAIN, "FfBT"),
    ("official", PLAIN, "FfBT"),
    ("paper", PLAIN, "BTFf"),
    ("fast, lean", PLAIN, "BTFf"),
    ("fast, lean", "FP32, graph", "T"),
    ("paper", "FP32, graph", "T"),
    ("fast", "FP32, graph", "T"),
    ("official", "FP32, graph", "T"),
    ("fast, deployed", PLAIN, "Ff"),
    ("official", "BF16", "FTB"),
    ("fast", "BF16", "FTB"),
    ("half width, balanced", "BF16", "FTB"),
    ("balanced", PLAIN, "FfBT"),
    ("half width", PLAIN, "FfBT"),
    ("half width, balanced, deployed", PLAIN, "Ff"),
    ("official", "BF16, compiled", "F"),
    ("half width, balanced", "BF16, compiled", "F"),
    ("official", "FP32, graph", "f"),
    ("fast", "FP32, graph", "f"),
    ("fast, deployed", "FP32, graph", "f"),
    ("half width, balanced", "FP32, graph", "f"),
    ("fast, deployed", "BF16", "F"),
    ("half width, balanced, deployed", "BF16", "F"),
    ("exact", PLAIN, "FfB"),
    ("fast", SHIPPED, "F"),
    ("paper", SHIPPED, "B"),
    ("half width, balanced, lean", PLAIN, "BT"),
    ("Torch-Pruning, fast's MACs", PLAIN, "FfBT"),
    ("BSConv", PLAIN, "FBT"),
    ("paper, lean", PLAIN, "BT"),
    ("half width, fast", PLAIN, "FfB"),
    ("balanced, deployed", PLAIN, "F"),
    ("half width", "BF16", "FB"),
    ("official", "TF32", "FTB"),
    ("fast", "BF16, compiled", "F"),
    ("official", "TF32, compiled", "F"),
    ("Torch-Pruning, balanced's MACs", PLAIN, "FB"),
    ("official", "BF16, graph", "f"),
    ("half width, balanced", "BF16, graph", "f"),
    ("official", "BF16, compiled", "B"),
    ("half width, balanced", "BF16, compiled", "B"),
)
"""Rows, modes and operations, the most telling first: a run that is cut short has those."""


class Bench:
    """The generators of a run: made once, on the device where that works, and kept on the CPU."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.seconds: dict[str, float] = {}
        """In which the rows were made."""
        self.notes: dict[str, str] = {}
        self._original: nn.Module | None = None
        self._models: dict[str, nn.Module] = {}
        self._inputs: Inputs | None = None

    def source(self, name: str) -> str:
        """Return the row whose model ``name`` runs."""
        return ROWS[name].made_of or name

    def has(self, name: str) -> bool:
        """Return whether the model of a row is made."""
        return self.source(name) in self._models

    def inputs(self, batch: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Return arguments of a call, the same for every row."""
        if self._inputs is None:
            self._inputs = sampler_of(self.original)
        return self._inputs(batch, generator)

    @property
    def original(self) -> nn.Module:
        """The official generator."""
        if self._original is None:
            self._original = self._made("official", official)
        return self._original

    def model(self, name: str) -> nn.Module:
        """Return the model of a row, on the CPU.

        Raises:
            SkippedError: it needs a tool that is not installed.
        """
        source = self.source(name)
        if source not in self._models:
            began = time.perf_counter()
            original, make = self.original, ROWS[source].make
            assert make is not None
            made = self._made(source, lambda options: make(original.to(options.device), options))
            # The original stays where it is: the other rows are made of it.
            self._models[source] = made if made is original else made.cpu()
            self.seconds[source] = time.perf_counter() - began
        return self._models[source]

    def _made(self, name: str, make: Callable[[Options], nn.Module]) -> nn.Module:
        """Return ``make(options)``; where the device fails, made on the CPU, which a note says."""
        try:
            return make(self.options)
        except SkippedError:
            raise
        except Exception as error:
            if self.options.device == "cpu":
                raise
            analysis_of.cache_clear()
            said = f"{type(error).__name__}: {str(error).strip()[:300]}"
            self.notes[name] = f"made on the CPU, since on {self.options.device}: {said}"
            return make(replace(self.options, device="cpu"))

    def trained(self, name: str) -> nn.Module:
        """Return what ``dsconvert train`` makes for a row (a new copy), or a copy of its model."""
        row, size = ROWS[name], self.original
        facts: Any = size
        if row.new is None:
            return copy.deepcopy(self.model(name))
        wanted = NewGenerator(
            cfg="fastgan", resolution=facts.img_resolution, ngf=self.options.ngf, **row.new
        )

        def make(options: Options) -> nn.Module:
            # The choice of channels draws on the CPU, which a default device would change.
            there = options.device != "cpu" and wanted.width == 1
            with torch.device(options.device) if there else nullcontext():
                return new_generator(wanted)[0]

        made = self._made(name, make)
        for module in made.modules():
            if type(module).__name__ == "NoiseInjection":
                nn.init.constant_(module.weight, 0.05)  # type: ignore[arg-type]
        return made
