"""The operators with torch's own operators behind them, and as torch sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert import kernels
from dsconvert.errors import UsageError
from dsconvert.kernels import use
from tests.fake_cuda import fake_cuda
from tests.kernels.cases import Case, check

CASES = [
    Case(operation=operation, side=side, rank=rank, multiplier=many, last=last, gate=gate)
    for operation in ("depthwise", "noise_gate", "batch_norm_gate")
    for side, rank, many in ((0, 1, 1), (3, 1, 1), (3, 3, 1), (4, 2, 1), (4, 1, 2))
    for last, gate in ((False, True), (True, False))
    if side or operation != "depthwise"
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fallback(case: Case) -> None:
    check(case, "eager")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_fallback_in_other_types(dtype: torch.dtype) -> None:
    # Training in half precision keeps its parameters in single precision.
    check(Case(operation="batch_norm_gate", side=3, dtype=dtype, per_sample=True), "eager")


@pytest.mark.parametrize("operation", ["depthwise", "noise_gate", "batch_norm_gate"])
def test_gradcheck_of_the_fallback(operation: str) -> None:
    case = Case(operation=operation, side=4, rank=2, size=(1, 2, 2, 2))
    given = case.tensors()
    names = [k for k, t in given.items() if t is not None and k != "plane"]

    def run(*tensors: Tensor) -> Tensor:
        return case._called(given | dict(zip(names, tensors, strict=True)))[0]

    leaves = tuple(given[k].requires_grad_() for k in names)  # type: ignore[union-attr]
    with kernels.using("eager"):
        assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", ["depthwise", "noise_gate", "batch_norm_gate"])
def test_torch_accepts_the_operator(name: str, last: bool) -> None:
    case = Case(operation=name, side=4, last=last, dtype=torch.float32)
    t = {
        k: None if v is None else v.requires_grad_(k != "plane") for k, v in case.tensors().items()
    }
    front = [t[k] for k in ("x", "weight", "bias", "noise", "plane")]
    more = {
        "depthwise": front[:3],
        "noise_gate": [*front, t["gain"], t["shift"], True],
        "batch_norm_gate": [*front, t["gain"], t["shift"], 1e-5, True],
    }
    torch.library.opcheck(getattr(torch.ops.dsconvert, name).default, tuple(more[name]))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4)

    def forward(self, x: Tensor, plane: Tensor) -> Tensor:
        filters = kernels.filters_of(self.conv)
        return kernels.noise_gate(x, weight=filters, noise=x.new_ones(1), plane=plane)


@pytest.mark.slow
def test_compilation_and_export_see_one_operator() -> None:
    args = (torch.randn(2, 4, 3, 5), torch.randn(2, 1, 6, 10))
    exported = torch.export.export(Block(), args)
    assert _operators(exported.graph) == ["dsconvert.noise_gate.default"]
    graphs: list[Any] = []

    def backend(module: Any, _: Any) -> Any:
        graphs.append(module.graph)
        return module.forward

    model = Block()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert torch.allclose(compiled(*args), model(*args))
    (graph,) = graphs
    assert "dsconvert.noise_gate" in str(_operators(graph))


def _operators(graph: Any) -> list[str]:
    return [str(n.target) for n in graph.nodes if "dsconvert" in str(n.target)]


def test_shapes_are_known_on_a_card() -> None:
    case = Case(operation="batch_norm_gate", side=4, rank=2, last=True, dtype=torch.bfloat16)
    given = case.tensors()
    with fake_cuda() as fake:
        there = {k: None if t is None else fake.tensor(t) for k, t in given.items()}
        with fake.running():
            out, mean, var = case._called(there)
    assert (out.device.type, out.dtype, tuple(out.shape)) == ("cuda", torch.bfloat16, (2, 1, 6, 10))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert mean.dtype == var.dtype == torch.float32


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 1, 3, 3)),
        (nn.Conv2d(6, 3, 3, padding="same", groups=3), (3, 2, 3, 3)),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), (6, 1, 3, 3)),
        (nn.ConvTranspose2d(6, 3, 4, 2, 1, groups=3), (3, 2, 4, 4)),
        (nn.ConvTranspose2d(3, 6, 4, 2, 1, groups=3), (6, 1, 4, 4)),
        (nn.Conv2d(4, 4, 3, padding=1), None),
        (nn.Conv2d(4, 4, 3, groups=4), None),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"), None),
        (nn.ConvTranspose2d(4, 4, 4, 2, 1, output_padding=1, groups=4), None),
        (nn.ConvTranspose2d(4, 4, 3, 2, 1, groups=4), None),
        (nn.Linear(3, 3), None),
    ],
)
def test_filters_of_convolutions(conv: Any, shape: tuple[int, ...] | None) -> None:
    filters = kernels.filters_of(conv)
    assert shape == (None if filters is None else tuple(filters.shape))
    if filters is not None:
        x = torch.randn(2, conv.in_channels, 3, 5)
        with torch.no_grad():
            assert torch.allclose(kernels.depthwise(x, filters, conv.bias), conv(x), atol=1e-6)


def test_autocast_does_not_cast_inside() -> None:
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        made = kernels.depthwise(x, weight)
    assert torch.equal(made, F.conv2d(x, weight, padding=1, groups=2))


def test_a_second_derivative_is_refused_not_wrong() -> None:
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(
        kernels.noise_gate(x, gate=True).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="has none itself"):
        torch.autograd.grad(grad.sum(), x)


def test_where_programs_do_not_run() -> None:
    def reason(x: Tensor, weight: Tensor | None = None) -> str:
        with kernels.recording() as events:
            kernels.noise_gate(x, weight=weight)
        (event,) = events
        assert event.by == "eager"
        return str(event.reason)

    assert reason(torch.randn(1, 2, 3, 3)) == "the tensors are on cpu"
    with kernels.using("eager"):
        assert "asked for" in reason(torch.randn(1, 2, 3, 3))
    with kernels.using("triton"):
        assert "empty" in reason(torch.randn(1, 2, 0, 3))
        many = torch.randn(1, 20, 2, 2)
        assert "more than 9" in reason(many, torch.randn(2, 10, 3, 3))
    with pytest.raises(UsageError, match="no backend is called 'cuda'"), kernels.using("cuda"):  # type: ignore[arg-type]
        pass
    assert use.backend() == "auto"
    assert not kernels.takes(torch.device("cpu"))
    assert kernels.takes(torch.device("cuda"))
