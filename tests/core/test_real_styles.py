"""What generators out in the world do in ``forward``, and how their layers are found."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsconvert
from dsconvert.errors import ConversionError, ExportError, UsageError
from dsconvert.matching.blocks import BlockRecorder


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.Conv2d(12, 12, 3, padding=1)
        self.tail = nn.Conv2d(12, 3, 3, padding=1)

    def main(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.body(F.relu(self.head(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class Makes(Net):
    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        plane = torch.zeros(n, 1, h, w, device=x.device) + torch.ones((x.size(0), 1, 1, 1))
        return self.main(x + plane + torch.arange(w).float() + torch.full((n, 1, 1, 1), 0.5))


class Assigns(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        y[:, :2] = 0
        y[:, 3].mul_(2)
        return self.tail(F.relu(self.body(y)))


class Slices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*Net().children())

    def forward(self, x: Tensor) -> Tensor:
        return self.net[1:](torch.relu(self.net[:1](x)))


class Sizes(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.body = nn.ConvTranspose2d(12, 12, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.body(F.relu(self.head(x)), output_size=x.size())))


class Draws(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.main(x + torch.randn(x.shape[0], 1, x.shape[2], x.shape[3]))


class Modulated(Net):
    """StyleGAN2's kernels have five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(1, 3, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weight = (self.kernel * x.mean((2, 3)).view(n, 1, c, 1, 1)).view(-1, c, 3, 3)
        return self.main(F.conv2d(x.view(1, -1, h, w), weight, padding=1, groups=n).view(x.shape))


def image(n: int, generator: torch.Generator) -> tuple[Any, ...]:
    return (torch.randn(n, 3, 8, 8, generator=generator),)


def images(model: nn.Module, n: int) -> Tensor:
    with torch.no_grad():
        torch.manual_seed(0)
        return model.eval()(*image(n, torch.Generator().manual_seed(n)))


def agree(one: nn.Module, other: nn.Module) -> None:
    for n in (1, 2, 5):
        torch.testing.assert_close(images(one, n), images(other, n), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Makes, Assigns, Slices, Sizes, Draws, Modulated])
def test_full_rank_and_deployed_are_the_original(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    made = dsconvert.convert(model, preset="paper", rank=9, init="svd", calibrate=0, inputs=image)
    assert kind is Sizes or sum(isinstance(m, nn.Sequential) for m in made.modules())
    agree(made, model)
    agree(dsconvert.deploy(model, inputs=image), model)
    agree(dsconvert.lean(model, inputs=image), model)


def test_a_convolution_that_is_told_its_output_size_is_kept() -> None:
    plan = dsconvert.plan(Sizes(), preset="fast", inputs=image)
    assert {d.site: d.reason for d in plan.decisions}["body"].startswith(
        "it is called with output_size"
    )


class ByClass(Net):
    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x) if isinstance(module, nn.Conv2d) else F.relu(x)
        return x


class InAList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [self.head, self.body, self.tail]

    def forward(self, x: Tensor) -> dict[str, Any]:
        for layer in self.layers:
            x = layer(x)
        return {"image": x, "count": 1}  # torch.jit can't trace this


@pytest.mark.parametrize("kind", [ByClass, InAList])
def test_a_replaced_layer_that_is_passed_over_is_an_error(kind: type[nn.Module]) -> None:
    with pytest.raises(ConversionError, match="does not call what replaces body"):
        dsconvert.convert(kind(), preset="paper", rank=1, calibrate=0, inputs=image)
    dsconvert.convert(kind(), preset="paper", keep=["body"], calibrate=0, inputs=image)


class Traced(Net):
    def forward(self, x: Tensor) -> Tensor:
        return x if torch.jit.is_tracing() else self.main(x)


def test_what_torch_jit_passes_over_is_no_error() -> None:
    dsconvert.convert(Traced(), preset="paper", rank=1, calibrate=0, inputs=image)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Net()
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("name", ["second", "second.body", "first.body"])
def test_keep_takes_each_name_of_a_shared_module(name: str) -> None:
    model = Shared()
    made = dsconvert.convert(model, preset="fast", rank=1, keep=[name], calibrate=8, inputs=image)
    wanted = model.get_submodule(name).state_dict()
    got = made.get_submodule(name).state_dict()
    assert list(got) == list(wanted)
    assert all(torch.equal(got[k], wanted[k]) for k in wanted)


def test_keep_takes_a_parametrisation() -> None:
    model = Net()
    nn.utils.parametrizations.weight_norm(model.body)
    name = "body.parametrizations.weight"
    made = dsconvert.convert(model, preset="fast", keep=[name], calibrate=8, inputs=image)
    assert list(made.get_submodule(name).state_dict()) == ["original0", "original1"]


def test_weights_of_inference_mode_are_converted() -> None:
    with torch.inference_mode():
        model = Net()
    dsconvert.convert(model, preset="fast", rank=1, calibrate=8, inputs=image)


@pytest.mark.filterwarnings("ignore")
def test_parts_that_can_not_be_looked_into_are_named() -> None:
    for part, said in (
        (torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3))), "1 of this Sequential is a TorchS"),
        (nn.LazyConv2d(3, 3), "1 of this Sequential is a LazyConv2d"),
    ):
        with pytest.raises(UsageError, match=said):
            dsconvert.plan(nn.Sequential(nn.Conv2d(3, 3, 3), part), inputs=image)


class Calls(Net):
    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args) * 2


def _hooked() -> nn.Module:
    model = Net()
    model.register_forward_hook(lambda _module, _args, output: output * 2)
    return model


@pytest.mark.parametrize("make", [Calls, _hooked])
def test_deploy_refuses_what_only_a_call_does(make: Any) -> None:
    with pytest.raises(ExportError, match="runs forward alone"):
        dsconvert.deploy(make(), inputs=image)


def test_merge_keeps_hooks() -> None:
    model = Net()
    model.body.register_forward_hook(lambda _module, _args, output: output * 2)
    made = dsconvert.convert(model, preset="paper", rank=9, init="svd", calibrate=0, inputs=image)
    agree(dsconvert.merge(made), model)


class ByKeyword(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.body(input=F.relu(self.head(x)))))


def test_a_convolution_that_is_called_by_keyword_has_its_macs() -> None:
    by_keyword, plain = (
        dsconvert.plan(kind(), preset="paper", rank=1, inputs=image).decisions
        for kind in (ByKeyword, Net)
    )
    assert any(d.action == "rewrite" for d in plain)
    assert [d.macs_after for d in by_keyword] == [d.macs_after for d in plain]


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.norm(self.body(F.relu(self.head(x))))))


class NormedByKeyword(Normed):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(input=self.body(input=F.relu(self.head(input=x)))))
        return self.tail(input=x)


@pytest.mark.parametrize("width", [None, 0.5])
def test_layers_that_are_called_by_keyword_are_fitted_as_the_others(width: float | None) -> None:
    torch.manual_seed(0)
    plain, by_keyword = Normed().eval(), NormedByKeyword().eval()
    by_keyword.load_state_dict(plain.state_dict())
    made = [
        dsconvert.apply(
            m, dsconvert.plan(m, preset="paper", width=width, inputs=image), inputs=image,
            calibrate=16,
        )
        for m in (plain, by_keyword)
    ]  # fmt: skip
    assert made[0].fits
    assert [f.fitted for f in made[1].fits] == [f.fitted for f in made[0].fits]
    assert made[1].notes == made[0].notes
    assert made[1].psnr == made[0].psnr


def test_a_block_that_is_called_by_keyword_reads_the_teachers_input() -> None:
    model = ByKeyword()
    recorder = BlockRecorder(model, ("body",))
    x = image(1, torch.Generator())[0]
    with recorder.recording():
        model(x)
        (given,) = recorder.inputs["body"]
    recorder.replace = {"body": (torch.zeros_like(given),)}
    with recorder.recording():
        model(x)
    assert torch.equal(recorder.outputs["body"], model.body(torch.zeros_like(given)))


class Doubles(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _depthwise(kind: Any = nn.Conv2d, *, bias: bool = False, hooked: bool = False) -> nn.Module:
    made = kind(3, 3, 3, padding=1, groups=3, bias=bias)
    if hooked:
        made.register_forward_hook(lambda _module, _args, output: output * 2)
    return made


def _pointwise(kind: Any = nn.Conv2d, *, bias: bool = False, **options: Any) -> nn.Module:
    return kind(3, 3, 1, bias=bias, **options)


@pytest.mark.parametrize("order", [("depthwise", "pointwise"), ("pointwise", "depthwise")])
@pytest.mark.parametrize(
    ("depthwise", "pointwise"),
    [
        (_depthwise(), _pointwise()),
        (_depthwise(bias=True), _pointwise()),
        (_depthwise(), _pointwise(bias=True)),
        (_depthwise(), _pointwise(groups=3)),
        (_depthwise(), _pointwise(padding=1)),
        (_depthwise(Doubles), _pointwise()),
        (_depthwise(), _pointwise(Doubles)),
        (_depthwise(hooked=True), _pointwise()),
    ],
)
def test_merge_keeps_the_image_of_pairs_of_the_networks_own(
    order: tuple[str, str], depthwise: nn.Module, pointwise: nn.Module
) -> None:
    parts = {"depthwise": depthwise, "pointwise": pointwise}
    pair = nn.Sequential(OrderedDict((name, parts[name]) for name in order))
    model = nn.Sequential(pair, nn.ReLU())
    agree(dsconvert.merge(model), model)


def test_merge_keeps_a_bottleneck_by_the_names_of_ours() -> None:
    spatial, point = nn.Conv2d(3, 1, 3, padding=1, bias=False), nn.Conv2d(1, 3, 1)
    model = nn.Sequential(nn.Sequential(OrderedDict(depthwise=spatial, pointwise=point)))
    agree(dsconvert.merge(model), model)


def test_merge_of_a_bare_convolution() -> None:
    model = nn.Conv2d(12, 12, 3, padding=1)
    model.register_forward_hook(lambda _module, _args, output: output * 2)
    x = torch.randn(2, 12, 8, 8)
    made = dsconvert.convert(model, preset="paper", rank=9, init="svd", example_inputs=(x,))
    assert type(made) is nn.Sequential
    merged = dsconvert.merge(made)
    assert type(merged) is nn.Conv2d
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-4)


def test_deploy_leaves_the_random_state(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 12, 4, 2, 1), nn.ReLU(), nn.Conv2d(12, 3, 3))
    before = torch.get_rng_state()
    dsconvert.deploy(dsconvert.convert(model, preset="fast", inputs=image), inputs=image)
    assert torch.equal(torch.get_rng_state(), before)


class FillsInPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.main(x + 0.1 * torch.empty(x.shape[0], 1, 1, 1).uniform_(0, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_export_that_can_not_be_loaded_again_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="loaded again"):
        dsconvert.export_model(FillsInPlace(), tmp_path / "made.pt2", inputs=image)
    assert not list(tmp_path.iterdir())
