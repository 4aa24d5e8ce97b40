"""Hooks into the official code, installed in every process of a training."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from dsconvert.core.analysis import analyse
from dsconvert.core.conversion import apply_to
from dsconvert.core.pipeline import plan_for
from dsconvert.errors import SnapshotError, UsageError
from dsconvert.formats.official import load_snapshot
from dsconvert.formats.restructure import describe_changes, restructure
from dsconvert.model.copying import epsilons_of
from dsconvert.projected.lite0 import WEIGHTS, Weights, lite0
from dsconvert.records import Plan

GENERATOR = "pg_modules.networks_fastgan.Generator"
_STYLEGAN = "pg_modules.networks_stylegan2.Generator"
_MARK = "_dsconvert"


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    """Settings of the conversion.

    Attributes:
        repo: the checkout, an absolute path.
        preset: of the plan, if there is neither ``plan`` nor ``resume``.
        rank: one rank for all rewrites.
        plan: a plan as JSON.
        resume: a converted snapshot, whose architecture the generator gets (the trainer's own
            ``--resume`` loads the weights).
        seed: of the random weights.
        backbone: source of the discriminator's ImageNet weights.
    """

    repo: str
    preset: str = "paper"
    rank: int | None = None
    plan: str | None = None
    resume: str | None = None
    seed: int = 0
    backbone: Weights = "auto"


def install(settings: ConversionSettings) -> None:
    """Install the hooks in this process; a second call changes nothing.

    Raises:
        UsageError: the repository's code can't be imported.
    """
    if settings.backbone not in WEIGHTS:
        raise UsageError(f"no backbone weights are called {settings.backbone!r}.")
    if settings.repo not in sys.path:
        sys.path.insert(0, settings.repo)
    alias_old_timm()
    util = _imported("dnnlib.util")
    if hasattr(util.construct_class_by_name, _MARK):
        return
    util.construct_class_by_name = _constructor(util.construct_class_by_name, settings)
    misc = _imported("torch_utils.misc")
    misc.copy_params_and_buffers = _copier(misc.copy_params_and_buffers)
    misc.InfiniteSampler = _sampler_class(misc.InfiniteSampler)
    projector = _imported("pg_modules.projector")
    projector.timm = SimpleNamespace(create_model=_backbone(projector.timm, settings.backbone))


def worker(settings: ConversionSettings, *args: Any, **kwargs: Any) -> None:
    """Install the hooks, then call the trainer's ``subprocess_fn`` (in a spawned process)."""
    install(settings)
    train = sys.modules.get("train") or _imported("train")
    original = getattr(train, f"{_MARK}_subprocess_fn", None) or train.subprocess_fn
    original(*args, **kwargs)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = getattr(error, "name", None)
        own = (missing or "").split(".")[0] in ("dnnlib", "torch_utils", "pg_modules", "train")
        remedy = (
            "--repo must be a checkout of autonomousvision/projected-gan"
            if own or missing is None
            else f"the official code needs it: pip install {missing}"
        )
        raise UsageError(f"{name} can't be imported: {error}. {remedy}.") from error


def _constructor(original: Callable[..., Any], settings: ConversionSettings) -> Callable[..., Any]:
    def construct(*args: Any, class_name: Any = None, **kwargs: Any) -> Any:
        if "betas" in kwargs:
            # The official settings have [0, 0.99]; newer versions of Adam need floats.
            kwargs["betas"] = tuple(float(b) for b in kwargs["betas"])
        made = original(*args, class_name=class_name, **kwargs)
        if class_name == _STYLEGAN:
            raise UsageError("official-train converts --cfg fastgan and fastgan_lite only.")
        return converted(made, settings) if class_name == GENERATOR else made

    setattr(construct, _MARK, True)
    return construct


def converted(generator: nn.Module, settings: ConversionSettings) -> nn.Module:
    """Give the official generator the structure of a conversion, with random weights.

    Raises:
        DsconvertError: the plan, or the snapshot, does not fit it.
    """
    if settings.resume is not None:
        return _shaped_like(generator, settings.resume)
    analysis = analyse(generator)
    decided = (
        Plan.from_json(settings.plan)
        if settings.plan is not None
        else plan_for(analysis, preset=settings.preset, rank=settings.rank, width=1.0)
    )
    return apply_to(analysis, decided, init="random", calibrate=0, seed=settings.seed).model


def _shaped_like(generator: nn.Module, path: str) -> nn.Module:
    source = load_snapshot(path).generator
    try:
        restructure(generator, describe_changes(generator, source))
    except (ValueError, KeyError, AttributeError) as error:
        raise SnapshotError(
            f"{path} does not have the architecture that train.py asks for ({error}). Give the "
            "--cfg, --cond and --data resolution that it was made with."
        ) from error
    theirs = {k: v.shape for k, v in source.state_dict().items()}
    ours = {k: v.shape for k, v in generator.state_dict().items()}
    if theirs != ours:
        odd = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
        raise SnapshotError(
            f"{path} does not fit the generator that train.py makes (first: {odd[0]}). Give the "
            "--cfg, --cond and --data resolution that it was made with."
        )
    return generator


def _copier(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap the official copy of parameters, which skips names that do not match: raise instead."""

    def copy(src_module: nn.Module, dst_module: nn.Module, require_all: bool = False) -> None:
        source = _tensors(src_module)
        wanted = _tensors(dst_module)
        name = type(dst_module).__name__
        # A copy between different shapes would fail or, worse, broadcast.
        lacking = [k for k, v in wanted.items() if k not in source or source[k].shape != v.shape]
        if lacking:
            raise SnapshotError(
                f"the snapshot restores {len(wanted) - len(lacking)} of {len(wanted)} tensors of "
                f"the {name} (first missing: {lacking[0]}). Resume from a file that was converted "
                "with its discriminator (no --drop D), and give official-train no --preset or "
                "--plan beside it."
            )
        original(src_module, dst_module, require_all=require_all)
        theirs = epsilons_of(src_module)
        for key in epsilons_of(dst_module).keys() & theirs.keys():
            # A conversion may have changed it, to keep a scale; also that of a class like CCBN.
            module: Any = dst_module.get_submodule(key)
            module.eps = theirs[key]
        sys.stdout.write(f"dsconvert: {name}: {len(wanted)} of {len(wanted)} tensors restored\n")

    return copy


def _tensors(module: nn.Module) -> Mapping[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _sampler_class(original: Any) -> Any:
    """Adapt the official sampler: newer versions of ``Sampler.__init__`` take no data set."""

    def init(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
        base: Any = torch.utils.data.Sampler
        plain = base.__init__
        base.__init__ = lambda *_: None
        try:
            original.__init__(self, dataset, *args, **kwargs)
        finally:
            base.__init__ = plain

    return type("InfiniteSampler", (original,), {"__init__": init})


def _backbone(timm: Any, weights: Weights) -> Callable[..., Any]:
    def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> Any:
        if name != "tf_efficientnet_lite0" or not pretrained:
            return timm.create_model(name, pretrained=pretrained, **kwargs)
        net = lite0(weights=weights, extra="train", purpose="the official discriminator")
        if not hasattr(net, "act1"):
            # Newer versions of timm have the activation in the normalisation before it.
            net.act1 = nn.Identity()
        return net

    return create_model


_RENAMED = {
    "timm.models.layers.conv2d_same": "timm.layers.conv2d_same",
    "timm.models.layers.activations": "timm.layers.activations",
    "timm.models.layers.norm_act": "timm.layers.norm_act",
    "timm.models.efficientnet_blocks": "timm.models._efficientnet_blocks",
    "timm.models.efficientnet_builder": "timm.models._efficientnet_builder",
}


def alias_old_timm() -> None:
    """Alias the modules of timm 0.4 to those of the installed timm, so that old pickles load.

    The trainer reads tensors by name from such objects and never runs them.
    """
    for old, new in _RENAMED.items():
        if old in sys.modules:
            continue
        try:
            importlib.import_module(old)
        except ImportError:
            try:
                found: ModuleType = importlib.import_module(new)
            except ImportError:
                continue  # timm is missing or even newer; loading the pickle reports it
            sys.modules[old] = found
