"""What ``peers.py`` measures: the official generator, our conversions of it, and its peers."""

from __future__ import annotations

import copy
import functools
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from dsconvert_adapters.projected_gan import Generator
from torch import nn

from dsconvert import plan
from dsconvert.core.pipeline import analyse, apply_to, plan_for, sampler_of
from dsconvert.model.graph import ConvTypes
from dsconvert.model.inputs import examples_of

CONFIGS = {
    "256": {"cfg": "fastgan", "resolution": 256},
    "512": {"cfg": "fastgan", "resolution": 512},
    "lite-256": {"cfg": "fastgan_lite", "resolution": 256},
}


class SkippedError(Exception):
    """This row can't be had here; says why."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all rows of a run share."""

    config: str
    ngf: int
    init: str
    calibrate: int | None
    folder: Path
    threads: int
    device: str = "cpu"
    """Where the generators are made."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A row's model, ready to be sent to a process of its own."""

    model: nn.Module
    inputs: Callable[[int, torch.Generator], tuple[Any, ...]]
    counted: nn.Module | None = None
    """What parameters, MACs and image error are taken from, where ``model`` can't be counted."""
    trains: bool = True
    compile: bool = False
    keep_freed: bool = False
    """Whether its process keeps freed memory (``dsconvert.util.allocator``)."""
    bytes: int | None = None
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


class Exported(nn.Module):
    """An exported file as a module; opened where it is first called."""

    def __init__(self, path: str, threads: int) -> None:
        super().__init__()
        self.path, self.threads = path, threads
        self._run: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        """What the file computes."""
        if self._run is None:
            from dsconvert import load_export

            self._run = load_export(self.path, threads=self.threads)
        return self._run(*args)


def official(options: Options) -> Generator:
    """The official architecture, random weights, nothing left at its initial value.

    Batch statistics are those of one batch, so that activations neither vanish nor explode.
    """
    torch.manual_seed(0)
    with torch.device(options.device):
        made = Generator.from_config(ngf=options.ngf, **CONFIGS[options.config])
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in made.modules():
        if type(module).__name__ == "NoiseInjection":
            module.weight.data.fill_(0.05)
    for norm in norms:
        norm.weight.data.uniform_(0.8, 1.2)
        norm.bias.data.normal_(0, 0.1)
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        made(*examples_of(made, n=4))
    for norm in norms:
        norm.momentum = 0.1
    return made.eval()


def saved_bytes(model: nn.Module) -> int:
    """Bytes of the state dict as torch saves it; nothing is written to a disk."""

    class Count(io.RawIOBase):
        total = 0

        def write(self, data: Any) -> int:
            size = memoryview(data).nbytes
            Count.total += size
            return size

        def writable(self) -> bool:
            return True

    torch.save(model.state_dict(), Count())
    return Count.total


@functools.lru_cache(maxsize=1)
def analysis_of(original: nn.Module) -> Any:
    """Return the analysis of a generator; kept, since each row of a run converts the same one."""
    return analyse(original)


def converted(original: nn.Module, options: Options, preset: str, width: float) -> nn.Module:
    """Return the conversion by a preset; below full width with the first channels of each map.

    Which channels are kept changes the images, not the time.
    """
    analysis = analysis_of(original)
    plan = plan_for(analysis, preset=preset, width=width, init="random")
    kept = {w.group: tuple(range(w.kept)) for w in plan.widths if w.kept < w.channels}
    return apply_to(
        analysis, plan, init=options.init, calibrate=options.calibrate, costs=NO_COSTS,
        kept=kept or None,
    ).model  # fmt: skip


def _preset(name: str, width: float = 1) -> Callable[[nn.Module, Options], Built]:
    def build(original: nn.Module, options: Options) -> Built:
        model = converted(original, options, name, width)
        return Built(model=model, inputs=sampler_of(original))

    return build


def _official(original: nn.Module, options: Options) -> Built:  # noqa: ARG001
    return Built(model=original, inputs=sampler_of(original))


def _fast(original: nn.Module, options: Options) -> nn.Module:
    return _preset("fast")(original, options).model


def _compiled(original: nn.Module, options: Options) -> Built:
    return Built(model=_fast(original, options), inputs=sampler_of(original), compile=True)


def _deployed(name: str, width: float = 1) -> Callable[[nn.Module, Options], Built]:
    def build(original: nn.Module, options: Options) -> Built:
        from dsconvert.forms import deploy

        made = converted(original, options, name, width)
        return Built(model=deploy(made), inputs=sampler_of(original), counted=made, trains=False)

    return build


def _lean(name: str, width: float = 1) -> Callable[[nn.Module, Options], Built]:
    def build(original: nn.Module, options: Options) -> Built:
        from dsconvert.forms import lean

        made = converted(original, options, name, width)
        return Built(model=lean(made), inputs=sampler_of(original), counted=made)

    return build


def _export(kind: str, suffix: str) -> Callable[[nn.Module, Options], Built]:
    def build(original: nn.Module, options: Options) -> Built:
        from dsconvert import export_model
        from dsconvert.errors import MissingExtraError

        fast = _fast(original, options)
        path = options.folder / f"fast-{options.config}{suffix}"
        try:
            made = export_model(fast, path, format=kind, noise="random", overwrite=True)
        except MissingExtraError as error:
            raise SkippedError(str(error)) from error
        shapes = [shape[1:] for shape in made.inputs.values()]

        def inputs(n: int, generator: torch.Generator) -> tuple[Any, ...]:
            return tuple(torch.randn(n, *s, generator=generator) for s in shapes)

        return Built(
            model=Exported(str(path), options.threads),
            inputs=inputs,
            counted=fast,
            trains=False,
            bytes=made.bytes,
            notes=(f"largest difference to fast {made.error:.2g}; noise is an input",),
        )

    return build


def _bsconv(original: nn.Module, options: Options) -> Built:  # noqa: ARG001
    try:
        from bsconv.pytorch.replacers import BSConvU_Replacer
    except ImportError as error:
        raise SkippedError("not installed: pip install bsconv") from error
    model = _plain(original)
    replaced = BSConvU_Replacer().apply(model)
    return Built(
        model=replaced,
        inputs=sampler_of(original),
        notes=("random weights: this rewriter carries none over",),
    )


def _plain(original: nn.Module) -> nn.Module:
    """A copy with every norm folded: these tools know no spectral norm."""
    from dsconvert.model.editing import copied
    from dsconvert.model.norms import fold, norm_kind

    model = copied(original)
    for module in model.modules():
        if isinstance(module, ConvTypes) and norm_kind(module) != "none":
            fold(module)
    return model


def _pruned(preset: str) -> Callable[[nn.Module, Options], Built]:
    def build(original: nn.Module, options: Options) -> Built:  # noqa: ARG001
        try:
            import torch_pruning as tp
        except ImportError as error:
            raise SkippedError(
                "torch-pruning is not installed: pip install torch-pruning"
            ) from error
        inputs = sampler_of(original)
        example = examples_of(original)
        analysis = analyse(original)
        decided = plan_for(analysis, preset=preset)
        ours = apply_to(analysis, decided, init="random", costs=NO_COSTS)
        aim = _conv_macs(ours.model, example)
        source = _plain(original)
        # Parts that never run are in no graph.
        for name in plan(original, preset="exact").remove:
            parent, _, child = name.rpartition(".")
            delattr(source.get_submodule(parent), child)

        def at(ratio: float) -> nn.Module:
            model = copy.deepcopy(source).requires_grad_(True)
            last = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels <= 4]
            pruner = tp.pruner.MagnitudePruner(
                model,
                example,
                importance=tp.importance.MagnitudeImportance(p=2),
                pruning_ratio=ratio,
                ignored_layers=last,
                round_to=2,
            )
            pruner.step()
            return model.requires_grad_(False)

        # It takes both halves in front of a gate for each channel behind it, twice what was asked
        # for; from one half upwards nothing would be left, and it leaves such groups alone.
        low, high = 0.0, 0.499
        best, found = None, 0
        for _ in range(8):
            ratio = (low + high) / 2
            model = at(ratio)
            macs = _conv_macs(model, example)
            if macs > aim:
                low = ratio
            else:
                high, best, found = ratio, model, macs
        if best is None:
            raise SkippedError(f"no pruning ratio reaches {aim / 1e9:.2f} GMAC")
        return Built(
            model=best,
            inputs=inputs,
            notes=(f"pruned to {preset}'s MACs ({found / aim:.2f} of them), no fine-tuning",),
        )

    return build


def _conv_macs(model: nn.Module, example: tuple[Any, ...]) -> int:
    return int(traffic(model, example)[1])


@torch.no_grad()
def traffic(model: nn.Module, example: tuple[Any, ...]) -> tuple[float, float]:
    """Elements that the convolutions of one sample read and write, and their MACs.

    Everything else is taken as fused away: this is what a floor may assume. Every convolution that
    runs counts, also of modules that ``model`` doesn't list (the folded backbone).
    """
    moved = macs = 0.0

    def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        nonlocal moved, macs
        if not isinstance(module, ConvTypes):
            return
        moved += args[0].numel() + out.numel()
        grid = args[0] if isinstance(module, nn.ConvTranspose2d) else out
        macs += module.weight.numel() / (
            module.in_channels if isinstance(module, nn.ConvTranspose2d) else module.out_channels
        ) * grid.numel()  # fmt: skip

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        model(*example)
    finally:
        handle.remove()
    return moved, macs


def _kept(
    row: Callable[[nn.Module, Options], Built],
) -> Callable[[nn.Module, Options], Built]:
    """The same in a process that keeps the memory it frees."""

    def build(original: nn.Module, options: Options) -> Built:
        return replace(row(original, options), keep_freed=True)

    return build


def _no_costs() -> Any:
    from dsconvert.records import Cost

    empty = Cost(params=0, macs=None, layers=())
    return empty, empty


NO_COSTS = _no_costs()

ROWS: dict[str, Callable[[nn.Module, Options], Built]] = {
    "official": _official,
    "exact": _preset("exact"),
    "paper": _preset("paper"),
    "balanced": _preset("balanced"),
    "fast": _preset("fast"),
    "balanced, deployed": _deployed("balanced"),
    "fast, deployed": _deployed("fast"),
    "fast, lean": _lean("fast"),
    "half width, balanced": _preset("balanced", 0.5),
    "half width, balanced, deployed": _deployed("balanced", 0.5),
    "half width, balanced, lean": _lean("balanced", 0.5),
    "half width, fast, lean": _lean("fast", 0.5),
    "official, freed memory kept": _kept(_official),
    "balanced, freed memory kept": _kept(_preset("balanced")),
    "balanced, deployed, freed memory kept": _kept(_deployed("balanced")),
    "fast, deployed, freed memory kept": _kept(_deployed("fast")),
    "fast, lean, freed memory kept": _kept(_lean("fast")),
    "fast, onnxruntime": _export("onnx", ".onnx"),
    "fast, OpenVINO": _export("openvino", ".xml"),
    "BSConv": _bsconv,
    "Torch-Pruning, balanced's MACs": _pruned("balanced"),
    "Torch-Pruning, fast's MACs": _pruned("fast"),
    # Last: compiling every batch size, and the backward pass, takes minutes.
    "fast, torch.compile": _compiled,
}
"""In order of importance: a run that is cut short has the first ones."""


def build(name: str, original: nn.Module, options: Options) -> tuple[Built, float]:
    """A row and the seconds that it took to make it (conversion, pruning, export)."""
    began = time.perf_counter()
    built = ROWS[name](original, options)
    return built, time.perf_counter() - began
