"""The adapter object that dsconvert finds through the entry point ``biggan_pytorch``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dsconvert.adapter import Adapter
from dsconvert.errors import AdapterError

from ..latents import ClassConditional, normal_latents
from .architecture import Generator, config_of
from .layers import BN, CCBN, NestedBN, NestedCCBN

State = Mapping[str, Tensor]
_ENTRY = "state_dict"
_WHOLE = (
    "dim_z", "bottom_width", "n_classes", "shared_dim", "vectors", "img_channels",
)  # fmt: skip
_LARGEST = 1 << 20
_MOST_VECTORS = 16
"""Singular vectors of a layer; each is two buffers in every layer."""


class BigganPytorch(Adapter):
    """Adapter for the state dicts ``G_ema.pth`` and ``G.pth``, of BigGAN and BigGAN-deep."""

    name = "biggan_pytorch"

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is a generator of ours."""
        return isinstance(model, Generator)

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a live generator; also of a converted one.

        Raises:
            AdapterError: ``generator`` is none of this codebase's.
        """
        g = _required(generator)
        return {
            "cfg": "BigGAN-deep" if g.deep else "BigGAN",
            "resolution": g.resolution,
            "z_dim": g.dim_z,
            "c_dim": g.n_classes,
            "hier": g.hier,
            "parameters": sum(p.numel() for p in g.parameters()),
        }

    def sampler(self, model: nn.Module) -> ClassConditional:
        """Normal latents (n, dim_z), and ``shared(classes)`` of uniform classes.

        Raises:
            AdapterError: ``model`` is none of this codebase's.
        """
        g = _required(model)
        draw = normal_latents(g.dim_z)
        shared = g.shared

        def condition(classes: Tensor) -> Tensor:
            if not isinstance(shared, nn.Embedding):
                return classes
            table = shared.weight.detach()
            return table[classes.to(table.device)].to(classes.device)

        return ClassConditional(
            latents=lambda n, generator: draw(n, generator)[0],
            condition=condition,
            classes=g.n_classes,
        )

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """Normalisations whose statistics are corrected as a whole."""
        return (BN, NestedBN, NestedCCBN)

    def norm_types(self) -> tuple[type[nn.Module], ...]:
        """The batch normalisations whose gain depends on the class."""
        return (CCBN,)

    def affine(self, norm: nn.Module, *condition: Any) -> tuple[Tensor, Tensor]:
        """Gain and bias (N, C).

        Raises:
            AdapterError: ``norm`` is none of :meth:`norm_types`.
        """
        if not isinstance(norm, CCBN):
            raise AdapterError(f"a {type(norm).__name__} has no gain of its own.")
        return norm.affine(*condition)

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """The bare state dict of the file.

        Raises:
            ValueError: it is that of a discriminator.
        """
        state: Any = checkpoint.get(_ENTRY, checkpoint)
        if not isinstance(state, Mapping) or "blocks.0.0.conv1.weight" not in state:
            return {}
        if "embed.weight" in state and "linear.weight" in state:
            raise ValueError("it is the discriminator (D.pth); name G_ema.pth or G.pth")
        converted = any(k.startswith("output_layer.2.") for k in state)
        return {_ENTRY: state} if converted and "blocks.0.0.bn1.gain.weight" in state else {}

    def read_config(self, state: State) -> Mapping[str, Any]:
        """The arguments of :class:`Generator`."""
        return config_of(state)

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator with random weights.

        Raises:
            AdapterError: there is no such generator.
        """
        try:
            numbers = {k: int(config[k]) for k in _WHOLE}
            lists = {k: [int(i) for i in config[k]] for k in ("inner", "attention")}
            channels = [[int(a), int(b)] for a, b in config["channels"]]
            hier, statistics = bool(config["hier"]), str(config["statistics"])
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"this describes no BigGAN ({error!r}).") from None
        sizes = [*numbers.values(), *(n for pair in channels for n in pair), *lists["inner"]]
        fits = numbers["vectors"] <= _MOST_VECTORS and all(0 <= n <= _LARGEST for n in sizes)
        if not channels or len(channels) > 64 or not fits:
            raise AdapterError("this describes no BigGAN: a size is out of range.")
        if lists["inner"] and len(lists["inner"]) != len(channels):
            raise AdapterError("this describes no BigGAN: blocks lack their inner channels.")
        return Generator(
            channels=channels,
            hier=hier,
            statistics=statistics,
            inner=lists["inner"],
            attention=lists["attention"],
            **numbers,
        )

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """Return the file: a bare state dict gets an entry, since something stands beside it."""
        kept = checkpoint if _ENTRY in checkpoint else {}
        return {**kept, _ENTRY: dict(states[_ENTRY])}


def _required(model: nn.Module) -> Generator:
    if not isinstance(model, Generator):
        raise AdapterError(f"{type(model).__name__} is no generator of BigGAN-PyTorch.")
    return model


ADAPTER = BigganPytorch()
