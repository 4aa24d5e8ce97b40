"""What a conversion changed, as plain data, and the way from it to the converted architecture.

A checkpoint holds tensors without classes, so a converted one needs the architecture beside them:
a *recipe* of what stands where in place of the original's modules. This file imports nothing but
torch. Copy it into a project that has no dsconvert; there it takes three lines::

    checkpoint = torch.load("fast.pth", weights_only=True)
    generator = restructure(Generator(ngf=64, nz=256, im_size=256), checkpoint["dsconvert"])
    generator.load_state_dict(checkpoint["g"])
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, spectral_norm

Recipe = dict[str, Any]
"""``{"replaced": {name: module}, "removed": [name], "eps": {name: value}}``, plain data only."""

_CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "Conv2d": nn.Conv2d,
    "ConvTranspose2d": nn.ConvTranspose2d,
}
_FIELDS = ("stride", "padding", "dilation", "output_padding")


def restructure(model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
    """Give ``model`` (the original architecture) the converted one, in place; weights are random.

    Args:
        model: an instance of the original class, built with the original's arguments.
        recipe: what :func:`describe_changes` found; or an entry that holds it under ``recipe``.

    Returns:
        ``model`` itself, for ``load_state_dict`` of the converted weights.

    Raises:
        ValueError: the recipe does not fit the model, or has something unknown in it.
    """
    recipe = recipe.get("recipe", recipe)
    names = dict(model.named_modules(remove_duplicate=False))
    wanted = [*recipe["replaced"], *recipe["removed"], *recipe["eps"]]
    missing = [n for n in wanted if n not in names and not _inside(n, recipe["replaced"])]
    if missing:
        raise ValueError(f"the model has no module called {', '.join(missing)}")
    for name, spec in recipe["replaced"].items():
        old, new = names[name], _build(spec)
        if old.training is False:
            new.eval()
        for place, module in names.items():  # a shared module has several names
            if module is old:
                parent, _, child = place.rpartition(".")
                setattr(model.get_submodule(parent), child, new)
    for name in recipe["removed"]:
        parent, _, child = name.rpartition(".")
        # None, not deleted: a forward may ask whether it is there.
        setattr(model.get_submodule(parent), child, None)
    for name, value in recipe["eps"].items():
        norm: Any = model.get_submodule(name)
        norm.eps = float(value)
    return model


def describe_changes(original: nn.Module, converted: nn.Module) -> Recipe:
    """The recipe by which :func:`restructure` makes ``original``'s architecture ``converted``'s.

    Raises:
        ValueError: they differ by more than convolutions, upsamples, removed modules and epsilons.
    """
    before = dict(original.named_modules())
    after = dict(converted.named_modules())
    replaced: dict[str, Any] = {}
    removed: list[str] = []
    eps: dict[str, float] = {}
    for name, old in before.items():
        if any(_inside(name, table) for table in (replaced, removed)):
            continue
        new = after.get(name)
        if new is None:
            removed.append(name)
        elif _plain(old) != _plain(new):
            replaced[name] = _describe(new, name)
        elif type(old) is not type(new):
            # The user's own class and ours with its names are one architecture.
            if type(old).__name__ != type(new).__name__:
                replaced[name] = _describe(new, name)
        elif hasattr(old, "eps") and hasattr(new, "eps") and old.eps != new.eps:
            eps[name] = float(new.eps)  # type: ignore[arg-type]
    strange = [n for n in after if n not in before and not any(_inside(n, t) for t in (replaced,))]
    if strange:
        raise ValueError(f"modules that the original has not: {', '.join(strange[:5])}")
    return {"replaced": replaced, "removed": removed, "eps": eps}


def _inside(name: str, parents: Any) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in parents for i in range(len(parts)))


def _plain(module: nn.Module) -> Any:
    """What must be equal for two convolutions to be the same one; None for another module."""
    kind = next((k for k, v in _CONVOLUTIONS.items() if isinstance(module, v)), None)
    if kind is None:
        return "Identity" if type(module) is nn.Identity else None
    return _convolution(kind, module)


def _convolution(kind: str, module: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "type": kind,
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "kernel_size": list(module.kernel_size),
        "groups": module.groups,
        "padding_mode": module.padding_mode,
        "bias": module.bias is not None,
        "norm": _norm(module),
    }
    for field in _FIELDS:
        value = getattr(module, field)
        if field != "output_padding" or kind == "ConvTranspose2d":
            spec[field] = value if isinstance(value, str) else list(value)
    return spec


def _norm(module: nn.Module) -> str | None:
    if parametrize.is_parametrized(module):
        return "parametrized"
    names = {type(h).__name__ for h in module._forward_pre_hooks.values()}
    return next((n for n in ("SpectralNorm", "WeightNorm") if n in names), None)


def _describe(module: nn.Module, name: str) -> dict[str, Any]:
    for kind, cls in _CONVOLUTIONS.items():
        if type(module) is cls:
            return _convolution(kind, module)
    if type(module) is nn.Identity:
        return {"type": "Identity"}
    if type(module) is nn.Sequential:
        children = [[k, _describe(v, f"{name}.{k}")] for k, v in module.named_children()]
        return {"type": "Sequential", "children": children}
    raise ValueError(f"{name} is a {type(module).__name__}, which a recipe has no words for")


def _pair(value: Any) -> Any:
    return value if isinstance(value, str) else (int(value[0]), int(value[1]))


def _build(spec: Mapping[str, Any]) -> nn.Module:
    kind = spec["type"]
    if kind == "Identity":
        return nn.Identity()
    if kind == "Sequential":
        return nn.Sequential(OrderedDict((str(k), _build(v)) for k, v in spec["children"]))
    if kind not in _CONVOLUTIONS:
        raise ValueError(f"a recipe has no module of type {kind!r}")
    options = {f: _pair(spec[f]) for f in _FIELDS if f in spec}
    with torch.random.fork_rng(devices=[]):
        conv: Any = _CONVOLUTIONS[kind](
            int(spec["in_channels"]),
            int(spec["out_channels"]),
            _pair(spec["kernel_size"]),
            groups=int(spec["groups"]),
            bias=bool(spec["bias"]),
            padding_mode=str(spec["padding_mode"]),
            **options,
        )
        if spec["norm"] == "SpectralNorm":
            return spectral_norm(conv, dim=1 if kind == "ConvTranspose2d" else 0)
    if spec["norm"] is not None:
        raise ValueError(f"a recipe has no norm of kind {spec['norm']!r}")
    return conv
