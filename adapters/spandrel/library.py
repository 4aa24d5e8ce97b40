"""The package spandrel: facts about its architectures, and models built from them.

spandrel is imported when a file or a model needs it, and not before: the import takes seconds.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from dsconvert.errors import AdapterError, MissingExtraError
from dsconvert.util.extras import pip_install

_OTHER_INPUTS = {
    "DRUNet": "a map of the noise level beside the picture",
    "IPT": "the index of a scale beside the picture, and other values",
    "LaMa": "a mask beside the picture",
    "RestoreFormer": "faces with other values than 0 to 1",
}
"""Architectures whose forward call takes more than a picture in [0, 1], and what it takes."""
_SIGNED_OUTPUT = frozenset({"MixDehazeNet"})
"""Architectures whose images are in [-1, 1]."""
_UNBUILDABLE = (
    TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError, NameError, LookupError,
    AttributeError,
)  # fmt: skip
"""Errors of an architecture that is given arguments which it does not expect: an unknown word may
leave a variable without a value."""
_LARGEST = 1 << 16
"""The largest number among the arguments of an architecture; beyond, a file is damaged."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about an architecture with certain arguments.

    Attributes:
        architecture: its name in spandrel's registry.
        model: the name of its class, as the architecture's package exports it.
        arguments: of the class's constructor, plain data.
        scale: size of the output relative to the input.
        input_channels: of the pictures that it reads.
        output_channels: of its images.
        least: the smallest side of a picture, in pixels.
        multiple: a side is a multiple of this.
    """

    architecture: str
    model: str
    arguments: Mapping[str, Any]
    scale: int
    input_channels: int
    output_channels: int
    least: int
    multiple: int

    @property
    def config(self) -> dict[str, Any]:
        """The plain data that :func:`built` makes the model from."""
        return {
            "architecture": self.architecture,
            "model": self.model,
            "arguments": dict(self.arguments),
        }

    @property
    def signed_output(self) -> bool:
        """Whether the images are in [-1, 1] and not in [0, 1]."""
        return self.architecture in _SIGNED_OUTPUT


def installed() -> bool:
    """Return whether spandrel can be imported, without importing it."""
    return find_spec("spandrel") is not None


def library(what: str) -> Any:
    """Return the module ``spandrel``.

    Args:
        what: the thing that needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module("spandrel")
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs the package spandrel, which knows its architecture ({error}): "
            f"{pip_install('spandrel')}."
        ) from error


@contextmanager
def undisturbed() -> Generator[None, None, None]:
    """Build modules with values, on the CPU, and leave the global random state as it was."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        yield


_facts: dict[tuple[str, str], Facts] = {}


def described(architecture: str, descriptor: Any) -> Facts:
    """Return the facts about the model that spandrel has loaded as ``descriptor``.

    Raises:
        AdapterError: it reads more than a picture, or its arguments are no plain data.
    """
    model: Any = descriptor.model
    arguments = _arguments(model)
    other = _OTHER_INPUTS.get(architecture)
    if architecture == "DnCNN" and getattr(model, "mode", "") == "FDnCNN":
        other = _OTHER_INPUTS["DRUNet"]
    if other is not None:
        raise AdapterError(
            f"a {architecture} reads {other}, which dsconvert can't sample; convert it in Python, "
            "with inputs=callable."
        )
    _check_arguments(architecture, arguments)
    sizes = descriptor.size_requirements
    facts = Facts(
        architecture=architecture,
        model=_exported_name(descriptor.architecture, type(model)),
        arguments=dict(arguments),
        scale=int(descriptor.scale),
        input_channels=int(descriptor.input_channels),
        output_channels=int(descriptor.output_channels),
        least=max(1, int(sizes.minimum)),
        multiple=int(sizes.multiple_of),
    )
    _facts[_key(facts.architecture, arguments)] = facts
    return facts


def facts_of(model: nn.Module) -> Facts:
    """Return the facts about a model of spandrel, also a converted one.

    Raises:
        AdapterError: it is none, or of an architecture that dsconvert can't run.
    """
    architecture = architecture_of(model)
    arguments = _arguments(model)
    _check_arguments(architecture, arguments)
    key = _key(architecture, arguments)
    if key not in _facts:
        registry = library(f"a {type(model).__name__}").MAIN_REGISTRY
        if architecture not in registry:
            raise AdapterError(f"spandrel's registry has no architecture {architecture}.")
        with undisturbed():
            # A converted model lacks tensors by which spandrel finds the scale and the channels.
            fresh: Any = type(model)(**arguments)
            described(architecture, registry[architecture].architecture.load(fresh.state_dict()))
    return _facts[key]


def architecture_of(model: nn.Module) -> str:
    """Return the name of the architecture: the package below ``architectures`` of its class.

    Raises:
        AdapterError: ``model`` is none of spandrel's.
    """
    parts = type(model).__module__.split(".")
    if parts[0] not in ("spandrel", "spandrel_extra_arches") or "architectures" not in parts:
        raise AdapterError(f"{type(model).__name__} is no architecture of spandrel.")
    return parts[parts.index("architectures") + 1]


def built(config: Mapping[str, Any]) -> nn.Module:
    """Build the original architecture, with random weights, on the CPU.

    Not on the meta device: some architectures compute values that no file holds.

    Args:
        config: of :attr:`Facts.config`; it may come from a file.

    Raises:
        AdapterError: there is no such architecture, or its arguments make no sense.
    """
    try:
        architecture, name = str(config["architecture"]), str(config["model"])
        arguments = config["arguments"]
    except (KeyError, TypeError) as error:
        raise AdapterError(f"this describes no architecture of spandrel ({error!r}).") from None
    _check_arguments(architecture, arguments)
    registry = library("this file").MAIN_REGISTRY
    if architecture not in registry:
        raise AdapterError(
            f"the installed spandrel has no architecture {architecture[:40]!r}; update it."
        )
    kind: Any = _exported(registry[architecture].architecture).get(name)
    if kind is None:
        raise AdapterError(f"spandrel's {architecture} has no model {name[:40]!r}.")
    with undisturbed():
        try:
            return kind(**arguments)
        except _UNBUILDABLE as error:
            raise AdapterError(
                f"spandrel's {name} can't be built ({' '.join(str(error).split())[:200]})."
            ) from error


def _exported(architecture: Any) -> dict[str, type[nn.Module]]:
    """Return the model classes that an architecture's package exports, by their names there."""
    home: Any = import_module(type(architecture).__module__)
    found = {name: getattr(home, name, None) for name in home.__all__}
    return {n: k for n, k in found.items() if isinstance(k, type) and issubclass(k, nn.Module)}


def _exported_name(architecture: Any, kind: type[nn.Module]) -> str:
    for name, exported in _exported(architecture).items():
        if exported is kind:
            return name
    raise AdapterError(f"spandrel's {architecture.id} does not export its {kind.__name__}.")


def _arguments(model: nn.Module) -> Any:
    """Return the arguments that ``model`` was built with, without defaults that are no plain data.

    A default is a class of layers, for example.
    """
    given: Any = getattr(model, "hyperparameters", None)
    if not isinstance(given, Mapping):
        return None
    known = inspect.signature(type(model).__init__).parameters
    return {
        name: value
        for name, value in given.items()
        if _plain(value) or name not in known or known[name].default is not value
    }


def _check_arguments(architecture: str, arguments: Any) -> None:
    if not isinstance(arguments, Mapping) or not all(
        isinstance(k, str) and _plain(v) for k, v in arguments.items()
    ):
        raise AdapterError(
            f"the arguments of this {architecture} are no plain numbers and words, so no file "
            "could hold them; convert it in Python."
        )


def _plain(value: Any, depth: int = 4) -> bool:
    if isinstance(value, list | tuple):
        return depth > 0 and len(value) <= _LARGEST and all(_plain(v, depth - 1) for v in value)
    if isinstance(value, bool | str) or value is None:
        return True
    return isinstance(value, int | float) and abs(value) <= _LARGEST


def _key(architecture: str, arguments: Any) -> tuple[str, str]:
    return architecture, json.dumps(dict(arguments), sort_keys=True)
