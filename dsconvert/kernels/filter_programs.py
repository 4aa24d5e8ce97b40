"""Triton programs: the gradients of a depthwise filter, for its input and its taps.

A unit is one filter: unit u filters the input ``u // M`` for the output ``u // R``.
"""
# pyright: basic, reportGeneralTypeIssues=false, reportMissingImports=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportAssignmentType=false
# ruff: noqa: N803, SIM108

from __future__ import annotations

import triton
import triton.language as tl

from dsconvert.kernels.forward_programs import NUMBERS
from dsconvert.kernels.tile_programs import pixels, place, put, source, total, zeros


@triton.jit
def row_of_filter(
    grad, taps, apart, a: tl.constexpr, c, y, x, v, there, of_x, s0, s1, s2, s3, C, high, wide,
    OF_X: tl.constexpr, OF_W: tl.constexpr, KIND: tl.constexpr, LAST: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Add what row a of a filter adds to the gradient of x, and to those of its own taps."""
    side: tl.constexpr = 4 if KIND == 2 else 3
    row = (2 * y - 1 + a) if KIND == 2 else (y + 1 - a)
    rows = (row >= 0) & (row < high) & there
    for b in tl.static_range(side):
        column = (2 * x - 1 + b) if KIND == 2 else (x + 1 - b)
        mask = rows & (column >= 0) & (column < wide)
        if LAST:
            at = (row * wide + column) * C + c
        else:
            at = c * high * wide + (row * wide + column)
        g = tl.load(grad + at, mask=mask, other=0.0).to(ACC)
        if OF_X:
            of_x += g * tl.load(taps + (a * side + b) * apart, mask=there, other=0.0).to(ACC)
        if OF_W:
            if b == 0:
                s0 += g * v
            if b == 1:
                s1 += g * v
            if b == 2:
                s2 += g * v
            if b == 3:
                s3 += g * v
    return of_x, s0, s1, s2, s3


@triton.jit
def put_row(found, a: tl.constexpr, apart, there, s0, s1, s2, s3,
            KIND: tl.constexpr, LAST: tl.constexpr):  # fmt: skip
    """Store the sums of row a of a filter."""
    at = found + a * (4 if KIND == 2 else 3) * apart
    tl.store(at, total(s0, LAST), mask=there)
    tl.store(at + apart, total(s1, LAST), mask=there)
    tl.store(at + 2 * apart, total(s2, LAST), mask=there)
    if KIND == 2:
        tl.store(at + 3 * apart, total(s3, LAST), mask=there)


@triton.jit(do_not_specialize=NUMBERS)
def filter_gradients(
    x_ptr, w, grad, grad_x, found, cin, C, H, W, steps, groups, R: tl.constexpr, M: tl.constexpr,
    KIND: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BX: tl.constexpr,
    BC: tl.constexpr, ALIGNED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x, and a group's share of the filters': (N groups, U, T).

    ``LAST``, it is (N groups, T, U). Both read the same pixels of ``grad`` (N, C, ...), so that one
    pass makes both where M is 1. ``found`` or ``grad_x`` may be None; for M > 1 one of them must
    be. A program has units where it makes ``found``, else inputs.
    """
    if ALIGNED:
        W = W // 16 * 16  # noqa: N806
    if EVEN:
        cin = cin // 2 * 2
        C = C // 2 * 2  # noqa: N806
    units = C if found is not None and M > 1 else cin
    n, group, u, down, along = place(units, groups, BP, BX, BC, LAST, EVEN)
    across = tl.cdiv(W, BX)
    step: tl.constexpr = 2 if KIND == 2 else 1
    taps: tl.constexpr = 16 if KIND == 2 else 9
    one: tl.constexpr = 1 if found is not None else M
    of_x: tl.constexpr = grad_x is not None
    of_w: tl.constexpr = found is not None
    high = H * step
    wide = W * step
    grad += n * C * high * wide
    x_ptr += n * cin * H * W
    if grad_x is not None:
        grad_x += n * cin * H * W
    there = u < units
    s00 = zeros(BP, BC, LAST, ACC)
    s01 = s00
    s02 = s00
    s03 = s00
    s10 = s00
    s11 = s00
    s12 = s00
    s13 = s00
    s20 = s00
    s21 = s00
    s22 = s00
    s23 = s00
    s30 = s00
    s31 = s00
    s32 = s00
    s33 = s00
    for tile in range(group * steps, group * steps + steps):
        top = (tile // across) * (BP // BX)
        left = (tile % across) * BX
        y = top + down
        x = left + along
        z = zeros(BP, BC, LAST, ACC)
        v = z
        if of_w:
            v = pixels(x_ptr, u // M, y, x, cin, H, W, LAST, ACC)
        for m in tl.static_range(one):
            if of_w:
                i = u // M
                c = u // R
            else:
                i = u
                c = source(i, m, M, R)
            if LAST:
                f = w + (i % R) * C + c
                apart = R * C
            else:
                f = w + (c * R + i % R) * taps
                apart = 1
            z, s00, s01, s02, s03 = row_of_filter(
                grad, f, apart, 0, c, y, x, v, there, z, s00, s01, s02, s03, C, high, wide, of_x,
                of_w, KIND, LAST, ACC,
            )  # fmt: skip
            z, s10, s11, s12, s13 = row_of_filter(
                grad, f, apart, 1, c, y, x, v, there, z, s10, s11, s12, s13, C, high, wide, of_x,
                of_w, KIND, LAST, ACC,
            )  # fmt: skip
            z, s20, s21, s22, s23 = row_of_filter(
                grad, f, apart, 2, c, y, x, v, there, z, s20, s21, s22, s23, C, high, wide, of_x,
                of_w, KIND, LAST, ACC,
            )  # fmt: skip
            if KIND == 2:
                z, s30, s31, s32, s33 = row_of_filter(
                    grad, f, apart, 3, c, y, x, v, there, z, s30, s31, s32, s33, C, high, wide,
                    of_x, of_w, KIND, LAST, ACC,
                )  # fmt: skip
        if grad_x is not None:
            put(grad_x, z, z, 0, u, cin, y, x, top, left, cin, H, W, BP, BX, 1, LAST)
    if found is not None:
        found += (n * groups + group) * units * taps
        if LAST:
            found += u
            apart = units
        else:
            found += u * taps
            apart = 1
        put_row(found, 0, apart, there, s00, s01, s02, s03, KIND, LAST)
        put_row(found, 1, apart, there, s10, s11, s12, s13, KIND, LAST)
        put_row(found, 2, apart, there, s20, s21, s22, s23, KIND, LAST)
        if KIND == 2:
            put_row(found, 3, apart, there, s30, s31, s32, s33, KIND, LAST)
