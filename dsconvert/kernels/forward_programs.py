"""Triton programs: filter, noise, affine map and gate; and the statistics of batch normalisation.

u = filter(x) + bias + noise * plane;  z = scale * u + shift;  out = z, or, gated, the first half of
the channels of z times the sigmoid of the second. See :mod:`dsconvert.kernels.tile_programs` for
the constants. A pointer is None where its part is missing.
"""
# pyright: basic, reportGeneralTypeIssues=false, reportMissingImports=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from dsconvert.kernels.tile_programs import channel, filtered, noise_at, place, put, total, zeros


@triton.jit
def finished(v, g, p, noise, scale, shift, noise_g, scale_g, shift_g, GATE: tl.constexpr):
    """Return the output of the filtered v, and of g, the other half's, with the noise p."""
    z = (v + noise * p) * scale + shift
    if GATE:
        q = (g + noise_g * p) * scale_g + shift_g
        z = z * (1.0 / (1.0 + tl.exp(-q)))
    return z


NUMBERS = ["cin", "C", "outs", "H", "W", "steps", "groups", "noise_c", "plane_n", "affine_n"]
"""Arguments that no program is compiled for; see :mod:`dsconvert.kernels.tile_programs`."""


@triton.jit(do_not_specialize=NUMBERS)
def forward(
    x_ptr, w, bias, noise, plane, scale, shift, out, cin, C, outs, H, W, groups, noise_c, plane_n,
    affine_n, GATE: tl.constexpr, R: tl.constexpr, M: tl.constexpr, KIND: tl.constexpr,
    LAST: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Make the output: x (N, cin, H, W), C channels behind the filter, ``outs`` behind the gate.

    A group is one tile. ``noise_c`` is 1 where each channel has a noise weight, ``plane_n`` where
    each sample has a plane, and ``affine_n`` where each has scales and shifts; else they are 0.
    """
    if ALIGNED:
        W = W // 16 * 16  # noqa: N806
    if EVEN:
        cin = cin // 2 * 2
        C = C // 2 * 2  # noqa: N806
        outs = outs // 2 * 2
    n, tile, c, y, x = place(outs, groups, BP, BX, BC, LAST, EVEN)
    across = tl.cdiv(W, BX)
    top = (tile // across) * (BP // BX)
    left = (tile % across) * BX
    y += top
    x += left
    x_ptr += n * cin * H * W
    step: tl.constexpr = 2 if KIND == 2 else 1
    high = H * step
    wide = W * step
    out += n * outs * high * wide
    if plane is not None:
        plane += n * plane_n * (high * wide)
    if scale is not None:
        scale += n * affine_n * C
    if shift is not None:
        shift += n * affine_n * C
    v00, v01, v10, v11 = filtered(x_ptr, w, bias, c, y, x, cin, C, H, W, R, M, KIND, LAST, ACC)
    nv = channel(noise, c * noise_c, C, 0.0, ACC)
    av = channel(scale, c, C, 1.0, ACC)
    bv = channel(shift, c, C, 0.0, ACC)
    g00 = v00
    g01 = v01
    g10 = v10
    g11 = v11
    ng = nv
    ag = av
    bg = bv
    if GATE:
        k = c + outs
        g00, g01, g10, g11 = filtered(x_ptr, w, bias, k, y, x, cin, C, H, W, R, M, KIND, LAST, ACC)
        ng = channel(noise, k * noise_c, C, 0.0, ACC)
        ag = channel(scale, k, C, 1.0, ACC)
        bg = channel(shift, k, C, 0.0, ACC)
    y2 = y * step
    x2 = x * step
    p = noise_at(plane, y2, x2, high, wide, ACC)
    even = finished(v00, g00, p, nv, av, bv, ng, ag, bg, GATE)
    odd = even
    if KIND == 2:
        p = noise_at(plane, y2, x2 + 1, high, wide, ACC)
        odd = finished(v01, g01, p, nv, av, bv, ng, ag, bg, GATE)
    put(out, even, odd, 0, c, outs, y, x, top, left, outs, high, wide, BP, BX, KIND, LAST)
    if KIND == 2:
        p = noise_at(plane, y2 + 1, x2, high, wide, ACC)
        even = finished(v10, g10, p, nv, av, bv, ng, ag, bg, GATE)
        p = noise_at(plane, y2 + 1, x2 + 1, high, wide, ACC)
        odd = finished(v11, g11, p, nv, av, bv, ng, ag, bg, GATE)
        put(out, even, odd, 1, c, outs, y, x, top, left, outs, high, wide, BP, BX, KIND, LAST)


@triton.jit(do_not_specialize=NUMBERS)
def statistics(
    x_ptr, w, bias, noise, plane, found, cin, C, H, W, steps, groups, noise_c, plane_n,
    R: tl.constexpr, M: tl.constexpr, KIND: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr,
    BP: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr, ALIGNED: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Write count, mean and squared distances to it of a group's u: ``found`` (3, N groups, C).

    Each lane merges its numbers, and the program its lanes, after Chan, Golub and LeVeque (1983),
    which is stable where the mean is large.
    """
    if ALIGNED:
        W = W // 16 * 16  # noqa: N806
    if EVEN:
        cin = cin // 2 * 2
        C = C // 2 * 2  # noqa: N806
    n, group, c, row, column = place(C, groups, BP, BX, BC, LAST, EVEN)
    across = tl.cdiv(W, BX)
    x_ptr += n * cin * H * W
    step: tl.constexpr = 2 if KIND == 2 else 1
    high = H * step
    wide = W * step
    if plane is not None:
        plane += n * plane_n * (high * wide)
    weight = channel(noise, c * noise_c, C, 0.0, ACC)
    count = zeros(BP, BC, LAST, ACC)
    mean = zeros(BP, BC, LAST, ACC)
    squares = zeros(BP, BC, LAST, ACC)
    for tile in range(group * steps, group * steps + steps):
        y = row + (tile // across) * (BP // BX)
        x = column + (tile % across) * BX
        u00, u01, u10, u11 = filtered(x_ptr, w, bias, c, y, x, cin, C, H, W, R, M, KIND, LAST, ACC)
        there = (y < H) & (x < W) & (c < C)
        y2 = y * step
        x2 = x * step
        u00 += weight * noise_at(plane, y2, x2, high, wide, ACC)
        here = u00
        d = here * 0.0
        if KIND == 2:
            u01 += weight * noise_at(plane, y2, x2 + 1, high, wide, ACC)
            u10 += weight * noise_at(plane, y2 + 1, x2, high, wide, ACC)
            u11 += weight * noise_at(plane, y2 + 1, x2 + 1, high, wide, ACC)
            here = 0.25 * ((u00 + u01) + (u10 + u11))
            d = (u00 - here) * (u00 - here) + (u01 - here) * (u01 - here)
            d += (u10 - here) * (u10 - here) + (u11 - here) * (u11 - here)
        more = tl.where(there, step * step, 0).to(ACC)
        before = count
        count += more
        share = more / tl.maximum(count, 1.0)
        away = here - mean
        mean += away * share
        # Next to the map the filter sees its edge.
        squares += tl.where(there, d, 0.0) + away * away * (before * share)
    number = total(count, LAST)
    # Beyond the last channel, in channels_last, there is no pixel.
    middle = total(mean * count, LAST) / tl.maximum(number, 1.0)
    squares = total(squares + count * (mean - middle) * (mean - middle), LAST)
    whole = tl.num_programs(0) // (tl.cdiv(C, BC) if LAST else C) * C
    found += (n * groups + group) * C + c
    tl.store(found, number, mask=c < C)
    tl.store(found + whole, middle, mask=c < C)
    tl.store(found + 2 * whole, squares, mask=c < C)


@triton.jit(do_not_specialize=["groups", "C"])
def merged(
    found, mean_ptr, var_ptr, groups, C, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr
):
    """Merge the statistics ``found`` (3, groups, C) into mean and biased variance (C,)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)[None, :]
    row = tl.arange(0, BP)[:, None]
    count = tl.zeros([BP, BC], dtype=ACC)
    mean = tl.zeros([BP, BC], dtype=ACC)
    squares = tl.zeros([BP, BC], dtype=ACC)
    for first in range(0, groups, BP):
        at = found + (first + row) * C + c
        there = (first + row < groups) & (c < C)
        more = tl.load(at, mask=there, other=0.0)
        here = tl.load(at + groups * C, mask=there, other=0.0)
        d = tl.load(at + 2 * groups * C, mask=there, other=0.0)
        before = count
        count += more
        share = more / tl.maximum(count, 1.0)
        away = here - mean
        mean += away * share
        squares += d + away * away * (before * share)
    number = tl.maximum(total(count, True), 1.0)
    middle = total(mean * count, True) / number
    squares = total(squares + count * (mean - middle) * (mean - middle), True)
    tl.store(mean_ptr + c, middle, mask=c < C)
    tl.store(var_ptr + c, squares / number, mask=c < C)
