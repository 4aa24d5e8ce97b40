"""The adapter object that dsconvert finds through the entry point ``cyclegan``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter
from dsconvert.errors import AdapterError
from dsconvert.records.pictures import PictureSpec

from .architecture import NORMS, Downsample, ResnetGenerator, UnetGenerator, Upsample
from .recognise import State, cleaned, config_of, is_resnet, is_unet

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = "state_dict"
"""The name of a bare state dict, also where it stands in a converted file."""
_NUMBERS = ("input_nc", "output_nc", "ngf", "n_blocks", "num_downs")
_SWITCHES = ("use_dropout", "reflect", "blur_down", "blur_up")
_LARGEST = 4096
"""The largest number among the arguments of an architecture; beyond, a file is damaged."""
_DOWNS = range(5, 13)
_CHANNELS = (1, 3, 4)
"""Channels of pictures."""
_CROP, _LEAST = 128, 16
"""Sides of the pictures that a ResNet generator reads: usual, and smallest."""


class CycleGan(Adapter):
    """Adapter for ``latest_net_G.pth``: a bare state dict of a ResNet or U-Net generator."""

    name = "cyclegan"

    def matches(self, model: nn.Module) -> bool:
        """Whether ``model`` is a generator of ours."""
        return isinstance(model, ResnetGenerator | UnetGenerator)

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Facts about a live generator; also of a converted one.

        Raises:
            AdapterError: ``generator`` is none of this codebase's.
        """
        g = self._require(generator)
        unet = isinstance(g, UnetGenerator)
        name = f"unet_{2**g.num_downs}" if unet else f"resnet_{g.n_blocks}blocks"
        return {
            "cfg": name,
            "ngf": g.ngf,
            "norm": g.norm,
            "antialiased": not unet and (g.blur_down or g.blur_up),
            "input_channels": g.input_nc,
            "img_channels": g.output_nc,
            "parameters": sum(p.numel() for p in generator.parameters()),
        }

    def pictures(self, model: nn.Module) -> PictureSpec | None:
        """Pictures in [-1, 1]; None where the input has other channels than pictures have."""
        g = self._require(model)
        if g.input_nc not in _CHANNELS:
            return None
        side = 2**g.num_downs if isinstance(g, UnetGenerator) else 0
        return PictureSpec(
            channels=g.input_nc,
            values="signed",
            size=side or _CROP,
            least=side or _LEAST,
            multiple=side or 4,
        )

    def sampler(self, model: nn.Module) -> Callable[[int, torch.Generator], tuple[Tensor, ...]]:
        """Random pixels (n, C, H, W), for shapes and times.

        Raises:
            AdapterError: ``model`` is none of this codebase's, or reads no pictures.
        """
        spec = self.pictures(model)
        if spec is None:
            raise AdapterError(
                f"the generator reads maps of {self._require(model).input_nc} channels, which no "
                "pictures have; give them as arrays: --calibration inputs.npz."
            )
        shape = (spec.channels, spec.size, spec.size)
        return lambda n, generator: (
            torch.rand(n, *shape, generator=generator, device=generator.device) * 2 - 1,
        )

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """CUT's filters, which work on each channel."""
        return (Downsample, Upsample)

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """The bare state dict, or the one that a converted file has under ``state_dict``."""
        state = checkpoint.get(_ROOT, checkpoint)
        if not isinstance(state, Mapping) or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
        ):
            return {}
        return {_ROOT: cleaned(state)} if is_resnet(state) or is_unet(state) else {}

    def read_config(self, state: State) -> Mapping[str, Any]:
        """The arguments of the architecture, by its ``kind``."""
        return config_of(state)

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator with random weights; ``config`` may come from a file."""
        options = {k: v for k, v in config.items() if k != "kind"}
        for name, value in options.items():
            if name in _NUMBERS and type(value) is int and 1 <= value <= _LARGEST:
                continue
            if name in _SWITCHES and type(value) is bool:
                continue
            if name != "norm" or value not in NORMS:
                raise ValueError(f"{name} is {value!r}")
        if config["kind"] == "resnet":
            return ResnetGenerator(**options)
        if config["kind"] != "unet" or config["num_downs"] not in _DOWNS:
            raise ValueError(f"{config['kind']!r} is no generator of this codebase")
        return UnetGenerator(**options)

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """The file, with its state dict under ``state_dict``: a recipe has to stand beside it."""
        kept = checkpoint if _ROOT in checkpoint else {}
        return {**kept, _ROOT: dict(states[_ROOT])}

    def _require(self, model: nn.Module) -> Any:
        if not self.matches(model):
            raise AdapterError(
                f"{type(model).__name__} is no generator of CycleGAN, pix2pix or CUT as dsconvert "
                "builds it. Open its file with dsconvert, or build it with "
                "dsconvert_adapters.cyclegan."
            )
        return model


ADAPTER = CycleGan()
