"""Whatever is done with a model, also what fails, the model stays as it was."""

from __future__ import annotations

import copy
import random
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsconvert
from dsconvert.bench import LocalSubject, Operation, Settings
from dsconvert.distill import DistillConfig, distill
from dsconvert.errors import DsconvertError, MissingExtraError
from dsconvert.model.copying import isolated_copy
from dsconvert.model.observe import undisturbed
from dsconvert.search import plan_measured
from tests import awkward

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]


Seen = dict[int, tuple[int, Any]]
"""Objects by their id, with a number each; held, so that no id serves twice."""


def _value(value: Any, seen: Seen) -> Any:
    """Plain data that is equal only where ``value`` is: by content, types and identities."""
    if isinstance(value, Tensor):
        data = value.detach()
        grad = None if value.grad_fn is not None else _value(value.grad, seen)
        same = seen.setdefault(id(value), (len(seen), value))[0]
        facts = (type(value), same, value.requires_grad, str(value.dtype), tuple(value.shape), grad)
        return (*facts, data.cpu().contiguous().numpy().tobytes())
    if id(value) in seen:
        return ("again", seen[id(value)][0])
    if isinstance(value, nn.Module):
        seen[id(value)] = (len(seen), value)
        return (_class(type(value)), _value(vars(value), seen))
    if isinstance(value, dict):
        seen[id(value)] = (len(seen), value)
        return (type(value), [(k, _value(v, seen)) for k, v in value.items()])
    if isinstance(value, list | tuple):
        seen[id(value)] = (len(seen), value)
        return (type(value), [_value(v, seen) for v in value])
    if isinstance(value, types.FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or ()]
        return (id(value), [_value(c, seen) for c in cells if not isinstance(c, nn.Module)])
    return repr(value) if not isinstance(value, set) else sorted(map(repr, value))


def _class(kind: type) -> Any:
    """A class, and what it holds where it was made for one module (parametrizations)."""
    made = kind.__module__ == "torch.nn.utils.parametrize"
    # copy.deepcopy notes __slotnames__ on every class that it meets.
    return (kind, sorted({*vars(kind)} - {"__slotnames__"})) if made else kind


def _everything(model: nn.Module) -> Any:
    random_states = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist())
    return _value(model, {}), random_states, torch.is_grad_enabled()


def _output(model: nn.Module, args: tuple[Any, ...]) -> Any:
    """What a copy returns: a call of the model itself may change it."""
    with undisturbed(), torch.no_grad():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            return _value(isolated_copy(model)(*copy.deepcopy(args)), {})
        except RuntimeError as error:
            return str(error)


def _plan(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.plan(model, preset="fast", example_inputs=args)


def _plan_without(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.plan(model)


def _convert(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.convert(model, rank=1, inputs=inputs, calibrate=8)


def _exact(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.convert(model, preset="exact", example_inputs=args)


def _random(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.convert(model, preset="paper", example_inputs=args, init="random")


def _apply(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    made = dsconvert.plan(model, rank=2, inputs=inputs)
    dsconvert.apply(model, made, inputs=inputs, calibrate=8)


def _wrong_plan(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    with undisturbed():
        other = nn.Sequential(nn.Conv2d(3, 16, 3))
    made = dsconvert.plan(other, rank=1)
    dsconvert.apply(model, made, example_inputs=args)


def _wrong_inputs(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.convert(model, example_inputs=(torch.zeros(2, 5),))


def _wrong_keep(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.convert(model, keep=["nothing"], example_inputs=args)


def _cost(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.cost(model, example_inputs=args)


def _merge(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.merge(model)


def _deploy(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.deploy(model, inputs=inputs)


def _lean(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.lean(model, inputs=inputs)


def _export(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, folder: Path) -> None:
    dsconvert.export_model(model, folder / "made.pt2", inputs=inputs)


def _measured(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, folder: Path) -> None:
    targets = ["params=0.9x", "macs=0.9x", "memory=1.1x"]
    plan_measured(
        model, targets, inputs=inputs, cache=folder, settings=Settings(device="cpu", threads=1),
        best_effort=True,
    )  # fmt: skip


def _polish(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    dsconvert.convert(model, rank=1, inputs=inputs, calibrate=8, polish_steps=1)


def _distill(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    student = dsconvert.convert(model, rank=1, inputs=inputs, calibrate=0)
    short = DistillConfig(steps=1, batch=2, held_out=2, features=0.0)
    distill(model, student, inputs, config=short)


def _bench(model: nn.Module, args: tuple[Any, ...], inputs: Inputs, _: Path) -> None:
    subject = LocalSubject("model", model, inputs, Settings(device="cpu", threads=1))
    subject.seconds(Operation(kind="forward", batch=1))
    subject.seconds(Operation(kind="step", batch=1))


DONE = (
    _plan, _plan_without, _convert, _exact, _random, _apply, _wrong_plan, _wrong_inputs,
    _wrong_keep, _cost, _merge, _deploy, _lean, _export, _measured, _polish, _distill, _bench,
)  # fmt: skip

# Each is harmed in the way of another: a layer that is read, and norms of each spelling.
FURTHER = {"reads a width", "tied", "weight norm", "weight norm, hook", "spectral norm, trained"}
FURTHER |= {*awkward.WRITERS} - {"acts in place"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.extended] if n in FURTHER else [])
        for n in awkward.AWKWARD
    ],
)
def test_the_model_stays_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(**_: Any) -> None:
        raise MissingExtraError("the backbone takes time")

    monkeypatch.setattr("dsconvert.matching.setup.ProjectedMaps", missing)
    model, args = awkward.made(name)
    shape = (3, 8, 8)

    def inputs(n: int, generator: torch.Generator) -> tuple[Any, ...]:
        x = torch.randn(n, *shape, generator=generator)
        return ([x],) if name == "lists" else (x,)

    # torch itself can't copy what weight norm's hook, or a pass in training, leaves behind.
    whole = not name.endswith("trained") and name != "weight norm, hook"
    twin = copy.deepcopy(model) if whole else None
    before, wanted, given = _everything(model), _output(model, args), copy.deepcopy(args)
    for done in DONE:
        if done is _bench and name == "forward of its own":
            continue  # its closure holds the original, which a step of any copy differentiates
        try:
            done(model, args, inputs, tmp_path)
        except DsconvertError:
            pass
        except Exception as error:
            warnings.warn(f"{done.__name__}: {error!r}", stacklevel=1)
            assert done in (_export, _deploy), done
        assert _everything(model) == before, done.__name__
        assert _output(model, args) == wanted, done.__name__
        assert _value(args, {}) == _value(given, {}), done.__name__
        if twin is not None:
            assert _output(twin, args) == wanted, done.__name__  # classes may be shared
