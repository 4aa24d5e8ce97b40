"""The measured choice between tiles and torch's operators, without a card."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsconvert import kernels
from dsconvert.kernels import choice, use
from dsconvert.kernels.choice import EAGER, Choices, fastest, key_of
from dsconvert.kernels.geometry import CHANNELS_LAST, CONTIGUOUS, Tile, geometry_of, tiles_of

ROOT = Path(__file__).resolve().parents[2]
TILES = (Tile(numbers=64), Tile(numbers=128), Tile(numbers=256))


def clock_of(times: dict[int, float], eager: float) -> Callable[[Callable[[], object]], float]:
    """Return a clock that knows how long each tile takes, by its size."""

    def clock(call: Callable[[], object]) -> float:
        made: Any = call()
        return eager if made is None else times[made]

    return clock


def numbers(tile: Tile) -> int:
    return tile.numbers


def nothing() -> None:
    return None


@pytest.mark.parametrize(
    ("times", "eager", "wanted"),
    [
        ({64: 3.0, 128: 1.0, 256: 2.0}, 5.0, 1),
        ({64: 3.0, 128: 2.0, 256: 2.5}, 1.0, EAGER),
        ({64: 1.0, 128: 1.0, 256: 1.0}, 1.0, 0),
    ],
)
def test_the_fastest_is_taken(times: dict[int, float], eager: float, wanted: int) -> None:
    assert fastest("key", TILES, numbers, nothing, clock_of(times, eager)) == wanted


def test_a_tile_that_fails_is_out_and_all_of_them_leave_torch() -> None:
    def fails_at(*sizes: int) -> Callable[[Tile], int]:
        def run(tile: Tile) -> int:
            if tile.numbers in sizes:
                raise RuntimeError("no C compiler")
            return tile.numbers

        return run

    clock = clock_of({64: 1.0, 128: 2.0, 256: 3.0}, 9.0)
    assert fastest("key", TILES, fails_at(64), nothing, clock) == 1
    with pytest.warns(UserWarning, match=r"could not run 'key' \(no C compiler\)"):
        assert fastest("key", TILES, fails_at(64, 128, 256), nothing, clock) == EAGER


def test_out_of_memory_is_no_reason_to_choose_what_needs_more() -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    clock = clock_of({64: 1.0, 128: 2.0, 256: 3.0}, 0.5)
    assert fastest("key", TILES, numbers, full, clock) == 0
    with pytest.raises(torch.OutOfMemoryError):
        fastest("key", TILES, full, nothing, clock)


def test_choices_are_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "kernels.json"
    Choices(path).put("a", 2)
    again = Choices(path)
    assert (again.get("a"), again.get("b")) == (2, None)
    for damaged in ("{ damaged", "[1]", '{"a": null}', '{"a": 1e999}', '{"a": -7}', "[" * 100_000):
        path.write_text(damaged)
        assert Choices(path).get("a") is None
    path.unlink()
    path.mkdir()  # it can't be written
    unwritten = Choices(path)
    unwritten.put("a", 1)
    assert unwritten.get("a") == 1


def test_batches_between_two_powers_of_two_share_a_choice() -> None:
    def key(n: int, dtype: torch.dtype = torch.float32, *, last: bool = False) -> str:
        x = torch.empty(n, 4, 3, 5, dtype=dtype)
        x = x.to(memory_format=torch.channels_last) if last else x
        return key_of("noise_gate", geometry_of(x, None, gate=True), dtype, "0011")

    assert key(17) == key(32) != key(33)
    assert len({key(2), key(2, torch.bfloat16), key(2, last=True), key(8)}) == 4


def test_on_a_card_an_operation_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    choices = Choices(tmp_path / "kernels.json")

    def slow(*args: Any) -> int:
        measured.append(args[0])
        return 1

    class OnCard:
        """As much of a CUDA tensor as the choice asks for."""

        device = torch.device("cuda")
        dtype = torch.float32

    x: Any = OnCard()
    monkeypatch.setattr(use, "why_not", lambda *_: None)
    monkeypatch.setattr(choice, "choices_of", lambda _: choices)
    monkeypatch.setattr(choice, "fastest", slow)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(choice, "compile_together", lambda *_: None)
    geometry = geometry_of(torch.empty(2, 4, 3, 32), torch.empty(4, 1, 3, 3))

    def run() -> object:
        return choice.run("noise_gate", x, geometry, lambda tile: tile, lambda: "eager")

    assert run() == run() == CONTIGUOUS[1]
    assert len(measured) == 1
    choices.put(measured[0], EAGER)
    with kernels.recording() as events:
        assert run() == "eager"
    assert events[0].reason == "torch's operators were faster, or the program failed"
    # Nothing can be measured while a graph is captured.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    choices._known.clear()
    assert run() == CONTIGUOUS[0]
    assert len(measured) == 1
    assert json.loads((tmp_path / "kernels.json").read_text()) == {measured[0]: EAGER}


def test_tiles_have_powers_of_two_and_fit_the_map() -> None:
    for shape in ((2, 3, 1, 1), (2, 200, 5, 7), (2, 64, 256, 256)):
        for last in (False, True):
            x = torch.empty(shape)
            x = x.to(memory_format=torch.channels_last) if last else x
            geometry = geometry_of(x, torch.empty(shape[1], 1, 3, 3))
            few = CONTIGUOUS if shape[-1] == 256 else CONTIGUOUS[:1]
            assert tiles_of(geometry) == (CHANNELS_LAST if geometry.last else few)
            for tile in tiles_of(geometry):
                pixels, columns, channels = tile.shape(geometry, shape[1])
                assert 64 <= pixels * channels <= tile.numbers
                # Only what is smaller than a program's threads leaves some of them idle.
                assert pixels * channels == tile.numbers or not geometry.last
                assert pixels % columns == 0
                assert all(v & (v - 1) == 0 for v in (pixels, columns, channels))
                assert channels < 2 * shape[1]
                assert geometry.last or channels == 1


@pytest.mark.slow
@pytest.mark.extended
def test_neither_the_package_nor_an_operator_imports_triton() -> None:
    code = (
        "import sys, torch; from dsconvert import kernels, forms; "
        "kernels.noise_gate(torch.ones(1, 2, 2, 2)); print('triton' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize(
    ("script", "lines"),
    [(("compile_programs.py", "--first"), 2 * (4 + 5 + 5)), (("warm_up_programs.py",), 15)],
)
def test_every_program_compiles_for_a_card(script: tuple[str, ...], lines: int) -> None:
    pytest.importorskip("triton.backends.nvidia")
    if not hasattr(importlib.import_module("triton"), "knobs"):
        pytest.skip("written for the signatures of Triton 3.3 and later")
    done = subprocess.run(
        [sys.executable, f"tests/kernels/{script[0]}", *script[1:]],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == lines
