"""What a model is found to be: signatures, wrappers, readers of weights, what is kept."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel

import dsconvert
from dsconvert.adapter import Adapter
from dsconvert.bench import Settings
from dsconvert.core.analysis import analyse
from dsconvert.errors import ConversionError, PlanError, TraceError, UsageError
from dsconvert.model.copying import owned_copy
from dsconvert.model.inputs import map_tensors, tensors_of
from dsconvert.search import plan_measured
from tests import awkward
from tests.models import Decoder, decoder, latents, output


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
        self.main = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(32, 3, 3, padding=1))
        self.ngpu = 1


def list_default(self: Any, x: Tensor, layers: list[int] = []) -> Any:  # noqa: B006 (CUT)
    return [self.main(x)] if -1 in layers else self.main(x)


def tuple_default(self: Any, x: Tensor, scales: tuple[float, ...] = (1.0,)) -> Tensor:
    for s in scales:
        x = x * s
    return self.main(x)


def keywords(self: Any, x: Tensor, **kw: Any) -> Tensor:
    return self.main(x, **kw)


def scalar(self: Any, z: Tensor, truncation: float) -> Tensor:
    assert 0 < truncation <= 1
    return self.main(z * truncation)


def flag(self: Any, x: Tensor, return_rgb: bool) -> Any:
    y = self.main(x)
    return (y, [y]) if return_rgb else y


def device(self: Any, x: Tensor) -> Tensor:
    if x.is_cuda and self.ngpu > 1:
        return nn.parallel.data_parallel(self.main, x, range(self.ngpu))
    return self.main(x)


def shape(self: Any, x: Tensor) -> Tensor:
    if x.shape[-1] % 4:
        x = nn.functional.pad(x, (0, 4 - x.shape[-1] % 4))
    return self.main(x)


def several(self: Any, xs: list[Tensor]) -> Tensor:
    return self.main([v * 2 for v in xs][0])  # noqa: RUF015 (rosinality)


def numbers(self: Any, x: Tensor) -> Tensor:
    for _ in range(x.shape[1] // 3):
        x = x * int(x.shape[2] / 16)
    y, side = self.main(x), torch.arange(x.shape[-1])
    return y.view(x.shape[0], -1, *x.shape[2:]) + side


def types(self: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float32 and len(x.shape) == 4 and not self.training:
        return self.main(x)
    raise RuntimeError("no images")


X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FORWARDS: list[Any] = [
    (list_default, (X,)), (tuple_default, (X,)), (keywords, (X,)), (scalar, (X, 0.5)),
    (flag, (X, True)), (device, (X,)), (shape, (X[..., :15],)),
    (several, ([X],)), (numbers, (X,)), (types, (X,)),
    *(
        pytest.param(*each, marks=pytest.mark.extended)
        for each in ((flag, (X, False)), (shape, (X,)), (several, ((X, X),)))
    ),
]  # fmt: skip


@pytest.mark.parametrize("wrapped", [lambda x: x, lambda x: [x]])
def test_a_tensor_by_itself_is_the_only_argument(wrapped: Any) -> None:
    """It is a sequence as well: of one sample, which has no batch."""
    model = Net().main.eval()
    wanted = dsconvert.plan(model, rank=1, example_inputs=(X,))
    assert wanted == dsconvert.plan(model, rank=1, inputs=lambda n, g: wrapped(X))
    assert wanted == dsconvert.plan(model, rank=1, example_inputs=wrapped(X))


@pytest.mark.parametrize("kind", ["register_backward_hook", "register_full_backward_hook"])
def test_a_backward_hook_does_not_stop_the_trace(kind: str) -> None:
    model = nn.Sequential(Net().main)
    getattr(model[0], kind)(lambda *_: None)
    assert len(analyse(model, example_inputs=(X,)).sites.convolutions) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("forward", "args"), FORWARDS, ids=lambda v: getattr(v, "__name__", ""))
def test_forward_takes_what_real_code_takes(forward: Any, args: tuple[Any, ...]) -> None:
    model = type("G", (Net,), {"forward": forward})().eval()
    wanted = model(*args)
    found = analyse(model, example_inputs=args)
    assert [s.name for s in found.sites.convolutions if s.calls] == ["main.0", "main.2", "main.4"]
    assert found.cost.macs is not None

    def inputs(n: int, generator: torch.Generator) -> tuple[Any, ...]:
        def more(t: Tensor) -> Tensor:
            return torch.randn(n, *t.shape[1:], generator=generator)

        return map_tensors(more, args)

    exact = dsconvert.convert(model, rank=9, inputs=inputs, init="svd", calibrate=0)
    fitted = dsconvert.convert(model, rank=2, inputs=inputs, calibrate=8)
    assert isinstance(fitted.main[2], nn.Sequential)
    got, rough = exact(*args), fitted(*args)
    for a, b, c in zip(_tensors(got), _tensors(wanted), _tensors(rough), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
        assert b.shape == c.shape


def _tensors(value: Any) -> list[Tensor]:
    return tensors_of(value)


def test_only_a_branch_on_values_fails_and_names_its_line() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return self.main(x)
        return self.main(-x)

    model = type("G", (Net,), {"forward": forward})().eval()
    with pytest.raises(TraceError, match=r"test_analysis.py:\d+ \(if x.mean\(\) > 0:\).*values"):
        dsconvert.plan(model, example_inputs=(X,))


def test_a_number_that_depends_on_the_batch_is_no_constant() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.main(x.reshape(x.shape[0] * 1, *x.shape[1:])) / x.shape[0]

    model = type("G", (Net,), {"forward": forward})().eval()
    graph = analyse(model, example_inputs=(X,)).graph.graph
    more = torch.cat([X, X, X])
    made = torch.fx.GraphModule(model, graph)
    assert torch.allclose(made(more), model(more), atol=1e-6)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "average": AveragedModel,
    "twice": lambda m: torch.compile(nn.DataParallel(m)),
}
# What is taken off in turn where both are there.
IN_TWICE = ("DataParallel", "torch.compile")


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(wrap, id=name, marks=[pytest.mark.extended] if name in IN_TWICE else [])
        for name, wrap in WRAPPERS.items()
    ],
)
def test_wrappers_are_taken_off(wrap: Any) -> None:
    model = type("G", (Net,), {"forward": tuple_default})().eval()
    fast = dsconvert.convert(wrap(model), rank=9, example_inputs=(X,))
    assert type(fast) is type(model)
    assert torch.allclose(fast(X), model(X), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3))), "TorchScript"),
        ("generator.pkl", "is a path"),
        ({"weight": torch.ones(1)}, "state dict"),
        (torch.ones(1), "no torch.nn.Module"),
    ],
    ids=["scripted", "path", "state dict", "tensor"],
)
def test_what_is_no_model_is_refused_by_name(given: Any, said: str) -> None:
    for call in (dsconvert.plan, dsconvert.convert, dsconvert.cost, dsconvert.merge):
        with pytest.raises(UsageError, match=said):
            call(given)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_bare_convolution_converts(kind: Any) -> None:
    conv = kind(8, 32, 3, padding=1).eval()
    x = torch.randn(2, 8, 6, 6)
    fast = dsconvert.convert(conv, preset="paper", rank=9, example_inputs=(x,))
    assert isinstance(fast, nn.Sequential)
    assert torch.allclose(fast(x), conv(x), atol=1e-5)
    assert isinstance(dsconvert.convert(conv, preset="fast", rank=1), nn.Sequential)


LOCKED = {
    "reads a weight": "its weight is read",
    "reads a width": "its in_channels is read",
    "tied": "its weight is read",
    "shared parameter": "it shares a parameter with again",
    "reads inside a leaf": "its weight is read",
    "clamps its weight": "its weight is read",
}


@pytest.mark.parametrize("name", LOCKED)
@pytest.mark.parametrize(
    "how", [pytest.param("examples", marks=pytest.mark.extended), "inputs", "nothing"]
)
def test_a_convolution_that_somebody_else_reads_is_kept(name: str, how: str) -> None:
    model, args = awkward.made(name)
    given: dict[str, Any] = {"example_inputs": args} if how == "examples" else {}
    if how == "inputs":
        given = {"inputs": lambda n, g: (torch.randn(n, 3, 8, 8, generator=g),), "calibrate": 8}
    if how == "nothing" and name in ("reads a width", "reads inside a leaf"):
        pytest.skip("only a run shows it")
    planned = {k: v for k, v in given.items() if k != "calibrate"}
    site = "body.conv" if name == "reads inside a leaf" else "body"
    decision = {d.site: d for d in dsconvert.plan(model, rank=1, **planned).decisions}[site]
    assert decision.action == "keep"
    assert decision.reason.startswith(LOCKED[name])
    fast = dsconvert.convert(model, rank=1, **given)
    assert torch.equal(fast.get_submodule(site).weight, model.get_submodule(site).weight)
    fast(*args)


def test_complex_convolutions_are_kept() -> None:
    layers = [nn.Conv2d(8, 8, 3, padding=1, dtype=torch.complex64) for _ in range(2)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 8, 8, 8, dtype=torch.complex64)
    plan = dsconvert.plan(model, preset="paper", example_inputs=(x,))
    assert [(d.action, d.reason) for d in plan.decisions] == [
        ("keep", "its weights are complex numbers")
    ] * 2
    made = dsconvert.convert(model, preset="paper", example_inputs=(x,), init="svd")
    with torch.no_grad():
        assert torch.equal(made(x), model(x))


def test_what_does_not_run_is_an_error_that_names_what_to_keep() -> None:
    model, args = awkward.made("fails when converted")
    with pytest.raises(ConversionError, match=r"no parameters.*--keep 'body'"):
        dsconvert.convert(model, rank=1, example_inputs=args)
    dsconvert.convert(model, rank=1, example_inputs=args, keep=["body"])(*args)


def _bytes(model: nn.Module, name: str) -> dict[str, bytes]:
    state = model.get_submodule(name).state_dict()
    return {k: v.contiguous().numpy().tobytes() for k, v in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "name"),
    [
        pytest.param(preset, name, marks=[] if i == j else pytest.mark.extended)
        for i, preset in enumerate(("exact", "paper", "balanced", "fast"))
        for j, name in enumerate(("block1", "block1.3", "head", "start"))
    ],
)
def test_what_is_kept_keeps_its_bytes(preset: str, name: str) -> None:
    model = decoder()
    given: dict[str, Any] = {"inputs": latents, "calibrate": 32}
    fast = dsconvert.convert(model, preset=preset, keep=[name], **given)
    assert _bytes(fast, name) == _bytes(model, name)
    output(fast, torch.randn(2, 16))


@pytest.mark.slow
def test_a_refit_of_kept_layers_is_asked_for_by_name() -> None:
    model = decoder()
    made = dsconvert.plan(model, preset="fast", keep=["block1"], refit=["head"], inputs=latents)
    assert made.keep == ("block1",)
    asked = {d.site for d in made.decisions if d.requested}
    assert asked == {"block1.1", "block1.5", "head"}
    again = type(made).from_json(made.to_json())
    assert again == made
    done = dsconvert.apply(model, again, inputs=latents, calibrate=32)
    assert _bytes(done.model, "block1") == _bytes(model, "block1")
    assert isinstance(done.model.head, nn.Conv2d)
    with pytest.raises(PlanError, match="--refit 'nothing' matches no module"):
        dsconvert.plan(model, refit=["nothing"], inputs=latents)


def test_a_plan_that_rewrites_what_it_keeps_is_refused() -> None:
    model = decoder()
    made = dsconvert.plan(model, preset="fast", inputs=latents)
    text = made.to_json().replace('"keep": []', '"keep": ["block1.1"]')
    with pytest.raises(PlanError, match=r"block1.1 can't be rewritten: kept on request"):
        dsconvert.apply(model, type(made).from_json(text), inputs=latents, calibrate=0)


class Counted(Decoder):
    """Counts how often it is traced by torch.fx, and by torch.jit, with which fvcore counts."""

    seen: ClassVar[Counter[str]] = Counter()

    def forward(self, z: Any, flag: bool = False) -> torch.Tensor:
        self.seen["traces"] += isinstance(z, fx.Proxy)
        self.seen["counts"] += torch.jit.is_tracing()
        return super().forward(z, flag)


class CountingAdapter(Adapter):
    name = "counting"

    def matches(self, model: nn.Module) -> bool:
        Counted.seen["look-ups"] += 1
        return isinstance(model, Counted)

    def describe(self, generator: nn.Module) -> dict[str, Any]:
        return {}

    def sampler(self, model: nn.Module) -> Any:
        return latents


COUNTING = CountingAdapter()


@pytest.mark.slow
def test_one_analysis_a_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look-up of the adapter, one trace, one count of the original."""
    info = tmp_path / "counting-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1\n")
    points = f"[dsconvert.adapters]\ncounting = {__name__}:COUNTING\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    cpu = Settings(device="cpu")
    commands: dict[Any, tuple[int, int]] = {
        (lambda model: dsconvert.convert(model, calibrate=16)): (1, 2),  # before and after
        (lambda model: dsconvert.convert(model, calibrate=16, adapter=COUNTING)): (0, 2),
        (lambda model: dsconvert.plan(model)): (1, 1),
        (lambda model: plan_measured(model, ["params=0.5x"], settings=cpu, cache=tmp_path)): (1, 0),
        (lambda model: dsconvert.deploy(model)): (1, 0),
        (lambda model: dsconvert.lean(model)): (1, 0),
    }
    for command, (look_ups, counts) in commands.items():
        Counted.seen.clear()
        command(Counted().eval())
        seen = Counted.seen
        assert (seen["look-ups"], seen["traces"], seen["counts"]) == (look_ups, 1, counts)


def test_a_copy_owns_what_it_holds() -> None:
    model, _ = awkward.made("remembers")
    copied = owned_copy(model)
    copied.history.append(1)
    assert model.history == []


@pytest.mark.slow
def test_no_copy_outlives_the_analysis() -> None:
    """A copy that was traced shares the parameters: of a large model they are to be freed."""
    model = decoder()
    held = [weakref.ref(p) for p in model.parameters()]
    analysis = analyse(model, inputs=latents).without_model()
    assert analysis.sites.convolutions
    del model
    gc.collect()
    assert not any(ref() is not None for ref in held)
