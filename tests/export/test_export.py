"""Exports are loaded again, compared, and written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dsconvert
from dsconvert import export_model, load_export, load_generator
from dsconvert.cli import main
from dsconvert.errors import (
    CorruptSnapshotError,
    ExportError,
    ForeignFileError,
    MissingExtraError,
    OutputError,
    UsageError,
)
from dsconvert.export import graphs
from dsconvert.export.graphs import whole_numbers
from dsconvert.formats.official import load_snapshot
from dsconvert.forms.flat_graph import draw, flatten
from dsconvert.forms.layers import AddNoise
from dsconvert.forms.verify import Reference
from dsconvert.model.inputs import examples_of
from tests.forms.generators import converted, image, inputs_of
from tests.models import Noise, decoder, latents

if TYPE_CHECKING:
    from collections.abc import Callable

SUFFIX = {"onnx": "onnx", "torch": "pt2", "openvino": "xml", "safetensors": "safetensors"}


def extras(name: str) -> None:
    for module in graphs.GRAPHS[name].needs if name in graphs.GRAPHS else ("safetensors",):
        pytest.importorskip(module, reason=f'pip install "dsconvert[{name}]"')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "which", "noise"),
    [
        # With random noise, the test below compares the images too, and others export to torch.
        pytest.param("torch", "fast", "random", marks=pytest.mark.extended),
        pytest.param("torch", "conditional", "zero", marks=pytest.mark.extended),
        ("onnx", "fast", "fixed"),
        pytest.param("openvino", "conditional", "random", marks=pytest.mark.extended),
    ],
)
def test_a_graph_makes_the_models_images(
    tmp_path: Path, name: str, which: str, noise: Any, request: pytest.FixtureRequest
) -> None:
    extras(name)
    model = request.getfixturevalue(which)
    out = tmp_path / f"g.{SUFFIX[name]}"
    made = export_model(model, out, noise=noise, seed=6)
    assert made.format == name
    assert made.error <= 1e-3 * made.range
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f.rpartition("/")[2] for f in made.files
    )
    wanted = (["z", "c"] if which == "conditional" else ["z"]) + ["noise"] * (noise == "random")
    assert list(made.inputs) == wanted
    assert all(shape[0] == "batch" for shape in made.inputs.values())
    # A batch size of its own, against the model under the same random state.
    run = load_export(out, threads=1)
    args = inputs_of(model, 4, seed=9)
    core = flatten(model, examples_of(model), noise=noise, seed=6)
    if noise == "random":
        want = image(model, args, seed=2)
        torch.manual_seed(2)
        got = run(*core.select(args), draw(core.planes, 4))
    else:
        numbers = core.fixed_planes() if noise == "fixed" else torch.zeros(1, core.plane_numbers)
        want = Reference(model, core)(args, numbers)
        got = run(*core.select(args))
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-3 * want.abs().max()


class Attribute:
    def __init__(self, name: str, type: str, value: object) -> None:  # noqa: A002
        self.name, self.type, self.value = name, type, value


def test_flags_become_whole_numbers() -> None:
    """As torch 2.6 leaves them, and protobuf 7 refuses them."""
    kept = Attribute("axis", "INT", 2)
    node = SimpleNamespace(
        attributes={"keepdims": Attribute("keepdims", "INT", True), "axis": kept, "ref": object()}
    )
    whole_numbers(SimpleNamespace(graph=[node]))
    made = node.attributes["keepdims"]
    assert (made.name, made.type, made.value) == ("keepdims", "INT", 1)
    assert type(made.value) is int
    assert node.attributes["axis"] is kept


def test_added_noise_is_the_same_in_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has other operators."""
    add = AddNoise(torch.tensor([0.5]))
    x, plane = torch.randn(2, 3, 4, 4), torch.randn(2, 1, 4, 4)
    wanted = add(x, plane)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(add(x, plane), wanted)


@pytest.mark.slow
@pytest.mark.extended
def test_an_onnx_file_names_its_parts(tmp_path: Path, fast: nn.Module) -> None:
    extras("onnx")
    import onnx

    made = export_model(fast, tmp_path / "g.onnx", noise="random")
    model = onnx.load(made.path)
    onnx.checker.check_model(model)
    assert [i.name for i in model.graph.input] == ["z", "noise"]
    assert [o.name for o in model.graph.output] == ["image"]
    operators = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in operators
    assert "RandomNormalLike" not in operators
    facts = {p.key: p.value for p in model.metadata_props}
    planes = json.loads(facts["dsconvert.planes"])
    assert planes[0] == ["synthesis.feat_8.2", 8, 8]
    assert sum(h * w for _, h, w in planes) == made.inputs["noise"][1]
    # With the noise of a random state, it makes the images of the model under that state.
    args = inputs_of(fast, 4, seed=9)
    core = flatten(fast, examples_of(fast), noise="random")
    want = image(fast, args, seed=2)
    torch.manual_seed(2)
    got = load_export(tmp_path / "g.onnx", threads=1)(*core.select(args), draw(core.planes, 4))
    assert (got - want).abs().max() <= 1e-3 * want.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastgan-128", "fastgan-cond10-256"])
@pytest.mark.extended
def test_real_snapshots_through_safetensors(
    shared_snapshots: Path, tmp_path: Path, name: str
) -> None:
    extras("safetensors")
    original = load_snapshot(shared_snapshots / f"{name}.pkl").generator
    for model in (original, converted(original)) if name == "fastgan-128" else (original,):
        out = tmp_path / "g.safetensors"
        export_model(model, out, overwrite=True)
        loaded = load_generator(out)
        assert type(loaded) is type(model)
        assert not any(k.endswith("weight_orig") for k in loaded.state_dict())
        args = inputs_of(model, 2)
        assert torch.allclose(image(loaded, args), image(model, args), atol=1e-6)
        for key in ("z_dim", "c_dim", "w_dim", "img_resolution"):
            assert getattr(loaded, key) == getattr(model, key)


@pytest.mark.slow
@pytest.mark.extended
def test_a_real_snapshot_through_onnx(shared_snapshots: Path, tmp_path: Path) -> None:
    extras("onnx")
    model = load_snapshot(shared_snapshots / "fastgan-cond10-256.pkl").generator
    made = export_model(model, tmp_path / "g.onnx")
    assert made.error <= 1e-4 * made.range
    assert list(made.inputs) == ["z", "c", "noise"]


@pytest.mark.slow
def test_a_model_without_an_adapter(tmp_path: Path) -> None:
    model = decoder()
    made = export_model(model, tmp_path / "g.pt2", inputs=latents, noise_types=(Noise,))
    assert list(made.inputs) == ["z", "noise"]
    with pytest.raises(UsageError, match="Decoder"):
        export_model(model, tmp_path / "h.pt2")


def sabotage(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor]) -> None:
    """Make the torch format come back different from what went in."""
    import dataclasses

    true = graphs.GRAPHS["torch"]

    def spoilt(path: Path, threads: int | None) -> graphs.Run:
        run = true.open(path, threads)
        return lambda *tensors: spoil(run(*tensors))

    monkeypatch.setitem(graphs.GRAPHS, "torch", dataclasses.replace(true, open=spoilt))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda x: x + 0.01, "differs"),
        (lambda x: x * float("nan"), "differs"),
        (lambda x: x[:, :1], "makes"),
        (lambda x: x[:2] if len(x) > 2 else x, "makes"),
    ],
)
def test_a_mismatch_is_an_error_and_leaves_no_file(
    tmp_path: Path,
    spoil: Callable[[Tensor], Tensor],
    word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch, spoil)
    with pytest.raises(ExportError, match=word):
        export_model(decoder(), tmp_path / "g.pt2", inputs=latents, noise_types=(Noise,))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_mismatch_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, lambda x: x + 1)
    (tmp_path / "g.pt2").write_text("old")
    with pytest.raises(ExportError):
        export_model(
            decoder(), tmp_path / "g.pt2", inputs=latents, noise_types=(Noise,), overwrite=True
        )
    assert (tmp_path / "g.pt2").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else 2 * x


class Whole(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.ReLU(), body)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))


def pictures(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(n, 3, 8, 8, generator=generator),)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", pytest.param("openvino", marks=pytest.mark.extended)])
def test_an_operator_without_a_counterpart_is_named(tmp_path: Path, name: str) -> None:
    extras(name)
    with pytest.raises(ExportError, match=r"bessel_j0.* module body\.1"):
        export_model(Whole(Odd()), tmp_path / f"g.{SUFFIX[name]}", inputs=pictures)
    assert not list(tmp_path.iterdir())
    export_model(Whole(Odd()), tmp_path / "g.pt2", inputs=pictures)


@pytest.mark.slow
def test_control_flow_on_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"body\.1 \(Branch\)"):
        export_model(Whole(Branch()), tmp_path / "g.pt2", inputs=pictures)
    assert not list(tmp_path.iterdir())


def test_bad_input(tmp_path: Path, fast: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"which format"):
        export_model(fast, tmp_path / "g.bin")
    with pytest.raises(UsageError, match="tflite"):
        export_model(fast, tmp_path / "g.pt2", format="tflite")
    with pytest.raises(UsageError, match=r"\*\.onnx"):
        export_model(fast, tmp_path / "g.pt2", format="onnx")
    (tmp_path / "g.pt2").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_model(fast, tmp_path / "g.pt2")
    with pytest.raises(ForeignFileError, match="no file"):
        load_export(tmp_path / "none.pt2")
    with pytest.raises(ForeignFileError, match=r"g\.pt2"):
        load_export(tmp_path / "g.pt2")
    with pytest.raises(UsageError, match="load_generator"):
        load_export(tmp_path / "g.safetensors")


@pytest.mark.parametrize(("name", "module"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_extra_names_the_command(
    tmp_path: Path, fast: nn.Module, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = graphs.import_module

    def without(wanted: str) -> Any:
        if wanted == module:
            raise ImportError(wanted)
        return real(wanted)

    monkeypatch.setattr(graphs, "import_module", without)
    with pytest.raises(MissingExtraError, match=rf'pip install .*"{module}>='):
        export_model(fast, tmp_path / f"g.{SUFFIX[name]}")
    assert not list(tmp_path.iterdir())


def header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the architecture in the header of a safetensors file."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(str(path), framework="pt") as file:
        data = json.loads(file.metadata()["dsconvert_generator"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(data)
    save_file(tensors, str(path), metadata={"dsconvert_generator": json.dumps(data)})


@pytest.fixture(scope="module")
def whole_export(fast: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    extras("safetensors")
    out = tmp_path_factory.mktemp("whole") / "g.safetensors"
    export_model(fast, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["config"].update(ngf=1 << 40),
        lambda h: h["config"].update(resolution="256"),
        lambda h: h["config"].update(cfg="stylegan9"),
        lambda h: h["config"].update(ngf=5),
        lambda h: h.pop("changes"),
        lambda h: h.update(version=99),
        lambda h: h.update(adapter="nobody"),
        lambda h: h["changes"]["removed"].append("synthesis.nothing"),
        lambda h: h["changes"]["removed"].append("synthesis.to_big"),
        lambda h: h["changes"].update(attributes={"": {"forward": 1}}),
        lambda h: h["changes"].update(attributes={"synthesis": {"training": True}}),
        lambda h: h["changes"]["replaced"].update({"synthesis.to_big": {"type": "eval"}}),
        lambda h: h["changes"]["replaced"]["synthesis.feat_8.1"].update(type="Linear"),
        lambda h: h["changes"].update(replaced=7),
    ],
)
def test_a_damaged_safetensors_header_is_refused(
    tmp_path: Path, whole_export: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    out = Path(shutil.copy(whole_export, tmp_path / "g.safetensors"))
    header(out, change)
    with pytest.raises(dsconvert.DsconvertError, match=r"g\.safetensors"):
        load_generator(out)


def test_other_safetensors_files_are_refused(tmp_path: Path, fast: nn.Module) -> None:
    extras("safetensors")
    from safetensors.torch import save_file

    out = tmp_path / "g.safetensors"
    save_file({"w": torch.zeros(1)}, str(out))
    with pytest.raises(ForeignFileError, match="architecture"):
        load_generator(out)
    out.write_bytes(b"not one")
    with pytest.raises(CorruptSnapshotError, match="no whole safetensors"):
        load_generator(out)
    with pytest.raises(ForeignFileError, match="no file"):
        load_generator(tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="not fixed"):
        export_model(fast, tmp_path / "h.safetensors", noise="fixed")


@pytest.mark.slow
def test_safetensors_without_noise(tmp_path: Path, fast: nn.Module) -> None:
    extras("safetensors")
    export_model(fast, tmp_path / "g.safetensors", noise="zero")
    loaded = load_generator(tmp_path / "g.safetensors")
    args = inputs_of(fast, 2)
    assert torch.equal(image(loaded, args, seed=0), image(loaded, args, seed=1))
    assert not torch.equal(image(fast, args, seed=0), image(fast, args, seed=1))


@pytest.mark.slow
def test_the_command(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "g.pt2"
    command = ["export", str(snapshot_file), "--out", str(out), "--noise", "zero"]
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["format"] == "torch"
    assert data["inputs"] == {"z": ["batch", 16]}
    assert data["bytes"] == out.stat().st_size
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert "loaded again" in capsys.readouterr().out
    for bad in (["--format", "tflite"], ["--noise", "pink"], ["--format", "onnx"]):
        assert main([*command, "--overwrite", *bad]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.extended
def test_a_safetensors_export_is_exported_again(snapshot_file: Path, tmp_path: Path) -> None:
    extras("safetensors")
    middle = tmp_path / "g.safetensors"
    assert main(["export", str(snapshot_file), "--out", str(middle)]) == 0
    assert main(["export", str(middle), "--out", str(tmp_path / "g.pt2"), "--noise", "zero"]) == 0
    # Other commands read it too.
    for file in (snapshot_file, middle):
        sheet = tmp_path / f"{file.stem}{file.suffix}.png"
        assert main(["generate", str(file), "--seeds", "0", "--out", str(sheet)]) == 0
    one, two = sorted(tmp_path.glob("*.png"))
    a, b = (torch.tensor(list(Image.open(p).getdata())).int() for p in (one, two))
    assert (a - b).abs().max() <= 1
