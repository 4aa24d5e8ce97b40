"""Spectra of sounds: mel spectrograms as vocoders read them, and a distance between sounds."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from dsconvert.records.sounds import MelSpec

RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))
"""Transform, hop and window, in samples (Yamamoto et al. 2020, "Parallel WaveGAN", table 2)."""
_FLOOR = 1e-5
_SHOWN_DB = 80.0
_KNEE, _STEP = 1000.0, 200.0 / 3
"""Slaney's mel scale: linear below the knee (Hz), logarithmic above; Hz a mel below it."""
_LOG_STEP = math.log(6.4) / 27


def _to_mel(hertz: float) -> float:
    if hertz < _KNEE:
        return hertz / _STEP
    return _KNEE / _STEP + math.log(hertz / _KNEE) / _LOG_STEP


def _to_hertz(mels: Tensor) -> Tensor:
    above = _KNEE * torch.exp(_LOG_STEP * (mels - _KNEE / _STEP))
    return torch.where(mels < _KNEE / _STEP, mels * _STEP, above)


@lru_cache(maxsize=8)
def mel_filters(spec: MelSpec) -> Tensor:
    """Return triangular filters (mels, n_fft / 2 + 1) of unit area, on Slaney's mel scale.

    They are those of ``librosa.filters.mel`` with its defaults, which vocoders are trained with.
    """
    high = spec.rate / 2 if spec.high is None else spec.high
    edges = torch.linspace(
        _to_mel(spec.low), _to_mel(high), spec.mels + 2, dtype=torch.float64, device="cpu"
    )
    hertz = _to_hertz(edges)
    bins = torch.arange(spec.n_fft // 2 + 1, dtype=torch.float64, device="cpu")
    ramps = hertz[:, None] - bins * spec.rate / spec.n_fft
    widths = hertz.diff()[:, None]
    rising, falling = -ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return (triangles * (2 / (hertz[2:] - hertz[:-2]))[:, None]).float()


def mel_spectrogram(sound: Tensor, spec: MelSpec) -> Tensor:
    """Return the logarithmic mel spectrogram (N, mels, T / hop) of sounds (N, T).

    It is HiFi-GAN's (Kong et al. 2020, ``meldataset.py``): reflected at both ends so that a frame
    belongs to each hop, magnitudes, filters, natural logarithm of at least 1e-5.
    """
    edge = (spec.n_fft - spec.hop) // 2
    padded = nn.functional.pad(sound[:, None], (edge, edge), mode="reflect")[:, 0]
    window = torch.hann_window(spec.window, device=sound.device)
    spectrum = torch.stft(
        padded,
        spec.n_fft,
        hop_length=spec.hop,
        win_length=spec.window,
        window=window,
        center=False,
        return_complex=True,
    )
    magnitudes = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    return (mel_filters(spec).to(sound.device) @ magnitudes).clamp_min(_FLOOR).log()


def magnitudes(sound: Tensor, resolution: tuple[int, int, int]) -> Tensor:
    """Return the magnitudes (N, F, frames) of sounds (N, T) at one of :data:`RESOLUTIONS`.

    A sound that is too short for the transform (T <= F - 1) is followed by silence.
    """
    n_fft, hop, length = resolution
    missing = n_fft // 2 + 1 - sound.shape[-1]
    if missing > 0:  # both ends are reflected by half a transform
        sound = nn.functional.pad(sound, (0, missing))
    window = torch.hann_window(length, device=sound.device)
    spectrum = torch.stft(
        sound, n_fft, hop_length=hop, win_length=length, window=window, return_complex=True
    )
    return (spectrum.real.square() + spectrum.imag.square()).clamp_min(1e-14).sqrt()


def stft_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the multi-resolution STFT distance of sounds (N, T) to wanted ones, (N,).

    Mean over :data:`RESOLUTIONS` of :func:`spectral_distance`. 0 for equal sounds.
    """
    pairs = ((magnitudes(made, r), magnitudes(wanted, r)) for r in RESOLUTIONS)
    return torch.stack([spectral_distance(a, b) for a, b in pairs]).mean(0)


def spectral_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the distance of magnitudes (N, ..., F, frames) to wanted ones, (N,).

    It is the spectral convergence ``|A - B| / |B|`` (Frobenius norms) and the mean absolute
    difference of the natural logarithms, added up (Yamamoto et al. 2020, eq. 4 to 6).
    """
    a, b = made.flatten(1), wanted.flatten(1)
    convergence = (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-12)
    logs = (a.clamp_min(_FLOOR).log() - b.clamp_min(_FLOOR).log()).abs().mean(1)
    return convergence + logs


class SpectrumMaps(nn.Module):
    """Maps sounds (N, 1, 1, T) to magnitudes at each resolution; gradients flow."""

    def forward(self, sounds: Tensor) -> list[Tensor]:
        """Return maps (N, 1, F, frames)."""
        flat = sounds.flatten(1)
        return [magnitudes(flat, r)[:, None] for r in RESOLUTIONS]

    def error(self, made: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002
        """Return the mean distance of maps, which has no unit and so needs no scale."""
        return spectral_distance(made, wanted).mean()


def is_sound(value: Tensor) -> bool:
    """Return whether an output (N, C, H, W) is a sound: (N, 1, 1, T)."""
    return value.shape[1] == 1 and value.shape[2] == 1 and value.shape[3] > RESOLUTIONS[-1][0] // 2


def pictured(outputs: Tensor) -> Tensor:
    """Return sounds (N, 1, 1, T) as pictures (N, 1, F, frames) of their spectra; images stay.

    White is the loudest bin of all, black 80 dB below it; low frequencies are at the bottom.
    """
    if not is_sound(outputs):
        return outputs
    levels = 20 * magnitudes(outputs.flatten(1), RESOLUTIONS[0]).clamp_min(_FLOOR).log10()
    shown = (levels - levels.max()) / (_SHOWN_DB / 2) + 1
    return shown.clamp(-1, 1).flip(1)[:, None]
