"""Sound in ``.wav`` files: read and written with NumPy alone."""

from __future__ import annotations

import os
import struct
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

from dsconvert.errors import DataError
from dsconvert.util.files import whole_file

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_PAUSE = 0.3
"""Seconds between the sounds of two seeds."""


def read_wav(content: bytes, name: str) -> tuple[Tensor, int]:
    """Return the sound of a ``.wav`` file, channels averaged, about in [-1, 1], and its rate.

    Args:
        content: of the file: integers of 8, 16, 24 or 32 bits, or floats.
        name: for messages.

    Raises:
        DataError: it is none, damaged, or compressed.
    """
    try:
        kind, channels, rate, bits, data = _chunks(content)
        values = _values(kind, bits, data)
        whole = len(values) - len(values) % channels
        sound = values[:whole].reshape(-1, channels).mean(axis=1)
    except (ValueError, struct.error, ZeroDivisionError) as error:
        raise DataError(f"{name} is no .wav file that can be read ({error}).") from None
    if not len(sound) or not np.isfinite(sound).all() or rate < 1:
        raise DataError(f"{name} holds no sound, or values that are not finite.")
    return torch.from_numpy(sound.astype(np.float32)), rate


def _chunks(content: bytes) -> tuple[int, int, int, int, bytes]:
    """Return format, channels, rate, bits of a sample, and the samples' bytes."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError("it does not begin as a .wav file does")
    place, form = 12, b""
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        body = content[place + 8 : place + 8 + size]
        if name == b"fmt ":
            form = body
        elif name == b"data":
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
            if kind == _EXTENSIBLE:
                (kind,) = struct.unpack_from("<H", form, 24)
            if not 1 <= channels <= 64:
                raise ValueError(f"it says that it has {channels} channels")
            return kind, channels, rate, bits, body
        place += 8 + size + size % 2
    raise ValueError("it has no samples")


def _values(kind: int, bits: int, data: bytes) -> np.ndarray:
    width = bits // 8
    data = data[: len(data) - len(data) % width]
    if kind == _FLOAT and bits in (32, 64):
        return np.frombuffer(data, f"<f{width}").astype(np.float64)
    if kind != _PCM or bits not in (8, 16, 24, 32):
        raise ValueError(f"format {kind} of {bits} bits: save it as plain PCM")
    if bits == 8:
        return np.frombuffer(data, np.uint8) / 128.0 - 1.0
    if bits == 24:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(data, f"<i{width}") / 2.0 ** (bits - 1)


def wav_bytes(sound: Tensor, *, rate: int) -> bytes:
    """Return the content of a ``.wav`` file of a sound (T,) in [-1, 1], as 16-bit PCM."""
    levels = (sound.detach().cpu().double().clamp(-1, 1) * 32767).round().numpy().astype("<i2")
    body = levels.tobytes()
    out = BytesIO()
    out.write(b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVE")
    out.write(b"fmt " + struct.pack("<IHHIIHH", 16, _PCM, 1, rate, rate * 2, 2, 16))
    out.write(b"data" + struct.pack("<I", len(body)) + body)
    return out.getvalue()


def write_wav(
    sound: Tensor, path: str | os.PathLike[str], *, rate: int, overwrite: bool = False
) -> None:
    """Write a sound (T,) in [-1, 1] as 16-bit PCM.

    Raises:
        OutputError: the file exists, or can't be written.
    """
    with whole_file(path, overwrite=overwrite) as beside:
        beside.write_bytes(wav_bytes(sound, rate=rate))


def in_a_row(sounds: Tensor, *, rate: int) -> Tensor:
    """Return sounds (N, 1, 1, T) one after the other, (T',), with pauses."""
    rows = sounds.flatten(1)
    pause = rows.new_zeros(round(_PAUSE * rate))
    return torch.cat([part for row in rows for part in (row, pause)][:-1])


def resampled(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """Return a sound (T,) at another rate, band-limited: its spectrum is cut or padded."""
    if rate == wanted:
        return sound
    count = max(1, round(len(sound) * wanted / rate))
    spectrum = torch.fft.rfft(sound.double())
    bins = count // 2 + 1
    made = spectrum.new_zeros(bins)
    kept = min(bins, len(spectrum))
    made[:kept] = spectrum[:kept]
    return (torch.fft.irfft(made, n=count) * (count / len(sound))).to(sound.dtype)
