"""Compile every Triton program for an H100, without one, and print what the card would need.

    TRITON_INTERPRET=0 python tests/kernels/compile_programs.py [--first] [WORD ...]

One line each: the program, its types and constants, the registers of a thread, the bytes that it
spills to memory, its shared memory, and how often Triton moves numbers between threads. ``--first``
takes the first tile in single precision only, words those lines that have them all.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import __file__ as backend
from triton.compiler import ASTSource

from dsconvert.kernels import backward_programs, filter_programs, forward_programs
from dsconvert.kernels.forward_programs import NUMBERS
from dsconvert.kernels.geometry import CHANNELS_LAST, CONTIGUOUS, Geometry, Tile
from dsconvert.kernels.plan import SUMMED

TARGET = GPUTarget("cuda", 90, 32)
MAPS = ("x_ptr", "out", "grad", "grad_x", "grad_u", "plane")
PROGRAMS = (
    forward_programs.forward, forward_programs.statistics, backward_programs.sums,
    backward_programs.gradient, filter_programs.filter_gradients,
)  # fmt: skip


def compiled(
    program: Any, dtype: str, constants: dict[str, Any], warps: int, *, absent: tuple[str, ...]
) -> str:
    """Compile one program; return what it needs as text."""
    signature: dict[str, str] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, name in enumerate(program.arg_names):
        if name in constants or name in absent:
            signature[name] = "constexpr"
            fixed[i,] = constants.get(name)
        elif name in NUMBERS:
            signature[name] = "i32"
        else:
            signature[name] = f"*{dtype if name in MAPS else 'fp32'}"
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=program, signature=signature, constexprs=fixed, attrs=attributes)
    made = triton.compile(source, target=TARGET, options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(backend).parent / "bin/cuobjdump"
        done = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", done.stdout + done.stderr)
    moved = made.asm["ttgir"].count("ttg.convert_layout")
    needs = "registers {}, spilled {}, shared {}".format(*found.groups()) if found else "unknown"
    return f"{needs}, moved {moved}"


def constants_of(program: Any, geometry: Geometry, tile: Tile) -> dict[str, Any]:
    """Return the constants of a program; see ``launch``."""
    sums = program in (filter_programs.filter_gradients, backward_programs.sums)
    most = SUMMED if sums else 1 << 20
    pixels, columns, together = tile.shape(geometry, 64, most=most)
    found = {
        "R": geometry.rank, "M": geometry.multiplier, "KIND": geometry.kind, "LAST": geometry.last,
        "ACC": tl.float32, "BP": pixels, "BX": columns, "BC": together,
        "ALIGNED": tile.aligned or not geometry.kind, "EVEN": geometry.last,
    }  # fmt: skip
    if "GATE" in program.arg_names:
        found["GATE"] = geometry.outputs < geometry.channels
    return found


def main() -> None:
    """Compile all."""
    first = "--first" in sys.argv
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    for last in (False, True):
        for kind in (0, 1, 2):
            geometry = Geometry(
                samples=32, inputs=128, channels=128, outputs=64, height=64 if kind else 1,
                width=64, rank=1, multiplier=1, kind=kind, last=last,
            )  # fmt: skip
            for tile in (CHANNELS_LAST if last else CONTIGUOUS)[: 1 if first else None]:
                for program in PROGRAMS:
                    if program is filter_programs.filter_gradients and not kind:
                        continue
                    for dtype in ("fp32", "bf16")[: 1 if first else None]:
                        name = program.fn.__name__
                        said = f"{name}, kind {kind}, last {last}, {dtype}, {tile}"
                        if any(word not in said for word in words):
                            continue
                        absent = ("bias",) if kind else ("bias", "w")
                        constants = constants_of(program, geometry, tile)
                        needs = compiled(program, dtype, constants, tile.warps, absent=absent)
                        print(f"{said}: {needs}", flush=True)


if __name__ == "__main__":
    main()
