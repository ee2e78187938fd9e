"""How much one instance of an instruction does: boxes clipped at the edges of tensors, valid extents, cycles.

The formulas are those of ppuc.targets.cost and ppuc.targets.vector_cost, compiled. Results go to scratch fields of
State.

Invariant: nothing here changes the course of a run, apart from statistics counters.
"""

from __future__ import annotations

from ppuc.targets import cost, vector_cost
from ppuc.targets.simulator.jit import helper
from ppuc.targets.simulator.tables import NO_BOUND, Code, Machine, State

engine_clk = helper(cost.engine_clk)
mma_operand_bytes = helper(cost.mma_operand_bytes)
flow_cap = helper(cost.flow_cap)
visit_weight = helper(cost.visit_weight)

step_clk = helper(vector_cost.step_clk)


@helper
def _clip(c: Code, st: State, b: int, d: int, at: int) -> None:
    """Valid extents of the tile axes that move along dimension d, cut by its ends."""
    a1, f1, a2, f2 = c.bx_pair[b, d]
    size = c.bx_dim[b, d, 0]
    if a1 < 0:
        if at < 0 or at >= size:
            st.cnt[:] = 0
        return
    if a2 < 0:
        st.cnt[a1] = min(st.cnt[a1], _inside(at, f1, c.bx_axis[b, a1, 0], size))
        return
    n1, pairs, lines = c.bx_axis[b, a1, 0], 0, 0
    for i in range(n1):
        n = _inside(at + i * f1, f2, c.bx_axis[b, a2, 0], size)
        pairs += n
        lines += n > 0
    st.cnt[a1] = lines
    st.cnt[a2] = -(-pairs // lines) if lines else 0


@helper
def _inside(at: int, factor: int, n: int, size: int) -> int:
    """How many of `at + factor * (0 .. n - 1)` lie in [0, size)."""
    if factor < 0:
        at, factor = at + factor * (n - 1), -factor
    first = max(0, -(at // factor)) if at < 0 else 0
    last = min(n - 1, (size - 1 - at) // factor)
    return max(0, last - first + 1)


@helper
def measure_box(c: Code, st: State, s: int, b: int, depth: int) -> None:
    """Elements moved and fetched, elements of a contiguous run, first and last element touched (0, -1: none), elements
    from one run to the next (0: there is one) into st.box."""
    dims, axes, gather_dim = c.bx[b, 0], c.bx[b, 1], c.bx[b, 4]
    for a in range(axes):
        st.cnt[a] = c.bx_axis[b, a, 0]
    first, last, empty = c.bx[b, 3], c.bx[b, 3], False
    for d in range(dims):
        size, stride = c.bx_dim[b, d, 0], c.bx_dim[b, d, 1]
        at = c.bx_dim[b, d, 2]
        for j in range(depth):
            at += c.bx_coef[b, d, j] * st.env[s, j]
        lo, hi = at + c.bx_dim[b, d, 3], at + c.bx_dim[b, d, 4]
        if d == gather_dim:
            lo, hi = 0, size - 1
        elif lo < 0 or hi >= size:
            _clip(c, st, b, d, at)
            lo, hi = max(lo, 0), min(hi, size - 1)
            if hi < lo:
                empty = True
        first += stride * (lo if stride >= 0 else hi)
        last += stride * (hi if stride >= 0 else lo)
    moved, fetched, run, open_run, pitch = 1, 1, 1, True, 0
    for i in range(axes):
        a = c.bx_axis[b, i, 2]
        n, stride = st.cnt[a], abs(c.bx_axis[b, a, 1])
        moved *= n
        if stride == 0 or n <= 1:
            fetched *= min(n, 1)
            continue
        fetched *= n
        open_run = open_run and stride == run and a != c.bx[b, 5]
        if open_run:
            run *= n
        elif pitch == 0:
            pitch = stride
    if empty or moved == 0:
        moved, fetched, run, first, last = 0, 0, 1, 0, -1
    st.box[0], st.box[1], st.box[2], st.box[3], st.box[4], st.box[5] = moved, fetched, run, first, last, pitch


@helper
def _extents(c: Code, st: State, s: int, first: int, n: int, depth: int) -> None:
    """Valid extents of n axes from bound `first` on into st.cnt."""
    for i in range(n):
        limit, size = c.bd[first + i, 1], c.bd[first + i, 2]
        if limit == NO_BOUND:
            st.cnt[i] = size
            continue
        at = c.bd[first + i, 0]
        for j in range(depth):
            at += c.bd_coef[first + i, j] * st.env[s, j]
        st.cnt[i] = max(0, min(size, limit - at))


@helper
def mma_clk(c: Code, m: Machine, st: State, s: int, i: int, first_mask: int) -> float:
    """Cycles of an mma, which are counted with its work."""
    v, depth = c.ins[i, 4], c.ins[i, 3]
    bound, na, nk, nn = c.mma[v, 0], c.mma[v, 1], c.mma[v, 2], c.mma[v, 9]
    _extents(c, st, s, bound, na + nn + nk, depth)
    rows, cols, k = 1, 1, 1
    for a in range(na):
        rows *= st.cnt[a]
    for a in range(na, na + nn):
        cols *= st.cnt[a]
    for a in range(na + nn, na + nn + nk):
        k *= st.cnt[a]
    m_time, n_time, k_time = rows, cols, k
    if m.whole_tiles:
        m_time, n_time, k_time = 1, 1, 1
        for a in range(na + nn + nk):
            n = c.bd[bound + a, 2]
            if a < na:
                m_time *= n
            elif a < na + nn:
                n_time *= n
            else:
                k_time *= n
    fm, fn, fk, ii, size = c.mma[v, 3], c.mma[v, 4], c.mma[v, 5], c.mma[v, 6], c.mma[v, 7]
    busy = engine_clk(m_time, n_time, k_time, fm, fn, fk, ii, m.lane_rows, m.lane_cols, m.engine, m.gap)
    read = mma_operand_bytes(m_time, n_time, k_time, fm, fn, fk, m.lane_rows, m.lane_cols, m.engine, size)
    st.n[i, 2] += read
    if (first_mask & c.mma[v, 8]) != c.mma[v, 8]:
        st.n[i, 4] += rows * cols * 4
    st.n[i, 5] += rows * cols * 4
    st.n[i, 6] += rows * cols * k
    st.n[i, 7] += busy
    fragments = -(-rows // fm) * -(-cols // fn)
    if (first_mask & c.mma[v, 8]) == c.mma[v, 8]:
        st.n[i, 8] += fragments
    st.n[i, 9] += fragments * -(-k // fk)
    return float(max(float(busy), read / m.l1_rate))


@helper
def _elements(st: State, count: int, mask: int) -> int:
    a = 0
    while mask:
        for _ in range(mask & 3):
            count *= st.cnt[a]
        mask >>= 2
        a += 1
    return count


@helper
def vec_clk(c: Code, m: Machine, st: State, s: int, i: int) -> float:
    """Cycles of a vec, which are counted with its work."""
    v, depth = c.ins[i, 4], c.ins[i, 3]
    _extents(c, st, s, c.vec[v, 0], c.vec[v, 1], depth)
    total, moved = 0.0, 0.0
    for j in range(c.vec[v, 2], c.vec[v, 3]):
        n = _elements(st, c.term[j, 0], c.term[j, 1])
        st.ops[i, 0] += n * c.term[j, 2]
        st.ops[i, 1] += n * c.term[j, 3]
        total += step_clk(n, c.term[j, 2], c.term[j, 3], c.term[j, 4], m.lanes, m.sfu)
    st.n[i, 7] += int(total)
    for j in range(c.vec[v, 4], c.vec[v, 5]):
        n = _elements(st, c.traffic[j, 0], c.traffic[j, 1]) * c.traffic[j, 2]
        st.n[i, 2 + c.traffic[j, 3]] += n
        moved += n / (m.acc_rate if c.traffic[j, 3] >= 2 else m.l1_rate)
    return max(total, moved)
