"""The Triton kernels. A program holds a tile of rows by classes in registers and loads each logit once, because loads
and stores take nearly all of the time.

Bytes moved, a row of n classes: forward n x; backward n x + n dx; both the same where a row fits a tile, else 2 n x +
n dx; n more for soft labels, each time the logits are read. A row larger than a tile is cut, and `merge` puts its
parts' statistics together in the order of the classes: no atomics, the same bits every time.

Sums are trees, over a tile's lanes, then over the tiles. A part's sum is relative to its own maximum and moves to the
row's once, in `merge`: there is no chain of rescalings to pile up errors. T is the dtype that is computed in.
"""

import triton
import triton.language as tl

from .arithmetic import exp_of, log1p, log1p_unit, reciprocal, times

# Arguments by the line, not one a line:
# fmt: off

# ---- where a program's rows lie. Logits are [outer, classes, inner], dense; rows are numbered through outer and inner.


@triton.jit
def own_rows(classes, inner, count, tiles, COLUMNS: tl.constexpr, R: tl.constexpr):
    """The numbers of the tile's rows, whether they exist, and the offsets of their first classes, in 64 bits. COLUMNS:
    all rows of a tile have the same `outer`, so that they lie side by side and are loaded together."""
    program = tl.program_id(0).to(tl.int64)
    if COLUMNS:
        i = (program % tiles) * R + tl.arange(0, R)
        outer = program // tiles
        return outer * inner + i, i < inner, outer * classes * inner + i
    else:
        row = program * R + tl.arange(0, R)
        return row, row < count, row // inner * classes * inner + row % inner


@triton.jit
def own_ids(ids, row, there):
    """The rows' ids: negative in masked rows, -1 in invalid ones; 0 if there are no ids."""
    if ids is None:
        return row * 0
    else:
        return tl.load(ids + row, mask=there, other=0)


@triton.jit
def per_row(p, row, there, T: tl.constexpr):
    if p is None:
        return tl.zeros(row.shape, T)
    else:
        return tl.load(p + row, mask=there, other=0.0)


@triton.jit
def put(p, row, there, value, masked, otherwise):
    if p is not None:
        tl.store(p + row, tl.where(masked, otherwise, value), mask=there)


# ---- a row's end: results, and the coefficients of its derivative


@triton.jit
def finish(
    m, s, gap_sum, argmax, soft, share, smooth, x_y, id, row, there, u_total,
    m_at, s_at, gap_sum_at, argmax_at, loss_at, lse_at, smooth_at, HARD: tl.constexpr, T: tl.constexpr,
):
    """Stores the results; m, s and the log-sum-exp."""
    bad = (s != s) | (tl.abs(m) == float("inf"))  # there is no softmax
    m = tl.where(bad, float("nan"), m)
    s = tl.where(bad, float("nan"), s)
    gap_sum = tl.where(bad, float("nan"), gap_sum)
    spread = log1p(s, T)
    masked = id < 0
    nothing = tl.where(id == -1, float("nan"), 0.0).to(T)
    if HARD:
        put(loss_at, row, there, (m - x_y) + spread, masked, nothing)
    else:
        put(loss_at, row, there, soft + share * spread, masked, nothing)
    put(lse_at, row, there, m + spread, masked, nothing)
    if smooth_at is not None:
        put(smooth_at, row, there, smooth + tl.load(u_total) * spread, masked, nothing)
    put(m_at, row, there, m, masked, 0.0)
    put(s_at, row, there, s, masked, 0.0)
    put(gap_sum_at, row, there, gap_sum, masked, 0.0)
    put(argmax_at, row, there, argmax, masked, -1)
    return m, s, m + spread


@triton.jit
def derivative(
    e, w, v, j, id, m, s, x_y, share, a, b, c, u_total, HARD: tl.constexpr, SMOOTH: tl.constexpr, T: tl.constexpr
):
    """d/dx of a loss + b lse + c smooth, for e = exp(x - m), labels w and smoothing weights v. At labels p - 1 is
    formed without cancellation: -s / (1 + s) where the maximum is; elsewhere p is at most 1/2."""
    r = reciprocal(s + 1, T)
    rest = b
    if SMOOTH:
        rest += c * tl.load(u_total)
    if HARD:
        e_y = exp_of(x_y - m, T)
        miss = tl.where(x_y == m, -s, e_y - (s + 1))
        at_label = (a * miss + rest * e_y) * r
        dx = tl.where(j[None, :] == id[:, None], at_label[:, None], e * ((a + rest) * r)[:, None])
    else:
        miss = tl.where(e == 1, -s[:, None], e - (s + 1)[:, None])  # (p - 1) (1 + s), so that a label of 1 is as an id
        at_label = w * miss
        dx = e * ((a[:, None] * (share[:, None] - w) + rest[:, None]) * r[:, None]) + a[:, None] * at_label * r[:, None]
    if SMOOTH:
        dx -= c[:, None] * v
    return unmasked(dx, id)


@triton.jit
def unmasked(value, id):
    """0 in absent rows, NaN in invalid ones."""
    nothing = tl.where(id == -1, float("nan"), 0.0).to(value.dtype)
    return tl.where((id < 0)[:, None], nothing[:, None], value)


# ---- the kernels


@triton.jit
def statistics(
    x, t, u, ids, u_total, a_at, lse2_at, c_at, m_at, s_at, gap_sum_at, argmax_at, loss_at, lse_at, smooth_at, dx_at,
    parts, classes, inner, count, tiles, STATS: tl.constexpr, T: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr,
):
    """For rows that fit the tile: their results and, if dx_at is not None, their derivative, with b = 2 lse2 lse. For
    larger rows, if parts is not None: the statistics of one part, for `merge`.

    Where several places hold a part's maximum, s leaves out exactly one of them. STATS: gap_sum and argmax are wanted.
    """
    row, there, first = own_rows(classes, inner, count, tiles, COLUMNS, R)
    j = tl.program_id(1) * B + tl.arange(0, B)
    inside = there[:, None] & (j < classes)[None, :]
    place = first[:, None] + j.to(tl.int64)[None, :] * inner
    at = tl.load(x + place, mask=inside, other=float("-inf")).to(T)
    m = tl.max(at, 1)
    gap = at - tl.where(m == float("-inf"), 0.0, m)[:, None]
    same = at == m[:, None]
    e = exp_of(gap, T)
    s = tl.sum(tl.where(same, 0.0, e), 1) + (tl.sum(same.to(T), 1) - 1)
    gap_sum = tl.zeros([R], T)
    argmax = tl.zeros([R], tl.int32)
    if STATS:
        gap_sum -= tl.sum(times(e, gap), 1)
        argmax += tl.min(tl.where(same, tl.arange(0, B)[None, :], B), 1)
    soft = tl.zeros([R], T)
    share = tl.zeros([R], T)
    smooth = tl.zeros([R], T)
    u_part = tl.zeros([R], T)
    w = e
    v = e
    if t is not None:
        w = tl.load(t + place, mask=inside, other=0.0)
        soft -= tl.sum(times(w, gap), 1)
        share += tl.sum(w, 1)
    if u is not None:
        v = tl.load(u + j, mask=j < classes, other=0.0)[None, :]
        smooth -= tl.sum(times(v, gap), 1)
        u_part += tl.sum(v, 1)
    if parts is not None:
        step = tl.num_programs(1) * tl.cast(count, tl.int64)
        part = parts + tl.program_id(1) * tl.cast(count, tl.int64) + row
        tl.store(part, m, mask=there)
        tl.store(part + step, s, mask=there)
        if STATS:  # in the place of soft labels' sums
            tl.store(part + 2 * step, gap_sum, mask=there)
            tl.store(part + 3 * step, argmax, mask=there)
        if t is not None:
            tl.store(part + 2 * step, soft, mask=there)
            tl.store(part + 3 * step, share, mask=there)
        if u is not None:
            tl.store(part + 4 * step, smooth, mask=there)
            tl.store(part + 5 * step, u_part, mask=there)
    else:
        id = own_ids(ids, row, there)
        x_y = tl.sum(tl.where(j[None, :] == id[:, None], at, 0.0), 1)  # another thread may have put dx there
        m, s, lse = finish(
            m, s, gap_sum, argmax, soft, share, smooth, x_y, id, row, there, u_total,
            m_at, s_at, gap_sum_at, argmax_at, loss_at, lse_at, smooth_at, t is None, T,
        )
        if dx_at is not None:
            a = per_row(a_at, row, there, T)
            b = 2 * per_row(lse2_at, row, there, T) * lse
            c = per_row(c_at, row, there, T)
            dx = derivative(e, w, v, j, id, m, s, x_y, share, a, b, c, u_total, t is None, u is not None, T)
            tl.store(dx_at + place, dx, mask=inside)


@triton.jit
def merge(
    parts, x, ids, u_total, lse2_at, m_at, s_at, gap_sum_at, argmax_at, loss_at, lse_at, smooth_at, b_at, share_at,
    splits, width, classes, inner, count, T: tl.constexpr, HARD: tl.constexpr, SMOOTH: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr,
):
    """Rows' results from the statistics of their parts, which are of `width` classes; and for `gradient`, if b_at and
    share_at are not None, 2 lse2 lse and the sum of the labels."""
    row, there, first = own_rows(classes, inner, count, 1, False, R)
    part = tl.arange(0, S)
    inside = there[:, None] & (part < splits)[None, :]
    step = splits * tl.cast(count, tl.int64)
    at = parts + part.to(tl.int64)[None, :] * count + row[:, None]
    tops = tl.load(at, mask=inside, other=float("-inf"))
    sums = tl.load(at + step, mask=inside, other=0.0)
    m = tl.max(tops, 1)
    same = tops == m[:, None]
    f = exp_of(tops - m[:, None], T)
    s = tl.sum(sums * f, 1) + (tl.sum(tl.where(same, 0.0, f), 1) + (tl.sum(same.to(T), 1) - 1))
    rise = m[:, None] - tops
    id = own_ids(ids, row, there)
    soft = tl.zeros([R], T)
    share = tl.zeros([R], T)
    smooth = tl.zeros([R], T)
    x_y = tl.zeros([R], T)
    gap_sum = tl.zeros([R], T)
    argmax = tl.zeros([R], tl.int32)
    if gap_sum_at is not None:
        gap_sum += tl.sum(tl.load(at + 2 * step, mask=inside, other=0.0) * f + (1 + sums) * times(f, rise), 1)
        places = part[None, :] * width + tl.load(at + 3 * step, mask=inside, other=0.0).to(tl.int32)
        argmax += tl.min(tl.where(same, places, classes), 1)
    if HARD:
        x_y += tl.load(x + first + id * inner, mask=there & (id >= 0), other=0.0).to(T)
    else:
        shares = tl.load(at + 3 * step, mask=inside, other=0.0)
        soft += tl.sum(tl.load(at + 2 * step, mask=inside, other=0.0) + times(shares, rise), 1)
        share += tl.sum(shares, 1)
    if SMOOTH:
        u_parts = tl.load(at + 5 * step, mask=inside, other=0.0)
        smooth += tl.sum(tl.load(at + 4 * step, mask=inside, other=0.0) + times(u_parts, rise), 1)
    m, s, lse = finish(
        m, s, gap_sum, argmax, soft, share, smooth, x_y, id, row, there, u_total,
        m_at, s_at, gap_sum_at, argmax_at, loss_at, lse_at, smooth_at, HARD, T,
    )
    if b_at is not None:
        tl.store(b_at + row, 2 * per_row(lse2_at, row, there, T) * lse, mask=there)
    if share_at is not None:
        tl.store(share_at + row, share, mask=there)


@triton.jit
def gradient(
    x, t, u, ids, u_total, a_at, b_at, c_at, m_at, s_at, share_at, dx_at, dt_at,
    classes, inner, count, tiles, T: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):
    """The derivative from the saved statistics. If share_at is None, a tile holds whole rows and sums up the labels.

    dx may be written over x: only the thread that overwrites the label's logit uses it, and before that.
    """
    row, there, first = own_rows(classes, inner, count, tiles, COLUMNS, R)
    j = tl.program_id(1) * B + tl.arange(0, B)
    inside = there[:, None] & (j < classes)[None, :]
    place = first[:, None] + j.to(tl.int64)[None, :] * inner
    at = tl.load(x + place, mask=inside, other=float("-inf")).to(T)
    id = own_ids(ids, row, there)
    m = per_row(m_at, row, there, T)
    s = per_row(s_at, row, there, T)
    a = per_row(a_at, row, there, T)
    if dt_at is not None:
        dt = ((m[:, None] - at) + log1p(s, T)[:, None]) * a[:, None]
        tl.store(dt_at + place, unmasked(dt, id), mask=inside)
    if dx_at is not None:
        e = exp_of(at - m[:, None], T)
        share = per_row(share_at, row, there, T)
        x_y = tl.zeros([R], T)
        w = e
        v = e
        if t is not None:
            w = tl.load(t + place, mask=inside, other=0.0)
            if share_at is None:
                share += tl.sum(w, 1)
        else:
            x_y += tl.load(x + first + id * inner, mask=there & (id >= 0), other=0.0).to(T)
        if u is not None:
            v = tl.load(u + j, mask=j < classes, other=0.0)[None, :]
        b = per_row(b_at, row, there, T)
        c = per_row(c_at, row, there, T)
        dx = derivative(e, w, v, j, id, m, s, x_y, share, a, b, c, u_total, t is None, u is not None, T)
        tl.store(dx_at + place, dx, mask=inside)


@triton.jit
def pattern(p, i, inside, length, inner):
    """The value for element i, p[(i // inner) % length]; length is None where the array does not repeat."""
    place = i // inner
    if length is not None:
        place = place % length
    return tl.load(p + place, mask=inside, other=0.0)


@triton.jit
def elements(
    x, targets, pos_weight, pos_weight_length, pos_weight_inner, weight_at, weight_length, weight_inner, scale_at,
    loss_at, sums, dx_at, d_targets_at, n,
    SMOOTHING: tl.constexpr, T: tl.constexpr, LONG: tl.constexpr, B: tl.constexpr,
):
    """Sigmoid: the unweighted loss (loss_at), a program's sum of weight * loss (sums), and the derivatives of
    scale * sum(weight * loss), those whose address is not None. With q = exp(-|x|):

    loss = (x > 0 ? negative : positive) |x| + (negative + positive) log1p(q)
    dx = negative sigmoid(x) - positive sigmoid(-x), sigmoid(|x|) = 1 / (1 + q)
    """
    program = tl.program_id(0)
    i = (program.to(tl.int64) if LONG else program) * B + tl.arange(0, B)  # divisions of 64 bits are slow
    inside = i < n
    at = tl.load(x + i, mask=inside, other=0.0).to(T)
    label = tl.load(targets + i, mask=inside, other=0.0)
    positive = label * (1 - SMOOTHING) + SMOOTHING / 2
    negative = (1 - label) * (1 - SMOOTHING) + SMOOTHING / 2
    factor = at * 0 + 1
    if pos_weight is not None:
        factor = pattern(pos_weight, i, inside, pos_weight_length, pos_weight_inner)
        positive *= factor
    weight = tl.zeros([B], T) + 1
    if weight_at is not None:
        weight = pattern(weight_at, i, inside, weight_length, weight_inner)
    absent = weight == 0
    up = at > 0
    size = tl.where(up, at, -at)
    q = exp_of(-size, T)
    spread = log1p_unit(q, T)
    if (loss_at is not None) or (sums is not None):
        loss = times(tl.where(up, negative, positive), size) + (negative + positive) * spread
        loss = tl.where(absent, 0.0, loss)
        if loss_at is not None:
            tl.store(loss_at + i, loss, mask=inside)
        if sums is not None:
            tl.store(sums + program, tl.sum(tl.where(inside, loss * weight, 0.0), 0))
    if (dx_at is not None) or (d_targets_at is not None):
        if scale_at is not None:
            weight *= tl.load(scale_at).to(T)
        if dx_at is not None:
            large = reciprocal(q + 1, T)
            small = q * large
            slope = negative * tl.where(up, large, small) - positive * tl.where(up, small, large)
            tl.store(dx_at + i, tl.where(absent, 0.0, slope * weight), mask=inside)
        if d_targets_at is not None:
            slope = -at
            if pos_weight is not None:
                slope = times(factor, tl.where(up, 0.0, size) + spread) - (tl.where(up, size, 0.0) + spread)
            if SMOOTHING == 1:  # smoothed away: labels do not count
                slope = tl.zeros([B], T)
            tl.store(d_targets_at + i, tl.where(absent, 0.0, slope * (1 - SMOOTHING) * weight), mask=inside)
