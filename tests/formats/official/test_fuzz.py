"""Damaged and malicious bytes: only our own errors come out, in bounded time and memory."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsconvert.errors import CorruptSnapshotError, DsconvertError
from dsconvert.formats.official import inspect_snapshot, load_snapshot, save_snapshot
from dsconvert.safepickle.nodes import Blob, DictNode, Global, Record
from tests.formats.official import hostile
from tests.formats.official.conftest import shared_folder

SHARED = shared_folder() / "snapshots" / "fastgan_lite-256.pkl"
relaxed = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ROUNDS = pytest.mark.parametrize("rounds", [15, pytest.param(250, marks=pytest.mark.extended)])


def outcome(path: Path, *, build: bool = True) -> str:
    """Load, build and save; any error but ours escapes and fails the test."""
    try:
        snap = load_snapshot(path)
        if build:
            save_snapshot(snap, snap.generator, path.with_suffix(".out"), overwrite=True)
    except DsconvertError as error:
        failure = error
    else:
        return "fine"
    assert len(str(failure)) < 20_000
    return type(failure).__name__


def structure(data: bytes) -> list[int]:
    """Offsets of opcodes (not of tensor data), where a change has an effect."""
    return [pos for _, _, pos in __import__("pickletools").genops(data)]


@pytest.fixture(scope="module")
def real(small: Path) -> tuple[bytes, list[int]]:
    data = small.read_bytes()
    return data, structure(data)


@pytest.mark.slow
@ROUNDS
def test_flipped_opcodes(real: tuple[bytes, list[int]], tmp_path: Path, rounds: int) -> None:
    data, places = real
    seen: set[str] = set()

    @settings(relaxed, max_examples=rounds)
    @given(st.lists(st.tuples(st.sampled_from(places), st.integers(0, 8), st.integers(0, 255)),
                    min_size=1, max_size=4))  # fmt: skip
    def check(changes: list[tuple[int, int, int]]) -> None:
        damaged = bytearray(data)
        for place, shift, value in changes:
            damaged[min(place + shift, len(damaged) - 1)] = value
        path = tmp_path / "fuzz.pkl"
        path.write_bytes(damaged)
        seen.add(outcome(path))

    check()
    assert "CorruptSnapshotError" in seen


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [8, pytest.param(250, marks=pytest.mark.extended)])
def test_cut_doubled_and_moved_pieces(
    real: tuple[bytes, list[int]], tmp_path: Path, rounds: int
) -> None:
    data, places = real
    place = st.sampled_from(places)

    @settings(relaxed, max_examples=rounds)
    @given(st.sampled_from(["cut", "remove", "double", "swap"]), place, place, place)
    def check(what: str, a: int, b: int, c: int) -> None:
        a, b, c = sorted((a, b, c))
        damaged = {
            "cut": data[:a],
            "remove": data[:a] + data[b:],
            "double": data[:b] + data[a:b] + data[b:],
            "swap": data[:a] + data[b:c] + data[a:b] + data[c:],
        }[what]
        path = tmp_path / "fuzz.pkl"
        path.write_bytes(damaged)
        outcome(path)

    check()


@pytest.mark.skipif(not SHARED.exists(), reason=f"no {SHARED}")
def test_flipped_opcodes_of_an_official_file(tmp_path: Path) -> None:
    data = SHARED.read_bytes()
    places = structure(data)

    @settings(relaxed, max_examples=8)
    @given(st.lists(st.tuples(st.sampled_from(places), st.integers(0, 255)), min_size=1,
                    max_size=3))  # fmt: skip
    def check(changes: list[tuple[int, int]]) -> None:
        damaged = bytearray(data)
        for place, value in changes:
            damaged[place] = value
        path = tmp_path / "fuzz.pkl"
        path.write_bytes(damaged)
        outcome(path, build=False)

    check()


@pytest.mark.parametrize("rounds", [125, pytest.param(250, marks=pytest.mark.extended)])
def test_arbitrary_bytes(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "fuzz.pkl"

    @settings(relaxed, max_examples=rounds)
    @given(st.binary(max_size=200))
    def check(data: bytes) -> None:
        path.write_bytes(b"\x80\x04" + data)
        assert outcome(path) != "fine"

    check()


OPCODES = [bytes([b]) for b in range(256)]


PROGRAMS = st.lists(st.one_of(st.sampled_from([
    b"(", b")", b"}", b"]", b"N", b"t", b"\x85", b"\x86", b"\x87", b"s", b"u", b"a", b"e", b"b",
    b"R", b"\x81", b"\x92", b"o", b"0", b"1", b"2", b"\x8f", b"\x90", b"\x91", b"\x93", b"\x94",
    b"h\x00", b"h\x01", b"q\x00", b"K\x01", hostile.s("G_ema"), hostile.s("x"),
    hostile.g("collections", "OrderedDict"), hostile.g("os", "mkdir"), hostile.MODULE,
    hostile.g("torch._utils", "_rebuild_tensor_v2"),
    hostile.g("torch._utils", "_rebuild_parameter"),
    hostile.g("torch.storage", "_load_from_bytes"),
    hostile.g("pg_modules.networks_fastgan", "Generator"),
]), st.sampled_from(OPCODES)), max_size=60)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [100, pytest.param(200, marks=pytest.mark.extended)])
def test_arbitrary_programs(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "fuzz.pkl"

    @settings(relaxed, max_examples=rounds)
    @given(PROGRAMS)
    def check(program: list[bytes]) -> None:
        path.write_bytes(b"\x80\x04" + b"".join(program) + b".")
        assert outcome(path) != "fine"

    check()


# Bombs --------------------------------------------------------------------------------------

HUGE = 1 << 50
N = 60_000


def doubled(depth: int) -> bytes:
    """A tuple of two of the one before, ``depth`` times: 2**depth leaves, written out."""
    return b")" + b"2\x86" * depth


def memo_doubled(depth: int) -> bytes:
    """The same through the memo, with lists."""
    return b"]q\x00" + b"0](h\x00h\x00eq\x00" * depth


BOMBS: dict[str, bytes] = {
    "binbytes8": b"\x8e" + struct.pack("<Q", HUGE),
    "binunicode8": b"\x8d" + struct.pack("<Q", HUGE),
    "bytearray8": b"\x96" + struct.pack("<Q", HUGE),
    "frame": b"\x95" + struct.pack("<Q", HUGE),
    "binbytes": b"B\xff\xff\xff\xff",
    "binunicode": b"X\xff\xff\xff\xff",
    "binstring": b"T\xff\xff\xff\x7f",
    "long4": b"\x8b\xff\xff\xff\x7f",
    "long4-negative": b"\x8b\xff\xff\xff\xff",
    "text-long": b"L" + b"9" * 60_000 + b"L\n",
    "text-line-without-end": b"V" + b"a" * 300_000,
    "nested-lists": b"]" * N + b"a" * (N - 1),
    "nested-tuples": b")" + b"\x85" * N,
    "nested-by-mark": b"(" * N + b"t" * N,
    "nested-dicts": b"}" + b"N}" * 0 + (b"K\x01}" * N) + b"s" * N,
    "nested-frozensets": b"(" * N + b"\x91" * N,
    "nested-calls": hostile.g("collections", "OrderedDict")
    + b"q\x00"
    + b"(" * 0
    + b")R"
    + (b"h\x00)R" * (N // 2))
    + b"b" * (N // 2),
    "nested-modules": hostile.MODULE + b"q\x00)\x81" + b"h\x00)\x81" * (N // 2) + b"b" * (N // 2),
    "call-of-call": hostile.g("os", "mkdir") + b")R" * N,
    "marks": b"(" * N,
    "doubled": doubled(300),
    "doubled-too-deep": doubled(3000),
    "memo-doubled": memo_doubled(300),
    "memo-far-index": b"Nr\xff\xff\xff\xff",
    "memo-missing": b"j\xff\xff\xff\xff",
    "memo-text-index": b"Np99999999999999999999999999\n",
    "memo-negative": b"Np-1\n",
    "cycle-list": b"]q\x00h\x00a",
    "cycle-dict": b"}q\x00K\x01h\x00s",
    "cycle-tuple": b"]q\x00h\x00\x85a",
    "cycle-tuple-first": b"]q\x00\x85q\x01h\x00h\x01a0",
    "cycle-call": hostile.g("collections", "OrderedDict") + b")Rq\x00K\x01h\x00s",
    "cycle-state": hostile.MODULE + b")\x81q\x00}" + hostile.s("x") + b"h\x00sb",
    "wide-list": b"](" + b"N" * N + b"e",
    "wide-same": b"]q\x000](" + b"h\x00" * N + b"e",
    "many-globals": hostile.g("os", "mkdir") * 20_000 + b"N",
    "many-calls": (hostile.g("os", "mkdir") + b")R0") * 20_000 + b"N",
    "too-many-opcodes": b"N0" * 600_000 + b"N",
    "storage-length": hostile.storage(hostile.storage_header("FloatStorage", 1 << 48, "0")),
    "storage-short": hostile.storage(hostile.storage_header("FloatStorage", 8, "0") + b"\0" * 31),
    "storage-long": hostile.storage(hostile.storage_header("FloatStorage", 1, "0") + b"\0" * 31),
    "storage-negative": hostile.storage(
        hostile.storage_header("FloatStorage", 1, "0")[:-8] + b"\xff" * 8
    ),
    "storage-type": hostile.storage(hostile.storage_header("EvilStorage", 0, "0")),
}


def tensor(size: bytes, stride: bytes, offset: bytes = b"K\x00", numel: int = 4) -> bytes:
    data = hostile.storage_header("FloatStorage", numel, "0") + b"\0" * 4 * numel
    return hostile.call(
        hostile.g("torch._utils", "_rebuild_tensor_v2"),
        hostile.storage(data),
        offset,
        size,
        stride,
        b"\x89",
        hostile.call(hostile.g("collections", "OrderedDict")),
    )


def big(*values: int) -> bytes:
    return hostile.t(*(b"\x8a\x08" + struct.pack("<q", v) for v in values))


BOMBS |= {
    "tensor-too-large": tensor(big(1 << 40), big(1)),
    "tensor-expanded": tensor(big(1 << 40), big(0)),
    "tensor-expanded-twice": tensor(big(1 << 20, 1 << 20), big(0, 0)),
    "tensor-overflow": tensor(big(1 << 47, 1 << 47, 1 << 47), big(1, 1, 1)),
    "tensor-negative-size": tensor(big(-1), big(1)),
    "tensor-negative-stride": tensor(big(2), big(-1)),
    "tensor-negative-offset": tensor(big(2), big(1), b"J\xff\xff\xff\xff"),
    "tensor-offset": tensor(big(2), big(1), b"K\x03"),
    "tensor-dims": tensor(big(*[1] * 100), big(*[1] * 100)),
    "tensor-ranks": tensor(big(1, 1), big(1)),
    "tensor-float-size": tensor(hostile.t(b"G" + b"\x7f\xf0" + b"\0" * 6), big(1)),
}
CARRIED = {
    "doubled", "memo-doubled", "memo-far-index", "cycle-list", "cycle-dict", "cycle-call",
    "cycle-state", "cycle-tuple", "wide-list", "wide-same",
}  # fmt: skip
"""Odd, but plain data: these may be carried."""


UNWRITABLE = {"cycle-tuple-first"}


def peak_memory(*, reset: bool = False) -> int:
    """Peak resident bytes of this process since the last reset; 0 where that is unknown."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


QUICK = {"binbytes8", "nested-lists", "doubled", "cycle-list", "storage-short", "tensor-too-large"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in BOMBS]
)
def test_bombs(name: str, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pkl"
    path.write_bytes(hostile.spliced(small.read_bytes(), BOMBS[name]))
    before = peak_memory(reset=True)
    started = time.perf_counter()
    if name in CARRIED or name in UNWRITABLE:
        result = outcome(path)
    else:
        with pytest.raises(DsconvertError) as caught:
            load_snapshot(path)
        result = type(caught.value).__name__
        assert len(str(caught.value)) < 20_000
    with contextlib.suppress(DsconvertError):
        inspect_snapshot(path)
    assert time.perf_counter() - started < 30  # seconds, on a busy machine; alone under 3
    assert peak_memory() - before < 400 << 20
    assert result == "fine" if name in CARRIED else result != "fine"


@pytest.mark.slow
def test_one_storage_for_many_tensors_does_not_multiply(small: Path, tmp_path: Path) -> None:
    """A module list whose parameters each load the same bytes again: refused, not allocated."""
    numel = 1 << 20
    blob = hostile.raw(hostile.storage_header("FloatStorage", numel, "0") + b"\0" * 4 * numel)

    def edit(root: hostile.Root, marker: str) -> None:
        size = small.stat().st_size
        shared = Blob(size + 5, len(blob) - 5)
        empty = Record("call", Global("collections", "OrderedDict"), ())
        children = hostile.items(hostile.get(root["G_ema"], "_modules"))
        for index in range(64):
            storage = Record("call", Global("torch.storage", "_load_from_bytes"), (shared,))
            rebuilt = Record(
                "call",
                Global("torch._utils", "_rebuild_tensor_v2"),
                (storage, 0, (numel,), (1,), False, empty),
            )
            weight = Record(
                "call", Global("torch._utils", "_rebuild_parameter"), (rebuilt, False, empty)
            )
            node = hostile.module(
                ("training", True),
                ("_parameters", DictNode([("weight", weight)])),
                ("_buffers", DictNode()),
                ("_modules", DictNode()),
            )
            children.append((f"x{index}", node))

    both = tmp_path / "both"
    both.write_bytes(small.read_bytes() + blob)

    parsed = hostile.parse(small)
    root = dict(parsed.root.items)
    edit(root, "")
    out = io.BytesIO()
    hostile.Writer(out, hostile.Source(both)).write(DictNode(list(root.items())))
    path = tmp_path / "many.pkl"
    path.write_bytes(out.getvalue())
    snap = load_snapshot(path)
    assert path.stat().st_size < 6 << 20
    with pytest.raises(CorruptSnapshotError, match="more than"):
        _ = snap.generator


def test_a_message_carries_no_control_characters(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "escape.pkl"
    bad = hostile.sg("os\x1b[2J", "mk\rdir" + "A" * 5000)
    path.write_bytes(hostile.spliced(small.read_bytes(), bad, "key\x1b[31m"))
    with pytest.raises(DsconvertError) as caught:
        load_snapshot(path)
    assert "\x1b" not in str(caught.value)
    assert "\r" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_the_whole_is_still_a_pickle(real: tuple[bytes, list[int]]) -> None:
    """The control of this file's fuzzers: undamaged, it loads everywhere."""
    assert set(pickle.loads(real[0])) == {"G", "D", "G_ema", "training_set_kwargs"}
