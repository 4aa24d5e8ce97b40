"""Model -> Analysis: all that is known about a model before anything is decided.

It is made once, and carried through planning, rewriting, fitting and reporting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from dsconvert.adapter import Adapter, adapter_for
from dsconvert.core.cost import count
from dsconvert.model.graph import ConvTypes
from dsconvert.model.inputs import Inputs, examples_for, resolved_sampler
from dsconvert.model.model_types import types_of
from dsconvert.model.observe import meta_copy
from dsconvert.model.trace import Traced, trace
from dsconvert.model.wrappers import unwrapped
from dsconvert.records import Cost, Trace


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """A model and what was found out about it; nothing here is ever changed.

    Attributes:
        model: the original, without wrappers.
        bare: whether the model given was one convolution; ``model`` then holds it as its child.
        adapter: the one that knows the model.
        sampler: of its inputs.
        examples: arguments of one forward call, batch 1.
        traced: graph and convolution sites.
        owned: whether the model is the library's own, read from a file, and may be run as it is.
    """

    model: nn.Module
    bare: bool
    adapter: Adapter | None
    sampler: Inputs | None
    examples: tuple[Any, ...] | None
    traced: Traced
    owned: bool = False

    @property
    def trace(self) -> Trace:
        """The convolution sites."""
        return self.traced.trace

    @property
    def opaque_types(self) -> tuple[type[nn.Module], ...]:
        """Classes that use their children's weights without calling them."""
        return types_of(self.model, self.adapter).leaves

    @cached_property
    def cost(self) -> Cost:
        """Parameters and MACs of the original, counted at the first use."""
        return self.count(self.model, own=self.owned)

    def count(self, model: nn.Module, *, own: bool) -> Cost:
        """Parameters and MACs of ``model`` on the same example inputs."""
        return count(model, self.examples, leaves=self.opaque_types, own=own)

    def without_model(self) -> Analysis:
        """The same, with a copy on the meta device in the model's place: no weights stay."""
        return replace(self, model=meta_copy(self.model))

    def result(self, model: nn.Module) -> nn.Module:
        """What a caller gets back for a rewritten ``model``."""
        return next(model.children()) if self.bare else model


def analyse(
    model: nn.Module,
    *,
    example_inputs: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
    leaves: Sequence[str] = (),
    owned: bool = False,
) -> Analysis:
    """Look at ``model``, which is left as it was.

    Args:
        model: any ``nn.Module`` that torch.fx can trace; wrappers (``DataParallel``,
            ``torch.compile``, a moving average) are taken off.
        example_inputs: positional arguments of one forward call; an adapter or ``inputs`` gives
            them otherwise. Without any, shapes, MACs and dead modules are unknown.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n.
        leaves: names of modules that torch.fx must not look into.
        owned: the model is the library's own and may be run as it is.

    Raises:
        UsageError: ``model`` is no module that can be rewritten.
        TraceError: it can't be traced, or fails on its example inputs.
    """
    model = unwrapped(model)
    bare = isinstance(model, ConvTypes)
    if bare:
        model = nn.Sequential(model).train(model.training)
    adapter = adapter_for(model)
    examples = examples_for(model, example_inputs, inputs, adapter)
    sampler = resolved_sampler(model, inputs, adapter)
    types = types_of(model, adapter)
    traced = trace(
        model,
        example_inputs=examples,
        leaves=leaves,
        leaf_types=types.leaves,
        noise_types=types.noises,
        norm_types=types.norms,
        unused=adapter.unused(model) if adapter is not None else (),
    )
    return Analysis(
        model=model,
        bare=bare,
        adapter=adapter,
        sampler=sampler,
        examples=examples,
        traced=traced,
        owned=owned,
    )


def analyse_alike(
    known: Analysis | None, model: nn.Module, *, inputs: Inputs | None = None, owned: bool = False
) -> Analysis:
    """The analysis of ``model``; ``known`` is reused where that is of the same architecture.

    ``inputs`` and ``owned`` are as for :func:`analyse`.
    """
    if known is None or _shape(known.model) != _shape(model):
        return analyse(model, inputs=inputs, owned=owned)
    return replace(known, model=model, owned=owned)


def _shape(model: nn.Module) -> list[tuple[Any, ...]]:
    """Names, classes and parameter shapes; which parameters are one and the same."""
    numbers: dict[int, int] = {}
    return [
        (
            name,
            type(module),
            [
                (key, tuple(p.shape), numbers.setdefault(id(p), len(numbers)))
                for key, p in module.named_parameters(recurse=False)
            ],
        )
        for name, module in model.named_modules()
    ]
