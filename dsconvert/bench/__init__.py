"""Measure time and memory of modules on this machine."""

from __future__ import annotations

from dsconvert.bench.compare import compare
from dsconvert.bench.machine import facts, limits, settle
from dsconvert.bench.records import Limits, Measurement, Operation, Settings, Timing
from dsconvert.bench.remote import RemoteSubject, remote
from dsconvert.bench.subject import LocalSubject, Subject

__all__ = [
    "Limits",
    "LocalSubject",
    "Measurement",
    "Operation",
    "RemoteSubject",
    "Settings",
    "Subject",
    "Timing",
    "compare",
    "facts",
    "limits",
    "remote",
    "settle",
]
