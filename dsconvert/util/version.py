"""The version, in a module of its own so that every other module can import it."""

from __future__ import annotations

VERSION = "0.1.0"
