"""The frozen records that the stages pass on. No torch, no printing."""

from __future__ import annotations

from dsconvert.records.plan import Action, Decision, Plan
from dsconvert.records.results import (
    Conversion,
    Cost,
    Export,
    Fit,
    LayerCost,
    Polish,
    PolishEnd,
    PolishForecast,
    Quality,
)
from dsconvert.records.sites import NormKind, Shape, Site, Sites, within
from dsconvert.records.widths import Group, Width

__all__ = [
    "Action",
    "Conversion",
    "Cost",
    "Decision",
    "Export",
    "Fit",
    "Group",
    "LayerCost",
    "NormKind",
    "Plan",
    "Polish",
    "PolishEnd",
    "PolishForecast",
    "Quality",
    "Shape",
    "Site",
    "Sites",
    "Width",
    "within",
]
