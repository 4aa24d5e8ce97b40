# pyright: reportUnnecessaryIsInstance=false
"""Check an adapter against the contract of :class:`dsconvert.adapter.Adapter`."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import PERSISTENCE, Adapter, as_adapter, image_tensor
from dsconvert.core.analysis import analyse
from dsconvert.core.conversion import apply_to
from dsconvert.core.pipeline import plan_for
from dsconvert.errors import AdapterError
from dsconvert.model.inputs import fresh_args, like
from dsconvert.model.observe import evaluating, undisturbed
from dsconvert.testing.problems import Problems


def check_adapter(
    adapter: Adapter, model: nn.Module, *, checkpoint: Mapping[str, Any] | None = None
) -> None:
    """Check every member of ``adapter`` on one generator of its codebase.

    Args:
        adapter: need not be installed.
        model: a generator, not converted, small enough to run in seconds; it does not change.
        checkpoint: the content of a file of the codebase, for an adapter that implements
            :meth:`~dsconvert.adapter.Adapter.states`.

    Raises:
        ConformanceError: at least one member breaks its contract.
    """
    problems = Problems(f"the adapter {getattr(adapter, 'name', type(adapter).__name__)!r}")
    try:
        adapter = as_adapter(adapter)
    except AdapterError as error:
        problems.expect(False, str(error))
        problems.report()
    with undisturbed():
        _check_identity(adapter, model, problems)
        _check_types(adapter, model, problems)
        _check_inputs(adapter, model, problems)
        with problems.during("a search for noise layers"):
            _check_noise(adapter, model, problems)
        with problems.during("a conversion"):
            _check_conversion(adapter, model, problems)
        _check_optional(adapter, model, problems)
        if checkpoint is not None:
            with problems.during("reading the checkpoint"):
                _check_checkpoint(adapter, checkpoint, problems)
    problems.report()


def _check_identity(adapter: Adapter, model: nn.Module, problems: Problems) -> None:
    named: object = adapter.name
    problems.expect(isinstance(named, str) and bool(named), f"name is {named!r}, not a text")
    with problems.during("matches(model)"):
        problems.expect(adapter.matches(model) is True, "matches(model) is not True")
    with problems.during("matches(nn.Linear(1, 1))"):
        matched = adapter.matches(nn.Linear(1, 1))
        problems.expect(matched is False, "matches(nn.Linear(1, 1)) is not False")
    with problems.during("describe(model)"):
        facts = adapter.describe(model)
        problems.expect(facts == adapter.describe(model), "describe(model) differs between calls")
        try:
            json.dumps(dict(facts))
        except TypeError as error:
            problems.expect(False, f"describe(model) is not plain data: {error}")


def _check_types(adapter: Adapter, model: nn.Module, problems: Problems) -> None:
    for member in ("leaves", "noise_types", "norm_types"):
        with problems.during(f"{member}()"):
            types: Any = getattr(adapter, member)()
            modules = isinstance(types, tuple) and all(
                isinstance(t, type) and issubclass(t, nn.Module) for t in types
            )
            problems.expect(modules, f"{member}() is not a tuple of module classes")
    for name, module in model.named_modules():
        if isinstance(module, adapter.noise_types()):
            weight = getattr(module, "weight", None)
            problems.expect(isinstance(weight, Tensor), f"the noise {name} has no tensor 'weight'")
        if isinstance(module, adapter.norm_types()):
            buffers = [getattr(module, b, None) for b in ("stored_mean", "stored_var")]
            tensors = all(isinstance(b, Tensor) for b in buffers)
            problems.expect(tensors, f"the norm {name} has no stored_mean and stored_var")
    for key, kind in adapter.classes.items():
        pair: Any = key
        named = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
        problems.expect(named, f"classes has the key {key!r}, not (module, class)")
        problems.expect(issubclass(kind, nn.Module), f"classes[{key!r}] is no module class")
    with problems.during("unused(model)"):
        names = dict(model.named_modules())
        unknown = [n for n in adapter.unused(model) if n not in names]
        problems.expect(not unknown, f"unused(model) names unknown modules: {unknown}")


def _check_inputs(adapter: Adapter, model: nn.Module, problems: Problems) -> None:
    with problems.during("sampler(model) and a run on its sample"):
        sampler = adapter.sampler(model)
        state = torch.get_rng_state()
        for n in (1, 3):
            args, again = (sampler(n, torch.Generator().manual_seed(7)) for _ in range(2))
            given: object = args
            problems.expect(isinstance(given, tuple), "the sampler does not return a tuple")
            same = all(
                torch.equal(a, b) if isinstance(a, Tensor) else a == b
                for a, b in zip(args, again, strict=True)
            )
            problems.expect(same, "the sampler differs between two generators of one seed")
            with evaluating(model):
                image = image_tensor(adapter.picture(model)(*like(args, model)))
            problems.expect(
                image.dim() == 4 and len(image) == n,
                f"picture(model) returns {list(image.shape)} for a sample of {n}, not (N, C, H, W)",
            )
        if (spec := adapter.pictures(model)) is not None:
            wanted = (3, spec.channels, spec.size, spec.size)
            fits = len(args) == 1 and isinstance(args[0], Tensor) and args[0].shape == wanted
            problems.expect(fits, f"the sampler does not return pictures {list(wanted)}")
        advanced = not torch.equal(state, torch.get_rng_state())
        problems.expect(not advanced, "the sampler or a run in eval mode draws globally")


def _check_noise(adapter: Adapter, model: nn.Module, problems: Problems) -> None:
    """Find layers that draw random numbers, scale them by ``weight`` and are not declared."""
    before: dict[nn.Module, Tensor] = {}
    drawing: list[str] = []

    def enter(module: nn.Module, _args: Any) -> None:
        before[module] = torch.get_rng_state()

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        if not torch.equal(before[module], torch.get_rng_state()):
            drawing.append(type(module).__name__)

    scaled = [
        m
        for m in model.modules()
        if isinstance(getattr(m, "weight", None), Tensor)
        and next(m.children(), None) is None
        and not isinstance(m, adapter.noise_types())
    ]
    handles = [m.register_forward_pre_hook(enter) for m in scaled]
    handles += [m.register_forward_hook(leave) for m in scaled]
    args = like(adapter.sampler(model)(1, torch.Generator()), model)
    try:
        with evaluating(model):
            model(*args)
    finally:
        for handle in handles:
            handle.remove()
    named = ", ".join(sorted(set(drawing)))
    problems.expect(not drawing, f"noise_types() lacks {named}, which draws random numbers")


def _check_conversion(adapter: Adapter, model: nn.Module, problems: Problems) -> None:
    # Also where random pixels stand in for pictures: any inputs do for a check.
    analysis = analyse(model, adapter=adapter, inputs=adapter.sampler(model))
    running = [n for n in adapter.unused(model) if n not in analysis.sites.dead]
    problems.expect(not running, f"unused(model) names modules that run: {running}")
    made = apply_to(analysis, plan_for(analysis, preset="fast", width=1.0), init="svd", calibrate=8)
    rewritten = [d for d in made.plan.decisions if d.action == "rewrite"]
    problems.expect(bool(rewritten), "preset 'fast' finds no convolution to rewrite in the model")
    problems.expect(adapter.matches(made.model), "matches(converted) is not True")
    before, after = dict(adapter.describe(model)), dict(adapter.describe(made.model))
    changed = [k for k in {*before, *after} - {"parameters"} if before.get(k) != after.get(k)]
    problems.expect(not changed, f"describe(converted) has other facts: {sorted(changed)}")
    adapter.sampler(made.model)(1, torch.Generator())


def _check_optional(adapter: Adapter, model: nn.Module, problems: Problems) -> None:
    args = like(adapter.sampler(model)(2, torch.Generator().manual_seed(0)), model)
    if adapter.can_build:
        with problems.during("build(describe(model))"):
            made = adapter.build(adapter.describe(model))
            problems.expect(
                _shapes(made) == _shapes(model), "build(describe(model)) has other tensors"
            )
        with problems.during("build({}), which must raise AdapterError,"):
            _expect_adapter_error(lambda: adapter.build({}), "build({})", problems)
    if adapter.can_truncate:
        with problems.during("a truncated run"), evaluating(model):
            images: list[Tensor] = []
            for keywords in ({}, adapter.truncation(model, 1.0), adapter.truncation(model, 0.5)):
                torch.manual_seed(0)
                images.append(image_tensor(model(*fresh_args(args), **keywords)))
            problems.expect(torch.allclose(images[0], images[1]), "psi 1 changes the image")
            problems.expect(not torch.equal(images[0], images[2]), "psi 0.5 changes nothing")
    if adapter.can_affine:
        with problems.during("affine(norm, ...)"):
            _check_affine(adapter, model, args, problems)
    if adapter.configurations:
        facts: Any = {"resolution": 64, "ngf": 4, "classes": 0, "img_channels": 3, "z_dim": 8}
        with problems.during("new_generator(cfg='unknown'), which must raise AdapterError,"):
            _expect_adapter_error(
                lambda: adapter.new_generator(cfg="unknown", **facts), "new_generator", problems
            )
    source = adapter.source()
    if source is not None:
        with problems.during("the source"):
            bodies = ast.parse(source).body
            defined = {b.name for b in bodies if isinstance(b, ast.ClassDef)}
            lost = sorted({n for m, n in adapter.classes if m == PERSISTENCE} - defined)
            problems.expect(not lost, f"source() does not define {lost}")
    if adapter.has_checkpoints:
        with problems.during("states({})"):
            problems.expect(not adapter.states({}), "states({}) finds a generator")
        with problems.during("make(read_config(state of the model))"):
            made = adapter.make(adapter.read_config(model.state_dict()))
            problems.expect(
                _shapes(made) == _shapes(model), "make(read_config(...)) has other tensors"
            )


def _expect_adapter_error(call: Any, name: str, problems: Problems) -> None:
    try:
        call()
    except AdapterError:
        return
    problems.expect(False, f"{name} accepts a wrong configuration; raise AdapterError")


def _check_affine(
    adapter: Adapter, model: nn.Module, args: tuple[Any, ...], problems: Problems
) -> None:
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
    norms = [m for m in model.modules() if isinstance(m, adapter.norm_types())]
    handles = [m.register_forward_pre_hook(lambda m, a: calls.append((m, a))) for m in norms]
    try:
        with evaluating(model):
            model(*args)
    finally:
        for handle in handles:
            handle.remove()
    for norm, (x, *condition) in calls:
        for found in adapter.affine(norm, *condition):
            fits = tuple(found.shape) in ((len(x), x.shape[1]), (x.shape[1],))
            problems.expect(fits, f"affine gives {list(found.shape)} for a map {list(x.shape)}")


def _check_checkpoint(adapter: Adapter, checkpoint: Mapping[str, Any], problems: Problems) -> None:
    states = adapter.states(checkpoint)
    problems.expect(bool(states), "states(checkpoint) finds no generator")
    for name, state in states.items():
        with problems.during(f"a generator from the state {name!r}"):
            adapter.make(adapter.read_config(state)).load_state_dict(dict(state))
    again = adapter.states(adapter.replaced(checkpoint, states))
    problems.expect(set(again) == set(states), "replaced(...) loses a generator")
    for name, state in again.items():
        same = all(torch.equal(t, states[name][k]) for k, t in state.items() if name in states)
        problems.expect(same, f"replaced(...) changes the state {name!r}")


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}
