"""The deployed and lean forms as they are on a GPU: by the operators, here on a CPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert import kernels
from dsconvert.forms import Deployed, deploy, lean
from dsconvert.forms.gpu_convolutions import OperatorConv2d, use_operators
from dsconvert.forms.gpu_fusion import NoiseGate
from dsconvert.forms.recompute import NormGate
from dsconvert.forms.replay import Replayed
from dsconvert.model.upsampling import upsampled
from tests.fake_cuda import fake_cuda
from tests.forms.generators import image, inputs_of
from tests.models import decoder, latents


@pytest.fixture(scope="module")
def on_gpu(fast: nn.Module) -> Deployed:
    """What ``deploy`` makes of a model on CUDA."""
    with kernels.using("eager"):
        return deploy(fast)


@pytest.mark.slow
def test_every_part_is_an_operator_and_the_image_is_the_same(
    fast: nn.Module, on_gpu: Deployed
) -> None:
    args = inputs_of(fast, 3)
    with kernels.recording() as events:
        made = image(on_gpu, args)
    assert torch.allclose(made, image(fast, args), atol=1e-5)
    gates = [m for m in on_gpu.modules() if isinstance(m, NoiseGate)]
    assert len(events) == len(gates) > 10
    # No depthwise convolution, gate or bias of a convolution in front of a gate is left.
    left = [m for m in on_gpu.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert not any(kernels.filters_of(conv) is not None for conv in left)
    assert on_gpu.front is None
    called = {str(n.target) for n in on_gpu.core.graph.nodes}  # type: ignore[attr-defined]
    assert not any("glu" in name for name in called)
    assert any(m.weight is not None and m.weight.shape[-1] == 4 for m in gates)
    assert any(m.weight is None and m.noise is not None and m.gate for m in gates)


@pytest.mark.slow
def test_on_a_card_it_draws_there_and_copies_nothing(fast: nn.Module, on_gpu: Deployed) -> None:
    with fake_cuda() as fake:
        made = fake.model(on_gpu)
        args = fake.args(inputs_of(fast, 2))
        with fake.running() as seen, torch.no_grad():
            images = made(*args)
    assert (images.device.type, tuple(images.shape)) == ("cuda", (2, 3, 128, 128))
    assert {d.type for d in seen.draws} == {"cuda"}
    assert seen.copies == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_half_precision_by_choice(fast: nn.Module, backend: Any) -> None:
    args = inputs_of(fast, 2)
    with kernels.using(backend):
        half = deploy(fast, dtype=torch.bfloat16)
    made, want = image(half, args), image(fast, args)
    assert made.dtype == torch.float32
    assert {p.dtype for p in half.core.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    assert 0 < (made - want).abs().max() < 0.05 * want.abs().max()


def test_a_model_without_noise_and_with_an_upsample_in_front() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Upsample(scale_factor=2, mode="nearest")
            self.filter = nn.Conv2d(6, 3, 3, padding=1, groups=3)
            self.mix = nn.Conv2d(3, 8, 1)
            self.gate, self.last = nn.GLU(1), nn.Conv2d(4, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.gate(self.mix(self.filter(self.up(x)))))

    def inputs(n: int, generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(n, 6, 5, 7, generator=generator),)

    model = Plain().eval()
    with kernels.using("eager"), kernels.recording() as events:
        made = deploy(model, inputs=inputs)
        events.clear()
        (x,) = inputs(2, torch.Generator().manual_seed(0))
        assert torch.allclose(image(made, (x,)), image(model, (x,)), atol=1e-6)
    # The upsampled map is never made.
    assert [(e.geometry.kind, e.geometry.rank) for e in events] == [(2, 2), (0, 1)]
    assert not any(isinstance(m, nn.Upsample) for m in made.modules())
    assert model.mix.bias is not None


def test_a_filter_behind_an_upsample_is_a_transposed_one() -> None:
    weight, x = torch.randn(3, 2, 3, 3), torch.randn(1, 6, 4, 5)
    want = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1, groups=3)
    assert torch.allclose(kernels.depthwise(x, upsampled(weight)), want, atol=1e-5)


@pytest.mark.slow
def test_a_copy_and_a_pickle_keep_the_choices(fast: nn.Module) -> None:
    made = deploy(fast, graph=4, dtype=torch.float32)
    args = inputs_of(fast, 1)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.replayed is not None
        assert other.replayed.most == 4
        assert other.dtype == torch.float32
        assert torch.equal(image(other, args), image(made, args))


def test_small_batches_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed, runs, state = Replayed(most=2), [0], torch.zeros(8, dtype=torch.uint8)

    class Fake(Tensor):
        """A CPU tensor that says it is on CUDA."""

        device = torch.device("cuda:0")  # type: ignore[assignment]

    def there(*values: float) -> Tensor:
        return torch.tensor(values).as_subclass(Fake)

    def run(x: Tensor) -> Tensor:
        runs[0] += 1
        return x * 2

    @contextmanager
    def nothing(*_: Any, **__: Any) -> Generator[None, None, None]:
        yield

    class Graph:
        def replay(self) -> None:
            _, (mine,), out = next(iter(replayed._graphs.values()))
            out.copy_(mine * 2)

    class Stream:
        def wait_stream(self, other: Any) -> None: ...

    for name, value in {
        "is_current_stream_capturing": lambda: False, "device": nothing, "Stream": Stream,
        "current_stream": Stream, "stream": nothing, "get_rng_state": lambda: state,
        "set_rng_state": lambda s: runs.append(s is state), "CUDAGraph": Graph, "graph": nothing,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    first = replayed(run, there(1, 2))
    assert first.tolist() == [2, 4]
    # Three runs to warm up, whose draws are taken back, and the capture.
    assert runs == [4, True]
    second = replayed(run, there(3, 4))
    assert (first.tolist(), second.tolist()) == ([2, 4], [6, 8])
    assert runs[0] == 4
    assert replayed(run, there(1, 2, 3)).tolist() == [2, 4, 6]  # too large
    assert replayed(run, torch.ones(1)).tolist() == [2]  # not on CUDA
    assert runs[0] == 6
    assert pickle.loads(pickle.dumps(replayed))._graphs == {}


def _step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(3)
    out = model(x)
    out.square().sum().backward()
    buffers = {n: b.double() for n, b in model.named_buffers()}
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), **buffers, **gradients}


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_lean_step_by_operators(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder().double().train(training)
    args = latents(3, torch.Generator().manual_seed(1))
    made, x = lean(model, inputs=latents), args[0].double()
    ordinary = _step(copy.deepcopy(model), x)

    def refused(*_: Any) -> None:
        raise AssertionError("the step for CPUs ran")

    monkeypatch.setattr(NormGate, "apply", refused)
    with kernels.using("eager"), kernels.recording() as events:
        found = _step(made, x)
    assert ordinary.keys() == found.keys()
    for name, value in ordinary.items():
        assert torch.allclose(value, found[name], rtol=1e-8, atol=1e-10), name
    wanted = "batch_norm_gate" if training else "noise_gate"
    assert {e.operation for e in events} >= {wanted, "noise_gate_backward"}


def test_off_the_cpu_a_step_takes_many_samples_at_a_time() -> None:
    from dsconvert.forms.recompute import LARGE_TILE, _parts

    maps = torch.empty(5, 4, 64, 64, device="meta")
    assert [p[0] for p in _parts(maps)] == [slice(0, LARGE_TILE // (4 * 64 * 64 * 4))]
    large = torch.empty(5, 256, 512, 512, device="meta")
    assert [p[0] for p in _parts(large)] == [slice(i, i + 1) for i in range(5)]


@pytest.mark.slow
def test_convolutions_that_stand_alone_are_operators(fast: nn.Module, on_gpu: Deployed) -> None:
    trained = lean(fast)
    for model in (on_gpu, trained):
        own = [m for m in model.modules() if isinstance(m, OperatorConv2d)]
        assert any(kernels.is_pointwise(m) for m in own)
    # In the deployed form depthwise ones are part of another operator.
    assert any(kernels.filters_of(m) is not None for m in own)
    with kernels.using("eager"), kernels.recording() as events:
        made = image(trained, inputs_of(fast, 2))
    assert any(e.operation == "depthwise" for e in events)
    assert torch.allclose(made, image(fast, inputs_of(fast, 2)), atol=1e-5)
    assert {k: v.shape for k, v in trained.state_dict().items()} == {
        k: v.shape for k, v in fast.state_dict().items()
    }


def test_a_class_of_its_own_keeps_its_own_convolution() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return 2 * super().forward(input)

    normed = nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))
    model = nn.Sequential(Own(4, 4, 1), normed, nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(
        4, 4, 4, stride=2, padding=1, groups=4
    ))  # fmt: skip
    model.eval()
    x = torch.randn(2, 4, 5, 6)
    want = model(x)
    use_operators(model)
    kinds = [type(m).__name__ for m in model]
    assert kinds == ["Own", "OperatorConv2d", "Conv2d", "OperatorConvTranspose2d"]
    for backend in ("auto", "eager"):
        with kernels.using(backend):  # type: ignore[arg-type]
            assert torch.allclose(model(x), want, atol=1e-6)
    assert torch.allclose(nn.Conv2d.forward(model[1], x), model[1](x), atol=1e-6)
