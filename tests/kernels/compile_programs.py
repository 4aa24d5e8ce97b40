"""Compile every Triton program for an H100, without one, and print what the card would need.

    TRITON_INTERPRET=0 python tests/kernels/compile_programs.py

One line each: the program, its types and constants, the registers of a thread, and the bytes that
it spills to memory.
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

from dsconvert.kernels import backward_programs, forward_programs
from dsconvert.kernels.geometry import CHANNELS_LAST, CONTIGUOUS, Geometry

TARGET = GPUTarget("cuda", 90, 32)
MAPS = ("x_ptr", "out", "grad", "grad_x", "grad_u", "plane")
NUMBERS = {"cin", "C", "outs", "H", "W", "tiles", "noise_c", "plane_n", "affine_n"}


def compiled(
    program: Any, dtype: str, constants: dict[str, Any], warps: int, *, absent: tuple[str, ...],
    ones: tuple[str, ...] = (),
) -> str:  # fmt: skip
    """Compile one program; return registers, spilled bytes and shared memory as text."""
    signature: dict[str, str] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, name in enumerate(program.arg_names):
        if name in constants or name in absent or name in ones:
            signature[name] = "constexpr"
            # Triton makes a constant of a number that is 1.
            fixed[i,] = constants.get(name, 1 if name in ones else None)
        elif name in NUMBERS:
            signature[name] = "i32"
            if name in ("cin", "C", "outs", "H"):
                attributes[i,] = [["tt.divisibility", 16]]
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
    return "registers {}, spilled {}, shared {}".format(*found.groups()) if found else "unknown"


def main() -> None:
    """Compile all."""
    programs = (
        (forward_programs.forward, True),
        (forward_programs.statistics, False),
        (backward_programs.sums, True),
        (backward_programs.gradient, True),
        (backward_programs.filter_gradients, False),
    )
    first = "--first" in sys.argv
    for last in (False, True):
        for kind in (0, 1, 2):
            geometry = Geometry(
                samples=32, inputs=128, channels=128, outputs=64, height=64 if kind else 1,
                width=64, rank=1, multiplier=1, kind=kind, last=last,
            )  # fmt: skip
            for tile in (CHANNELS_LAST if last else CONTIGUOUS)[: 1 if first else None]:
                pixels, columns, together = tile.shape(geometry, 64)
                for program, gated in programs:
                    if program is backward_programs.filter_gradients and not kind:
                        continue
                    for dtype in ("fp32", "bf16")[: 1 if first else None]:
                        constants = {
                            "R": 1, "M": 1, "KIND": kind, "LAST": last, "ACC": tl.float32,
                            "BP": pixels, "BX": columns, "BC": together,
                            "ALIGNED": tile.aligned or not kind,
                        }  # fmt: skip
                        constants |= {"GATE": True} if gated else {}
                        absent = ("bias",) if kind else ("bias", "w")
                        said = compiled(
                            program, dtype, constants, tile.warps, absent=absent,
                            ones=() if kind else ("H",),
                        )  # fmt: skip
                        name = program.fn.__name__
                        print(f"{name}, kind {kind}, last {last}, {dtype}, {tile}: {said}")
    # Every size 1: Triton makes constants of them.
    ones = ("cin", "C", "outs", "H", "tiles", "noise_c")
    small = {
        "R": 1, "M": 1, "KIND": 2, "ACC": tl.float32, "BP": 256, "BX": 8, "BC": 1, "ALIGNED": False,
    }  # fmt: skip
    for program, gated in programs:
        for last in (False, True):
            gate = {"GATE": False} if gated else {}
            said = compiled(
                program, "fp16", small | {"LAST": last} | gate, 4, absent=("bias", "plane"),
                ones=ones,
            )  # fmt: skip
            print(f"{program.fn.__name__}, sizes of one, last {last}: {said}")


if __name__ == "__main__":
    main()
