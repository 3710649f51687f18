"""The diagonal affine scan `x_t = a_t x_{t-1} + b_t` and its transpose, in Triton.

Importing this imports Triton. One kernel does both: the cotangents of a scan,
`l_t = g_t + a_{t+1} l_{t+1}`, are a scan in the other direction whose factors stand one
row further, and the same pass over the memory writes `l_t x_{t-1}`, the cotangent of
`a_t`.

A step is a map of the state, written as the pair `(A, B)` that stands for
`x -> A x + B if x != 0 else B`. `B` is what the step makes of a zero state, `a 0 + b`:
the same as `b`, unless `a` is NaN or infinite. With a plain `A x + B` a product of many
`a` that overflows would make a NaN out of a state of zero.

Complex numbers are pairs of real ones in memory, and two tensors here; for real ones
the imaginary tensor is there in name only, and no code is made of it.
"""

# Names in capitals are known when the kernel is compiled.
# pyright: basic, reportMissingImports=false, reportInvalidTypeForm=false
# pyright: reportAssignmentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def _load(pointer, index, there, COMPLEX: tl.constexpr):
    """Numbers at `index`, in float32, and zeros where nothing is there."""
    if COMPLEX:
        part = tl.arange(0, 2)[None, None, :]
        both = tl.load(
            pointer + (2 * index[:, :, None] + part), there[:, :, None], other=0.0
        )
        re, im = tl.split(both)
    else:
        re = tl.load(pointer + index, there, other=0.0).to(tl.float32)
        im = re
    return re, im


@triton.jit
def _store(pointer, index, re, im, there, COMPLEX: tl.constexpr):
    if COMPLEX:
        part = tl.arange(0, 2)[None, None, :]
        at = pointer + (2 * index[:, :, None] + part)
        tl.store(at, tl.join(re, im), there[:, :, None])
    else:
        tl.store(pointer + index, re, there)


@triton.jit
def _times(ar, ai, xr, xi, COMPLEX: tl.constexpr):
    if COMPLEX:
        re = ar * xr - ai * xi
        im = ar * xi + ai * xr
    else:
        re = ar * xr
        im = re
    return re, im


@triton.jit
def _apply(ar, ai, br, bi, xr, xi, COMPLEX: tl.constexpr):
    """The map `(a, b)` of the state `x`."""
    if COMPLEX:
        zero = (xr == 0) & (xi == 0)
        re = tl.where(zero, br, ar * xr - ai * xi + br)
        im = tl.where(zero, bi, ar * xi + ai * xr + bi)
    else:
        re = tl.where(xr == 0, br, ar * xr + br)
        im = re
    return re, im


@triton.jit
def _compose(a1, b1, a2, b2):
    """The map 2 after the map 1."""
    return a1 * a2, tl.where(b1 == 0, b2, a2 * b1 + b2)


@triton.jit
def _compose_complex(ar1, ai1, br1, bi1, ar2, ai2, br2, bi2):
    ar, ai = _times(ar2, ai2, ar1, ai1, True)
    br, bi = _apply(ar2, ai2, br2, bi2, br1, bi1, True)
    return ar, ai, br, bi


@triton.jit
def _scanned(ar, ai, br, bi, COMPLEX: tl.constexpr):
    """All maps composed from the first row on. The order of the operations is fixed."""
    if COMPLEX:
        ar, ai, br, bi = tl.associative_scan((ar, ai, br, bi), 0, _compose_complex)
    else:
        ar, br = tl.associative_scan((ar, br), 0, _compose)
        ai = ar
        bi = br
    return ar, ai, br, bi


@triton.jit
def _last(x, ROWS: tl.constexpr):
    """The last row, as a tile of one row."""
    at = tl.arange(0, ROWS)[:, None] == ROWS - 1
    return tl.sum(tl.where(at, x, 0.0), 0)[None, :]


@triton.jit
def _row(step, length, REVERSE: tl.constexpr):
    """Which row of the arrays the scan comes to at `step`."""
    row = length - 1 - step if REVERSE else step
    return row.to(tl.int64)


# What programs tell each other are words of 64 bits: a number in float32 below, and a
# one above it as soon as the number is there. A word is written and read in one piece,
# so nothing has to be ordered with anything else.


@triton.jit
def _publish(words, index, value, there):
    bits = value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    tl.atomic_xchg(words + index, bits | (1 << 32), there, sem="relaxed")


@triton.jit
def _await(words, index, there):
    """The numbers at `index`, as soon as all are there that are asked for."""
    word = tl.load(words + index, there, other=1 << 32, volatile=True)
    while tl.min(tl.min((word >> 32).to(tl.int32), 1), 0) == 0:
        word = tl.load(words + index, there, other=1 << 32, volatile=True)
    return word.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _tile(
    a,
    b,
    first,
    lane,
    a_lane,
    length,
    lanes,
    a_lanes,
    REVERSE: tl.constexpr,
    GRADIENT: tl.constexpr,
    COMPLEX: tl.constexpr,
    CONJUGATE: tl.constexpr,
    A_IN_TIME: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """The maps of the steps from `first` on, composed from there."""
    step = first + tl.arange(0, BLOCK_T)[:, None]
    there = (step < length) & (lane < lanes)
    br, bi = _load(b, _row(step, length, REVERSE) * lanes + lane, there, COMPLEX)
    # In the transpose, a state is taken on by the factor of the row before, and the
    # first step has none.
    known = there
    if GRADIENT:
        known = there & (step > 0)
        step = step - 1
    if A_IN_TIME:
        at = _row(step, length, REVERSE) * a_lanes + a_lane
        ar, ai = _load(a, at, known, COMPLEX)
    else:
        ar, ai = _load(a, a_lane, lane < lanes, COMPLEX)
        ar = tl.broadcast_to(ar, [BLOCK_T, BLOCK_L])
        ai = tl.broadcast_to(ai, [BLOCK_T, BLOCK_L])
    # Beyond the end nothing happens to a state. (At the first step of the transpose
    # there is none yet, so what `a` is does not matter.)
    ar = tl.where(known, ar, 1.0)
    if COMPLEX:
        ai = tl.where(known, ai, 0.0)
        if CONJUGATE:
            ai = -ai
        nothing = (ar + ai) * 0.0
        br = br + nothing
        bi = bi + nothing
    else:
        br = br + ar * 0.0
    return _scanned(ar, ai, br, bi, COMPLEX)


@triton.jit
def _carry(
    words,
    ar,
    ai,
    br,
    bi,
    start_r,
    start_i,
    chunk,
    chunks,
    lane,
    lanes,
    COMPLEX: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The state that enters a chunk, from the programs before it.

    `(a, b)` is the map of the whole chunk. It is published at once. The maps of the
    chunks before it in its group are composed, always all and always in one order,
    whoever is ready first, and applied to the state that enters the group. The last
    chunk of a group publishes the state that leaves it. So results do not depend on
    timing, and only one state in `GROUP` has to wait for another.

    Chunks have been handed out in order (see `diagonal_scan`), hence whoever is waited
    for is running.
    """
    PARTS: tl.constexpr = 4 if COMPLEX else 2
    inside = lane < lanes
    mine = chunk.to(tl.int64) * PARTS * lanes + lane
    _publish(words, mine, ar, inside)
    _publish(words, mine + lanes, br, inside)
    if COMPLEX:
        _publish(words, mine + 2 * lanes, ai, inside)
        _publish(words, mine + 3 * lanes, bi, inside)

    group = chunk // GROUP
    member = chunk % GROUP
    rank = tl.arange(0, GROUP)[:, None]
    before = (rank < member) & inside
    other = (group * GROUP + rank).to(tl.int64) * PARTS * lanes + lane
    pr = tl.where(before, _await(words, other, before), 1.0)
    qr = tl.where(before, _await(words, other + lanes, before), 0.0)
    pi = pr
    qi = qr
    if COMPLEX:
        pi = tl.where(before, _await(words, other + 2 * lanes, before), 0.0)
        qi = tl.where(before, _await(words, other + 3 * lanes, before), 0.0)
    pr, pi, qr, qi = _scanned(pr, pi, qr, qi, COMPLEX)
    pr = _last(pr, GROUP)
    qr = _last(qr, GROUP)
    pi = _last(pi, GROUP)
    qi = _last(qi, GROUP)

    follows = inside & (group > 0)
    link = (chunks + group).to(tl.int64) * PARTS * lanes + lane
    xr = tl.where(follows, _await(words, link, follows), start_r)
    xi = xr
    if COMPLEX:
        xi = tl.where(follows, _await(words, link + lanes, follows), start_i)
    xr, xi = _apply(pr, pi, qr, qi, xr, xi, COMPLEX)

    ends = inside & (member == GROUP - 1)
    yr, yi = _apply(ar, ai, br, bi, xr, xi, COMPLEX)
    next = link + PARTS * lanes
    _publish(words, next, yr, ends)
    if COMPLEX:
        _publish(words, next + lanes, yi, ends)
    return xr, xi


@triton.jit
def _written(
    states,
    init,
    out,
    of_a,
    ar,
    ai,
    br,
    bi,
    xr,
    xi,
    first,
    lane,
    length,
    lanes,
    REVERSE: tl.constexpr,
    GRADIENT: tl.constexpr,
    WANTS_A: tl.constexpr,
    COMPLEX: tl.constexpr,
    CONJUGATE: tl.constexpr,
    A_IN_TIME: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Writes a tile, `(a, b)` of the state `x` that enters it.

    Returns the state that leaves it, and the sum over its times of the cotangents of
    `a`, for an `a` that is constant in time.
    """
    step = first + tl.arange(0, BLOCK_T)[:, None]
    there = (step < length) & (lane < lanes)
    at = _row(step, length, REVERSE) * lanes + lane
    yr, yi = _apply(ar, ai, br, bi, xr, xi, COMPLEX)
    _store(out, at, yr, yi, there, COMPLEX)
    sum_r = tl.zeros_like(xr)
    sum_i = sum_r
    if GRADIENT and WANTS_A:
        # The state that entered the step was, the other way round, the next one.
        inner = there & (step < length - 1)
        zr, zi = _load(
            states, _row(step + 1, length, REVERSE) * lanes + lane, inner, COMPLEX
        )
        outer = there & (step == length - 1)
        wr, wi = _load(init, lane + 0 * step, outer, COMPLEX)
        zr = tl.where(outer, wr, zr)
        zi = tl.where(outer, wi, zi)
        if CONJUGATE:
            zi = -zi
        zr, zi = _times(yr, yi, zr, zi, COMPLEX)
        if A_IN_TIME:
            _store(of_a, at, zr, zi, there, COMPLEX)
        else:
            sum_r = tl.sum(tl.where(there, zr, 0.0), 0)[None, :]
            sum_i = sum_r
            if COMPLEX:
                sum_i = tl.sum(tl.where(there, zi, 0.0), 0)[None, :]
    return _last(yr, BLOCK_T), _last(yi, BLOCK_T), sum_r, sum_i


@triton.jit
def _ended(
    a,
    end,
    xr,
    xi,
    lane,
    a_lane,
    length,
    a_lanes,
    there,
    REVERSE: tl.constexpr,
    GRADIENT: tl.constexpr,
    COMPLEX: tl.constexpr,
    CONJUGATE: tl.constexpr,
    A_IN_TIME: tl.constexpr,
):
    """Writes what leaves the scan: the last state, or the cotangent of `init`."""
    if GRADIENT:
        at = a_lane.to(tl.int64)
        if A_IN_TIME:
            at = at + _row(length - 1, length, REVERSE) * a_lanes
        ar, ai = _load(a, at, there, COMPLEX)
        if CONJUGATE:
            ai = -ai
        xr, xi = _times(ar, ai, xr, xi, COMPLEX)
    _store(end, lane, xr, xi, there, COMPLEX)


@triton.jit
def diagonal_scan(
    a,
    b,
    states,
    init,
    length,
    lanes,
    a_lanes,
    shared,
    inner,
    out,
    of_a,
    end,
    words,
    REVERSE: tl.constexpr,
    GRADIENT: tl.constexpr,
    WANTS_A: tl.constexpr,
    COMPLEX: tl.constexpr,
    CONJUGATE: tl.constexpr,
    A_IN_TIME: tl.constexpr,
    A_SHARED: tl.constexpr,
    CHAINED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Solves the recurrence, or pulls cotangents back through it.

    All arrays are contiguous; complex ones have their parts side by side. Arithmetic
    is in float32 throughout.

    **Arguments:**

    - `a`: `(length, a_lanes)`, or with `A_IN_TIME` false `(1, a_lanes)`. With
        `A_SHARED` see `LaneLayout` for `shared` and `inner`; else these are not read.
    - `b`: `(length, lanes)`; with `GRADIENT` the cotangents of the states.
    - `states`: with `GRADIENT`, the states `(length, lanes)`; else not read.
    - `init`: `(lanes,)`: the state before the first step. With `GRADIENT`, that of the
        scan whose transpose this is.
    - `out`: the states, or the cotangents of `b`.
    - `of_a`: with `GRADIENT` and `WANTS_A`, the cotangents of `a`, one for each lane of
        `b`: `(length, lanes)`, or sums over the times of a chunk, `(chunks, lanes)`,
        if `a` is constant in time.
    - `end`: `(lanes,)`: the last state; with `GRADIENT`, the cotangent of `init`.
    - `words`: zeros; see `DiagonalScanPlan.words`.
    - `REVERSE`: whether this scan goes from the last row to the first.
    - `CONJUGATE`: whether cotangents are those of complex conjugates.
    """
    lane_blocks = tl.cdiv(lanes, BLOCK_L)
    if CHAINED:  # noqa: SIM108
        # Programs may start in any order. A number drawn makes sure that those which
        # have lower ones are running.
        ticket = tl.atomic_add(words, 1, sem="relaxed")
    else:
        ticket = tl.program_id(0)
    chunk = ticket // lane_blocks
    lane = (ticket % lane_blocks) * BLOCK_L + tl.arange(0, BLOCK_L)[None, :]
    a_lane = lane
    if A_SHARED:
        a_lane = lane // (shared * inner) * inner + lane % inner
    inside = lane < lanes
    if GRADIENT:
        xr = tl.zeros([1, BLOCK_L], tl.float32)
        xi = xr
    else:
        xr, xi = _load(init, lane, inside, COMPLEX)

    # fmt: off
    if CHAINED:
        first = chunk * BLOCK_T
        ar, ai, br, bi = _tile(
            a, b, first, lane, a_lane, length, lanes, a_lanes,
            REVERSE, GRADIENT, COMPLEX, CONJUGATE, A_IN_TIME, BLOCK_T, BLOCK_L,
        )
        chunks = tl.cdiv(length, BLOCK_T)
        xr, xi = _carry(
            (words + 2).to(tl.pointer_type(tl.int64), bitcast=True),
            _last(ar, BLOCK_T), _last(ai, BLOCK_T), _last(br, BLOCK_T),
            _last(bi, BLOCK_T), xr, xi, chunk, chunks, lane, lanes, COMPLEX, GROUP,
        )
        xr, xi, sum_r, sum_i = _written(
            states, init, out, of_a, ar, ai, br, bi, xr, xi, first, lane, length, lanes,
            REVERSE, GRADIENT, WANTS_A, COMPLEX, CONJUGATE, A_IN_TIME, BLOCK_T,
        )
        last = inside & (chunk == chunks - 1)
    else:
        sum_r = tl.zeros([1, BLOCK_L], tl.float32)
        sum_i = sum_r
        for tile in tl.range(0, tl.cdiv(length, BLOCK_T), num_stages=STAGES):
            first = tile * BLOCK_T
            ar, ai, br, bi = _tile(
                a, b, first, lane, a_lane, length, lanes, a_lanes,
                REVERSE, GRADIENT, COMPLEX, CONJUGATE, A_IN_TIME, BLOCK_T, BLOCK_L,
            )
            xr, xi, more_r, more_i = _written(
                states, init, out, of_a, ar, ai, br, bi, xr, xi,
                first, lane, length, lanes,
                REVERSE, GRADIENT, WANTS_A, COMPLEX, CONJUGATE, A_IN_TIME, BLOCK_T,
            )
            sum_r += more_r
            sum_i += more_i
        last = inside
    # fmt: on
    if GRADIENT and WANTS_A and not A_IN_TIME:
        _store(of_a, chunk.to(tl.int64) * lanes + lane, sum_r, sum_i, inside, COMPLEX)
    _ended(
        a,
        end,
        xr,
        xi,
        lane,
        a_lane,
        length,
        a_lanes,
        last,
        REVERSE,
        GRADIENT,
        COMPLEX,
        CONJUGATE,
        A_IN_TIME,
    )
