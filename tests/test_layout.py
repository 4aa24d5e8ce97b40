"""The tree stays readable: no module grows beyond what one reads at a sitting."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300
WHOLE = {
    "adapters/stylegan2/architecture.py",
    "adapters/stylegan3/architecture.py",
    "dsconvert/formats/restructure.py",
}
"""Files that users copy, or that files embed: they stand alone."""


def test_no_module_is_too_long() -> None:
    modules = [p for top in ("dsconvert", "adapters") for p in (ROOT / top).rglob("*.py")]
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in modules}
    assert {n: c for n, c in lines.items() if c > LIMIT and n not in WHOLE} == {}
