"""The frozen records that the stages hand to each other. No torch, no printing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from dsconvert.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

Shape = tuple[int, ...]
Preset = Literal["exact", "paper", "balanced", "fast"]
Init = Literal["fit", "svd", "random"]
Action = Literal["keep", "rewrite", "remove"]
NormKind = Literal["none", "spectral-hook", "spectral-param", "weight-hook", "weight-param"]
PRESETS: tuple[Preset, ...] = ("exact", "paper", "balanced", "fast")
INITS: tuple[Init, ...] = ("fit", "svd", "random")
DTYPES = ("float32", "float16", "bfloat16", "amp", "amp-float16", "amp-bfloat16")
"""How a model runs while it is measured: plain names convert the weights; ``amp`` is autocast in
the device's usual type (float16 on CUDA, bfloat16 elsewhere)."""
Noise = Literal["zero", "fixed", "random"]
NOISES: tuple[Noise, ...] = ("zero", "fixed", "random")
"""What becomes of noise injections in an export; see :mod:`dsconvert.export`."""
FORMATS = ("onnx", "torch", "safetensors", "openvino")
"""What a generator can be exported to."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One convolution of a model, as the trace saw it.

    Shapes are ``(N, C, H, W)`` of the first call, None where the convolution never ran.
    ``macs`` are multiply-accumulates of all its calls for one sample, without the bias.
    """

    name: str
    kind: Literal["conv", "transposed"]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    output_padding: tuple[int, int]
    groups: int
    padding_mode: str
    bias: bool
    norm: NormKind
    calls: int | None
    input_shape: Shape | None
    output_shape: Shape | None
    upsample: str | None
    """Name of the nearest x2 ``nn.Upsample`` child that feeds this convolution and nothing else."""
    noise: str | None
    """Name of the noise-injection module that alone reads the output, if there is one."""
    batchnorm: str | None
    """Name of the batch normalisation that reads the output (behind the noise, if any)."""
    absorbs_scale: bool = False
    """Whether a constant factor on the output can be undone behind it: a batch normalisation
    follows, and the noise in between (if any) serves no other convolution."""
    custom: str | None = None
    """Name of its class, where that computes something other than the ``torch.nn`` layer does."""
    locked: str | None = None
    """Why it must stay a convolution with this very kernel, if somebody else uses it."""
    params: int
    macs: int | None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What tracing found.

    ``dead`` are modules (not only convolutions) that ``forward`` did not call. Something else may
    (an embedding of the classes, outside ``forward``): only those that are ``unused``, too, by what
    an adapter knows, can go without being asked for.
    """

    model: str
    sites: tuple[Site, ...]
    order: tuple[str, ...]
    """Names of the live sites in execution order."""
    dead: tuple[str, ...]
    leaves: tuple[str, ...]
    """Modules that torch.fx did not look into, by themselves or because somebody said so."""
    shapes_known: bool
    note: str | None = None
    """Why shapes are unknown, when they are."""
    modules: tuple[str, ...] = ()
    """The names of all modules."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Further names of modules that have several, each with the first, which stands for all."""
    unused: tuple[str, ...] = ()

    def holding(self, names: Sequence[str]) -> Trace:
        """The same, where ``names`` are to stay as they are: no site may change one of them."""
        if not names:
            return self
        sites: list[Site] = []
        for site in self.sites:
            upsample = None if within(site.upsample, names) else site.upsample
            noise = None if within(site.noise, names) else site.noise
            norm = None if within(site.batchnorm, names) else site.batchnorm
            # A parametrisation is a module inside the convolution, whose weight it makes.
            held = within(site.name, names) or any(n.startswith(f"{site.name}.") for n in names)
            same = (noise, norm) == (site.noise, site.batchnorm)
            sites.append(
                replace(
                    site,
                    upsample=upsample,
                    noise=noise,
                    batchnorm=norm,
                    absorbs_scale=site.absorbs_scale and same,
                    locked="kept on request" if held else site.locked,
                )
            )
        return replace(self, sites=tuple(sites))


def within(name: str | None, parents: Sequence[str]) -> bool:
    """Whether a module is one of ``parents``, or inside one."""
    return name is not None and any(name == p or name.startswith(f"{p}.") for p in parents)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to one convolution, and why. Costs are None where shapes are unknown."""

    site: str
    action: Action
    rule: str | None = None
    rank: int | None = None
    norm: Literal["keep", "fold"] = "fold"
    reason: str
    params_before: int
    params_after: int
    macs_before: int | None = None
    macs_after: int | None = None
    requested: bool = False
    """Whether it is kept because somebody asked for that."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Decisions for every convolution of one architecture; touches no weight."""

    model: str
    preset: str
    decisions: tuple[Decision, ...]
    remove: tuple[str, ...] = ()
    """Dead modules that are taken out."""
    keep: tuple[str, ...] = ()
    """Modules whose bytes stay as they are, by request: nothing in them is rewritten, refitted,
    folded or re-estimated."""
    note: str | None = None

    def to_json(self) -> str:
        """The plan as JSON, for a person to edit; :meth:`from_json` reads it back."""
        return json.dumps({"dsconvert_plan": 1, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that :meth:`to_json` wrote and a person may have edited.

        Raises:
            PlanError: not JSON, not a plan, or a field is missing, unknown or of the wrong type.
        """
        try:
            data: Any = json.loads(text)
        except ValueError as error:
            raise PlanError(
                f"the plan is not JSON ({error}); write one with --plan-only."
            ) from None
        if not isinstance(data, dict) or data.pop("dsconvert_plan", None) != 1:
            raise PlanError("this JSON is not a dsconvert plan (version 1); see --plan-only.")
        try:
            rows = data.pop("decisions")
            decisions = tuple(_decision(row) for row in rows)
            lists = {name: data.pop(name, []) for name in ("remove", "keep")}
            for name, value in lists.items():
                if type(value) is not list:
                    raise PlanError(f"the plan's {name} is {value!r}, not a list of names.")
            names = {name: tuple(value) for name, value in lists.items()}
            plan = cls(decisions=decisions, **names, **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise PlanError(f"the plan has a missing or unknown field: {error}.") from None
        for what in (plan.model, plan.preset, plan.note or "", *plan.remove, *plan.keep):
            if type(what) is not str:
                raise PlanError(f"the plan has {what!r} where a text belongs; quote it.")
        return plan

    def __str__(self) -> str:
        width = max((len(d.site) for d in self.decisions), default=4)
        lines = [f"plan {self.preset!r} for {self.model}"]
        for d in self.decisions:
            what = f"{d.rule} rank {d.rank}" if d.action == "rewrite" else d.action
            lines.append(f"  {d.site:<{width}}  {what:<18} {d.reason}")
        return "\n".join(lines)


def _decision(row: Any) -> Decision:
    """One decision from JSON, with its types checked (a person edits these)."""
    decision = Decision(**row)
    bad: list[str] = []
    if decision.action not in ("keep", "rewrite", "remove"):
        bad.append(f"action {decision.action!r} is not keep, rewrite or remove")
    if decision.norm not in ("keep", "fold"):
        bad.append(f"norm {decision.norm!r} is not keep or fold")
    for name, value in asdict(decision).items():
        if value is None and name in ("rule", "rank", "macs_before", "macs_after"):
            continue
        if name == "requested":
            if type(value) is not bool:
                bad.append(f"requested {value!r} is not true or false")
        elif name == "rank" or name.startswith(("params", "macs")):
            if type(value) is not int:
                bad.append(f"{name} {value!r} is not a whole number")
        elif type(value) is not str:
            bad.append(f"{name} {value!r} is not a {'name' if name != 'reason' else 'text'}")
    if bad:
        raise PlanError(f"the plan's line for {decision.site}: {'; '.join(bad)}.")
    return decision


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well one rewritten convolution reproduces the original's output.

    ``svd`` and ``fitted`` are relative errors ``||y - y'||^2 / ||y - mean||^2`` of the
    convolution's output on held-out inputs, after the per-channel affine that the following
    batch normalisation undoes (if there is one); ``residual`` is the energy that the SVD leaves
    in the kernel. None where that was not measured.
    """

    site: str
    rank: int
    residual: float | None
    svd: float | None
    fitted: float | None
    method: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Parameters and MACs (one sample) that belong to one named module, children included."""

    name: str
    type: str
    params: int
    macs: int | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs: ``macs`` are counted by fvcore for one sample (not 'FLOPs')."""

    params: int
    macs: int | None
    layers: tuple[LayerCost, ...]
    unsupported: dict[str, int] = field(default_factory=dict)
    """Operators that fvcore has no count for, with the number of calls."""
    uncalled: tuple[str, ...] = ()
    note: str | None = None
    """Why ``macs`` is None, when it is."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted model and everything that is known about how it came to be."""

    model: nn.Module
    plan: Plan
    fits: tuple[Fit, ...]
    before: Cost
    after: Cost
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by stage (trace, factorise, fit, statistics)."""
    psnr: float | None = None
    """Mean PSNR, dB, of the converted model's images to the original's on latents that were held
    out of the fit; None where nothing was fitted, or the output is no image."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A generator that was written to another format, loaded again and compared."""

    path: str
    format: str
    files: tuple[str, ...]
    bytes: int
    inputs: dict[str, tuple[int | str, ...]]
    """Names of the inputs, in order, with their shapes ("batch" is free)."""
    noise: Noise
    planes: tuple[tuple[str, int, int], ...]
    """Noise injections in execution order: module, height, width. Their planes, row by row, make up
    the input ``noise``."""
    error: float
    """Largest difference of a pixel to the model's image, over all the batches compared."""
    range: float
    """Largest magnitude of a pixel of the model's images."""
    batches: tuple[int, ...]
    """Batch sizes that were compared."""
    seconds: float
