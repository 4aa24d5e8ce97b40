"""A benchmark's results, JSON and table: written after each row, continued in the next run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dsconvert.util.files import whole_file

Row = dict[str, Any]
Key = tuple[Any, ...]


class Results:
    """Rows of one machine and one setting, in a fixed order.

    A file that was measured under other conditions is renamed, never mixed or overwritten.

    Args:
        path: of the JSON; the table is beside it, with the suffix ``.md``.
        meta: the conditions of the measurement.
        same: names of the conditions that must be equal for rows to be continued.
        names: the key of a row.
        order: sorts keys, the most important first.
        markdown: makes the table of the whole data.
    """

    def __init__(
        self,
        path: Path,
        meta: dict[str, Any],
        *,
        same: Sequence[str],
        names: Sequence[str],
        order: Callable[[Key], Any],
        markdown: Callable[[dict[str, Any]], str],
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._names, self._order, self._markdown = path, names, order, markdown
        self.data: dict[str, Any] = {"meta": meta, "rows": []}
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            if all(old["meta"].get(k) == meta.get(k) for k in same):
                self.data["rows"] = old["rows"]
            else:
                path.rename(path.with_name(f"{path.stem}-{int(time.time())}{path.suffix}"))

    def key(self, row: Row) -> Key:
        """Return the key of a row."""
        return tuple(row[name] for name in self._names)

    def find(self, *key: Any) -> Row | None:
        """Return the row of ``key``, if it is there."""
        return next((r for r in self.data["rows"] if self.key(r) == key), None)

    def put(self, row: Row) -> None:
        """Add or replace a row, and write.

        A measured row stays if the new one failed; the error goes with it as ``last_error``.
        """
        old = self.find(*self.key(row))
        if old is not None and "error" in row and "error" not in old:
            row = {**old, "last_error": row["error"], "session": row.get("session")}
        rows = [r for r in self.data["rows"] if self.key(r) != self.key(row)]
        self.data["rows"] = sorted([*rows, row], key=lambda r: self._order(self.key(r)))
        self.write()

    def write(self) -> None:
        """Write the JSON, whole or not at all, and the table."""
        self.data["meta"]["load_average_now"] = [round(x, 2) for x in os.getloadavg()]
        with whole_file(self.path, overwrite=True) as beside:
            beside.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        with whole_file(self.path.with_suffix(".md"), overwrite=True) as beside:
            beside.write_text(self._markdown(self.data), encoding="utf-8")
