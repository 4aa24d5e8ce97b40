"""Fewer channels: groups of channels on the graph, their choice, and their absorption.

``labels`` names every channel; ``follow`` carries the names through the operations of the graph;
``groups`` holds the channels that are kept or removed together, ``discover`` finds them and
``confirm`` checks them; ``slicing`` removes channels from modules; ``curves`` measures the loss of
each number of channels, for ``choose`` and ``shares``; ``narrow`` applies the widths of a plan to
a copy of a model; ``absorb`` lets the consumers of removed channels predict them from the others.
"""

from __future__ import annotations

from dsconvert.width.absorb import Absorber
from dsconvert.width.choose import Curve
from dsconvert.width.curves import Curves, measure_curves
from dsconvert.width.discover import free_groups
from dsconvert.width.groups import ChannelGroups, Kept
from dsconvert.width.narrow import check_widths, choice, equal_widths, held, narrow, narrow_sites
from dsconvert.width.shares import cost_model, share_out

__all__ = [
    "Absorber",
    "ChannelGroups",
    "Curve",
    "Curves",
    "Kept",
    "check_widths",
    "choice",
    "cost_model",
    "equal_widths",
    "free_groups",
    "held",
    "measure_curves",
    "narrow",
    "narrow_sites",
    "share_out",
]
