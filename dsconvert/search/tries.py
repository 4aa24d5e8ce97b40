"""The tries of a promised quality, kept in the cache folder and reused by a later run.

One folder per file and settings: ``tries.json`` has the figures, the predictions and the measured
qualities of every plan; ``NAME.pt`` the weights of a try that was fitted (a state dict, read with
``weights_only``). A folder that can't be read or written is no error: the work is done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsconvert.errors import DsconvertError, PlanError
from dsconvert.records import Plan, Polish, Quality
from dsconvert.report.jsonable import finite
from dsconvert.search.verify import Figure, Figures
from dsconvert.util.cache import cache_folder
from dsconvert.util.files import whole_file
from dsconvert.util.foreign_text import from_json
from dsconvert.util.version import VERSION

FORMAT = 2
_BLOCK = 1 << 20
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, PlanError)
"""Errors where the content of ``tries.json`` is not what :meth:`TryStore.save` writes."""


@dataclass(kw_only=True)
class Try:
    """One plan, and what is known about it so far.

    Attributes:
        name: for people, and of its weights.
        plan: its decisions.
        loss: predicted; see :mod:`dsconvert.search.predictor`.
        before: figures of the original in the same measurement.
        figures: of the plan.
        quality: on the latents of the search, after fit and polish; None: not tried yet.
        promised: on latents that the search never saw; None: not measured.
        kept: the channels that stay, by group.
        eps: of the modules of the fitted model; None: not fitted yet.
        psnr: of the conversion's own record.
        polish: of the conversion's own record.
        seconds: of fit and polish.
    """

    name: str
    plan: Plan
    loss: float
    before: Figures
    figures: Figures
    quality: Quality | None = None
    promised: Quality | None = None
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    eps: Mapping[str, float] | None = None
    psnr: float | None = None
    polish: Polish | None = None
    seconds: float = 0.0


def digest_of(path: Path | None, settings: Mapping[str, Any]) -> str:
    """Return the key of a file's content and of the settings that its tries depend on.

    It is the same on every machine: a fitted model and its measured quality serve elsewhere, too.
    So does one whose polish was limited by time, though another machine would have made more steps
    or fewer: its quality is that of the stored weights.
    """
    digest = hashlib.sha256()
    if path is not None and path.is_file():
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    facts = {"dsconvert": VERSION, "torch": torch.__version__, **settings}
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:24]


class TryStore:
    """The folder of one file's tries.

    Args:
        key: from :func:`digest_of`.
        conditions: of this run's times, from :func:`~dsconvert.search.profile.conditions`.
        folder: of all keys; None: in the cache folder.
    """

    def __init__(
        self, key: str, *, conditions: Mapping[str, Any] | None = None, folder: Path | None = None
    ) -> None:
        self.folder = (folder or cache_folder() / "tries") / key
        self._conditions = dict(conditions or {})

    def load(self) -> list[Try]:
        """Return the stored tries; none where there are none that can be read.

        They have no figures (nor the original's) if these were measured under other conditions.
        """
        try:
            data: Any = from_json((self.folder / "tries.json").read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                return []
            tries = [_try(row) for row in data["tries"]]
            if data["conditions"] != self._conditions:
                for one in tries:
                    one.before, one.figures = {}, {}
            return tries
        except (OSError, *_DAMAGED):
            return []

    def save(self, tries: list[Try]) -> None:
        """Store all tries; their figures were measured under this run's conditions."""
        rows = [_row(t) for t in tries]
        content = {"format": FORMAT, "conditions": self._conditions, "tries": rows}
        with suppress(OSError, DsconvertError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self.folder / "tries.json", overwrite=True) as beside:
                beside.write_text(json.dumps(finite(content), indent=1), encoding="utf-8")

    def weights(self, one: Try) -> dict[str, Tensor] | None:
        """Return the stored weights of a try, or None."""
        try:
            found: Any = torch.load(self._file(one), map_location="cpu", weights_only=True)
        except Exception:  # a broken file may raise anything; the try is then made again
            return None
        if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
            return None
        return found

    def keep(self, one: Try, state: Mapping[str, Tensor]) -> None:
        """Store the weights of a try."""
        with suppress(OSError, DsconvertError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self._file(one), overwrite=True) as beside:
                torch.save({k: v.detach().cpu() for k, v in state.items()}, beside)

    def _file(self, one: Try) -> Path:
        key = hashlib.sha256(one.plan.to_json().encode()).hexdigest()[:16]
        return self.folder / f"{key}.pt"


def _row(one: Try) -> dict[str, Any]:
    def figures(found: Figures) -> dict[str, float]:
        return {metric: figure.value for metric, figure in found.items()}

    def record(value: Any) -> Any:
        return None if value is None else dataclasses.asdict(value)

    return {
        "name": one.name,
        "plan": json.loads(one.plan.to_json()),
        "loss": one.loss,
        "before": figures(one.before),
        "figures": figures(one.figures),
        "quality": record(one.quality),
        "promised": record(one.promised),
        "kept": {k: list(v) for k, v in one.kept.items()},
        "eps": None if one.eps is None else dict(one.eps),
        "psnr": one.psnr,
        "polish": record(one.polish),
        "seconds": one.seconds,
    }


def _try(row: Mapping[str, Any]) -> Try:
    def figures(found: Mapping[str, float]) -> Figures:
        return {metric: Figure(float(value)) for metric, value in found.items()}

    def quality(found: Mapping[str, Any] | None) -> Quality | None:
        if found is None:
            return None
        facts: dict[str, Any] = dict(found)
        for name in ("psnr_interval", "ratio_interval"):
            facts[name] = None if facts[name] is None else tuple(map(float, facts[name]))
        _check_numbers(v for name, v in facts.items() if not name.endswith("_interval"))
        facts["psnr"] = float(facts["psnr"])
        return Quality(**facts)

    def polish(found: Mapping[str, Any] | None) -> Polish | None:
        if found is None:
            return None
        facts: dict[str, Any] = {**found, "ended": str(found["ended"])}
        _check_numbers(v for name, v in facts.items() if name != "ended")
        return Polish(**facts)

    return Try(
        name=str(row["name"]),
        plan=Plan.from_json(json.dumps(row["plan"])),
        loss=float(row["loss"]),
        before=figures(row["before"]),
        figures=figures(row["figures"]),
        quality=quality(row["quality"]),
        promised=quality(row["promised"]),
        kept={k: tuple(map(int, v)) for k, v in row["kept"].items()},
        eps=None if row["eps"] is None else {k: float(v) for k, v in row["eps"].items()},
        psnr=None if row["psnr"] is None else float(row["psnr"]),
        polish=polish(row["polish"]),
        seconds=float(row["seconds"]),
    )


def _check_numbers(values: Iterable[Any]) -> None:
    """Check that each value is a number or None.

    Raises:
        TypeError: one is not.
    """
    for value in values:
        if value is not None and type(value) not in (int, float):
            raise TypeError(f"{value!r} is no number")
