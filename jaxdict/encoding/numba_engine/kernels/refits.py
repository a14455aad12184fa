"""Best values on a support that is given: least squares of a sample on its own few atoms, non-negative or with signs free.

All in float64; correlations are taken from the residual after each solve, so that what rounding leaves is removed by the next.
"""

from typing import NamedTuple

import numpy as np

from jaxdict.encoding.numba_engine.kernels.steps import ROUNDING, append, careful, descend, enter, kernel, newton
from jaxdict.encoding.numba_engine.kernels.sums import SLOTS
from jaxdict.encoding.numba_engine.kernels.threads import in_turns

# The second solve only removes rounding, and the third what a nearly singular support left of it.
SOLVES = 3


class Small(NamedTuple):
    """Room for one sample's problem on a few atoms, used again for the next."""

    gram: np.ndarray
    factor: np.ndarray
    order: np.ndarray
    state: np.ndarray
    step: np.ndarray
    z: np.ndarray
    c: np.ndarray  # correlations of the atoms with the residual


@kernel
def small_space(size):
    """`Small` for so many atoms."""
    return Small(
        np.empty((size, size)), np.empty((size, size)), np.empty(size, np.int64), np.empty(size, np.int64),
        np.empty(size), np.empty(size), np.empty(size),
    )  # fmt: skip


@kernel
def solve_small(s, n, w, noise, free):
    """From values `z` of the first `n` of `w` atoms, and correlations `c`, to the least error over `z >= 0`, or over all z if `free`.

    An atom in the span of those before it is left at zero where signs are free.
    """
    if not free:
        m = enter(s.gram, s.c, s.z, s.state, s.order, s.factor, n, w)
        descend(s.gram, s.c, s.z, s.state, s.order, s.factor, s.step, m, w, 0.0, noise)
        return
    m = np.int64(0)
    for i in range(w):
        if append(s.gram, s.factor, s.order, m, i):
            m += 1
        else:
            for j in range(w):
                s.c[j] += s.z[i] * s.gram[i, j]
            s.z[i] = 0.0
    newton(s.factor, s.order, m, s.c, 0.0, s.step)
    for i in range(m):
        at, move = s.order[i], s.step[i]
        s.z[at] += move
        for j in range(w):
            s.c[j] -= move * s.gram[at, j]


@kernel
def _correlate(target, rows, w, s, r):
    """`r = y - z A` and `c = A r` over the `w` gathered atoms; the largest norm of an atom times that of y."""
    size, largest = 0.0, 0.0
    for p in range(r.shape[0]):
        r[p] = target[p]
        size += r[p] * r[p]
    for i in range(w):
        for p in range(r.shape[0]):
            r[p] -= s.z[i] * rows[i, p]
        largest = max(largest, s.gram[i, i])
    for i in range(w):
        total = 0.0
        for p in range(r.shape[0]):
            total += rows[i, p] * r[p]
        s.c[i] = total
    return np.sqrt(size * largest)


@kernel
def _refit_rows(lo, hi, good, targets, atoms, indices, values, free, out):
    """Best values of samples `lo` to `hi` on the slots whose values are not zero; others stay zero."""
    d, slots = targets.shape[1], indices.shape[1]
    s, rows, r, at = small_space(slots), np.empty((slots, d)), np.empty(d), np.empty(slots, np.int64)
    for row in range(lo, hi):
        if not good[row]:
            continue
        w = np.int64(0)
        for slot in range(slots):
            out[row, slot] = 0
            if values[row, slot] != 0 and (free or values[row, slot] > 0):
                at[w], s.z[w] = slot, values[row, slot]
                for p in range(d):
                    rows[w, p] = atoms[indices[row, slot], p]
                w += 1
        for i in range(w):
            for j in range(i + 1):
                total = 0.0
                for p in range(d):
                    total += rows[i, p] * rows[j, p]
                s.gram[i, j] = s.gram[j, i] = total
        for _ in range(SOLVES):
            size, used = _correlate(targets[row], rows, w, s, r), w
            if not free:  # those in use first, as the active set wants them
                used = _used_first(s, rows, at, w)
            solve_small(s, used, w, ROUNDING * size, free)
        for i in range(w):
            out[row, at[i]] = s.z[i]


@kernel
def _used_first(s, rows, at, w):
    """Move atoms with a positive value before the others; how many they are."""
    n = np.int64(0)
    for i in range(w):
        if s.z[i] <= 0:
            continue
        if i != n:
            s.z[i], s.z[n], s.c[i], s.c[n], at[i], at[n] = s.z[n], s.z[i], s.c[n], s.c[i], at[n], at[i]
            for p in range(rows.shape[1]):
                rows[i, p], rows[n, p] = rows[n, p], rows[i, p]
            for j in range(w):
                s.gram[i, j], s.gram[n, j] = s.gram[n, j], s.gram[i, j]
            for j in range(w):
                s.gram[j, i], s.gram[j, n] = s.gram[j, n], s.gram[j, i]
        n += 1
    return n


@careful
def finite_rows(targets, atoms):
    """Which rows can be worked on: finite ones, of finite atoms; and the squared norms of both."""
    squares, norms = np.zeros(len(targets)), np.zeros(len(atoms))
    good, fine = np.zeros(len(targets), np.bool_), True
    for k in range(len(atoms)):
        for p in range(atoms.shape[1]):
            norms[k] += np.float64(atoms[k, p]) ** 2
        fine = fine and norms[k] < np.inf
    for row in range(len(targets)):
        for p in range(targets.shape[1]):
            squares[row] += np.float64(targets[row, p]) ** 2
        good[row] = fine and squares[row] < np.inf
    return good, squares, norms


def refit(real):
    """A kernel: best values of each row of targets on its slots, into `out`; NaN for rows that are not finite."""
    rows = np.zeros((1, 1), real)
    over_rows = in_turns(
        f"refit_rows_{np.dtype(real)}", _refit_rows, np.zeros(1, np.bool_), rows, rows, SLOTS, rows, 0, rows
    )

    @careful
    def refitted(targets, atoms, indices, values, free, out):
        out.fill(np.nan)
        good, _, _ = finite_rows(targets, atoms)
        over_rows(len(targets), indices.shape[1] * targets.shape[1], (good, targets, atoms, indices, values, free, out))

    return refitted
