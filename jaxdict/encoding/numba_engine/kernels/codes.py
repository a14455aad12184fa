"""Numba kernels for exact codes, NumPy in and out: one sample at a time, the GIL released.

Each sample is `min_{z >= 0} 1/2 ||y - z A||^2 + lam sum z`. One look at all atoms gives its correlations `c = A (y - z A)` and its
duality gap (theory.md T2); the atoms that exceed lam most join the ones in use, `descend` solves the problem on these few
exactly, and the next look tells what is missing. Small problems are solved in float64 whatever the data's dtype; codes are rounded
to it before their gap is taken.
"""

import numba
import numpy as np

from jaxdict.encoding.numba_engine.kernels.steps import (
    FREE,
    ROUNDING,
    USED,
    descend,
    enter,
    keep_largest,
    kernel,
    measure,
)

# Looks in a row that only refine rounding before a sample is left at its floor.
IDLE_LOOKS = 2


@kernel
def _look(gram, q, atoms, z, n, c):
    """`c = q - z gram[atoms]` over all atoms."""
    k = c.shape[0]
    for j in range(k):
        c[j] = q[j]
    for i in range(0, n - 3, 4):
        g0, g1, g2, g3 = gram[atoms[i]], gram[atoms[i + 1]], gram[atoms[i + 2]], gram[atoms[i + 3]]
        z0, z1, z2, z3 = z[i], z[i + 1], z[i + 2], z[i + 3]
        for j in range(k):
            c[j] -= z0 * g0[j] + z1 * g1[j] + z2 * g2[j] + z3 * g3[j]
    for i in range(n - n % 4, n):
        g0, z0 = gram[atoms[i]], z[i]
        for j in range(k):
            c[j] -= z0 * g0[j]


@kernel
def gram_rows(
    lo,
    hi,
    todo,
    gram,
    Q,
    squares,
    lam,
    tol,
    defect_tol,
    most_looks,
    added,
    room,
    first,
    first_values,
    indices,
    values,
    Z,
    out,
):
    """Exact codes of rows `todo[lo:hi]` from the Gram matrix, `Q = Y A^T` and `||y||^2`, started from the `first` slots.

    They go to the slots, and to dense `Z` where it has rows. `out` takes gap, objective, looks, atoms in use and T1's defect; -1
    atoms say that `room` was too small and the row is untouched.
    """
    k, slots, width = gram.shape[0], indices.shape[1], room + added
    c, local, step = np.empty(k), np.empty((width, width)), np.empty(width)
    factor, order, state = np.empty((room, room)), np.empty(room, np.int64), np.empty(width, np.int64)
    atoms, z, c_in, z_new = np.empty(width, np.int64), np.empty(width), np.empty(width), np.empty(width)
    found, pulls, taken = np.empty(k, np.int64), np.empty(k), np.zeros(k, np.bool_)
    for at in range(lo, hi):
        row = todo[at]
        q = Q[row]
        n, idle, looks = np.int64(0), np.int64(0), np.int64(0)
        for s in range(first.shape[1]):
            if first[row, s] < k and first_values[row, s] > 0 and n < room:
                atoms[n], z[n] = first[row, s], first_values[row, s]
                n += 1
        largest = 0.0
        for j in range(k):
            largest = max(largest, abs(q[j]))
        noise = ROUNDING * (lam + largest)
        primal, gap, defect = 0.0, 0.0, 0.0
        while True:
            _look(gram, q, atoms, z, n, c)
            top, explained = 0.0, 0.0
            for j in range(k):
                top = max(top, c[j])
            for i in range(n):
                c_in[i] = c[atoms[i]]
                explained += z[i] * (q[atoms[i]] + c_in[i])
            primal, gap, defect = measure(lam, max(squares[row] - explained, 0.0), top, z, c_in, n)
            if (gap <= tol * primal and defect <= defect_tol) or looks >= most_looks or idle >= IDLE_LOOKS:
                break
            looks += 1
            for i in range(n):
                taken[atoms[i]] = True
            pulling = np.int64(0)
            if top > lam + noise:
                for j in range(k):
                    if c[j] > lam + noise and not taken[j]:
                        found[pulling], pulls[pulling] = j, c[j]
                        pulling += 1
            for i in range(n):
                taken[atoms[i]] = False
            idle = 0 if pulling else idle + 1
            w = n + keep_largest(pulls, found, pulling, added)
            for i in range(n, w):
                atoms[i], z[i], c_in[i] = found[i - n], 0.0, pulls[i - n]
            for i in range(w):
                whole = gram[atoms[i]]
                for j in range(i + 1):
                    local[i, j] = local[j, i] = whole[atoms[j]]
            m = enter(local, c_in, z, state, order, factor, n, w)
            n = descend(local, c_in, z, state, order, factor, step, m, w, lam, noise)
            if n < 0:
                break
            for i in range(n):
                z_new[i], found[i] = z[order[i]], atoms[order[i]]
            for i in range(n):
                z[i], atoms[i] = values.dtype.type(z_new[i]), found[i]
        out[row, 3] = n
        if n < 0:
            continue
        out[row, 0], out[row, 1], out[row, 2], out[row, 4] = gap, primal, looks, defect
        if Z.shape[0]:
            for j in range(k):
                Z[row, j] = 0
            for i in range(n):
                Z[row, atoms[i]] = z[i]
        kept = keep_largest(z, atoms, n, slots)
        for s in range(slots):
            indices[row, s] = atoms[s] if s < kept else k
            values[row, s] = z[s] if s < kept else 0.0
        if kept < n and not Z.shape[0]:  # the codes that fit, measured against the dual point of the full ones
            _look(gram, q, atoms, z, kept, c)
            explained, total = 0.0, 0.0
            for i in range(kept):
                explained += z[i] * (q[atoms[i]] + c[atoms[i]])
                total += z[i]
            cut = 0.5 * max(squares[row] - explained, 0.0) + lam * total
            out[row, 0], out[row, 1] = gap + cut - primal, cut


@kernel
def _take(atom, value, r):
    for p in range(r.shape[0]):
        r[p] -= value * atom[p]


@kernel
def _residual(target, atoms, used, z, n, r):
    """`r = y - z A` over the `n` used atoms, in float64."""
    for p in range(r.shape[0]):
        r[p] = target[p]
    for i in range(n):
        _take(atoms[used[i]], z[i], r)


@kernel
def _dot(atom, r):
    total = 0.0
    for p in range(r.shape[0]):
        total += atom[p] * r[p]
    return total


@kernel
def _products(rows, w, gram):
    """Gram matrix of the first `w` rows, two by four at a time; rows up to the next multiple of four are zero."""
    zero = rows[0, 0] - rows[0, 0]
    for i in range(0, w, 2):
        a, b = rows[i], rows[i + 1]
        for j in range(0, i + 2, 4):
            e, f, g, h = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
            ae, af, ag, ah, be, bf, bg, bh = zero, zero, zero, zero, zero, zero, zero, zero
            for p in range(rows.shape[1]):
                ae += a[p] * e[p]
                af += a[p] * f[p]
                ag += a[p] * g[p]
                ah += a[p] * h[p]
                be += b[p] * e[p]
                bf += b[p] * f[p]
                bg += b[p] * g[p]
                bh += b[p] * h[p]
            gram[i, j], gram[i, j + 1], gram[i, j + 2], gram[i, j + 3] = ae, af, ag, ah
            gram[i + 1, j], gram[i + 1, j + 1], gram[i + 1, j + 2], gram[i + 1, j + 3] = be, bf, bg, bh
    for i in range(w):
        for j in range(i):
            gram[j, i] = gram[i, j]


@kernel
def _solve_local(rows, r, w, n, z, lam, noise, local, c, state, order, factor, step, start):
    """Exact codes `z` on the gathered atoms `rows[:w]`, the first `n` in use; `r` is moved along. Returns how many are in use.

    The Gram matrix has the data's rounding; each repeat takes correlations from the residual in float64 and removes it.
    """
    _products(rows, w, local)
    for i in range(n):
        start[i] = z[i]
    m = enter(local, c, z, state, order, factor, n, w)
    for i in range(n):
        if z[i] != start[i]:
            _take(rows[i], -start[i], r)
    for repeat in range(4):
        worst = 0.0
        for i in range(w):
            start[i] = z[i]
            c[i] = _dot(rows[i], r)
            if state[i] == USED:
                worst = max(worst, abs(c[i] - lam))
            elif state[i] == FREE:
                worst = max(worst, c[i] - lam)
        if repeat and worst <= 4 * noise:
            break
        m = descend(local, c, z, state, order, factor, step, m, w, lam, noise)
        if m < 0:
            break
        for i in range(w):
            if z[i] != start[i]:
                _take(rows[i], z[i] - start[i], r)
    return m


@kernel
def wide_round(
    lo,
    hi,
    turn,
    todo,
    targets,
    atoms,
    C,
    R,
    lam,
    tol,
    defect_tol,
    margin,
    most_looks,
    added,
    used,
    z,
    count,
    idle,
    out,
    done,
):
    """One round of rows `todo[turn[lo:hi]]` of a block: what the correlations `C` of their residuals say, and better codes.

    Codes are `z[row, :count[row]]` of atoms `used[row]`. A row that is solved, or will not get better, is `done`; the others'
    new residuals go to `R`. Correlations within `margin * ||r||` of lam are recomputed in float64, so the gap holds to it.
    `out` as in `gram_rows`.
    """
    k, d, room = C.shape[1], targets.shape[1], used.shape[1]
    width = room + added
    local, factor, step = np.empty((width + 4, width + 4)), np.empty((room, room)), np.empty(width)
    rows = np.zeros((width + 4, d), atoms.dtype)
    order, state, names = np.empty(room, np.int64), np.empty(width, np.int64), np.empty(width, np.int64)
    c, codes, start, r = np.empty(width), np.empty(width), np.empty(width), np.empty(d)
    found, pulls, taken = np.empty(k, np.int64), np.empty(k), np.zeros(k, np.bool_)
    for t in range(lo, hi):
        at = turn[t]
        row = todo[at]
        n = count[row]
        _residual(targets[row], atoms, used[row], z[row], n, r)
        squared = _dot(r, r)
        near = margin * np.sqrt(squared)
        noise = ROUNDING * (lam + np.sqrt(_dot(targets[row], targets[row])))
        top = 0.0
        for i in range(n):
            c[i] = _dot(atoms[used[row, i]], r)
            top = max(top, c[i])
            taken[used[row, i]] = True
        pulling = np.int64(0)
        seen = C[at]
        for j in range(k):
            if seen[j] > lam - near and not taken[j]:
                value = np.float64(seen[j])
                if value < lam + near:
                    value = _dot(atoms[j], r)
                top = max(top, value)
                if value > lam + noise:
                    found[pulling], pulls[pulling] = j, value
                    pulling += 1
        for i in range(n):
            taken[used[row, i]] = False
        primal, gap, defect = measure(lam, squared, top, z[row], c, n)
        out[row, 0], out[row, 1], out[row, 3], out[row, 4] = gap, primal, n, defect
        solved = gap <= tol * primal and defect <= defect_tol
        if solved or out[row, 2] >= most_looks or idle[row] >= IDLE_LOOKS:
            done[row] = True
            continue
        idle[row] = 0 if pulling else idle[row] + 1
        out[row, 2] += 1
        new = keep_largest(pulls, found, pulling, added)
        w = n + new
        for i in range(w):
            names[i] = used[row, i] if i < n else found[i - n]
            codes[i] = z[row, i] if i < n else 0.0
        for i in range(w + 4):
            for p in range(d):
                rows[i, p] = atoms[names[i], p] if i < w else 0
        m = _solve_local(rows, r, w, n, codes, lam, noise, local, c, state, order, factor, step, start)
        if m < 0:
            out[row, 2], out[row, 3] = out[row, 2] - 1, -1
            continue
        count[row] = m
        for i in range(m):
            used[row, i] = names[order[i]]
            z[row, i] = atoms.dtype.type(codes[order[i]])
        _residual(targets[row], atoms, used[row], z[row], m, r)
        for p in range(d):
            R[at, p] = r[p]


@kernel
def cut_rows(targets, atoms, lam, slots, used, z, count, out):
    """Keep the `slots` largest codes of each row; its gap is then measured against the dual point of all of them."""
    r = np.empty(targets.shape[1])
    for row in range(count.shape[0]):
        if count[row] > slots:
            n = keep_largest(z[row], used[row], count[row], slots)
            _residual(targets[row], atoms, used[row], z[row], n, r)
            cut = 0.5 * _dot(r, r)
            for i in range(n):
                cut += lam * z[row, i]
            out[row, 0], out[row, 1] = out[row, 0] + cut - out[row, 1], cut


def threads() -> int:
    """How many threads to use: the cores, or what NUMBA_NUM_THREADS says."""
    return numba.get_num_threads()
