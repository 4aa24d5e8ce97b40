"""Triton programs: the gradients of filter, noise, normalisation and gate.

Everything but the input is computed again. With u = filter(x) + bias + noise * plane,
n = (u - mean) * rstd, z = gain * n + shift, and d the gradient of z: the gradient of u is
``gain rstd d``, and with batch statistics ``gain rstd d - k1 - n k2``, where k1 and k2 are rstd
times the means of gain d and of gain d n (Ioffe and Szegedy 2015, after equation 4). Sums over
pixels are written group by group and added afterwards, so that they do not depend on the order in
which the programs run.
"""
# pyright: basic, reportGeneralTypeIssues=false, reportMissingImports=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from dsconvert.kernels.forward_programs import NUMBERS
from dsconvert.kernels.tile_programs import (
    channel,
    filtered,
    noise_at,
    pixels,
    place,
    put,
    total,
    zeros,
)


@triton.jit
def constants(noise, noise_c, mean, rstd, gain, shift, c, C, ACC: tl.constexpr):
    """Load the numbers of channels c."""
    return (
        channel(noise, c * noise_c, C, 0.0, ACC),
        channel(mean, c, C, 0.0, ACC),
        channel(rstd, c, C, 1.0, ACC),
        channel(gain, c, C, 1.0, ACC),
        channel(shift, c, C, 0.0, ACC),
    )


@triton.jit
def slopes(v, g, p, d, nv, mv, rv, av, bv, ng, mg, rg, ag, bg, GATE: tl.constexpr):
    """Return d and n of the first half, then of the second, from the output's gradient d."""
    first = (v + nv * p - mv) * rv
    e = d
    second = first
    if GATE:
        second = (g + ng * p - mg) * rg
        s = 1.0 / (1.0 + tl.exp(-(second * ag + bg)))
        d = d * s
        e = d * (first * av + bv) * (1.0 - s)
    return d, first, e, second


@triton.jit(do_not_specialize=NUMBERS)
def sums(
    x_ptr, w, bias, noise, plane, mean, rstd, gain, shift, grad, found, cin, C, outs, H, W, steps,
    groups, noise_c, plane_n, affine_n, GATE: tl.constexpr, R: tl.constexpr, M: tl.constexpr,
    KIND: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BX: tl.constexpr,
    BC: tl.constexpr, ALIGNED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Write the sums of d and of d n over a group's pixels: ``found`` (2, N groups, C)."""
    if ALIGNED:
        W = W // 16 * 16  # noqa: N806
    if EVEN:
        cin = cin // 2 * 2
        C = C // 2 * 2  # noqa: N806
        outs = outs // 2 * 2
    n, group, c, rows, columns = place(outs, groups, BP, BX, BC, LAST, EVEN)
    across = tl.cdiv(W, BX)
    x_ptr += n * cin * H * W
    step: tl.constexpr = 2 if KIND == 2 else 1
    high = H * step
    wide = W * step
    grad += n * outs * high * wide
    if plane is not None:
        plane += n * plane_n * (high * wide)
    if gain is not None:
        gain += n * affine_n * C
    if shift is not None:
        shift += n * affine_n * C
    nv, mv, rv, av, bv = constants(noise, noise_c, mean, rstd, gain, shift, c, C, ACC)
    ng = nv
    mg = mv
    rg = rv
    ag = av
    bg = bv
    k = c + outs
    if GATE:
        ng, mg, rg, ag, bg = constants(noise, noise_c, mean, rstd, gain, shift, k, C, ACC)
    one = zeros(BP, BC, LAST, ACC)
    one_n = zeros(BP, BC, LAST, ACC)
    two = zeros(BP, BC, LAST, ACC)
    two_n = zeros(BP, BC, LAST, ACC)
    for tile in range(group * steps, group * steps + steps):
        top = (tile // across) * (BP // BX)
        left = (tile % across) * BX
        y = top + rows
        x = left + columns
        v00, v01, v10, v11 = filtered(x_ptr, w, bias, c, y, x, cin, C, H, W, R, M, KIND, LAST, ACC)
        g00 = v00
        g01 = v01
        g10 = v10
        g11 = v11
        if GATE:
            g00, g01, g10, g11 = filtered(
                x_ptr, w, bias, k, y, x, cin, C, H, W, R, M, KIND, LAST, ACC
            )  # fmt: skip
        for i in tl.static_range(step * step):
            v = v00
            g = g00
            if i == 1:
                v = v01
                g = g01
            if i == 2:
                v = v10
                g = g10
            if i == 3:
                v = v11
                g = g11
            row = y * step + i // 2
            column = x * step + i % 2
            # Outside the map the gradient is zero, and so are all products with it.
            p = noise_at(plane, row, column, high, wide, ACC)
            d = pixels(grad, c, row, column, outs, high, wide, LAST, ACC)
            d, first, e, second = slopes(
                v, g, p, d, nv, mv, rv, av, bv, ng, mg, rg, ag, bg, GATE
            )  # fmt: skip
            one += d
            one_n += d * first
            if GATE:
                two += e
                two_n += e * second
    whole = tl.num_programs(0) // (tl.cdiv(outs, BC) if LAST else outs) * C
    found += (n * groups + group) * C + c
    tl.store(found, total(one, LAST), mask=c < outs)
    tl.store(found + whole, total(one_n, LAST), mask=c < outs)
    if GATE:
        tl.store(found + outs, total(two, LAST), mask=c < outs)
        tl.store(found + whole + outs, total(two_n, LAST), mask=c < outs)


@triton.jit(do_not_specialize=NUMBERS)
def gradient(
    x_ptr, w, bias, noise, plane, mean, rstd, gain, shift, k1, k2, grad, grad_u, of_noise, cin, C,
    outs, H, W, groups, noise_c, plane_n, affine_n, GATE: tl.constexpr, R: tl.constexpr,
    M: tl.constexpr, KIND: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr,
    BX: tl.constexpr, BC: tl.constexpr, ALIGNED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Write the gradient of u (N, C, ...), and its sums with the plane: (N groups, C).

    A group is one tile: more would take more registers than they save time.
    """
    if ALIGNED:
        W = W // 16 * 16  # noqa: N806
    if EVEN:
        cin = cin // 2 * 2
        C = C // 2 * 2  # noqa: N806
        outs = outs // 2 * 2
    n, group, c, y, x = place(outs, groups, BP, BX, BC, LAST, EVEN)
    across = tl.cdiv(W, BX)
    top = (group // across) * (BP // BX)
    left = (group % across) * BX
    y += top
    x += left
    x_ptr += n * cin * H * W
    step: tl.constexpr = 2 if KIND == 2 else 1
    high = H * step
    wide = W * step
    grad += n * outs * high * wide
    grad_u += n * C * high * wide
    if plane is not None:
        plane += n * plane_n * (high * wide)
    if gain is not None:
        gain += n * affine_n * C
    if shift is not None:
        shift += n * affine_n * C
    nv, mv, rv, av, bv = constants(noise, noise_c, mean, rstd, gain, shift, c, C, ACC)
    lv = channel(k1, c, C, 0.0, ACC)
    sv = channel(k2, c, C, 0.0, ACC)
    ng = nv
    mg = mv
    rg = rv
    ag = av
    bg = bv
    lg = lv
    sg = sv
    k = c + outs
    if GATE:
        ng, mg, rg, ag, bg = constants(noise, noise_c, mean, rstd, gain, shift, k, C, ACC)
        lg = channel(k1, k, C, 0.0, ACC)
        sg = channel(k2, k, C, 0.0, ACC)
    with_plane = zeros(BP, BC, LAST, ACC)
    gate_with_plane = zeros(BP, BC, LAST, ACC)
    v00, v01, v10, v11 = filtered(x_ptr, w, bias, c, y, x, cin, C, H, W, R, M, KIND, LAST, ACC)
    g00 = v00
    g01 = v01
    g10 = v10
    g11 = v11
    if GATE:
        g00, g01, g10, g11 = filtered(x_ptr, w, bias, k, y, x, cin, C, H, W, R, M, KIND, LAST, ACC)
    even = v00
    even_gate = v00
    for i in tl.static_range(step * step):
        v = v00
        g = g00
        if i == 1:
            v = v01
            g = g01
        if i == 2:
            v = v10
            g = g10
        if i == 3:
            v = v11
            g = g11
        row = y * step + i // 2
        column = x * step + i % 2
        p = noise_at(plane, row, column, high, wide, ACC)
        d = pixels(grad, c, row, column, outs, high, wide, LAST, ACC)
        d, first, e, second = slopes(
            v, g, p, d, nv, mv, rv, av, bv, ng, mg, rg, ag, bg, GATE
        )  # fmt: skip
        d = d * (av * rv) - lv - first * sv
        e = e * (ag * rg) - lg - second * sg
        if of_noise is not None:
            # Outside the map the plane is zero.
            with_plane += d * p
            gate_with_plane += e * p
        if i % 2 == 0:
            even = d
            even_gate = e
        if i % 2 == step - 1:
            put(grad_u, even, d, i // 2, c, outs, y, x, top, left, C, high, wide, BP, BX, KIND,
                LAST)  # fmt: skip
            if GATE:
                put(grad_u, even_gate, e, i // 2, k, C, y, x, top, left, C, high, wide, BP, BX,
                    KIND, LAST)  # fmt: skip
    if of_noise is not None:
        of_noise += (n * groups + group) * C + c
        tl.store(of_noise, total(with_plane, LAST), mask=c < outs)
        if GATE:
            tl.store(of_noise + outs, total(gate_with_plane, LAST), mask=c < outs)
