"""The rule of resumption: a resumed run keeps its settings, except those that may change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SettingChange:
    """A setting that differs from the one that the run was started with."""

    name: str
    before: Any
    now: Any


def forbidden_changes(
    settings: Mapping[str, Any], saved: Mapping[str, Any], *, may_change: Collection[str]
) -> list[SettingChange]:
    """Return the settings that differ from ``saved`` and must not.

    Args:
        settings: of the resumed run, as plain data.
        saved: the settings in its checkpoint. JSON and checkpoints may hold tuples as lists.
        may_change: names of the settings that a resumed run may change.
    """
    return [
        SettingChange(name=name, before=saved.get(name), now=value)
        for name, value in settings.items()
        if name not in may_change and _plain(value) != _plain(saved.get(name))
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
