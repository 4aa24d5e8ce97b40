"""Nothing in a file runs: the corpus against plain ``pickle.load`` and against us."""

from __future__ import annotations

import copyreg
import pickle
import sys
import types
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from dsconvert.errors import (
    CorruptSnapshotError,
    DsconvertError,
    UnsafeSnapshotError,
    UnsupportedSnapshotError,
)
from dsconvert.formats.official import inspect_snapshot, load_snapshot, save_snapshot
from tests.formats.official import hostile, traps

if TYPE_CHECKING:
    from pathlib import Path

CASES = [
    *(("fragment", name) for name in hostile.FRAGMENTS),
    *(("edit", name) for name in hostile.EDITS),
    *(("whole", name) for name in hostile.WHOLE),
]
EXTENDED = [pytest.mark.extended]
"""Fragments are judged one by one in the quick file below; here they are part of a large one."""


def test_there_are_enough_kinds() -> None:
    assert len(CASES) >= 60
    assert len({n for _, n in CASES}) == len(CASES)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a sprung trap makes, with everything in place that the traps need."""
    path = tmp_path / "sprung"
    (tmp_path / "trap_on_import.py").write_text(f"import os\nx = os.mkdir({str(path)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trap_on_import", raising=False)
    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = (  # type: ignore[attr-defined]
        lambda meta: exec(meta["module_src"])
    )
    persistence._src_to_module = lambda text: exec(text)  # type: ignore[attr-defined]
    persistence.import_hook = lambda hook: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)
    copyreg.add_extension("os", "mkdir", 0xF0)
    yield path
    copyreg.remove_extension("os", "mkdir", 0xF0)
    copyreg.clear_extension_cache()
    sys.modules.pop("trap_on_import", None)
    traps.Victim.run = staticmethod(len)
    __import__("os.path").__dict__.pop("dsconvert_was_here", None)


def build(kind: str, name: str, small: Path, marker: Path) -> tuple[bytes, bool]:
    if kind == "fragment":
        make, fires = hostile.FRAGMENTS[name]
        return hostile.spliced(small.read_bytes(), make(str(marker))), fires
    if kind == "edit":
        edit, fires = hostile.EDITS[name]
        return hostile.edited(small, edit, str(marker)), fires
    whole, fires = hostile.WHOLE[name]
    return whole(small.read_bytes(), str(marker)), fires


def sprung(path: Path) -> bool:
    if path.is_dir():
        path.rmdir()
        return True
    if path.exists():
        path.unlink()
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind}-{name}", marks=EXTENDED if kind == "fragment" else [])
        for kind, name in CASES
    ],
)
def test_hostile(kind: str, name: str, small: Path, marker: Path, tmp_path: Path) -> None:
    data, fires = build(kind, name, small, marker)
    path = tmp_path / "hostile.pkl"
    path.write_bytes(data)

    # It is a real threat: a plain unpickler springs it (where the corpus says so).
    try:
        with path.open("rb") as file:
            pickle.load(file)
    except Exception:
        pass
    assert sprung(marker) == fires
    sys.modules.pop("trap_on_import", None)

    with pytest.raises(DsconvertError) as caught:
        load_snapshot(path)
    assert not sprung(marker)
    assert isinstance(caught.value, (UnsafeSnapshotError, CorruptSnapshotError)) or name in (
        "alone", "text-protocol", "python-pickler", "root-is-a-call", "root-by-eval",
        "before-a-snapshot", "entry-G_ema", "key-is-a-call",
    )  # fmt: skip
    assert str(path) in str(caught.value)

    try:
        info = inspect_snapshot(path)
    except DsconvertError:
        pass
    else:
        assert not info.safe
        assert info.problems
        assert not info.config
    assert not sprung(marker)
    assert "trap_on_import" not in sys.modules


@pytest.mark.slow
def test_the_splice_itself_is_harmless(small: Path, tmp_path: Path) -> None:
    """The control: the same splice with plain data loads, so the payloads are what is refused."""
    path = tmp_path / "fine.pkl"
    path.write_bytes(hostile.spliced(small.read_bytes(), hostile.lst(hostile.s("plain"))))
    assert load_snapshot(path).keys[-1] == "extra"
    path.write_bytes(hostile.edited(small, lambda root, p: None, ""))
    assert load_snapshot(path).config["cfg"] == "fastgan"


def test_all_offenders_are_named_with_their_places(small: Path, tmp_path: Path) -> None:
    bad = hostile.dct(
        (hostile.s("a"), hostile.call(hostile.g("os", "system"), hostile.s("x"))),
        (hostile.s("b"), hostile.lst(hostile.g("nt", "remove"))),
    )
    path = tmp_path / "two.pkl"
    path.write_bytes(hostile.spliced(small.read_bytes(), bad, "extra"))
    with pytest.raises(UnsafeSnapshotError, match=r"os\.system at extra\.a") as caught:
        load_snapshot(path)
    assert "nt.remove at extra.b" in str(caught.value)
    assert "drop=('extra',)" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["D", "extra"])
def test_an_entry_can_be_left_out(small: Path, marker: Path, tmp_path: Path, key: str) -> None:
    path, out = tmp_path / "hostile.pkl", tmp_path / "clean.pkl"
    path.write_bytes(
        hostile.edited(small, lambda root, p: root.update({key: hostile.evil_call(p)}), str(marker))
    )
    with pytest.raises(UnsafeSnapshotError):
        load_snapshot(path)
    snap = load_snapshot(path, drop=(key,))
    save_snapshot(snap, snap.generator, out)
    assert not sprung(marker)
    assert b"mkdir" not in out.read_bytes()
    assert ("extra" in load_snapshot(out).keys) is False
    with out.open("rb") as file:
        pickle.load(file)
    assert not sprung(marker)


def test_dropping_does_not_hide_what_is_shared(small: Path, marker: Path, tmp_path: Path) -> None:
    """A payload that a kept entry shares with a dropped one is still refused."""

    def edit(root: hostile.Root, p: str) -> None:
        bad = hostile.evil_call(p)
        root.update(D=bad, extra=[bad])

    path = tmp_path / "shared.pkl"
    path.write_bytes(hostile.edited(small, edit, str(marker)))
    with pytest.raises(UnsafeSnapshotError, match="extra"):
        load_snapshot(path, drop=("D",))


def test_a_cycle_through_the_root_does_not_bring_a_dropped_entry_back(
    small: Path, marker: Path, tmp_path: Path
) -> None:
    real = small.read_bytes()
    # The root dict is memo 0: an entry that holds the root itself.
    data = real[:-2] + hostile.s("bad") + hostile.call(hostile.MKDIR, hostile.s(str(marker)))
    path = tmp_path / "cycle.pkl"
    path.write_bytes(data + hostile.s("extra") + b"h\x00u.")
    with pytest.raises(UnsafeSnapshotError):
        load_snapshot(path, drop=("bad",))


def test_tensorflow_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "stylegan2.pkl"
    path.write_bytes(
        b"\x80\x02" + hostile.new(hostile.g("dnnlib.tflib.network", "Network")) + b"2\x87."
    )
    with pytest.raises(CorruptSnapshotError):
        load_snapshot(path)
    network = hostile.new(hostile.g("dnnlib.tflib.network", "Network"))
    path.write_bytes(b"\x80\x02" + network * 3 + b"\x87.")
    with pytest.raises(UnsupportedSnapshotError, match="TensorFlow"):
        load_snapshot(path)
    with pytest.raises(UnsupportedSnapshotError, match="TensorFlow"):
        inspect_snapshot(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(hostile.FRAGMENTS))
def test_hostile_beside_a_persistent_generator(
    name: str, persistent_small: Path, marker: Path, tmp_path: Path
) -> None:
    """The fragments in a file whose own objects are persistent ones (and few: it is quick)."""
    make, fires = hostile.FRAGMENTS[name]
    path = tmp_path / "hostile.pkl"
    path.write_bytes(hostile.spliced(persistent_small.read_bytes(), make(str(marker))))
    with suppress(Exception):  # alone: the persistent objects need their own code
        pickle.loads(b"\x80\x04" + make(str(marker)) + b".")
    assert sprung(marker) == fires
    sys.modules.pop("trap_on_import", None)
    with pytest.raises((UnsafeSnapshotError, CorruptSnapshotError)) as caught:
        load_snapshot(path)
    assert not sprung(marker)
    assert str(path) in str(caught.value)
    with suppress(DsconvertError):
        info = inspect_snapshot(path)
        assert not info.safe
        assert info.problems
    assert not sprung(marker)
    assert "trap_on_import" not in sys.modules


@pytest.mark.slow
def test_a_payload_in_the_generators_own_source_never_runs(
    persistent_small: Path, marker: Path, tmp_path: Path
) -> None:
    """Every text of the file replaced by one that springs: read all the same, and written clean."""
    path, out = tmp_path / "hostile.pkl", tmp_path / "clean.pkl"
    nasty = hostile.source_text(str(marker))

    def edit(root: hostile.Root, p: str) -> None:
        for node in hostile.persistent_nodes([root["G"], root["G_ema"]]):
            meta = node.args[0].items
            meta[:] = [(k, nasty if k == "module_src" else v) for k, v in meta]

    path.write_bytes(hostile.edited(persistent_small, edit, str(marker)))
    with suppress(Exception), path.open("rb") as file:
        pickle.load(file)
    assert sprung(marker)
    assert inspect_snapshot(path).safe
    snap = load_snapshot(path)
    assert snap.config["source"].startswith("unknown text")
    save_snapshot(snap, snap.generator, out)
    assert not sprung(marker)
    assert b"mkdir" not in out.read_bytes()
    # Shared with an entry that would be carried, it is refused.
    shared = tmp_path / "shared.pkl"

    def share(root: hostile.Root, p: str) -> None:
        edit(root, p)
        root["extra"] = hostile.persistent_nodes([root["G_ema"]])[-1]

    shared.write_bytes(hostile.edited(persistent_small, share, str(marker)))
    with pytest.raises(UnsafeSnapshotError, match="source text"):
        load_snapshot(shared)
    assert not sprung(marker)
