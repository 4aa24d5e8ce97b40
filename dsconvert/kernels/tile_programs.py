"""Parts of Triton programs: the tile that a program makes, and a depthwise filter at its pixels.

A program makes some pixels of one channel of a contiguous (N, C, H, W) map, as a vector (BP,); or,
``LAST``, some pixels of some channels of a ``channels_last`` map, as a matrix (BP, BC), so that
neighbouring threads read neighbouring addresses in either layout. The pixels are BP / BX rows of BX
columns; BP, BX and BC are powers of two. Everything is computed in the type ``ACC``. Programs that
sum take ``steps`` tiles one after the other, their group, and write one sum.

Filters are (C, R, T), T taps each; ``LAST``: (T, R, C). ``KIND``: 0 no filter; 1 a 3 x 3 filter
with a padding of 1; 2 a 4 x 4 filter as a transposed convolution with stride 2 and padding 1, which
is also a 3 x 3 filter behind a nearest x2 upsample. An output channel c sums R filtered input
channels ``c // M * R + r``; ``R`` or ``M`` is 1.

No number is a constant of a program, since each value of a constant is compiled anew. What the
layout of memory allows is told by two flags, which write a number as a multiple: ``ALIGNED``: W is
a multiple of 16; ``EVEN``: all numbers of channels are even, so that, ``LAST``, a thread loads two
channels at a time. (More at a time would leave it fewer pixels that share a filter's tap.)

Triton's interpreter, which the tests use, takes longest for calls: helpers are few, and large.

This module, like all that import it, imports Triton and is imported at the first launch.
"""
# pyright: basic, reportGeneralTypeIssues=false, reportMissingImports=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false
# ruff: noqa: N803, SIM108 (Triton compiles no conditional expression of pointers)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(C, groups, BP: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr, LAST: tl.constexpr,
          EVEN: tl.constexpr):  # fmt: skip
    """Return sample, group of tiles, channels, and the rows and columns within a tile."""
    pid = tl.program_id(0)
    if LAST:
        # The channels of a pixel lie together: programs of one tile run at the same time.
        blocks = tl.cdiv(C, BC)
        if EVEN:
            # Not more than even: a constant would let a thread load four channels.
            first = (pid % blocks) * (tl.minimum(C, BC) // 2 * 2)
        else:
            first = (pid % blocks) * tl.minimum(C, BC)
        c = first + tl.arange(0, BC)[None, :]
        rest = pid // blocks
        group = rest % groups
        n = rest // groups
        p = tl.arange(0, BP)[:, None]
    else:
        # The rows around a tile are read by the tiles beside it.
        group = pid % groups
        rest = pid // groups
        c = rest % C
        n = rest // C
        p = tl.arange(0, BP)
    return n.to(tl.int64), group, c, p // BX, p % BX


@triton.jit
def zeros(BP: tl.constexpr, BC: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr):
    """Return a tile of zeros."""
    if LAST:
        z = tl.zeros([BP, BC], dtype=ACC)
    else:
        z = tl.zeros([BP], dtype=ACC)
    return z


@triton.jit
def source(c, r, R: tl.constexpr, M: tl.constexpr):
    """Return the input channel number r of the output channel c."""
    if M == 1:
        if R == 1:
            i = c
        else:
            i = c * R + r
    else:
        i = c // M
    return i


@triton.jit
def pixels(ptr, c, y, x, C, H, W, LAST: tl.constexpr, ACC: tl.constexpr):
    """Load the pixels (y, x) of channels c of one sample; zeros outside the map."""
    mask = (y >= 0) & (y < H) & (x >= 0) & (x < W) & (c < C)
    if LAST:
        at = (y * W + x) * C + c
    else:
        at = c * H * W + (y * W + x)
    return tl.load(ptr + at, mask=mask, other=0.0).to(ACC)


@triton.jit
def channel(ptr, c, C, otherwise: tl.constexpr, ACC: tl.constexpr):
    """Load one number for each channel; ``otherwise`` where there are none."""
    if ptr is None:
        v = otherwise
    else:
        v = tl.load(ptr + c, mask=c < C, other=0.0).to(ACC)
    return v


@triton.jit
def total(v, LAST: tl.constexpr):
    """Sum over the pixels of a tile."""
    if LAST:
        s = tl.sum(v, axis=0)[None, :]
    else:
        s = tl.sum(v, axis=0)
    return s


@triton.jit
def filtered(
    x_ptr, w, bias, c, y, x, cin, cout, H, W,
    R: tl.constexpr, M: tl.constexpr, KIND: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return the filtered input at (y, x); KIND 2: at (2y, 2x), (2y, 2x+1), (2y+1, 2x), (.., ..).

    Row 2y of a transposed 4 x 4 filter sees the input rows y-1, y by its rows 3, 1, and row 2y+1
    sees y, y+1 by 2, 0; columns likewise. So nine pixels make four.
    """
    o00 = 0.0
    o01 = 0.0
    o10 = 0.0
    o11 = 0.0
    there = c < cout
    if KIND == 0:
        o00 = pixels(x_ptr, c, y, x, cin, H, W, LAST, ACC)
    else:
        for r in tl.static_range(R):
            i = source(c, r, R, M)
            if LAST:
                taps = w + r * cout + c
                apart = R * cout
            else:
                taps = w + (c * R + r) * (9 if KIND == 1 else 16)
                apart = 1
            for dy in tl.static_range(3):
                row = y + (dy - 1)
                rows = (row >= 0) & (row < H) & there
                for dx in tl.static_range(3):
                    column = x + (dx - 1)
                    mask = rows & (column >= 0) & (column < W)
                    if LAST:
                        at = (row * W + column) * cin + i
                    else:
                        at = i * H * W + (row * W + column)
                    v = tl.load(x_ptr + at, mask=mask, other=0.0).to(ACC)
                    if KIND == 1:
                        t = (dy * 3 + dx) * apart
                        o00 += v * tl.load(taps + t, mask=there, other=0.0).to(ACC)
                    else:
                        if dy < 2:
                            if dx < 2:
                                t = ((3 - 2 * dy) * 4 + 3 - 2 * dx) * apart
                                o00 += v * tl.load(taps + t, mask=there, other=0.0).to(ACC)
                            if dx > 0:
                                t = ((3 - 2 * dy) * 4 + 4 - 2 * dx) * apart
                                o01 += v * tl.load(taps + t, mask=there, other=0.0).to(ACC)
                        if dy > 0:
                            if dx < 2:
                                t = ((4 - 2 * dy) * 4 + 3 - 2 * dx) * apart
                                o10 += v * tl.load(taps + t, mask=there, other=0.0).to(ACC)
                            if dx > 0:
                                t = ((4 - 2 * dy) * 4 + 4 - 2 * dx) * apart
                                o11 += v * tl.load(taps + t, mask=there, other=0.0).to(ACC)
    if bias is not None:
        b = tl.load(bias + c, mask=there, other=0.0).to(ACC)
        o00 += b
        if KIND == 2:
            o01 += b
            o10 += b
            o11 += b
    return o00, o01, o10, o11


@triton.jit
def noise_at(plane, y, x, H, W, ACC: tl.constexpr):
    """Load one sample's noise plane at pixels of the output; 0 where there is none."""
    if plane is None:
        p = 0.0
    else:
        p = tl.load(plane + y * W + x, mask=(y < H) & (x < W), other=0.0).to(ACC)
    return p


@triton.jit
def put(ptr, even, odd, a, c, limit, y, x, top, left, C, H, W,
        BP: tl.constexpr, BX: tl.constexpr, KIND: tl.constexpr, LAST: tl.constexpr):  # fmt: skip
    """Store what is at (y, x) of one sample's (C, H, W) output; KIND 2: at (2y+a, 2x), (.., 2x+1).

    Contiguous maps get both columns at once, so that neighbouring threads write neighbours. Only
    channels below ``limit`` are written: a matrix may reach beyond the half that its program makes.
    """
    kind = ptr.dtype.element_ty
    if LAST:
        if KIND == 2:
            y = 2 * y + a
            x = 2 * x
        mask = (y < H) & (x < W) & (c < limit)
        at = (y * W + x) * C + c
        tl.store(ptr + at, even.to(kind), mask=mask)
        if KIND == 2:
            tl.store(ptr + at + C, odd.to(kind), mask=mask)
    else:
        if KIND == 2:
            q = tl.arange(0, 2 * BP)
            y = 2 * top + a + 2 * (q // (2 * BX))
            x = 2 * left + q % (2 * BX)
            even = tl.interleave(even.to(kind), odd.to(kind))
        mask = (y < H) & (x < W)
        tl.store(ptr + (c * H * W + (y * W + x)), even.to(kind), mask=mask)
