"""Fewer channels: groups of channels on the graph, their choice, and their absorption.

``labels`` names every channel; ``follow`` carries the names through the operations of the graph;
``groups`` collects the channels that are kept or removed together; ``slicing`` removes channels
from modules; ``curves`` measures the loss of each number of channels, for ``choose``; ``narrow``
applies the widths of a plan to a copy of a model; ``absorb`` lets the consumers of removed channels
predict them from those that stay.
"""

from __future__ import annotations

from dsconvert.width.absorb import Absorber
from dsconvert.width.choose import Curve
from dsconvert.width.curves import Curves, measure_curves
from dsconvert.width.groups import ChannelGroups, Kept, find_groups
from dsconvert.width.narrow import check_widths, choice, equal_widths, held, narrow, narrow_sites

__all__ = [
    "Absorber",
    "ChannelGroups",
    "Curve",
    "Curves",
    "Kept",
    "check_widths",
    "choice",
    "equal_widths",
    "find_groups",
    "held",
    "measure_curves",
    "narrow",
    "narrow_sites",
]
