"""A hub folder holds the generator, its facts and its card; it loads without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsconvert import ModuleSource, from_pretrained, open_file, save_pretrained
from dsconvert.cli import main
from dsconvert.config.files import Drawing
from dsconvert.data.pictures import psnr
from dsconvert.data.waveforms import read_wav, write_wav
from dsconvert.errors import DsconvertError, ForeignFileError, MissingExtraError, UsageError
from dsconvert.formats.official import new_snapshot, save_snapshot
from dsconvert.formats.paint import images_of
from dsconvert.hub.card import _fenced, _line
from tests.made_models import moved_generator
from tests.upscalers import state_file

pytest.importorskip("safetensors")
CPU = torch.device("cpu")


def saved(path: Path, **config: object) -> Path:
    made = moved_generator(resolution=64, ngf=2, **config)
    save_snapshot(new_snapshot(made), made, path)
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("original") / "g.pkl")


@pytest.fixture(scope="module")
def fast(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fast") / "fast.pkl"
    words = [str(original), "--out", str(out), "--init", "svd", "--calibrate", "0", "--rank", "2"]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def folder(original: Path, fast: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("hub")
    plan = base / "plan.json"
    assert main([str(original), "--plan-only", "--polish", "0", "--out", str(plan)]) == 0
    words = ["export", str(fast), "--format", "hub", "--original", str(original)]
    words += ["--plan", str(plan), "--made-by", "dsconvert g.pkl --rank 2", "--title", "Tiny | one"]
    assert main([*words, "--out", f"{base / 'tiny'}/"]) == 0
    return base / "tiny"


@pytest.fixture(scope="module")
def light(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the weights alone."""
    folder = tmp_path_factory.mktemp("light")
    file, path = open_file(original), folder / "model.safetensors"
    file.save_safetensors(file.generator, path, noise="random", overwrite=False)
    return folder


@pytest.mark.slow
@pytest.mark.extended
def test_the_folder_holds_all_and_loads(folder: Path, fast: Path, capsys) -> None:
    names = ["README.md", "config.json", "model.safetensors", "plan.json", "samples.png"]
    assert sorted(p.name for p in folder.iterdir()) == names
    model, wanted = from_pretrained(folder), open_file(fast).generator
    z, c = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 0)
    images = []
    for each in (model, wanted):
        torch.manual_seed(0)
        with torch.no_grad():
            images.append(each(z, c))
    assert torch.allclose(*images, atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    parameters = sum(p.numel() for p in model.parameters())
    assert config["costs"]["generator"]["parameters"] == parameters
    assert config["converted"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: dsconvert\n")
    assert "# Tiny \\| one" in card
    assert "dsconvert g.pkl --rank 2" in card
    assert "made small and fast by dsconvert" in card
    assert "| converted | fast.pkl |" in card
    assert f"PSNR {config['quality']['psnr_db']:.1f} dB" in card
    # The example of the card runs where the folder is.
    code = card.split("```python\n")[1].split("```")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        space: dict[str, object] = {}
        exec(code, space)
    assert isinstance(space["generator"], torch.nn.Module)
    assert main(["generate", str(folder / "model.safetensors"), "--seeds", "0", "--out",
                 str(folder.parent / "a.png")]) == 0  # fmt: skip


@pytest.fixture
def few_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsconvert.hub.measure.SHOWN", 3)
    monkeypatch.setattr("dsconvert.hub.measure._JUDGED", 4)
    monkeypatch.setattr("dsconvert.hub.measure._RUNS", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("few_seeds")
def test_the_card_is_of_the_weights_in_the_folder(original: Path, tmp_path: Path) -> None:
    """Those of a generator that nobody has converted, without its noise."""
    out = tmp_path / "hub"
    file = open_file(original)
    save_pretrained(file, out, original=open_file(original), noise="zero")
    one, two = (
        images_of(open_file(path), (0, 1, 2, 3), Drawing(), lambda _: None, device=CPU)
        for path in (out / "model.safetensors", original)
    )
    wanted = float(psnr(one, two).mean())
    assert wanted < 60
    config, card = json.loads((out / "config.json").read_text()), (out / "README.md").read_text()
    assert config["quality"]["psnr_db"] == pytest.approx(wanted, abs=0.01)
    assert f"PSNR {wanted:.1f} dB" in card
    assert (config["noise"], config["converted"]) == ("zero", False)
    assert "written by dsconvert" in card
    assert "without its noise" in card
    assert "| generator | g.pkl |" in card
    assert not [word for word in ("small and fast", "converted", "separable") if word in card]


@pytest.mark.slow
@pytest.mark.usefixtures("few_seeds")
def test_every_class_is_judged_and_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "g.pkl", classes=3)
    file = open_file(path)
    with torch.no_grad():  # class 0 alone is as good as the original's
        file.generator.get_submodule("synthesis.embed").weight[1:] += 3
    out = tmp_path / "hub"
    save_pretrained(file, out, original=open_file(path))
    config, card = json.loads((out / "config.json").read_text()), (out / "README.md").read_text()
    assert config["classes"] == 3
    assert config["quality"]["psnr_db_worst"] < 60
    assert "seed i has class i mod 3" in card
    assert "pipeline_tag" not in card


@pytest.mark.slow
@pytest.mark.extended
def test_an_existing_folder(folder: Path, fast: Path, tmp_path: Path, capsys) -> None:
    words = ["export", str(fast), "--format", "hub", "--out"]
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert main([*words, f"{folder}/"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (tmp_path / "mine").write_text("mine")
    assert main([*words, f"{tmp_path}/", "--overwrite"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_an_original_that_does_not_fit_leaves_no_folder(
    original: Path, tmp_path: Path, capsys
) -> None:
    other = saved(tmp_path / "other.pkl", z_dim=8)
    with pytest.raises(UsageError, match="can't be compared"):
        save_pretrained(open_file(original), tmp_path / "hub", original=open_file(other))
    assert [p.name for p in tmp_path.iterdir()] == ["other.pkl"]


def test_a_hub_is_asked_for_its_file_alone(light: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(name: str, file: str, *, revision: str | None) -> str:
        asked.append((name, file, revision))
        if name == "no/where":
            raise OSError("404 Client Error.\nmore lines")
        return str(light / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    assert isinstance(from_pretrained(light), torch.nn.Module)
    assert isinstance(from_pretrained("me/tiny", revision="v1"), torch.nn.Module)
    assert asked == [("me/tiny", "model.safetensors", "v1")]
    with pytest.raises(
        ForeignFileError, match=r"no/where can't be loaded from the hub: 404 Client"
    ):
        from_pretrained("no/where")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="huggingface_hub"):
        from_pretrained("me/tiny")


def test_a_generator_of_the_users_own_code_is_refused(tmp_path: Path) -> None:
    file = open_file(
        state_file(tmp_path / "u.pth"), module=ModuleSource(factory="tests.upscalers:Upscaler")
    )
    with pytest.raises(UsageError, match="nothing but your own code builds"):
        save_pretrained(file, tmp_path / "hub")
    assert [p.name for p in tmp_path.iterdir()] == ["u.pth"]


@pytest.mark.slow
@pytest.mark.extended
def test_a_vocoder_is_heard_and_measured_as_a_sound(tmp_path: Path, capsys) -> None:
    from tests.adapters.test_hifigan import CASES, voice, written

    wavs = tmp_path / "wavs"
    wavs.mkdir()
    for i in range(4):
        write_wav(voice(110 + 40 * i), wavs / f"{i}.wav", rate=22050)
    path = written(tmp_path, CASES["resblock 2"])
    words = ["export", str(path), "--format", "hub", "--original", str(path), "--out"]
    assert main([*words, f"{tmp_path / 'no'}/"]) == 2
    assert "reads mel spectrograms, and none are given: add --calib" in capsys.readouterr().err
    given = ["--calibration", str(wavs), "--crop", "64"]
    assert main([*words, f"{tmp_path / 'short'}/", *given]) == 2
    assert "make longer crops (--crop FRAMES)" in capsys.readouterr().err
    given = ["--calibration", str(wavs), "--crop", "256"]
    assert main([*words, f"{tmp_path / 'far'}/", *given, "--distance", "4"]) == 2
    assert "makes sounds, and --distance measures pictures" in capsys.readouterr().err
    out = tmp_path / "hub"
    assert main([*words, f"{out}/", *given]) == 0
    assert "STFT distance to the original 0.0" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "samples-original.wav", "samples.wav",
    ]  # fmt: skip
    heard, rate = read_wav((out / "samples.wav").read_bytes(), "heard")
    assert (rate, len(heard)) == (22050, 8 * 256 * 8 + 7 * round(0.3 * 22050))
    quality = json.loads((out / "config.json").read_text())["quality"]
    assert quality["psnr_db"] is None
    assert quality["stft_distance"] < 0.01
    card = (out / "README.md").read_text()
    assert "pipeline_tag: audio-to-audio" in card
    assert "(samples.wav)" in card
    assert "image" not in card
    assert not list(tmp_path.glob("no")) + list(tmp_path.glob("short")) + list(tmp_path.glob("far"))
    model, wanted = from_pretrained(out), open_file(path).generator
    mel = torch.randn(1, 80, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(mel), wanted(mel), atol=1e-5)


def test_what_is_neither_a_folder_nor_a_name(tmp_path: Path) -> None:
    for name in ("nowhere", "a/b/c", "./x", "../x", tmp_path / "no", tmp_path):
        with pytest.raises(DsconvertError):
            from_pretrained(name)


def test_text_in_a_card_stays_text() -> None:
    assert _line("a|b\n<script>`x`_y_[z]") == r"a\|b \<script\>\`x\`\_y\_\[z\]"
    text = "one ``` two ```` three"
    assert _fenced(text).splitlines()[0] == "`````sh"
    assert _fenced(text).splitlines()[-1] == "`````"
