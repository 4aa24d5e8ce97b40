"""The adapter object that dsconvert finds through the entry point ``spandrel``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter, image_tensor
from dsconvert.errors import AdapterError
from dsconvert.records.pictures import DEFAULT_CROP, PictureSpec

from . import library
from .library import Facts, facts_of
from .recognise import recognised

if TYPE_CHECKING:
    from collections.abc import Callable

State = Mapping[str, Tensor]
_ENTRIES = (
    "params_ema", "params-ema", "params", "model_state_dict", "state_dict", "model", "net",
)  # fmt: skip
"""Entries of a file that hold a state dict, the averaged one first, as spandrel looks for them."""
_USUAL = (
    ("conv_first.weight",),
    ("body.0.weight", "body.1.weight"),
    ("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
)
"""Names by which the most usual files are known where spandrel is not installed."""


class _Picture(nn.Module):
    """Images in [-1, 1]: most architectures make them in [0, 1]."""

    def __init__(self, model: nn.Module, *, signed: bool) -> None:
        super().__init__()
        self.model = model
        self._signed = signed

    def forward(self, *args: Any) -> Tensor:
        """Return the first image of the model."""
        image = image_tensor(self.model(*args))
        return image if self._signed else image * 2 - 1


class Spandrel(Adapter):
    """Adapter for every architecture in spandrel's registry that reads a picture."""

    name = "spandrel"

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is of a class of spandrel."""
        return ".architectures." in type(model).__module__ and type(model).__module__.startswith(
            ("spandrel.", "spandrel_extra_arches.")
        )

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a live generator; also of a converted one."""
        facts = self._facts(generator)
        return {
            **facts.config,
            "cfg": facts.architecture,
            "scale": facts.scale,
            "input_channels": facts.input_channels,
            "img_channels": facts.output_channels,
        }

    def pictures(self, model: nn.Module) -> PictureSpec:
        """Pictures at low resolution, in [0, 1]."""
        facts = self._facts(model)
        least = max(facts.least, facts.multiple)
        size = max(DEFAULT_CROP, least)
        return PictureSpec(
            channels=facts.input_channels,
            values="unit",
            size=-(-size // facts.multiple) * facts.multiple,
            least=least,
            multiple=facts.multiple,
        )

    def sampler(self, model: nn.Module) -> Callable[[int, torch.Generator], tuple[Tensor, ...]]:
        """Random pixels (n, C, H, W), for shapes and times."""
        spec = self.pictures(model)
        shape = (spec.channels, spec.size, spec.size)
        return lambda n, generator: (
            torch.rand(n, *shape, generator=generator, device=generator.device),
        )

    def picture(self, model: nn.Module) -> nn.Module:
        """Images in [-1, 1]."""
        inner = model if self.matches(model) else None
        signed = inner is not None and self._facts(inner).signed_output
        return _Picture(model, signed=signed)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the architecture, with random weights."""
        return library.built(config)

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the architecture on the CPU: some of its values are in no file."""
        return library.built(config)

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """Return the state dicts of one architecture, under the names of spandrel's model.

        Raises:
            MissingExtraError: it looks like a file of spandrel, which is not installed.
        """
        found: dict[str, State] = {}
        first: Facts | None = None
        for key, state in _candidates(checkpoint):
            if not library.installed():
                if any(all(n in state for n in names) for names in _USUAL):
                    library.library(f"this file (its entry {key!r})")
                continue
            known = recognised(state)
            if known is None or (first is not None and known[0] != first):
                continue
            first = known[0]
            found[key] = {name: state[source] for name, source in known[1].items()}
        return found

    def read_config(self, state: State) -> Mapping[str, Any]:
        """The arguments of :meth:`make`.

        Raises:
            ValueError: spandrel knows no such architecture.
        """
        known = recognised(state) if library.installed() else None
        if known is None:
            raise ValueError("spandrel knows no such architecture")
        return known[0].config

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """Return the file with these state dicts in place of its own; a bare one gets an entry."""
        nested = {key for key, _ in _candidates(checkpoint) if key in checkpoint}
        if set(states) <= nested:
            return {**checkpoint, **{key: dict(state) for key, state in states.items()}}
        return {key: dict(state) for key, state in states.items()}

    def _facts(self, model: nn.Module) -> Facts:
        if not self.matches(model):
            raise AdapterError(f"{type(model).__name__} is no architecture of spandrel.")
        return facts_of(model)


def _candidates(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, State]]:
    """Yield the state dicts of a file by their entry; a bare one goes by ``state_dict``."""
    nested = False
    for key in _ENTRIES:
        entry = checkpoint.get(key)
        if isinstance(entry, Mapping) and _is_state(entry):
            nested = True
            yield key, entry
    if not nested and _is_state(checkpoint):
        yield "state_dict", checkpoint


def _is_state(entry: Mapping[Any, Any]) -> bool:
    return len(entry) > 1 and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in entry.items()
    )


ADAPTER = Spandrel()
