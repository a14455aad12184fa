"""Exact codes of many atoms, a block of samples at a time: each round is one product, all residuals with all atoms, and then each
sample's own few atoms.

Products have the data's dtype; whatever they leave open, and all that a gap is made of, is taken in float64.
"""

from typing import NamedTuple

import numpy as np

from jaxdict.encoding.numba_engine.kernels.gram import IDLE_LOOKS
from jaxdict.encoding.numba_engine.kernels.steps import (
    FREE,
    LIMITS,
    ROUNDING,
    USED,
    descend,
    enter,
    keep_largest,
    kernel,
    measure,
)
from jaxdict.encoding.numba_engine.kernels.threads import in_turns

# Atoms that join a sample's problem in a round: many, since a round is a pass over all atoms.
ADDED = 64


class _Space(NamedTuple):
    """Room for one sample's problem, used again for the next."""

    rows: np.ndarray  # the atoms in play, gathered
    local: np.ndarray  # their Gram matrix
    factor: np.ndarray
    order: np.ndarray
    state: np.ndarray
    step: np.ndarray
    names: np.ndarray
    codes: np.ndarray
    c: np.ndarray
    start: np.ndarray
    r: np.ndarray
    found: np.ndarray  # atoms that pull, and how much
    pulls: np.ndarray
    taken: np.ndarray


@kernel
def _space(atoms, room):
    (k, d), width = atoms.shape, room + ADDED
    return _Space(
        np.zeros((width + 4, d), atoms.dtype), np.empty((width + 4, width + 4)), np.empty((room, room)),
        np.empty(room, np.int64), np.empty(width, np.int64), np.empty(width), np.empty(width, np.int64), np.empty(width),
        np.empty(width), np.empty(width), np.empty(d), np.empty(k, np.int64), np.empty(k), np.zeros(k, np.bool_),
    )  # fmt: skip


@kernel
def _take(atom, value, r):
    for p in range(r.shape[0]):
        r[p] -= value * atom[p]


@kernel
def residual(target, atoms, used, z, n, r):
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
def _solve_local(w, n, lam, noise, s):
    """Exact `codes` on the gathered atoms `rows[:w]`, the first `n` in use; `r` is moved along. Returns how many are in use.

    The Gram matrix has the data's rounding; each repeat takes correlations from the residual in float64 and removes it.
    """
    _products(s.rows, w, s.local)
    for i in range(n):
        s.start[i] = s.codes[i]
    m = enter(s.local, s.c, s.codes, s.state, s.order, s.factor, n, w)
    for i in range(n):
        if s.codes[i] != s.start[i]:
            _take(s.rows[i], -s.start[i], s.r)
    for repeat in range(4):
        worst = 0.0
        for i in range(w):
            s.start[i] = s.codes[i]
            s.c[i] = _dot(s.rows[i], s.r)
            if s.state[i] == USED:
                worst = max(worst, abs(s.c[i] - lam))
            elif s.state[i] == FREE:
                worst = max(worst, s.c[i] - lam)
        if repeat and worst <= 4 * noise:
            break
        m = descend(s.local, s.c, s.codes, s.state, s.order, s.factor, s.step, m, w, lam, noise)
        if m < 0:
            break
        for i in range(w):
            if s.codes[i] != s.start[i]:
                _take(s.rows[i], s.codes[i] - s.start[i], s.r)
    return m


@kernel
def _pulling(seen, atoms, used, n, lam, noise, near, s):
    """The largest correlation with the residual, and how many atoms that are not in use pull: they are `found`, with `pulls`.

    Correlations `seen` within `near` of lam are recomputed in float64.
    """
    top, pulling = 0.0, np.int64(0)
    for i in range(n):
        s.c[i] = _dot(atoms[used[i]], s.r)
        top = max(top, s.c[i])
        s.taken[used[i]] = True
    for j in range(seen.shape[0]):
        if seen[j] > lam - near and not s.taken[j]:
            value = np.float64(seen[j])
            if value < lam + near:
                value = _dot(atoms[j], s.r)
            top = max(top, value)
            if value > lam + noise:
                s.found[pulling], s.pulls[pulling] = j, value
                pulling += 1
    for i in range(n):
        s.taken[used[i]] = False
    return top, pulling


@kernel
def _improve(atoms, used, z, n, pulling, lam, noise, s):
    """Solve on the atoms in use and those that pull most, in place; how many are in use, or -1 where room is too small."""
    w = n + keep_largest(s.pulls, s.found, pulling, ADDED)
    for i in range(w):
        s.names[i] = used[i] if i < n else s.found[i - n]
        s.codes[i] = z[i] if i < n else 0.0
    for i in range(w + 4):
        for p in range(s.r.shape[0]):
            s.rows[i, p] = atoms[s.names[i], p] if i < w else 0
    m = _solve_local(w, n, lam, noise, s)
    for i in range(m):
        used[i] = s.names[s.order[i]]
        z[i] = atoms.dtype.type(s.codes[s.order[i]])
    return m


@kernel
def _round_of(lo, hi, turn, todo, targets, atoms, C, R, limits, margin, state, out):
    """One round of rows `todo[turn[lo:hi]]` of a block: what the correlations `C` of their residuals say, and better codes.

    Codes are `z[row, :count[row]]` of atoms `used[row]`. A row that is solved, or will not get better, is `done`; the others'
    new residuals go to `R`. Correlations within `margin * ||r||` of lam are recomputed in float64, so the gap holds to it.
    `out` as in `gram._solve_row`.
    """
    used, z, count, idle, done = state
    s, lam = _space(atoms, used.shape[1]), limits.lam
    for t in range(lo, hi):
        at = turn[t]
        row = todo[at]
        n = count[row]
        residual(targets[row], atoms, used[row], z[row], n, s.r)
        squared = _dot(s.r, s.r)
        noise = ROUNDING * (lam + np.sqrt(_dot(targets[row], targets[row])))
        top, pulling = _pulling(C[at], atoms, used[row], n, lam, noise, margin * np.sqrt(squared), s)
        primal, gap, defect = measure(lam, squared, top, z[row], s.c, n)
        out[row, 0], out[row, 1], out[row, 3], out[row, 4] = gap, primal, n, defect
        solved = gap <= limits.tol * primal and defect <= limits.defect_tol
        if solved or out[row, 2] >= limits.most or idle[row] >= IDLE_LOOKS:
            done[row] = True
            continue
        m = _improve(atoms, used[row], z[row], n, pulling, lam, noise, s)
        if m < 0:
            out[row, 3] = -1
            continue
        idle[row] = 0 if pulling else idle[row] + 1
        out[row, 2] += 1
        count[row] = m
        residual(targets[row], atoms, used[row], z[row], m, s.r)
        for p in range(s.r.shape[0]):
            R[at, p] = s.r[p]


def round_of(real):
    """`_round_of` over ranges of rows, for data of one dtype."""
    whole, rows, some = np.zeros((1, 1)), np.zeros((1, 1), real), np.zeros(1, np.int64)
    state = (np.zeros((1, 1), np.int64), whole, some, some, np.zeros(1, np.bool_))
    example = (some, some, rows, rows, rows, rows, LIMITS, 0.0, state, whole)
    return in_turns(f"round_{np.dtype(real)}", _round_of, *example)


@kernel
def cut_rows(targets, atoms, lam, slots, used, z, count, out):
    """Keep the `slots` largest codes of each row; its gap is then measured against the dual point of all of them."""
    r = np.empty(targets.shape[1])
    for row in range(count.shape[0]):
        if count[row] > slots:
            n = keep_largest(z[row], used[row], count[row], slots)
            residual(targets[row], atoms, used[row], z[row], n, r)
            cut = 0.5 * _dot(r, r)
            for i in range(n):
                cut += lam * z[row, i]
            out[row, 0], out[row, 1] = out[row, 0] + cut - out[row, 1], cut
