"""The spectrograms that a vocoder reads, and the sound that it makes of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MelSpec:
    """The mel spectrograms that a vocoder reads: (N, mels, frames), natural logarithm.

    Attributes:
        rate: samples a second of the sound.
        mels: bands.
        n_fft: samples of a Fourier transform.
        hop: samples between frames.
        window: samples of the (Hann) window.
        low: lower edge of the lowest band, Hz.
        high: upper edge of the highest band, Hz; None: half the rate.
        frames: the usual length of a crop.
    """

    rate: int
    mels: int
    n_fft: int
    hop: int
    window: int
    low: float = 0.0
    high: float | None = None
    frames: int = 32
