"""The base of every class of settings: checks, JSON, and the comparison with a resumed run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dsconvert.config.setting import Item, items
from dsconvert.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """Settings that check their ranges when they are made.

    Raises:
        UsageError: settings out of range or in contradiction; the message lists all of them.
    """

    subject: ClassVar[str] = "the settings"
    """The subject of the error message."""

    def __post_init__(self) -> None:
        """Check every setting."""
        wrong = [*self._out_of_range(), *self.contradictions()]
        if wrong:
            raise UsageError(f"{self.subject} make no sense: {'; '.join(wrong)}.")

    def contradictions(self) -> list[str]:
        """Problems that no single range tells; a subclass extends this."""
        return []

    def _out_of_range(self) -> list[str]:
        wrong: list[str] = []
        for item in own_items(type(self)):
            value = getattr(self, item.name)
            if (problem := item.problem(value)) is not None:
                wrong.append(f"{item.name} is {value!r}, {problem}")
        return wrong

    def keywords(self) -> dict[str, Any]:
        """The settings by name, for a function that takes them as keywords."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON and for checkpoints."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make the settings from :meth:`to_dict`, as it is or read from JSON.

        Raises:
            UsageError: a field that is unknown, of a wrong type or out of range.
        """
        import msgspec  # not needed for --help

        unknown = sorted(set(data) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise UsageError(f"these settings are unknown: {', '.join(unknown)}.")
        try:
            return msgspec.convert(dict(data), cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"{cls.subject} can't be read: {error}.") from error

    def fixed_changes(self, stored: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The settings that differ from a run's and that no resumed run may change.

        Args:
            stored: :meth:`to_dict` of the run, perhaps read from JSON. A setting that the version
                of the run did not have yet counts as its default.

        Returns:
            The value of the run and the present one, by name.
        """
        free = resumable(type(self))
        before = {**_defaults(type(self)), **stored}
        return {
            name: (before.get(name), now)
            for name, now in self.to_dict().items()
            if name not in free and _as_json(before.get(name)) != _as_json(now)
        }


def _defaults(cls: type[Any]) -> dict[str, Any]:
    """Return the plain defaults of a class of settings."""
    known = {f.name: f.default for f in dataclasses.fields(cls)}
    return {name: value for name, value in known.items() if value is not dataclasses.MISSING}


@dataclass(frozen=True, kw_only=True)
class Job(BaseSettings):
    """Settings of one command; its docstring is the command's help."""

    keeps_memory: ClassVar[bool] = False
    """Whether the job runs networks many times over, so that freed memory is worth keeping."""
    makes_runs: ClassVar[bool] = False
    """Whether ``out`` is a folder of runs."""

    @property
    def output(self) -> str | None:
        """The file that the job writes, or its folder of runs."""
        return None

    @property
    def goes_on(self) -> str | None:
        """The command, in words, that continues an interrupted job in its folder; None: none."""
        return None

    @property
    def resumed(self) -> str | None:
        """The run that the job continues."""
        return None

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options that contradict each other; a subclass extends this.

        Args:
            typed: the values of the options that the user typed, by the option's name; an option
                with its default value is not among them.

        Raises:
            UsageError: names the options.
        """


def own_items(cls: type[Any]) -> list[Item]:
    """The settings of ``cls`` without those of its parts."""
    return [item for item in items(cls) if len(item.path) == 1]


def resumable(cls: type[Any]) -> frozenset[str]:
    """Names of the settings that a resumed run may change."""
    return frozenset(item.name for item in own_items(cls) if item.about.resumable)


def refuse_fixed(cls: type[Job], typed: Mapping[str, Any]) -> None:
    """Refuse typed options that a resumed run can't change.

    Raises:
        UsageError: names them, and the options that may be given.
    """
    free = [i.option for i in items(cls) if i.about.resumable and i.option is not None]
    given = [option for option in typed if option not in (*free, "--resume")]
    if given:
        raise UsageError(
            "--resume RUN continues with the run's own data, model and recipe: drop "
            f"{', '.join(given)} (only {', '.join(free)} may be given)."
        )


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
