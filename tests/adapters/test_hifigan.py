"""HiFi-GAN's files, against values of the original code; sounds as inputs and outputs."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dsconvert_adapters.hifigan import ADAPTER, Generator
from torch import Tensor

from dsconvert import convert_file, deploy, load_export, load_generator, open_file, save_file
from dsconvert.cli import main
from dsconvert.data.mel_inputs import mel_inputs
from dsconvert.data.waveforms import read_wav, write_wav
from dsconvert.errors import AdapterError, UnsupportedSnapshotError, UsageError
from dsconvert.formats.export_file import export_file
from dsconvert.formats.given_inputs import with_calibration
from dsconvert.formats.restructure import restructure
from dsconvert.records.results import SOUND_LIMIT
from dsconvert.testing import check_adapter
from dsconvert.web.latents import check_drawable
from tests.adapters.originals import expected, filled, some, tensor

CASES = expected("hifigan")
MEL = tensor("mel", (2, 80, 12))


def written(folder: Path, case: dict[str, Any], state: dict[str, Tensor] | None = None) -> Path:
    """A file as the original code writes it."""
    path = folder / "g_00000100"
    torch.save({"generator": filled(case["shapes"]) if state is None else state}, path)
    (folder / "config.json").write_text(json.dumps(case["settings"]))
    return path


def voice(pitch: float, *, rate: int = 22050, seconds: float = 0.4) -> Tensor:
    """A tone with overtones whose pitch glides."""
    t = torch.arange(int(rate * seconds)) / rate
    phase = 2 * math.pi * pitch * (t + 0.2 * t.square())
    return torch.stack([torch.sin(k * phase) / k for k in range(1, 9)]).sum(0) * 0.2


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wavs")
    for i in range(6):
        rate = 16000 if i == 0 else 22050
        write_wav(voice(110 + 40 * i, rate=rate), folder / f"{i}.wav", rate=rate)
    return folder


def sound(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(MEL)


@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_the_values_of_the_original_code(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    file = open_file(written(tmp_path, case))
    made = sound(file.generator)
    assert list(made.shape) == case["output_shape"]
    assert some(made) == pytest.approx(case["output"], abs=2e-5)
    assert {k: list(v.shape) for k, v in file.generator.state_dict().items()} == case["shapes"]
    spec = file.sounds()
    assert spec is not None
    assert (spec.rate, spec.hop, spec.mels) == (22050, 8, 80)


@pytest.mark.slow
def test_other_forms_of_weight_norm_are_the_same_model(tmp_path: Path) -> None:
    case = CASES["resblock 2"]
    state = filled(case["shapes"])
    made: dict[str, dict[str, Tensor]] = {"removed": {}, "param": {}}
    for name, value in state.items():
        base, _, last = name.rpartition(".")
        if last == "weight_g":
            made["param"][f"{base}.parametrizations.weight.original0"] = value
        elif last == "weight_v":
            made["param"][f"{base}.parametrizations.weight.original1"] = value
            norm = value.flatten(1).norm(dim=1).reshape(-1, 1, 1)
            made["removed"][f"{base}.weight"] = value * state[f"{base}.weight_g"] / norm
        else:
            made["param"][name] = made["removed"][name] = value
    for form, tensors in made.items():
        file = open_file(written(tmp_path, case, tensors))
        assert some(sound(file.generator)) == pytest.approx(case["output"], abs=2e-5), form
        assert set(file.generator.state_dict()) == set(tensors)


@pytest.mark.slow
def test_files_that_are_refused_say_why(tmp_path: Path) -> None:
    case = CASES["resblock 1"]
    path = written(tmp_path, case)
    (tmp_path / "config.json").unlink()
    with pytest.raises(AdapterError, match=r"put the config\.json that belongs to it beside it"):
        open_file(path)
    settings = {**case["settings"], "upsample_initial_channel": 32}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match="another upsample_initial_channel"):
        open_file(path)
    settings = {**case["settings"], "hop_size": 256}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match=r"config\.json belongs to another model"):
        open_file(path)
    torch.save({"mpd": {}, "msd": {}, "steps": 1}, tmp_path / "do_1")
    with pytest.raises(UnsupportedSnapshotError, match="holds the discriminators"):
        open_file(tmp_path / "do_1")
    bigvgan = {**filled(case["shapes"]), "resblocks.0.activations.0.act.alpha": torch.ones(4)}
    torch.save({"generator": bigvgan}, tmp_path / "big")
    with pytest.raises(UnsupportedSnapshotError, match="BigVGAN"):
        open_file(tmp_path / "big")


@pytest.mark.slow
@pytest.mark.extended
def test_the_released_models_need_no_settings() -> None:
    released = {
        "resblock": "1", "upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [16, 16, 4, 4],
        "upsample_initial_channel": 128, "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5]] * 3,
    }  # fmt: skip
    state = Generator(**released).state_dict()
    config = ADAPTER.completed(ADAPTER.read_config(state), None)
    assert {k: config[k] for k in released} == released
    model = ADAPTER.make(config).eval()
    check_adapter(ADAPTER, model, checkpoint={"generator": dict(model.state_dict())})


@pytest.mark.slow
def test_a_vocoder_is_converted_by_sounds_and_heard(
    wavs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = str(written(tmp_path, CASES["resblock 1"])), str(tmp_path / "g_fast")
    assert main(["convert", path, "--out", out, "--width", "1", "--polish", "0"]) == 2
    assert "reads mel spectrograms, and none are given: add --calibration" in (
        capsys.readouterr().err
    )
    given = ["--calibration", str(wavs), "--crop", "256"]
    fit = ["--calibrate", "8", "--width", "1", "--polish", "0"]
    assert main(["convert", path, "--out", out, *given, *fit]) == 0
    assert "STFT distance" in capsys.readouterr().out
    wav = tmp_path / "heard.wav"
    assert main(["compare", path, out, *given, "--seeds", "0-1", "--out", str(wav), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert 0 < data["stft_distance_mean"] < 5
    for part in ("", "-original", "-recording"):
        heard, rate = read_wav(wav.with_name(f"heard{part}.wav").read_bytes(), "heard")
        assert rate == 22050
        assert len(heard) == 2 * 256 * 8 + round(0.3 * rate)
    page = tmp_path / "heard.html"
    assert main(["compare", path, out, *given, "--seeds", "0-1", "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("data:audio/wav;base64,") == 3 * 2
    assert text.index("recording") < text.index("original, seed") < text.index("converted, seed")
    assert "http" not in text
    capsys.readouterr()
    assert main(["compare", path, out, *given, "--out", str(tmp_path / "a.png")]) == 2
    assert "makes sounds, and --out" in capsys.readouterr().err
    assert main(["eval", out, "--against", path, *given]) == 2
    assert "eval measures pictures" in capsys.readouterr().err


@pytest.mark.slow
def test_a_vocoder_is_deployed_and_shared(tmp_path: Path) -> None:
    file = open_file(written(tmp_path, CASES["resblock 1"]))
    model, wanted = file.generator, sound(file.generator)
    with torch.no_grad():
        assert torch.allclose(deploy(model)(MEL), wanted, atol=1e-5)
    pytest.importorskip("safetensors")
    made = export_file(file, tmp_path / "g.safetensors")
    assert made.error < 1e-6
    assert torch.equal(sound(load_generator(tmp_path / "g.safetensors")), wanted)
    with pytest.raises(UsageError, match="reads spectrograms, and a page draws latents"):
        check_drawable(file)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_vocoder_is_exported_as_a_graph(wavs: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module)
    file, out = open_file(written(tmp_path, CASES["resblock 1"])), tmp_path / f"g.{suffix}"
    made = export_file(file, out)
    assert made.error is not None
    assert made.error < 1e-5
    mel = tensor("mel", (2, *made.inputs["x"][1:]))  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = file.generator(mel)
    assert torch.allclose(load_export(out)(mel), wanted, atol=1e-5)
    if suffix == "onnx":
        with pytest.raises(UsageError, match=r"20 \.wav files"):
            export_file(file, tmp_path / "half.onnx", dtype="fp16")
        heard = with_calibration(file, wavs, crop=256)
        half = export_file(heard, tmp_path / "half.onnx", dtype="fp16")
        assert half.psnr is None
        assert half.snr is not None
        mel = tensor("mel", (2, *half.inputs["x"][1:]))  # type: ignore[arg-type]
        with torch.no_grad():
            wanted = file.generator(mel)
        noise = load_export(tmp_path / "half.onnx")(mel) - wanted
        ratio = 10 * math.log10(float(wanted.square().sum() / noise.square().sum()))
        assert half.snr > 50
        assert ratio > 50  # numbers that are no spectrogram of a voice


@pytest.mark.slow
@pytest.mark.extended
def test_the_polish_hears_spectra(wavs: Path, tmp_path: Path) -> None:
    file = with_calibration(open_file(written(tmp_path, CASES["resblock 2"])), wavs, crop=256)
    result = convert_file(file, preset="balanced", calibrate=8, polish_steps=3)
    polish = result.main[1].polish
    assert polish is not None
    assert polish.distance_before is not None
    assert not any("no image" in n for n in result.main[1].undone)
    assert result.main[1].stft is not None


@pytest.mark.slow
def test_the_default_plan_of_a_vocoder_is_measured_and_a_spoilt_sound_is_not_silent(
    wavs: Path, tmp_path: Path
) -> None:
    file = with_calibration(open_file(written(tmp_path, CASES["resblock 2"])), wavs, crop=256)
    main_one = convert_file(file, calibrate=8).main[1]
    assert main_one.plan.widths == ()
    said = {d.reason for d in main_one.plan.decisions}
    assert "rank chosen by measured loss and cost" in said
    assert main_one.stft is not None
    (warning,) = replace(main_one, stft=SOUND_LIMIT + 0.7).warnings
    assert "--polish" in warning
    assert "--rank" in warning
    assert replace(main_one, stft=0.9).warnings == ()


@pytest.mark.slow
@pytest.mark.extended
def test_sounds_distil(wavs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(written(tmp_path, CASES["resblock 2"])), str(tmp_path / "g_fast")
    given = ["--calibration", str(wavs), "--crop", "256"]
    fit = ["--calibrate", "8", "--polish", "0", "--quiet"]
    assert main(["convert", path, "--out", out, *given, *fit]) == 0
    distil = ["distill", path, out, "--out", f"{out}2", "--steps", "2", "--batch", "2"]
    assert main(distil) == 2
    assert "reads mel spectrograms, and none are given" in capsys.readouterr().err
    assert main([*distil, *given, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["after"]["distance"] <= data["before"]["distance"]
    assert 0 < data["after"]["terms"]["features"] < 5


def test_half_precision_and_sounds_of_other_rates(wavs: Path, tmp_path: Path) -> None:
    case = CASES["resblock 2"]
    half = {k: v.half() for k, v in filled(case["shapes"]).items()}
    file = open_file(written(tmp_path, case, half))
    spec = file.sounds()
    assert spec is not None
    inputs = mel_inputs(wavs, spec)
    assert len(inputs.sounds) + len(inputs.others) == 6
    (mel,) = inputs(3, torch.Generator().manual_seed(0))
    assert mel.shape == (3, 80, spec.frames)
    result = convert_file(file, preset="fast", init="svd", calibrate=0)
    save_file(file, result.models, tmp_path / "fast")
    state = torch.load(tmp_path / "fast", weights_only=True)["generator"]
    assert {v.dtype for v in state.values()} == {torch.float16}
    assert sound(open_file(tmp_path / "fast").generator).isfinite().all()


@pytest.mark.slow
def test_the_original_code_loads_a_converted_file(tmp_path: Path) -> None:
    root = os.environ.get("HIFIGAN_ROOT")
    if root is None:
        pytest.skip("HIFIGAN_ROOT names no checkout of jik876/hifi-gan")
    sys.path.insert(0, root)
    sys.modules["utils"] = SimpleNamespace(  # type: ignore[assignment]  # it imports matplotlib
        init_weights=lambda *_: None, get_padding=lambda k, d=1: (k - 1) * d // 2
    )
    try:
        code = import_module("models")
    finally:
        sys.path.remove(root)
        del sys.modules["utils"]
    case = CASES["resblock 1"]
    file = open_file(written(tmp_path, case))
    result = convert_file(file, preset="balanced", init="svd", calibrate=0)
    save_file(file, result.models, tmp_path / "fast")
    checkpoint = torch.load(tmp_path / "fast", weights_only=True)
    g = code.Generator(SimpleNamespace(**case["settings"]))
    restructure(g, checkpoint["dsconvert"])
    g.load_state_dict(checkpoint["generator"])
    assert (sound(g.eval()) - sound(result.main[1].model)).abs().max() < 1e-5
