"""Models are called as their ``forward`` likes it, and never changed."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dsconvert import export_model, load_export
from dsconvert.adapter import image_tensor
from dsconvert.errors import AdapterError, DsconvertError, ExportError, UsageError
from dsconvert.forms import deploy, lean
from dsconvert.forms.call import call_of
from tests.made_models import moved_generator
from tests.model.test_model_types import foreign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.main = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))


def taking(signature: str, body: str) -> nn.Module:
    """A model whose forward is written out."""
    scope: dict[str, Any] = {"torch": torch}
    exec(f"def forward(self, {signature}):\n    return {body}", scope)
    return type("G", (Net,), {"forward": scope["forward"]})().eval()


def maps(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(n, 4, 8, 8, generator=generator),)


def classes(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (*maps(n, generator), torch.randint(4, (n,), generator=generator))


SHIFT = "torch.nn.functional.one_hot({}, 4)[:, :, None, None]"
CALLS: dict[str, tuple[nn.Module, Callable[..., tuple[Any, ...]], list[str]]] = {
    **{
        name: (taking(name, f"self.main({name})"), maps, [name])
        for name in ("input", "X", "id", "noise", "module", "forward", "x0")
    },
    "class labels": (taking("x, y", f"self.main(x + {SHIFT.format('y')})"), classes, ["x", "y"]),
    "labels first": (
        taking("y, x", f"self.main(x + {SHIFT.format('y')})"),
        lambda n, g: classes(n, g)[::-1],
        ["y", "x"],
    ),
    "defaults behind": (
        taking("x, scale=2.0, c=None, *, gain=1", "self.main(x * scale * gain)"), maps, ["x"],
    ),
    "values in between": (
        taking("x, scale=1.0, flag=False, y=None", "self.main(x * scale + y if flag else x)"),
        lambda n, g: (*maps(n, g), 0.5, True, torch.randn(n, 4, 1, 1, generator=g)),
        ["x", "y"],
    ),
    "keywords": (taking("x, c=None, **kwargs", "self.main(x)"), maps, ["x"]),
    "list and dict": (
        taking("parts, more", "self.main(parts[0] + parts[1] + more['y'])"),
        lambda n, g: ([*maps(n, g), *maps(n, g)], {"y": maps(n, g)[0], "flag": True}),
        ["parts_0", "parts_1", "more_y"],
    ),
    "star": (
        taking("*xs", "self.main(xs[0] + xs[1])"),
        lambda n, g: (*maps(n, g), *maps(n, g)),
        ["xs_0", "xs_1"],
    ),
    "no batch": (
        taking("x, w", "self.main(x * w)"),
        lambda n, g: (*maps(n, g), torch.full((4, 1, 1), 0.5)),
        ["x", "w"],
    ),
    "tuple": (taking("x", "(self.main(x), x.mean())"), maps, ["x"]),
    "image behind": (taking("x", "(x.mean((2, 3)), [self.main(x)])"), maps, ["x"]),
    "dict": (taking("x", "{'features': x, 'image': self.main(x)}"), maps, ["x"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(CALLS))
def test_whatever_forward_is_called_with(kind: str) -> None:
    model, inputs, _ = CALLS[kind]
    made = deploy(model, inputs=inputs)
    assert type(model).__name__ == "G"
    for again in (made, pickle.loads(pickle.dumps(made))):
        again.chunk = 2
        args = inputs(5, torch.Generator().manual_seed(3))
        with torch.no_grad():
            want = image_tensor(model(*args))
            assert torch.allclose(again(*args), want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("input", marks=pytest.mark.extended),  # an odd name too is "noise"
        "noise",
        "labels first",
        "list and dict",
        "no batch",
    ],
)
def test_inputs_of_an_export_have_the_names_of_the_arguments(tmp_path: Path, kind: str) -> None:
    model, inputs, names = CALLS[kind]
    out = tmp_path / "g.pt2"
    made = export_model(model, out, inputs=inputs)
    assert list(made.inputs) == names
    if kind == "no batch":
        assert made.inputs["w"] == (4, 1, 1)
    args = inputs(3, torch.Generator().manual_seed(3))
    call = call_of(model, args)
    with torch.no_grad():
        got = load_export(out)(*call.select(call.given(*args), tuple(names)))
        assert torch.allclose(got, model(*args), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "module"), [("onnx", "onnxruntime"), ("xml", "openvino")])
def test_other_formats_take_labels_and_odd_names(tmp_path: Path, suffix: str, module: str) -> None:
    pytest.importorskip(module)
    pytest.importorskip("onnxscript")
    model = taking("input, id", f"self.main(input + {SHIFT.format('id')})")
    made = export_model(model, tmp_path / f"g.{suffix}", inputs=classes)
    assert list(made.inputs) == ["input", "id"]


@pytest.mark.slow
def test_noise_beside_an_argument_called_noise(tmp_path: Path) -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.3]))

        def forward(self, feat: Tensor) -> Tensor:
            n, _, h, w = feat.shape
            return feat + self.weight * torch.randn(n, 1, h, w)

    model = taking("noise", "self.main(self.add(feat=noise))")
    model.add = Noise()
    made = export_model(model, tmp_path / "g.pt2", inputs=maps, noise_types=(Noise,))
    assert list(made.inputs) == ["noise", "noise_"]
    assert list(export_model(
        model, tmp_path / "z.pt2", inputs=maps, noise="zero", noise_types=(Noise,)
    ).inputs) == ["noise"]  # fmt: skip
    # Where nobody says that it is noise, it can't be taken out, and that is said.
    with pytest.raises(ExportError, match="draws random numbers by itself"):
        deploy(model, inputs=maps, noise="zero")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(ExportError, match="draws random numbers by itself"):
        export_model(model, tmp_path / "h.onnx", inputs=maps)


def test_what_is_built_in_stays() -> None:
    model, inputs, _ = CALLS["defaults behind"]
    made = deploy(model, inputs=inputs)
    x = maps(2, torch.Generator())[0]
    with torch.no_grad():
        assert torch.equal(made(x, 2.0, gain=1), made(x=x))
        with pytest.raises(UsageError, match=r"scale has the value 2\.0 built in"):
            made(x, scale=3.0)
        with pytest.raises(UsageError, match="c has the value None built in and can't be a Tensor"):
            made(x, c=x)
        with pytest.raises(TypeError, match="x is missing"):
            made()
        with pytest.raises(TypeError, match="two values"):
            made(x, x=x)


class Truncated(nn.Module):
    """The remedy for an argument that can only be given by name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, truncation=0.5)


def test_a_built_in_keyword_has_a_remedy() -> None:
    model = taking("x, *, truncation=1.0", "self.main(truncation * x)")
    x = maps(2, torch.Generator())[0]
    with pytest.raises(UsageError, match=r"forward calls the model with .*truncation=\.\.\."):
        deploy(model, inputs=maps)(x, truncation=0.5)
    made = deploy(Truncated(model), inputs=maps)
    with torch.no_grad():
        assert torch.allclose(made(x), model(x, truncation=0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ("{'image': self.main(x), 'w': x.mean()}", "['image']"),
        ("(x.mean(), [self.main(x)])", "[1][0]"),
        ("self.main(x)", ""),
    ],
)
def test_images_alone_are_announced(
    body: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = taking("x", body)
    made = deploy(model, inputs=maps)
    x = maps(2, torch.Generator())[0]
    with torch.no_grad():
        assert torch.allclose(made(x), image_tensor(model(x)), atol=1e-6)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("dsconvert")]
    assert len(said) == bool(place)
    assert all(f"this G returns its images under {place} of a larger value" in s for s in said)


@pytest.mark.parametrize(
    ("model", "inputs", "kind", "said"),
    [
        (taking("x, y", "self.main(x)"), maps, UsageError, "does not take the 1 arguments"),
        (taking("x", "self.main(x)"), lambda n, g: (3,), UsageError, "is a tensor"),
        (taking("x", "{'a': self.main(x), 'b': x}"), maps, AdapterError, r"\(a, b\)"),
        (taking("x", "x.mean()"), maps, AdapterError, "not images"),
        (taking("x", "self.main(torch.zeros(1, 4, 8, 8))"), maps, ExportError, "depends on none"),
    ],
)
def test_what_cannot_be_deployed_is_said(
    model: nn.Module, inputs: Any, kind: type[DsconvertError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        deploy(model, inputs=inputs)


@pytest.mark.slow
def test_the_noise_of_a_live_official_model_is_found(tmp_path: Path) -> None:
    model = foreign(moved_generator(ngf=2))
    made = export_model(model, tmp_path / "g.pt2")
    assert list(made.inputs) == ["z", "noise"]
    silent = deploy(model, noise="zero")
    args = (torch.randn(1, 16), torch.zeros(1, 0))
    torch.manual_seed(0)
    one = silent(*args)
    torch.manual_seed(1)
    assert torch.equal(one, silent(*args))
    chains = [m for m in lean(model).modules() if type(m).__name__ == "Passed"]
    assert len(chains) == len(made.planes)
    pytest.importorskip("safetensors")
    export_model(model, tmp_path / "g.safetensors", noise="zero")


class Awkward(Net):
    """Parametrized, counting, keeping what it saw, in training, after a pass with a gradient."""

    def __init__(self, norm: Any, fails: bool) -> None:
        super().__init__()
        self.main = nn.Sequential(
            norm(nn.Conv2d(4, 8, 3, padding=1)),
            nn.BatchNorm2d(8),
            nn.GLU(1),
            norm(nn.Conv2d(4, 3, 1)),
        )
        self.twin = copy.deepcopy(self.main[0])
        self.last: Any = None
        self.seen = [0]
        self.fails = fails
        self.main[3].register_forward_hook(lambda *_: None)

    def forward(self, input: Tensor) -> Any:  # noqa: A002
        self.last = self.main(input)
        self.seen[0] += 1
        return torch.special.bessel_j0(self.last).flatten() if self.fails else self.last


def reachable(model: nn.Module) -> dict[str, Any]:
    """What must stay: types, attributes, tensors, modes, hooks."""
    found: dict[str, Any] = {"random": torch.get_rng_state().clone()}
    for name, module in model.named_modules():
        found[f"{name}: type"] = (type(module), sorted(vars(type(module))))
        for key, value in vars(module).items():
            is_tensor = isinstance(value, Tensor)
            found[f"{name}.{key}"] = value if is_tensor else repr(value)
    for name, tensor in model.state_dict(keep_vars=True).items():
        found[name] = tensor.detach().clone()
        found[f"{name} itself"] = (id(tensor), tensor.requires_grad)
    return found


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("what", ["deploy", "lean", "export_model"])
def test_the_model_and_its_copies_stay_as_they_were(
    what: str, norm: Any, fails: bool, tmp_path: Path
) -> None:
    model = Awkward(norm, fails).train()
    x = maps(2, torch.Generator())[0]
    model(x)
    average = copy.deepcopy(model.main)
    before = reachable(model)
    run: dict[str, Callable[[], object]] = {
        "deploy": lambda: deploy(model, inputs=maps),
        "lean": lambda: lean(model, inputs=maps),
        "export_model": lambda: export_model(model, tmp_path / "g.pt2", inputs=maps),
    }
    if fails and what != "lean":
        with pytest.raises(DsconvertError):
            run[what]()
    else:
        run[what]()
    after = reachable(model)
    assert list(before) == list(after)
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
        assert same, key
    with torch.no_grad():
        assert model.eval()(x).isfinite().all()
        assert average.eval()(x).isfinite().all()


def test_an_instance_with_a_forward_of_its_own() -> None:
    model = Net().eval()
    model.forward = lambda x: x  # type: ignore[method-assign]
    other = taking("z", "self.main(z)")
    other.forward = type(other).forward.__get__(other)  # type: ignore[method-assign]
    x = maps(2, torch.Generator())[0]
    with torch.no_grad():
        assert torch.allclose(deploy(other, inputs=maps)(x), other(x), atol=1e-5)
    with pytest.raises(DsconvertError):
        deploy(nn.Identity(), inputs=lambda n, g: ("z",))
