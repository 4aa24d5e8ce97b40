"""Write the import graph of dsconvert's packages, and the table of them, into the documentation.

    python docs/make_import_graph.py            # write
    python docs/make_import_graph.py --check    # change nothing; exit code 1 if a page is stale

The graph (mermaid) is a transitive reduction: an arrow is left out where a longer path of arrows
connects the same two packages. The table lists every direct import. Both count each ``import`` in
the source text, at any depth, also those for type checking alone.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dsconvert"
SKIPPED = frozenset({"__init__", "__main__"})
"""Top-level modules that are no part of the graph: they import names from everywhere."""


@dataclass(frozen=True)
class Part:
    """One package or top-level module of dsconvert."""

    name: str
    purpose: str
    """The first line of its docstring, as Markdown."""
    imports: frozenset[str]
    """Names of the parts that it imports."""
    is_package: bool


def parts(package: Path = ROOT / PACKAGE) -> dict[str, Part]:
    """Return all parts of the package in ``package``, by name."""
    files = {
        path.stem if path.is_file() else path.name: path
        for path in sorted(package.iterdir())
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    names = set(files) - SKIPPED
    return {
        name: Part(
            name=name,
            purpose=_purpose(files[name]),
            imports=frozenset(
                target
                for file in _sources(files[name])
                for target in _imported(file, package)
                if target in names and target != name
            ),
            is_package=files[name].is_dir(),
        )
        for name in sorted(names)
    }


def reduced(graph: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return the transitive reduction of ``graph``; edges within a cycle stay."""
    reach = {name: _reachable(graph, name) for name in graph}

    def needless(source: str, target: str) -> bool:
        return any(
            target in reach[middle] and source not in reach[middle]
            for middle in graph[source]
            if middle != target and middle not in reach[target]
        )

    return {
        source: sorted(t for t in targets if not needless(source, t))
        for source, targets in graph.items()
    }


def mermaid(found: Mapping[str, Part]) -> str:
    """Return the graph as a fenced mermaid block."""
    edges = reduced({p.name: p.imports for p in found.values()})
    lines = [f"    {source} --> {target}" for source, ts in edges.items() for target in ts]
    single = [f"    {p.name}([{p.name}.py])" for p in found.values() if not p.is_package]
    return "\n".join(["```mermaid", "graph TD", *single, *lines, "```"])


def table(found: Mapping[str, Part], *, imports: bool) -> str:
    """Return a Markdown table of the parts, with their direct imports if wanted."""
    head = ["package", "contents", *(["imports"] if imports else [])]
    rows = [
        [
            f"`{p.name}/`" if p.is_package else f"`{p.name}.py`",
            p.purpose,
            *([", ".join(sorted(p.imports)) or "nothing"] if imports else []),
        ]
        for p in found.values()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def pages(found: Mapping[str, Part]) -> dict[Path, dict[str, str]]:
    """Return what belongs between which markers of which page."""
    return {
        ROOT / "docs" / "architecture.md": {
            "import graph": mermaid(found),
            "table of packages": table(found, imports=True),
        },
        ROOT / "CONTRIBUTING.md": {"table of packages": table(found, imports=False)},
    }


def replaced(text: str, name: str, block: str) -> str:
    """Return ``text`` with ``block`` between the markers of ``name``.

    Raises:
        ValueError: ``text`` does not have exactly one pair of these markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"one pair of markers {begin} and {end} is expected")
    return pattern.sub(lambda _: f"{begin}\n\n{block}\n\n{end}", text)


def _sources(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _purpose(path: Path) -> str:
    text = (path / "__init__.py" if path.is_dir() else path).read_text(encoding="utf-8")
    first = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    plain = re.sub(r":\w+:`[~]?([^`]+)`", r"`\1`", " ".join(first.split()))
    return plain.replace("``", "`").replace("|", "\\|")


def _imported(file: Path, package: Path) -> Iterator[str]:
    """Names of the parts that ``file`` imports, itself included."""
    here = [PACKAGE, *file.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            whole = [*base, *(node.module.split(".") if node.module else [])]
            modules = [[*whole, alias.name] for alias in node.names]
        else:
            continue
        for words in modules:
            if words[0] == PACKAGE and len(words) > 1:
                yield words[1]


def _reachable(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph[waiting.pop()]:
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


def main(argv: list[str] | None = None) -> int:
    """Write or check the pages; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only report pages that are stale")
    options = parser.parse_args(argv)
    stale: list[Path] = []
    for path, blocks in pages(parts()).items():
        old = new = path.read_text(encoding="utf-8")
        for name, block in blocks.items():
            new = replaced(new, name, block)
        if new != old:
            stale.append(path)
            if not options.check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        state = "is stale: run python docs/make_import_graph.py" if options.check else "is written"
        sys.stdout.write(f"{path.relative_to(ROOT)} {state}\n")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
