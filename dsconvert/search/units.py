"""The units of each metric, and the format of figures for people."""

from __future__ import annotations

_TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_MACS = {"KMAC": 1e3, "MMAC": 1e6, "GMAC": 1e9, "TMAC": 1e12}
_PARAMS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
UNITS = {
    "latency": _TIME,
    "train-time": _TIME,
    "memory": _BYTES,
    "macs": _MACS | {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "params": _PARAMS,
}
_SHOWN = {
    "latency": _TIME,
    "train-time": _TIME,
    "memory": {k: _BYTES[k] for k in ("KiB", "MiB", "GiB")},
    "macs": _MACS,
    "params": _PARAMS,
}


def _scaled(metric: str, value: float) -> tuple[float, str]:
    units = sorted(_SHOWN[metric].items(), key=lambda u: u[1])
    unit, scale = units[0]
    for name, size in units:
        if abs(value) >= size:
            unit, scale = name, size
    return value / scale, unit


def figure(metric: str, value: float) -> str:
    """Return a value with a suitable unit, three digits: ``153 ms``, ``3.21 GMAC``."""
    scaled, unit = _scaled(metric, value)
    digits = 0 if abs(scaled) >= 99.5 else 1 if abs(scaled) >= 9.95 else 2
    return f"{scaled:.{digits}f} {unit}".rstrip()


def typed(metric: str, value: float) -> str:
    """Return a value as it can be typed: ``150ms``, ``10M``."""
    scaled, unit = _scaled(metric, value)
    return f"{scaled:.6g}{unit}"
