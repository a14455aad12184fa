"""Exact codes from the atoms' Gram matrix, one sample at a time, all in float64 whatever the data's dtype.

One look at all atoms gives a sample's correlations `c = A (y - z A)` and its duality gap (theory.md T2); the atoms that exceed lam
most join the ones in use, `descend` solves the problem on these few exactly, and the next look tells what is missing. Codes are
rounded to the data's dtype before their gap is taken.
"""

from typing import NamedTuple

import numpy as np

from jaxdict.encoding.numba_engine.kernels.steps import LIMITS, ROUNDING, descend, enter, keep_largest, kernel, measure
from jaxdict.encoding.numba_engine.kernels.threads import in_turns

# Looks in a row that only refine rounding before a sample is left at its floor.
IDLE_LOOKS = 2
# Atoms that join a sample's problem at a look: few, since looks are cheap.
ADDED = 16


class _Space(NamedTuple):
    """Room for one sample's problem, used again for the next."""

    c: np.ndarray  # correlations of all atoms
    local: np.ndarray  # Gram matrix of the atoms in play
    factor: np.ndarray
    order: np.ndarray
    state: np.ndarray
    step: np.ndarray
    atoms: np.ndarray  # the atoms in play: first those in use
    z: np.ndarray
    c_in: np.ndarray
    z_new: np.ndarray
    found: np.ndarray  # atoms that pull, and how much
    pulls: np.ndarray
    taken: np.ndarray


@kernel
def _space(k, room):
    width = room + ADDED
    return _Space(
        np.empty(k), np.empty((width, width)), np.empty((room, room)), np.empty(room, np.int64), np.empty(width, np.int64),
        np.empty(width), np.empty(width, np.int64), np.empty(width), np.empty(width), np.empty(width),
        np.empty(k, np.int64), np.empty(k), np.zeros(k, np.bool_),
    )  # fmt: skip


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
def _begin(first, first_values, k, room, s):
    """Take the slots to start from; how many there are."""
    n = np.int64(0)
    for slot in range(first.shape[0]):
        if first_values[slot] > 0 and n < room:
            s.atoms[n], s.z[n] = first[slot], first_values[slot]
            n += 1
    return n


@kernel
def _judge(gram, q, squared, lam, n, s):
    """Objective, gap, defect and largest correlation of the `n` codes in use."""
    _look(gram, q, s.atoms, s.z, n, s.c)
    top, explained = 0.0, 0.0
    for j in range(s.c.shape[0]):
        top = max(top, s.c[j])
    for i in range(n):
        s.c_in[i] = s.c[s.atoms[i]]
        explained += s.z[i] * (q[s.atoms[i]] + s.c_in[i])
    primal, gap, defect = measure(lam, max(squared - explained, 0.0), top, s.z, s.c_in, n)
    return primal, gap, defect, top


@kernel
def _pulling(bar, top, n, s):
    """How many atoms that are not in use have a correlation above the bar; they are `found`, with their `pulls`."""
    pulling = np.int64(0)
    if top > bar:
        for i in range(n):
            s.taken[s.atoms[i]] = True
        for j in range(s.c.shape[0]):
            if s.c[j] > bar and not s.taken[j]:
                s.found[pulling], s.pulls[pulling] = j, s.c[j]
                pulling += 1
        for i in range(n):
            s.taken[s.atoms[i]] = False
    return pulling


@kernel
def _improve(gram, lam, noise, n, pulling, s, real):
    """Solve on the atoms in use and those that pull most, rounded to `real`; how many are in use, -1 where room is too small."""
    w = n + keep_largest(s.pulls, s.found, pulling, ADDED)
    for i in range(n, w):
        s.atoms[i], s.z[i], s.c_in[i] = s.found[i - n], 0.0, s.pulls[i - n]
    for i in range(w):
        whole = gram[s.atoms[i]]
        for j in range(i + 1):
            s.local[i, j] = s.local[j, i] = whole[s.atoms[j]]
    m = enter(s.local, s.c_in, s.z, s.state, s.order, s.factor, n, w)
    n = descend(s.local, s.c_in, s.z, s.state, s.order, s.factor, s.step, m, w, lam, noise)
    for i in range(n):
        s.z_new[i], s.found[i] = s.z[s.order[i]], s.atoms[s.order[i]]
    for i in range(n):
        s.z[i], s.atoms[i] = real.type(s.z_new[i]), s.found[i]
    return n


@kernel
def _solve_row(gram, q, squared, limits, n, s, real, out):
    """Exact codes of one sample from the `n` in use; `out` takes gap, objective, looks, atoms in use (-1: more room!) and defect."""
    largest, idle, looks = 0.0, np.int64(0), np.int64(0)
    for j in range(q.shape[0]):
        largest = max(largest, abs(q[j]))
    noise = ROUNDING * (limits.lam + largest)
    while n >= 0:
        primal, gap, defect, top = _judge(gram, q, squared, limits.lam, n, s)
        out[0], out[1], out[2], out[4] = gap, primal, looks, defect
        solved = gap <= limits.tol * primal and defect <= limits.defect_tol
        if solved or looks >= limits.most or idle >= IDLE_LOOKS:
            break
        looks += 1
        pulling = _pulling(limits.lam + noise, top, n, s)
        idle = 0 if pulling else idle + 1
        n = _improve(gram, limits.lam, noise, n, pulling, s, real)
    out[3] = n
    return n


@kernel
def _write_row(gram, q, squared, lam, n, s, indices, values, Z, row, out):
    """A solved sample's codes: dense where `Z` has rows, and the largest in its slots."""
    k = q.shape[0]
    if Z.shape[0]:
        for j in range(k):
            Z[row, j] = 0
        for i in range(n):
            Z[row, s.atoms[i]] = s.z[i]
    kept = keep_largest(s.z, s.atoms, n, indices.shape[1])
    for slot in range(indices.shape[1]):
        indices[row, slot] = s.atoms[slot] if slot < kept else 0
        values[row, slot] = s.z[slot] if slot < kept else 0.0
    if kept < n and not Z.shape[0]:  # the codes that fit, measured against the dual point of the full ones
        _look(gram, q, s.atoms, s.z, kept, s.c)
        explained, total = 0.0, 0.0
        for i in range(kept):
            explained += s.z[i] * (q[s.atoms[i]] + s.c[s.atoms[i]])
            total += s.z[i]
        cut = 0.5 * max(squared - explained, 0.0) + lam * total
        out[0], out[1] = out[0] + cut - out[1], cut


@kernel
def _gram_rows(lo, hi, todo, gram, Q, squares, limits, room, first, results):
    """Exact codes of rows `todo[lo:hi]` from the Gram matrix, `Q = Y A^T` and `||y||^2`; a row that needs more room is untouched."""
    indices, values, Z, out = results
    s = _space(gram.shape[0], room)
    for at in range(lo, hi):
        row = todo[at]
        n = _begin(first[0][row], first[1][row], gram.shape[0], room, s)
        n = _solve_row(gram, Q[row], squares[row], limits, n, s, values.dtype, out[row])
        if n >= 0:
            _write_row(gram, Q[row], squares[row], limits.lam, n, s, indices, values, Z, row, out[row])


def gram_rows(real):
    """`_gram_rows` over ranges of rows, for data of one dtype."""
    whole, numbers, results = np.zeros((1, 1)), np.zeros(1), np.zeros((1, 1), real)
    slots = np.zeros((1, 1), np.int32)
    example = (
        np.zeros(1, np.int64),
        whole,
        whole,
        numbers,
        LIMITS,
        1,
        (slots, whole),
        (slots, results, results, whole),
    )
    return in_turns(f"gram_rows_{np.dtype(real)}", _gram_rows, *example)
