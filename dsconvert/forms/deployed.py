"""The deployed form of a generator: the same images, the fewest passes over memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter, adapter_for, as_adapter
from dsconvert.config.choices import Noise, NoiseSource
from dsconvert.errors import ExportError
from dsconvert.forms.call import Call
from dsconvert.forms.flat_graph import Core, draw, flatten, largest_map
from dsconvert.forms.fusion import fuse
from dsconvert.forms.gpu_fusion import fuse_for_gpu
from dsconvert.forms.replay import Replayed
from dsconvert.forms.stages import Stages, stages_of
from dsconvert.forms.verify import compare
from dsconvert.kernels import takes
from dsconvert.model.inputs import Inputs, examples_of
from dsconvert.model.model_types import Types
from dsconvert.model.noise_source import device_of_draws
from dsconvert.model.norms import other_hooks
from dsconvert.model.observe import undisturbed
from dsconvert.model.wrappers import unwrapped
from dsconvert.util.memory_format import in_channels_last

_LOG = logging.getLogger(__name__)
_CHUNK = 24 << 20
"""Bytes of the largest map of a chunk. Above 32 MiB the C library maps each block anew, so larger
batches are slower an image, not faster (measured: 1.9 times at batch 8, 256 px, ngf 128)."""


class Deployed(nn.Module):
    """A generator for inference: called like the original, with the same images.

    It returns them alone, as one tensor, also where the original returns them in a tuple or dict
    with other values: these would cost time in each call.

    All operations up to the image are one flat graph, or two in sequence (``front``, ``core``; see
    :mod:`dsconvert.forms.stages`). Noise is drawn as the original draws it, so that the same
    ``torch.manual_seed`` gives the same image. On a CPU a batch runs in chunks whose maps stay
    small. It also has the plain attributes of the original (``z_dim``,
    ``img_resolution``, ...).
    """

    noise_source: NoiseSource = "device"
    """Where the noise is drawn; see :func:`dsconvert.model.noise_source.set_noise_source`."""

    dtype: torch.dtype | None = None
    """The type that the graph computes in; None: that of the arguments."""
    replayed: Replayed | None = None
    """CUDA graphs of small batches."""

    def __init__(self, core: Core, *, chunk: int | None, stages: Stages | None = None) -> None:
        super().__init__()
        self.core: Callable[..., Tensor] = core.module if stages is None else stages.second
        self.chunk = chunk
        """Images per chunk; None: the whole batch."""
        self.front: Callable[..., tuple[Tensor, ...]] | None
        self.front = None if stages is None else stages.first
        """The first stage, whose values ``core`` then takes; None: ``core`` is the whole graph."""
        self._batched = () if stages is None else stages.batched
        self._many = 1 if stages is None else stages.many
        self.noise = core.noise
        self.planes = core.planes
        self._call = core.call
        self._given = core.given
        self._takes_noise = core.takes_noise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled one, also from a version without nested arguments."""
        if "_arguments" in state:
            names, inputs = state.pop("_arguments"), state.pop("_inputs")
            state["_call"] = Call(
                positional=names,
                loose=state.pop("_loose"),
                tensors={name: (name,) for name in names},
                batched=frozenset(names),
                built_in={},
            )
            state["_given"] = tuple(n for n in inputs if n in names)
        if "front" not in state["_modules"]:
            state.setdefault("front", None)
        super().__setstate__(state)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Images (N, C, H, W), from the arguments that the original takes."""
        tensors = self._call.select(self._call.given(*args, **kwargs), self._given)
        if self.dtype is None:
            return self._images(*tensors)
        given = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        tensors = [t.to(self.dtype) if t.is_floating_point() else t for t in tensors]
        return self._images(*tensors).to(given)

    def _images(self, *given: Tensor) -> Tensor:
        """Return the images, by a CUDA graph where there is one."""
        # Noise that is drawn on the CPU can't be a part of it.
        if self.replayed is None or self.noise_source == "official":
            return self._drawn(*given)
        return self.replayed(self._drawn, *given)

    def _drawn(self, *given: Tensor) -> Tensor:
        """Draw the noise and run the graph."""
        tensors = list(given)
        batched = [name in self._call.batched for name in self._given]
        first = tensors[batched.index(True)]
        n = len(first)
        if self._takes_noise:
            kind = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
            where = device_of_draws(self.noise_source, first.device)
            tensors.append(draw(self.planes, n, device=where).to(first.device, kind))
            batched.append(True)
        if self.chunk is None or n <= self.chunk or first.device.type != "cpu":
            return self.core(*tensors) if self.front is None else self.core(*self.front(*tensors))
        if self.front is None:
            return _in_parts(self.core, tensors, batched, self.chunk)
        many = max(self._many, self.chunk)
        return _in_parts(self._staged, tensors, batched, many)

    def _staged(self, *tensors: Tensor) -> Tensor:
        """Run the first stage on all images, the second on some at a time."""
        assert self.front is not None
        assert self.chunk is not None
        return _in_parts(self.core, self.front(*tensors), self._batched, self.chunk)


def _in_parts(
    run: Callable[..., Tensor], tensors: Sequence[Tensor], batched: Sequence[bool], many: int
) -> Tensor:
    """Return the images of ``run``, ``many`` at a time."""
    n = len(tensors[list(batched).index(True)])
    if n <= many:
        return run(*tensors)
    out: Tensor | None = None
    for begin in range(0, n, many):
        rows = slice(begin, begin + many)
        part = run(*(t[rows] if b else t for t, b in zip(tensors, batched, strict=True)))
        if out is None:
            out = part.new_empty((n, *part.shape[1:]))
        out[rows] = part
    assert out is not None
    return out


def _more_than_forward(model: nn.Module) -> bool:
    """Return whether hooks, or an own ``__call__``, may change the output of ``forward``."""
    plain = nn.Module.__call__
    return any(type(m).__call__ is not plain or other_hooks(m) for m in model.modules())


def _check_forward_alone(
    model: nn.Module,
    core: Core,
    inputs: Inputs | None,
    noise_types: Types,
    adapter: Adapter | None,
) -> None:
    """Compare the images, since only ``forward`` is part of the deployed form.

    Raises:
        ExportError: they differ.
    """
    try:
        compare(
            model,
            core,
            core.module,
            "it",
            inputs=inputs,
            noise_types=noise_types,
            batches=(1,),
            adapter=adapter,
        )
    except ExportError as error:
        raise ExportError(
            f"a hook of this {type(model).__name__}, or a __call__ of its own, changes its images; "
            "the deployed form runs forward alone. Take the hook off, or put what it does into "
            "forward."
        ) from error


def _stages(
    core: Core, model: nn.Module, inputs: Inputs | None, adapter: Adapter | None
) -> Stages | None:
    """Split the graph where every argument and value follows the batch."""
    calls: list[tuple[Tensor, ...]] = []
    for n in (1, 2):
        tensors = core.select(examples_of(model, inputs, n=n, adapter=adapter))
        if core.takes_noise:
            tensors += (draw(core.planes, n).to(tensors[0].device, core.dtype),)
        calls.append(tensors)
    return stages_of(core.module, calls[0], calls[1])


def deploy(
    model: nn.Module,
    *,
    noise: Noise = "random",
    seed: int = 0,
    fused: bool = True,
    compile: bool = False,  # noqa: A002 - torch's own word
    dtype: torch.dtype | None = None,
    graph: int = 0,
    inputs: Inputs | None = None,
    noise_types: tuple[type[nn.Module], ...] = (),
    adapter: Adapter | None = None,
) -> Deployed:
    """Return the inference form of ``model``: the same images to float tolerance, faster.

    Norms are folded, batch normalisation goes into the convolutions, and (``fused``) depthwise
    upsampling, pointwise convolutions, noise and gates run as the parts of
    :mod:`dsconvert.forms.layers`, in ``channels_last``. For a model on CUDA they are the operators
    of :mod:`dsconvert.kernels`: move the model there first.

    Of a model that returns a tuple or dict the form returns the images alone; a warning of the
    logger ``dsconvert`` says so.

    Args:
        model: a generator, converted or not; it does not change.
        noise: ``random`` (drawn as the original does, from torch's random state), ``fixed`` (the
            same planes for every image) or ``zero``.
        seed: of the fixed planes.
        fused: use the parts made for the device; off: plain ``torch.nn`` operators only.
        compile: fuse the plain operators by ``torch.compile`` instead (needs a C++ compiler, and
            minutes at the first call of each shape).
        dtype: ``torch.float16`` or ``torch.bfloat16``: folded in double precision and then
            rounded; arguments and images keep their type. On a CPU it runs by plain operators.
        graph: the largest batch that runs as one CUDA graph, captured at the first call of each
            shape (on CUDA only; with noise that is drawn there).
        inputs: ``inputs(n, generator)`` returns the arguments of one call with batch n; needed
            where no adapter knows the model.
        noise_types: classes that add freshly drawn noise, besides the adapter's.
        adapter: the model's adapter; None: the installed one that knows the model.

    Raises:
        DsconvertError: the model can't be traced, or nothing says what its inputs look like.
    """
    model = unwrapped(model)
    with undisturbed():
        known = adapter_for(model) if adapter is None else as_adapter(adapter)
        core = flatten(
            model,
            examples_of(model, inputs, adapter=known),
            other=examples_of(model, inputs, n=2, adapter=known),
            noise=noise,
            seed=seed,
            noise_types=noise_types,
            adapter=known,
        )
        if core.image_path:
            _LOG.warning(
                "this %s returns its images under %s of a larger value; the deployed form returns "
                "the images alone, one tensor",
                type(model).__name__,
                "".join(f"[{key!r}]" for key in core.image_path),
            )
        there = next((t.device for t in core.module.parameters()), torch.device("cpu"))
        half = dtype in (torch.float16, torch.bfloat16)
        on_gpu = fused and not compile and takes(there)
        fused = fused and not compile and not on_gpu and not half
        if on_gpu:
            fuse_for_gpu(core)
        elif fused:
            fuse(core)
        if _more_than_forward(model):  # before the kernels are rounded to ``dtype``
            _check_forward_alone(model, core, inputs, noise_types, known)
        if dtype is not None:
            core.module.to(dtype)
        # Tensor cores read the channels of a pixel; cuDNN's float32 kernels want contiguous maps.
        if half or not on_gpu:
            in_channels_last(core.module)
        size = largest_map(core)
        chunk = max(1, _CHUNK // size) if size else None
        stages = _stages(core, model, inputs, known) if fused else None
        made = Deployed(core, chunk=chunk, stages=stages)
        for name, value in vars(model).items():
            plain = isinstance(value, int | float | str) and not name.startswith("_")
            if plain and not hasattr(made, name):
                setattr(made, name, value)
        made.eval().requires_grad_(False)
        made.dtype = dtype
        made.replayed = Replayed(most=graph) if graph else None
    if compile:
        made.core = torch.compile(core.module, dynamic=False)  # type: ignore[assignment]
    return made
