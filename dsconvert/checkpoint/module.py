"""A user's own module as a codebase: ``--module package.path:factory``.

Importing the module runs the user's own code, by his explicit wish; no file can ask for it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dsconvert.adapter import image_tensor
from dsconvert.errors import UsageError

if TYPE_CHECKING:
    from dsconvert.adapter import Sampler

_NAMES = (
    "g_ema", "G_ema", "ema", "params_ema", "generator", "netG", "G", "g",
    "state_dict", "model_state_dict", "model", "params",
)  # fmt: skip
"""Entries that usually hold a generator, the averaged ones first."""
_LATENTS = ("z_dim", "latent_dim", "nz")


@dataclass(frozen=True, kw_only=True)
class ModuleSource:
    """What a user said about his generator.

    Attributes:
        factory: ``package.path:name`` of a callable without arguments (or a class) that returns the
            original architecture.
        key: the entry of the file that holds its state dict (dots for nested ones); None: found.
        shapes: of one sample of each argument of a forward call, for normal latents.
    """

    factory: str
    key: str | None = None
    shapes: tuple[tuple[int, ...], ...] = ()


class Picture(nn.Module):
    """The first image of whatever a generator returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> torch.Tensor:
        """One image tensor."""
        return image_tensor(self.model(*args))


class ModuleCodebase:
    """Plays the part of an adapter for one user's module."""

    name = "module"

    def __init__(self, source: ModuleSource) -> None:
        """Import the factory and build the architecture once.

        Raises:
            UsageError: it can't be imported, is not callable, or returns no module.
        """
        self.source = source
        self._factory = _imported(source.factory)
        self._names = set(self.make({}).state_dict())

    def make(self, config: Mapping[str, Any]) -> nn.Module:  # noqa: ARG002 - the protocol's
        """See :class:`dsconvert.adapter.CheckpointAdapter`."""
        try:
            model = self._factory()
        except Exception as error:
            raise UsageError(
                f"{self.source.factory}() fails: {type(error).__name__}: {error}. It must return "
                "the generator without being given an argument."
            ) from error
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"{self.source.factory}() returns a {type(model).__name__}, not a torch.nn.Module."
            )
        return model

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """The state dict that fits the module (or the one under the key that was named)."""
        key = self.source.key
        if key is not None:
            found: Any = checkpoint
            for part in key.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
            if not _is_state(found):
                names = ", ".join(str(k) for k in list(checkpoint)[:10])
                raise UsageError(f"--key {key}: no state dict is there; the file has {names}.")
            return {key: _stripped(found)}
        candidates: dict[str, Any] = {"": checkpoint}
        candidates |= {n: checkpoint[n] for n in _NAMES if n in checkpoint}
        candidates |= {k: v for k, v in checkpoint.items() if isinstance(v, Mapping)}
        for name, value in candidates.items():
            if _is_state(value) and self._fits(set(_stripped(value))):
                return {name or "state_dict": _stripped(value)}
        return {}

    def _fits(self, names: set[str]) -> bool:
        """All of the module's names, or (a converted file's) what stands below most of them."""
        if names == self._names:
            return True
        parents = {n.rpartition(".")[0] for n in self._names}
        covered = [n for n in names if any(n.startswith(f"{p}.") or not p for p in parents)]
        return bool(names & self._names) and len(covered) == len(names)

    def read_config(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:  # noqa: ARG002
        """What can be told: the factory's name."""
        return {"module": self.source.factory}

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> dict[str, Any]:
        """The file with the state dict replaced; a bare state dict goes under ``state_dict``."""
        (name, state), *_ = states.items()
        if name not in checkpoint and "." not in name:
            return {name: dict(state)}
        return _put(checkpoint, name.split("."), dict(state))

    def picture(self, model: nn.Module) -> nn.Module:
        """The first tensor that it returns."""
        return Picture(model)

    def sampler(self, model: nn.Module) -> Sampler | None:
        """Normal latents of the shapes that were given, or of the module's own ``z_dim``."""
        shapes = self.source.shapes
        if not shapes:
            size = next((getattr(model, n) for n in _LATENTS if hasattr(model, n)), None)
            if not isinstance(size, int):
                return None
            shapes = ((size,),)

        def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
            device = generator.device
            return tuple(
                torch.randn(n, *shape, generator=generator, device=device) for shape in shapes
            )

        return sample


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def _stripped(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Without the prefix of DataParallel."""
    if all(k.startswith("module.") for k in state):
        return {k.removeprefix("module."): v for k, v in state.items()}
    return state


def _put(tree: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    head, *rest = path
    return {**tree, head: _put(tree[head], rest, value) if rest else value}


def _imported(spec: str) -> Any:
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise UsageError(f"--module {spec} is not like package.path:factory.")
    here = str(Path.cwd())
    try:
        # The user's project is where he stands, as with ``python -m``.
        sys.path.insert(0, here)
        try:
            found: Any = importlib.import_module(module)
        finally:
            sys.path.remove(here)
    except Exception as error:
        raise UsageError(
            f"--module {spec}: {module} can't be imported ({type(error).__name__}: {error}). Run "
            "dsconvert in the folder of that package, or install it."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"--module {spec}: {module} has no {name}.")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"--module {spec} is a {type(found).__name__}; name a function or class.")
    return found
