"""Sounds: ``.wav`` files, mel spectrograms, the distance between sounds."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from dsconvert.data.mel_inputs import mel_inputs
from dsconvert.data.spectrograms import mel_filters, mel_spectrogram, stft_distance
from dsconvert.data.waveforms import read_wav, resampled, write_wav
from dsconvert.errors import DataError, UsageError
from dsconvert.records.sounds import MelSpec

SPEC = MelSpec(rate=22050, mels=80, n_fft=1024, hop=256, window=1024, low=0.0, high=8000.0)


def wav(kind: int, bits: int, body: bytes, *, channels: int = 1, rate: int = 22050) -> bytes:
    block = bits // 8 * channels
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits)
    if kind == 0xFFFE:
        form += struct.pack("<HHIH14s", 22, bits, 0, 1, b"\0" * 14)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"LIST\x03\0\0\0abc\0"
    chunks += b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize(
    ("kind", "bits", "body"),
    [
        (1, 8, bytes([192, 64])),
        (1, 16, struct.pack("<2h", 16384, -16384)),
        (1, 24, b"\0\0\x40\0\0\xc0"),
        (0xFFFE, 24, b"\0\0\x40\0\0\xc0"),
        (1, 32, struct.pack("<2i", 1 << 30, -(1 << 30))),
        (3, 32, struct.pack("<2f", 0.5, -0.5)),
        (3, 64, struct.pack("<2d", 0.5, -0.5)),
    ],
)
def test_every_plain_format_is_read(kind: int, bits: int, body: bytes) -> None:
    sound, rate = read_wav(wav(kind, bits, body), "a.wav")
    assert rate == 22050
    assert sound.tolist() == [0.5, -0.5]
    both, _ = read_wav(wav(kind, bits, body, channels=2), "a.wav")
    assert both.tolist() == [0.0]


@pytest.mark.parametrize(
    "content",
    [b"", b"RIFF\0\0\0\0WAVE", wav(1, 16, b""), wav(2, 4, b"abcd"), wav(1, 16, b"ab")[:30],
     wav(3, 32, struct.pack("<f", float("nan"))), wav(1, 16, b"abcd", channels=0)],
)  # fmt: skip
def test_other_files_are_refused_by_name(content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.wav (is no \.wav file that can be read|holds no)"):
        read_wav(content, "a.wav")


def test_a_file_comes_back(tmp_path: Path) -> None:
    sound = torch.sin(torch.arange(500) / 9)
    write_wav(sound, tmp_path / "a.wav", rate=8000)
    again, rate = read_wav((tmp_path / "a.wav").read_bytes(), "a.wav")
    assert rate == 8000
    assert (again - sound).abs().max() < 1e-4


def test_another_rate_keeps_the_sound() -> None:
    t = torch.arange(16000) / 16000
    low = torch.sin(2 * torch.pi * 440 * t)
    made = resampled(low, 16000, 22050)
    wanted = torch.sin(2 * torch.pi * 440 * torch.arange(22050) / 22050)
    assert (made - wanted).abs().max() < 1e-3
    assert (resampled(made, 22050, 16000) - low).abs().max() < 1e-3


def test_the_filters_have_unit_area_on_slaneys_scale() -> None:
    filters = mel_filters(SPEC)
    assert filters.shape == (80, 513)
    # A hertz of each band counts the same, but for the coarse bins of the lowest bands.
    assert filters.sum(1).mul(22050 / 1024)[30:].sub(1).abs().max() < 0.05
    # Slaney's scale has 15 mels at 1000 Hz, and 27 more at 6400 Hz.
    edges = MelSpec(rate=12800, mels=83, n_fft=4096, hop=256, window=1024, high=6400.0)
    peaks = mel_filters(edges).argmax(1) * 12800 / 4096
    assert float(peaks[29]) == pytest.approx(1000, abs=4)
    assert float(peaks[14]) == pytest.approx(500, abs=4)


def test_a_tone_is_in_its_band_and_a_frame_belongs_to_each_hop() -> None:
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(256 * 40) / 22050)[None]
    mel = mel_spectrogram(tone, SPEC)
    assert mel.shape == (1, 80, 40)
    centre = int(mel_filters(SPEC)[:, round(1000 / 22050 * 1024)].argmax())
    assert int(mel[0, :, 20].argmax()) == centre
    assert float(mel.min()) >= -11.52  # the logarithm of 1e-5


def test_the_distance_is_zero_for_equal_sounds_alone() -> None:
    sound = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0)) * 0.1
    assert stft_distance(sound, sound).abs().max() < 1e-6
    near, far = (stft_distance(sound * s, sound) for s in (0.99, 0.5))
    assert (near < far).all()
    assert (near > 0).all()


def test_sounds_shorter_than_a_transform_are_compared_as_if_silence_followed() -> None:
    short = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stft_distance(short, short), torch.zeros(2))
    assert (stft_distance(0.5 * short, short) > 0.5).all()


def test_too_short_or_broken_sounds_are_left_out(tmp_path: Path) -> None:
    for i in range(4):
        write_wav(torch.zeros(9000), tmp_path / f"{i}.wav", rate=22050)
    write_wav(torch.zeros(900), tmp_path / "short.wav", rate=22050)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "text.txt").write_text("no sound")
    inputs = mel_inputs(tmp_path, SPEC, held_out=0.25)
    assert len(inputs.skipped) == 2
    assert not set(inputs.sounds) & set(inputs.others)
    (mel,) = inputs.held_out(2, torch.Generator().manual_seed(0))
    assert mel.shape == (2, 80, 32)
    with pytest.raises(UsageError, match="held_out is 0"):
        mel_inputs(tmp_path, SPEC, held_out=0)
    with pytest.raises(DataError, match="make shorter crops"):
        mel_inputs(tmp_path, MelSpec(rate=22050, mels=8, n_fft=64, hop=256, window=64, frames=99))


def test_a_damaged_sound_in_a_zip_is_left_out(tmp_path: Path) -> None:
    write_wav(torch.zeros(9000), tmp_path / "a.wav", rate=22050)
    path = tmp_path / "sounds.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(4):
            content = (tmp_path / "a.wav").read_bytes() + bytes([i]) * 8
            archive.writestr(f"{i}.wav", content)
    content = path.read_bytes()
    path.write_bytes(content.replace(bytes([2]) * 8, bytes([9]) * 8))  # the checksum stays
    inputs = mel_inputs(path, SPEC, held_out=0.25)
    (skipped,) = inputs.skipped
    assert skipped.startswith("2.wav (BadZipFile: Bad CRC")
    assert len(inputs.sounds) + len(inputs.others) == 3
