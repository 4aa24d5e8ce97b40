"""Model -> Analysis: the facts about a model that all later stages use.

An analysis is made once per model and passed to planning, rewriting, fitting and reporting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from dsconvert.adapter import Adapter, adapter_for, as_adapter
from dsconvert.core.cost import count
from dsconvert.errors import UsageError
from dsconvert.model.graph import ConvTypes, TracedGraph
from dsconvert.model.inputs import (
    GIVE_INPUTS,
    Inputs,
    RandomPixels,
    examples_for,
    needs_pictures_to_fit,
    resolved_sampler,
)
from dsconvert.model.model_types import ModelTypes, types_of
from dsconvert.model.observe import meta_copy, undisturbed
from dsconvert.model.sites import find_sites
from dsconvert.model.wrappers import unwrapped
from dsconvert.records import Cost, Sites
from dsconvert.util.progress import Progress
from dsconvert.width import ChannelGroups, Curves, free_groups, measure_curves


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """A model and the facts about it; nothing here changes.

    Attributes:
        model: the original, without wrappers.
        bare: whether the model given was one convolution; ``model`` then holds it as its child.
        adapter: the adapter that knows the model, or None.
        types: the classes with a meaning for dsconvert (noise, norms, leaves).
        sampler: of the model's inputs, or None.
        examples: arguments of one forward call, batch 1, or None.
        sites: the convolutions, their surroundings and shapes.
        graph: the operations, recorded by torch.fx.
        owned: whether the model is the library's own, read from a file, and may be run as it is.
    """

    model: nn.Module
    bare: bool
    adapter: Adapter | None
    types: ModelTypes
    sampler: Inputs | None
    examples: tuple[Any, ...] | None
    sites: Sites
    graph: TracedGraph
    owned: bool = False
    _curves: dict[int, Curves] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def cost(self) -> Cost:
        """Parameters and MACs of the original, counted at the first use."""
        return self.count(self.model, own=self.owned)

    @property
    def sounds(self) -> bool:
        """Whether the model is a vocoder, by its adapter."""
        return self.adapter is not None and self.adapter.sounds(self.model) is not None

    @cached_property
    def groups(self) -> ChannelGroups:
        """The channel groups, found at the first use; none without example inputs."""
        return free_groups(self.model, self.graph, self.sites, self.examples)

    def curves(self, seed: int, progress: Progress | None = None) -> Curves:
        """Return the losses of fewer channels, measured at the first use with this seed.

        Raises:
            UsageError: nothing says what the inputs look like.
        """
        if self.sampler is None:
            raise UsageError(
                "fewer channels are chosen by the activations, and nothing says what the inputs "
                f"look like: {GIVE_INPUTS}, or keep the width."
            )
        if isinstance(self.sampler, RandomPixels):
            raise UsageError(needs_pictures_to_fit(self.model, self.sampler))
        if seed not in self._curves:
            self._curves[seed] = measure_curves(
                self.model,
                self.graph,
                self.groups,
                self.sampler,
                seed=seed,
                macs=self.cost.macs,
                progress=None if progress is None else lambda i, n, d: progress("width", i, n, d),
            )
        return self._curves[seed]

    def count(self, model: nn.Module, *, own: bool) -> Cost:
        """Return parameters and MACs of ``model`` on the same example inputs."""
        # A declared leaf uses its children's weights without calling them.
        return count(model, self.examples, leaves=self.types.leaves, own=own)

    def without_model(self) -> Analysis:
        """Return a copy whose model is on the meta device, so that no weights stay in memory."""
        return replace(self, model=meta_copy(self.model))

    def result(self, model: nn.Module) -> nn.Module:
        """Return the form of a rewritten ``model`` that the caller gets."""
        return next(model.children()) if self.bare else model


def analyse(
    model: nn.Module,
    *,
    example_inputs: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
    leaves: Sequence[str] = (),
    adapter: Adapter | None = None,
    owned: bool = False,
) -> Analysis:
    """Analyse ``model``, which does not change.

    Args:
        model: any ``nn.Module`` that torch.fx can trace; wrappers (``DataParallel``,
            ``torch.compile``, a moving average) are removed.
        example_inputs: positional arguments of one forward call. Without them, an adapter or
            ``inputs`` gives the arguments; otherwise shapes, MACs and dead modules are unknown.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n.
        leaves: names of modules that torch.fx must not trace into.
        adapter: the model's adapter; None: the installed one that knows the model.
        owned: the model is the library's own and may be run as it is.

    Raises:
        UsageError: ``model`` is no module that can be rewritten.
        TraceError: it can't be traced, or fails on its example inputs.
    """
    model = unwrapped(model)
    bare = isinstance(model, ConvTypes)
    if bare:
        model = nn.Sequential(model).train(model.training)
    known = adapter_for(model) if adapter is None else as_adapter(adapter)
    with undisturbed():
        examples = examples_for(model, example_inputs, inputs, known)
        types = types_of(model, known)
        sites, graph = find_sites(
            model,
            example_inputs=examples,
            leaves=leaves,
            leaf_types=types.leaves,
            noise_types=types.noises,
            norm_types=types.norms,
            unused=known.unused(model) if known is not None else (),
            owned=owned,
        )
    return Analysis(
        model=model,
        bare=bare,
        adapter=known,
        types=types,
        sampler=resolved_sampler(model, inputs, known),
        examples=examples,
        sites=sites,
        graph=graph,
        owned=owned,
    )


def analyse_alike(
    known: Analysis | None,
    model: nn.Module,
    *,
    inputs: Inputs | None = None,
    adapter: Adapter | None = None,
    owned: bool = False,
) -> Analysis:
    """Return the analysis of ``model``; reuse ``known`` if that is of the same architecture.

    ``inputs``, ``adapter`` and ``owned`` are as for :func:`analyse`.
    """
    if known is None or _shape(known.model) != _shape(model):
        return analyse(model, inputs=inputs, adapter=adapter, owned=owned)
    return replace(known, model=model, owned=owned)


def _shape(model: nn.Module) -> list[tuple[Any, ...]]:
    """Return names, classes and parameter shapes, and which parameters are shared."""
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
