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

from dsconvert.kernels.tile_programs import channel, filtered, noise_at, place, put, total


@triton.jit
def finished(v, g, p, noise, scale, shift, noise_g, scale_g, shift_g, GATE: tl.constexpr):
    """Return the output of the filtered v, and of g, the other half's, with the noise p."""
    z = (v + noise * p) * scale + shift
    if GATE:
        q = (g + noise_g * p) * scale_g + shift_g
        z = z * (1.0 / (1.0 + tl.exp(-q)))
    return z


@triton.jit(do_not_specialize=["H", "W", "tiles"])
def forward(
    x_ptr, w, bias, noise, plane, scale, shift, out, cin, C, outs, H, W, tiles, noise_c, plane_n,
    affine_n, GATE: tl.constexpr, R: tl.constexpr, M: tl.constexpr, KIND: tl.constexpr,
    LAST: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Make the output: x (N, cin, H, W), C channels behind the filter, ``outs`` behind the gate.

    ``noise_c`` is 1 where each channel has a noise weight, else 0; ``plane_n`` and ``affine_n`` are
    the distances of two samples' planes, and scales and shifts, 0 where they share one.
    """
    if ALIGNED:
        W = W // 16 * 16  # noqa: N806
    n, _tile, top, left, c, y, x = place(W, outs, tiles, BP, BX, BC, LAST)
    x_ptr += n * cin * H * W
    step: tl.constexpr = 2 if KIND == 2 else 1
    high = H * step
    wide = W * step
    out += n * outs * high * wide
    if plane is not None:
        plane += n * plane_n
    if scale is not None:
        scale += n * affine_n
    if shift is not None:
        shift += n * affine_n
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


@triton.jit(do_not_specialize=["H", "W", "tiles"])
def statistics(
    x_ptr, w, bias, noise, plane, found, cin, C, H, W, tiles, noise_c, plane_n,
    R: tl.constexpr, M: tl.constexpr, KIND: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr,
    BP: tl.constexpr, BX: tl.constexpr, BC: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write count, sum and squared distances to the tile's mean of u: ``found`` (N tiles, 3, C).

    They are merged after Chan, Golub and LeVeque (1983), which is stable where the mean is large.
    """
    if ALIGNED:
        W = W // 16 * 16  # noqa: N806
    n, tile, _top, _left, c, y, x = place(W, C, tiles, BP, BX, BC, LAST)
    x_ptr += n * cin * H * W
    step: tl.constexpr = 2 if KIND == 2 else 1
    high = H * step
    wide = W * step
    if plane is not None:
        plane += n * plane_n
    u00, u01, u10, u11 = filtered(x_ptr, w, bias, c, y, x, cin, C, H, W, R, M, KIND, LAST, ACC)
    weight = channel(noise, c * noise_c, C, 0.0, ACC)
    mask = (y < H) & (x < W) & (c < C)
    y *= step
    x *= step
    u00 = tl.where(mask, u00 + weight * noise_at(plane, y, x, high, wide, ACC), 0.0)
    count = total(tl.where(mask, 1.0, 0.0).to(ACC), LAST) * (step * step)
    s = u00
    if KIND == 2:
        u01 = tl.where(mask, u01 + weight * noise_at(plane, y, x + 1, high, wide, ACC), 0.0)
        u10 = tl.where(mask, u10 + weight * noise_at(plane, y + 1, x, high, wide, ACC), 0.0)
        u11 = tl.where(mask, u11 + weight * noise_at(plane, y + 1, x + 1, high, wide, ACC), 0.0)
        s = (s + u01) + (u10 + u11)
    s = total(s, LAST)
    # Beyond the last channel, in channels_last, there is no pixel.
    mean = s / tl.maximum(count, 1.0)
    d = (u00 - mean) * (u00 - mean)
    if KIND == 2:
        d = (d + (u01 - mean) * (u01 - mean)) + (
            (u10 - mean) * (u10 - mean) + (u11 - mean) * (u11 - mean)
        )
    d = total(tl.where(mask, d, 0.0), LAST)
    found += (n * tiles + tile) * 3 * C + c
    tl.store(found, count, mask=c < C)
    tl.store(found + C, s, mask=c < C)
    tl.store(found + 2 * C, d, mask=c < C)
