"""The version, for every module: the package itself imports what is above them."""

from __future__ import annotations

VERSION = "0.1.0"
