"""The changes of a conversion as plain data, and the way from them to the converted architecture.

A file that holds tensors without classes needs the converted architecture beside them: a *recipe*
that names the modules which replace the original's. This file imports nothing but torch. Copy it
into a project that has no dsconvert; there it takes three lines::

    checkpoint = torch.load("fast.pth", weights_only=True)
    generator = restructure(Generator(ngf=64, nz=256, im_size=256), checkpoint["dsconvert"])
    generator.load_state_dict(checkpoint["g"])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, spectral_norm

Recipe = dict[str, Any]
"""Plain data: ``{"replaced": {name: module}, "removed": [name], "eps": {name: value}}``,
``"shapes": {module: {tensor: shape}}`` where a module of a codebase's own has fewer channels, and
``"attributes": {name: {attribute: value}}`` where other attributes have changed.

A module is ``{"type": class in torch.nn, argument of its constructor: value, ...}``; a convolution
also has its ``norm``, a container its ``children`` as pairs of name and module."""

_CONTAINERS: dict[str, type[nn.Module]] = {
    "Sequential": nn.Sequential,
    "ModuleList": nn.ModuleList,
    "ModuleDict": nn.ModuleDict,
}
_CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "Conv2d": nn.Conv2d,
    "ConvTranspose2d": nn.ConvTranspose2d,
    "Conv1d": nn.Conv1d,
    "ConvTranspose1d": nn.ConvTranspose1d,
}
_CONV = ("in_channels", "out_channels", "kernel_size", "groups", "padding_mode", "bias",
         "stride", "padding", "dilation")  # fmt: skip
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Conv2d": _CONV,
    "ConvTranspose2d": (*_CONV, "output_padding"),
    "Conv1d": _CONV,
    "ConvTranspose1d": (*_CONV, "output_padding"),
    "Identity": (),
    "BatchNorm2d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "Linear": ("in_features", "out_features", "bias"),
    "Embedding": ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type",
                  "scale_grad_by_freq", "sparse"),
    "Upsample": ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"),
    "AdaptiveAvgPool2d": ("output_size",),
    "AvgPool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "PixelShuffle": ("upscale_factor",),
    "ZeroPad2d": ("padding",),
    "ReflectionPad2d": ("padding",),
    "ReLU": ("inplace",),
    "ReLU6": ("inplace",),
    "SiLU": ("inplace",),
    "LeakyReLU": ("negative_slope", "inplace"),
    "Sigmoid": (),
    "Tanh": (),
    "GELU": ("approximate",),
    "GLU": ("dim",),
}  # fmt: skip
"""The layers of ``torch.nn`` that a recipe may hold, with arguments of their constructors. Each
layer keeps an argument as an attribute of the same name; ``bias`` says whether there is one."""
_CHANNEL_LAYERS = ("BatchNorm2d", "GroupNorm", "Linear", "Embedding")
"""Layers that lose channels beside a convolution that does."""
_WORDS = (
    "zeros", "reflect", "replicate", "circular", "same", "valid", "none", "tanh",
    "nearest", "nearest-exact", "bilinear", "bicubic",
)  # fmt: skip
_POSITIVE = frozenset({"kernel_size", "stride", "dilation", "groups", "output_size"})
_LIMIT = 1 << 20
_DEPTH = 32
_MODULES = 1 << 16
_OWN = frozenset(vars(nn.Module()))


def restructure(model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
    """Give ``model`` (the original architecture) the converted one, in place; weights are random.

    Args:
        model: an instance of the original class, built with the original's arguments.
        recipe: a result of :func:`describe_changes`; or an entry that holds it under ``recipe``.
            It may come from a foreign file: every value is checked.

    Returns:
        ``model`` itself, for ``load_state_dict`` of the converted weights.

    Raises:
        ValueError: the recipe does not fit the model, or holds something unknown.
    """
    recipe = recipe.get("recipe", recipe)
    names = dict(model.named_modules(remove_duplicate=False))
    replaced, removed = dict(recipe["replaced"]), list(recipe["removed"])
    eps, attributes = dict(recipe["eps"]), dict(recipe.get("attributes", {}))
    shapes = dict(recipe.get("shapes", {}))
    if "" in replaced or "" in removed:
        raise ValueError("a recipe can't replace or remove the model itself")
    missing = [n for n in replaced if n not in names and not _has_place(names, n)]
    others = (*removed, *eps, *shapes, *attributes)
    missing += [n for n in others if n not in names and not _inside(n, replaced)]
    if missing:
        raise ValueError(f"the model has no module called {', '.join(missing)}")
    left = iter(range(_MODULES))
    for name, spec in replaced.items():
        new = _build(spec, _DEPTH, left)
        old = names.get(name)
        if old is None:
            model.get_submodule(_parent(name)).add_module(name.rpartition(".")[2], new)
            new.train(model.training)
            continue
        new.train(old.training)
        for place, module in names.items():  # a shared module has several names
            if module is old:
                setattr(model.get_submodule(_parent(place)), place.rpartition(".")[2], new)
    for name in removed:
        # None, not deleted: a forward may ask whether it is there.
        setattr(model.get_submodule(_parent(name)), name.rpartition(".")[2], None)
    for name, value in eps.items():
        norm: Any = model.get_submodule(name)
        norm.eps = float(value)
    for name, sizes in shapes.items():
        _narrow(model.get_submodule(name), dict(sizes), name)
    for name, values in attributes.items():
        _set_attributes(model.get_submodule(name), dict(values), name)
    return model


def describe_changes(
    original: nn.Module, converted: nn.Module, *, complete: bool = False
) -> Recipe:
    """Return the recipe by which :func:`restructure` gives ``original`` the other's architecture.

    Args:
        original: only looked at.
        converted: only looked at.
        complete: describe every difference that a recipe can hold. Otherwise only the changes that
            a conversion makes: convolutions, upsamples, removed modules, epsilons and fewer
            channels.

    Raises:
        ValueError: they differ by more than that.
    """
    before, after = dict(original.named_modules()), dict(converted.named_modules())
    allowed = tuple(_ARGUMENTS) if complete else (*_CONVOLUTIONS, "Identity")
    replaced: dict[str, Any] = {}
    shapes: dict[str, dict[str, list[int]]] = {}
    removed: list[str] = []
    eps: dict[str, float] = {}
    attributes: dict[str, dict[str, Any]] = {}
    for name, old in before.items():
        if any(_inside(name, table) for table in (replaced, removed)):
            continue
        new = after.get(name)
        if new is None:
            removed.append(name)
            continue
        # The user's own class and ours with its names are one architecture.
        if _key(old, complete) != _key(new, complete) or type(old).__name__ != type(new).__name__:
            kind = _layer(new)
            narrower = kind in _CHANNEL_LAYERS and isinstance(old, getattr(nn, kind))
            words = allowed if complete or not narrower else (*allowed, kind)
            replaced[name] = _describe(new, name, words)
            continue
        if sizes := _fewer(old, new, name):
            shapes[name] = sizes
        if not complete and type(old) is not type(new) and not sizes:
            continue
        if hasattr(old, "eps") and hasattr(new, "eps") and old.eps != new.eps:
            eps[name] = float(new.eps)  # type: ignore[arg-type]
        if changed := _changed(old, new, complete):
            attributes[name] = changed
    strange: list[str] = []
    for name in after:
        if name in before or _inside(name, replaced):
            continue
        if complete and _has_place(before, name):
            replaced[name] = _describe(after[name], name, allowed)
        else:
            strange.append(name)
    if strange:
        raise ValueError(f"modules that the original has not: {', '.join(strange[:5])}")
    recipe = {"replaced": replaced, "removed": removed, "eps": eps}
    more = {"shapes": shapes, "attributes": attributes}
    return recipe | {key: table for key, table in more.items() if table}


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _inside(name: str, parents: Any) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in parents for i in range(len(parts)))


def _has_place(names: Mapping[str, nn.Module], name: str) -> bool:
    """Return whether a module may be added under ``name``, which is free."""
    parent = names.get(_parent(name))
    place = name.rpartition(".")[2]
    return bool(place) and (
        isinstance(parent, tuple(_CONTAINERS.values()))
        or (parent is not None and place in parent._modules)
    )


def _key(module: nn.Module, complete: bool) -> Any:
    """Return plain data that is equal for two modules of one architecture.

    None for modules that only their children tell apart.
    """
    for kind, cls in _CONVOLUTIONS.items():
        if isinstance(module, cls):
            return _spec(kind, module)
    if type(module) is nn.Identity:
        return "Identity"
    kind = _layer(module)
    if not complete and kind not in _CHANNEL_LAYERS:
        return None
    spec = _spec(kind, module) if complete and kind in _ARGUMENTS else {}
    spec.pop("eps", None)  # has an entry of its own
    # The tensors of a codebase's own module may get smaller in place.
    return spec, {k: tuple(t.shape) if kind else t.ndim for k, t in _tensors(module).items()}


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    tensors = (*module._parameters.items(), *module._buffers.items())
    return {name: t for name, t in tensors if t is not None}


def _layer(module: nn.Module) -> str:
    """Return the name of a class of torch.nn that a recipe may hold; empty for another class."""
    name = type(module).__name__
    known = name in _ARGUMENTS or name in _CONTAINERS
    return name if known and type(module) is getattr(nn, name) else ""


def _fewer(old: nn.Module, new: nn.Module, place: str) -> dict[str, list[int]]:
    """Return the shapes of the tensors of a module of a codebase's own that have fewer entries."""
    before, sizes = _tensors(old), dict[str, list[int]]()
    for name, tensor in _tensors(new).items():
        if name not in before or tensor.shape == before[name].shape:
            continue
        if not _fits(list(tensor.shape), before[name]):
            raise ValueError(f"{place}.{name} is larger than the original's")
        sizes[name] = list(tensor.shape)
    return sizes


def _fits(shape: Any, old: torch.Tensor) -> bool:
    """Return whether a tensor can be narrowed to ``shape``."""
    if not isinstance(shape, list | tuple) or len(shape) != old.ndim:
        return False
    return all(type(n) is int and 1 <= n <= m for n, m in zip(shape, old.shape, strict=True))


def _narrow(module: nn.Module, sizes: Mapping[str, Any], name: str) -> None:
    """Give tensors of ``module`` the shapes ``sizes``: as many dimensions, none of them larger."""
    for key, shape in sizes.items():
        table = module._parameters if key in module._parameters else module._buffers
        old = table.get(key)
        if old is None or not _fits(shape, old):
            raise ValueError(f"{name or 'the model'} has no tensor {key!r} of such a shape")
        made = old.detach()[tuple(slice(n) for n in shape)].clone()
        if isinstance(old, nn.Parameter):
            made = nn.Parameter(made, requires_grad=old.requires_grad)
        table[key] = made  # type: ignore[assignment]


def _changed(old: nn.Module, new: nn.Module, complete: bool) -> dict[str, Any]:
    """Return the plain attributes of a module of a codebase's own that differ.

    Without ``complete``, only numbers of channels: whole numbers.
    """
    if _layer(new):
        return {}
    known = vars(old)
    kinds: Any = int | float | str if complete else int
    return {
        k: v
        for k, v in vars(new).items()
        if k not in _OWN
        and k != "eps"
        and isinstance(v, kinds)
        and type(known.get(k)) is type(v)
        and known[k] != v
    }


def _set_attributes(module: nn.Module, values: Mapping[str, Any], name: str) -> None:
    for key, value in values.items():
        # An attribute keeps its type; none is added, and none of torch's own is changed.
        plain = isinstance(value, int | float | str)
        if not plain or key in _OWN or type(vars(module).get(key)) is not type(value):
            raise ValueError(f"{name or 'the model'} has no attribute {key!r} of this type")
        setattr(module, key, value)


def _spec(kind: str, module: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"type": kind}
    for name in _ARGUMENTS[kind]:
        value = getattr(module, name)
        if name == "bias":
            value = value is not None
        spec[name] = list(value) if isinstance(value, tuple) else value
    if kind in _CONVOLUTIONS:
        spec["norm"] = _norm(module)
    return spec


def _norm(module: nn.Module) -> str | None:
    if parametrize.is_parametrized(module):
        return "parametrized"
    names = {type(h).__name__ for h in module._forward_pre_hooks.values()}
    return next((n for n in ("SpectralNorm", "WeightNorm") if n in names), None)


def _describe(module: nn.Module, name: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    kind = _layer(module)
    if kind in allowed:
        return _spec(kind, module)
    if kind == "Sequential" or (kind in _CONTAINERS and len(allowed) == len(_ARGUMENTS)):
        children = [[k, _describe(v, f"{name}.{k}", allowed)] for k, v in module.named_children()]
        return {"type": kind, "children": children}
    raise ValueError(f"{name} is a {type(module).__name__}, which a recipe has no words for")


def _build(spec: Mapping[str, Any], depth: int, left: Iterator[int]) -> nn.Module:
    """Return the module of ``spec``; ``left`` counts down the modules that may still be built."""
    kind = spec["type"]
    if depth == 0:
        raise ValueError("the modules of the recipe are nested too deeply")
    if next(left, None) is None:
        # Children may share their children in a file: a few bytes stand for many modules.
        raise ValueError(f"the recipe has more than {_MODULES} modules")
    if kind in _CONTAINERS:
        made = _CONTAINERS[kind]()
        for name, child in spec["children"]:
            made.add_module(str(name), _build(child, depth - 1, left))
        return made
    if kind not in _ARGUMENTS:
        raise ValueError(f"a recipe has no module of type {kind!r}")
    options = {a: _checked(a, spec[a]) for a in _ARGUMENTS[kind] if a in spec}
    norm = spec.get("norm")
    try:
        with torch.random.fork_rng(devices=[]):
            layer: Any = getattr(nn, kind)(**options)
            if norm == "SpectralNorm" and kind in _CONVOLUTIONS:
                return spectral_norm(layer, dim=1 if kind.startswith("ConvTranspose") else 0)
    except (TypeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"a {kind} of the recipe can't be built ({error})") from error
    if norm is not None:
        raise ValueError(f"a recipe has no norm of kind {norm!r}")
    return layer


def _checked(name: str, value: Any) -> Any:
    """Return an argument of a layer's constructor, if it is one that honest recipes have."""
    if isinstance(value, list | tuple):
        if len(value) > 4 or any(isinstance(v, list | tuple) for v in value):
            raise ValueError(f"{name} is no pair")
        return tuple(_checked(name, v) for v in value)
    low = 1 if name in _POSITIVE else -4 if name == "dim" else 0
    if type(value) is int and not low <= value <= _LIMIT:
        raise ValueError(f"{name} is {value}, not {low} to {_LIMIT}")
    if type(value) is float and not -1e30 < value < 1e30:
        raise ValueError(f"{name} is {value}, not a finite number")
    if type(value) is str and value not in _WORDS:
        raise ValueError(f"{name} is the unknown word {value[:40]!r}")
    if value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(f"{name} is a {type(value).__name__}")
    return value
