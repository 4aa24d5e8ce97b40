"""One setting: a dataclass field with its default, help, range and resumption rule.

A job's settings are a frozen dataclass derived from :class:`BaseSettings` whose fields are made by
:func:`setting`. The constructor checks the ranges; the command line (:mod:`dsconvert.cli.parser`),
the resumption of a run, the JSON of a run folder and the reference page
(:mod:`dsconvert.config.reference`) read the same fields through :func:`items`. A new field needs no
second place.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

from dsconvert.config.values import number, whole

_ABOUT = "dsconvert.setting"
_PART = "dsconvert.part"


@dataclass(frozen=True)
class Group:
    """A section of the help; ``note`` is a paragraph under its title."""

    title: str
    note: str = ""
    last: bool = False
    """Whether the section follows the job's own ones, because many jobs share it."""


@dataclass(frozen=True, kw_only=True)
class About:
    """The facts of a setting that neither its type nor its default tells."""

    help: str = ""
    """A phrase for the command line and the reference page."""
    option: str | None = ""
    """As typed; "": made from the field's name; None: the setting exists in Python only. Two fields
    of one option get the same value."""
    metavar: str | None = None
    """The value's placeholder in the help."""
    group: Group | None = None
    """The section of the help."""
    default_text: str | None = None
    """Describes a default that the value itself does not tell."""
    positional: bool = False
    """Whether it is an argument without an option's name."""
    repeat: bool = False
    """Whether the option may be given several times; the field is a tuple."""
    completes: Literal["file", "dir"] | None = None
    """Whether shell completion offers files or folders."""
    read: Callable[[str], Any] | None = None
    """Makes the value (of one repetition) from text, and raises ``ValueError``."""
    flag: Any = None
    """The value that the bare option stands for; not needed for a bool."""
    above: float | None = None
    """Exclusive lower bound."""
    at_least: float | None = None
    """Inclusive lower bound."""
    at_most: float | None = None
    """Inclusive upper bound."""
    choices: tuple[Any, ...] = ()
    """The values allowed; not needed for a ``Literal``."""
    resumable: bool = False
    """Whether a resumed run may change it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The facts of a field that holds the settings of another class."""

    defaults: Mapping[str, Any]
    only: tuple[str, ...] | None
    group: Group | None


def setting(
    default: Any = MISSING, *, factory: Callable[[], Any] | None = None, **about: Any
) -> Any:
    """Make a dataclass field that describes itself.

    Args:
        default: its value where none is given; left out: the setting is required.
        factory: makes the default instead.
        about: the fields of :class:`About`.
    """
    metadata = {_ABOUT: About(**about)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def part(*, only: Sequence[str] | None = None, group: Group | None = None, **defaults: Any) -> Any:
    """Make a field that holds another class's settings; its options are those of that class.

    Args:
        only: the fields that are options here; None: all.
        group: the section of the help, instead of the fields' own.
        defaults: other defaults than the class's own.
    """
    chosen = None if only is None else tuple(only)
    return field(metadata={_PART: Part(defaults=defaults, only=chosen, group=group)})


@dataclass(frozen=True, kw_only=True)
class Item:
    """One setting of a class, with that class's parts unfolded."""

    name: str
    path: tuple[str, ...]
    """Names of the fields from the class down to this setting."""
    type: Any
    """Without ``None``."""
    optional: bool
    """Whether None is a value."""
    default: Any
    """``MISSING`` where the setting is required or a factory makes its default."""
    required: bool
    about: About

    @property
    def option(self) -> str | None:
        """As typed: ``--checkpoint-minutes``; a positional's name; None in Python only."""
        if self.about.option is None:
            return None
        plain = self.name if self.about.positional else "--" + self.name.replace("_", "-")
        return self.about.option or plain

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values allowed; empty: any of its type."""
        return self.about.choices or _literals(self.type)

    @property
    def is_flag(self) -> bool:
        """Whether the option stands without a value."""
        return self.type is bool or self.about.flag is not None

    @property
    def flag(self) -> Any:
        """The value that the bare option stands for."""
        return (not self.default) if self.about.flag is None else self.about.flag

    @property
    def default_text(self) -> str:
        """The default for people; empty where there is none to name."""
        if self.about.default_text is not None:
            return self.about.default_text
        silent = self.default is MISSING or self.default is None or self.is_flag
        if silent or self.default == () or self.default == "":
            return ""
        if isinstance(self.default, tuple):
            return ", ".join(str(v) for v in typing.cast("tuple[Any, ...]", self.default))
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    @property
    def values_text(self) -> str:
        """The values allowed, for people; empty: any of its type."""
        about = self.about
        if self.choices:
            return ", ".join(str(c) for c in self.choices)
        above = "" if about.above is None else f"above {about.above:g}"
        least = "" if about.at_least is None else f"{about.at_least:g} or more"
        most = "" if about.at_most is None else f"at most {about.at_most:g}"
        return ", ".join(bound for bound in (above, least, most) if bound)

    def problem(self, value: Any) -> str | None:
        """The end of a sentence "X is ..." where ``value`` is not allowed; None where it is."""
        if value is None and self.optional:
            return None
        about = self.about
        if self.choices:
            values = typing.cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
            if all(v in self.choices for v in values):
                return None
            return f"none of {', '.join(str(c) for c in self.choices)}"
        if about.above is None and about.at_least is None and about.at_most is None:
            return None
        if not isinstance(value, int | float):
            return "not a number"
        if about.above is not None and not value > about.above:
            return f"not above {about.above:g}"
        if about.at_least is not None and not value >= about.at_least:
            return f"not {about.at_least:g} or more"
        if about.at_most is not None and not value <= about.at_most:
            return f"above {about.at_most:g}"
        return None

    def read(self, text: str) -> Any:
        """The value that was typed (one of several, where the option repeats).

        Raises:
            ValueError: it is not one; the text says why.
        """
        if self.about.read is not None:
            return self.about.read(text)
        kind = type(self.choices[0]) if self.choices else self.type
        if kind is int:
            value: Any = whole(text)
        elif kind is float:
            value = number(text)
        else:
            value = text
        if (wrong := self.problem(value)) is not None:
            raise ValueError(f"{text!r} is {wrong}")
        return value


def items(
    cls: type[Any], *, path: tuple[str, ...] = (), within: Part | None = None
) -> Iterator[Item]:
    """The settings of ``cls``, itself the part ``within`` at ``path``, with its parts unfolded."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        below = f.metadata.get(_PART)
        if below is not None:
            yield from items(hints[f.name], path=(*path, f.name), within=below)
        about = f.metadata.get(_ABOUT)
        if about is None:
            continue
        if within is not None:
            if within.only is not None and f.name not in within.only:
                continue
            about = _adapted(about, f.name, within)
        default = f.default if within is None else within.defaults.get(f.name, f.default)
        kind, optional = _without_none(hints[f.name])
        yield Item(
            name=f.name,
            path=(*path, f.name),
            type=kind,
            optional=optional,
            default=default,
            required=default is MISSING and f.default_factory is MISSING,
            about=about,
        )


def _adapted(about: About, name: str, within: Part) -> About:
    """The facts as the class that holds the part wants them."""
    if name in within.defaults:
        about = dataclasses.replace(about, default_text=None)
    return about if within.group is None else dataclasses.replace(about, group=within.group)


def sections(cls: type[Any]) -> list[tuple[Group | None, list[Item]]]:
    """The settings with an option, as the help and the reference page show them.

    Arguments and settings of no group come first, then the job's own groups, then those that many
    jobs share. Of two settings with one option the first stands for both.
    """
    found: dict[Group | None, dict[str, Item]] = {None: {}}
    for item in items(cls):
        if item.option is not None:
            found.setdefault(item.about.group, {}).setdefault(item.option, item)
    order = sorted(found, key=lambda group: group is not None and group.last)
    return [(group, list(found[group].values())) for group in order if found[group]]


def assemble(
    cls: type[Any],
    values: Mapping[tuple[str, ...], Any],
    *,
    path: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Make ``cls`` from the values of some settings; the others have defaults.

    Args:
        cls: a class of settings.
        values: by the paths of the settings.
        path: of ``cls`` itself in the paths.
        defaults: other defaults than the class's own.
    """
    hints = typing.get_type_hints(cls)
    made: dict[str, Any] = dict(defaults or {})
    for f in dataclasses.fields(cls):
        here = (*path, f.name)
        below = f.metadata.get(_PART)
        if below is not None:
            made[f.name] = assemble(hints[f.name], values, path=here, defaults=below.defaults)
        elif here in values:
            made[f.name] = values[here]
    return cls(**made)


def _literals(kind: Any) -> tuple[Any, ...]:
    """The values of a ``Literal``, or of a tuple of it."""
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    return next(a for a in typing.get_args(hint) if a is not type(None)), True
