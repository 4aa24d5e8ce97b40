"""The description of a file for people, from the facts of ``inspect --json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsconvert.report.layout import listed, pairs
from dsconvert.util.numbers import amount

_OWN = "module"
"""The adapter's name of a user's own module."""
_FEW = 8
"""The most problems that are listed one by one."""


def inspection(facts: Mapping[str, Any], *, verbose: bool = False) -> list[str]:
    """Return the lines about a file.

    Args:
        facts: of a snapshot, a checkpoint or an export, from its ``as_dict()``.
        verbose: whether to list every fact of the adapter.
    """
    config: Mapping[str, Any] = facts.get("config") or {}
    adapter = facts.get("adapter")
    what = "no generator that dsconvert knows"
    if adapter:
        what = "a generator of --module" if adapter == _OWN else f"a generator of {adapter}"
    cfg = f", cfg {config['cfg']}" if config.get("cfg") else ""
    rows: list[list[str]] = []
    if adapter:
        rows += _images(config)
    rows += _structure(facts)
    rows.append(["written by", _writer(facts)])
    entries = _entries(facts.get("entries") or ())
    if not entries:
        entries = [str(g) for g in facts.get("generators") or ()]
    rows += [["holds" if not i else "", text] for i, text in enumerate(entries)]
    if facts.get("size") is not None:
        rows.append(["size", amount(facts["size"], "B")])
    rows.append(["safe", _safety(facts)])
    lines = [f"{facts.get('path', 'file')}: {what}{cfg}", *pairs(rows)]
    if facts.get("note"):
        lines.append(f"note: {facts['note']}")
    problems: list[Any] = list(facts.get("problems") or ())
    for problem in problems[:_FEW]:
        lines.append(f"  {problem['name']} at {problem['path']}: {problem['why']}")
    if len(problems) > _FEW:
        lines.append(f"  and {len(problems) - _FEW} more (--json lists all)")
    if verbose:
        lines += pairs([str(k), str(v)] for k, v in config.items()) if config else []
    return lines


def _first(config: Mapping[str, Any], *names: str) -> Any:
    """Return the first of these facts that is known; each codebase has its own names."""
    return next((config[n] for n in names if config.get(n) is not None), None)


def _images(config: Mapping[str, Any]) -> list[list[str]]:
    size = _first(config, "resolution", "image_size", "im_size")
    channels = _first(config, "img_channels", "out_channels", "nc")
    classes = _first(config, "classes", "c_dim")
    parts = [f"{size} x {size} px"] if size is not None else []
    parts += [f"{channels} channels"] if channels is not None else []
    if parts:
        parts.append(f"{classes} classes" if classes else "no classes")
    rows = [["images", ", ".join(parts)]] if parts else []
    latent = _first(config, "z_dim", "latent_dim", "nz")
    if latent is not None:
        rows.append(["latents", f"{latent} numbers"])
    return rows


def _structure(facts: Mapping[str, Any]) -> list[list[str]]:
    found: Mapping[str, Any] | None = facts.get("structure")
    if not found:
        return []
    whole, rewritten = found["convolutions"], found["rewritten"]
    rows = [["parameters", f"{amount(found['parameters'])}, in {whole} convolutions and the rest"]]
    if not rewritten:
        # The layout of a third-party rule is not recognised; a checkpoint names its conversion.
        said = "yes, by rules that are not built in" if facts.get("converted") else "no"
        return [*rows, ["converted", said]]
    kinds = ", ".join(f"{name} x{count}" for name, count in rewritten.items())
    share = f"{sum(rewritten.values())} of {whole} convolutions rewritten"
    return [*rows, ["converted", f"{share}: {kinds}"]]


def _writer(facts: Mapping[str, Any]) -> str:
    writer, version = str(facts.get("writer", "unknown")), facts.get("version")
    if writer == "dsconvert":
        return f"dsconvert {version}" if version else "dsconvert (the file names no version)"
    if facts.get("converted"):
        return f"dsconvert {version or '(the file names no version)'}, by {writer}"
    source = (facts.get("config") or {}).get("source")
    whose = f"; the source inside is {source}" if source else ""
    codebase = facts.get("adapter")
    code = f"the code of {codebase}" if codebase and codebase != _OWN else "other code"
    return f"{code}, by {writer}{whose}"


def _entries(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each entry, and a single one for all tensors of a bare state dict."""
    tensors = [e for e in entries if e["type"] == "Tensor"]
    lines = [_entry(e) for e in entries if e["type"] != "Tensor"]
    if tensors:
        total = amount(sum(int(e["elements"]) for e in tensors))
        names = listed([str(e["key"]) for e in tensors])
        lines.append(f"{len(tensors)} tensors, {total} numbers: {names}")
    return lines


def _entry(entry: Mapping[str, Any]) -> str:
    size = entry.get("parameters", entry.get("elements"))
    kind = str(entry["type"]).rpartition(".")[2]
    if entry["type"] == "None" or (kind == "Module" and not size):
        return f"{entry['key']}: nothing"
    unit = "parameters" if "parameters" in entry else "numbers"
    return f"{entry['key']}: {kind}" + (f", {amount(size)} {unit}" if size else "")


def _safety(facts: Mapping[str, Any]) -> str:
    if facts.get("safe", True):
        return "yes, everything in it is known; nothing in it runs"
    names = [str(p["name"]) for p in facts.get("problems") or ()]
    return f"no, it refers to {listed(names)}; nothing in it has run"
