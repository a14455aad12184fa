"""Numba kernels for one small non-negative lasso: exact by an active set whose Cholesky factor grows and shrinks by a row.

The problem is `min_{z >= 0} 1/2 z G z - z (c - lam) + const` around codes with correlations `c`; `descend` solves it in place
(Lawson and Hanson 1974).
"""

from typing import NamedTuple

import numba
import numpy as np

# Sums may be taken in any order and contracted. Rows that are not finite never come here.
MATHS = {"reassoc", "contract", "arcp", "nsz", "nnan"}

# Python calls none of them: what would unpack its objects for them is left out, half of what there is to compile.
ALIKE = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def kernel(function):
    """Compiled on its first use by another kernel; nothing in it is NaN."""
    return numba.njit(fastmath=MATHS, **ALIKE)(function)


def careful(function):
    """As `kernel`, where NaN may be met."""
    return numba.njit(fastmath={"reassoc"}, **ALIKE)(function)


def written_out(function):
    """As `kernel`, its lines standing in their callers' code: what is small is compiled faster so."""
    return numba.njit(inline="always", **ALIKE)(function)


class Limits(NamedTuple):
    """The penalty, and where a sample is solved or left: relative T2 gap, T1 defect, looks at all atoms."""

    lam: float
    tol: float
    defect_tol: float
    most: int


LIMITS = Limits(0.0, 0.0, 0.0, 1)


# A pivot below this share of its diagonal means that an atom lies in the span of those in use.
PIVOT = 1e-14
ROUNDING = 16 * 2.220446049250313e-16
FREE, USED, BANNED = 0, 1, 2


@kernel
def append(gram, factor, order, n, new):
    """Add atom `new` to the lower Cholesky factor of the atoms `order[:n]` (its diagonal is stored inverted)."""
    row = factor[n]
    left = gram[new, new]
    for i in range(n):
        above = factor[i]
        value = gram[new, order[i]]
        for j in range(i):
            value -= above[j] * row[j]
        value *= above[i]
        row[i] = value
        left -= value * value
    row[n] = 1 / np.sqrt(max(left, PIVOT * gram[new, new] + 1e-300))
    order[n] = new
    return left > 100 * PIVOT * gram[new, new]


@kernel
def remove(factor, order, n, at):
    """Take the atom at position `at` out of the factor by Givens rotations."""
    for i in range(at, n - 1):
        order[i] = order[i + 1]
        for j in range(i + 1):
            factor[i, j] = factor[i + 1, j]
        factor[i, i + 1] = 1 / factor[i + 1, i + 1]
    for j in range(at, n - 1):
        a, b = factor[j, j], factor[j, j + 1]
        size = np.sqrt(a * a + b * b)
        cos, sin = a / size, b / size
        factor[j, j] = 1 / size
        for i in range(j + 1, n - 1):
            a, b = factor[i, j], factor[i, j + 1]
            factor[i, j] = cos * a + sin * b
            factor[i, j + 1] = cos * b - sin * a


@kernel
def enter(gram, c, z, state, order, factor, n, w):
    """Factor the first `n` of `w` atoms. One in the span of the others is left out: its weight goes to them."""
    m = np.int64(0)
    for i in range(w):
        state[i] = FREE
        if i < n:
            if append(gram, factor, order, m, i):
                state[i] = USED
                m += 1
            else:
                for j in range(w):
                    c[j] += z[i] * gram[i, j]
                z[i] = 0.0
    return m


@kernel
def newton(factor, order, n, c, lam, step):
    """`step = gram[order, order]^-1 (c - lam)`: from the codes in use to their minimiser."""
    for i in range(n):
        row = factor[i]
        value = c[order[i]] - lam
        for j in range(i):
            value -= row[j] * step[j]
        step[i] = value * row[i]
    for i in range(n - 1, -1, -1):
        row = factor[i]
        value = step[i] * row[i]
        step[i] = value
        for j in range(i):
            step[j] -= row[j] * value


@kernel
def descend(gram, c, z, state, order, factor, step, n, w, lam, noise):
    """Solve the problem on `w` atoms, in place: codes `z`, correlations `c`, the `n` in use in `order` with their factor.

    One atom enters at a time, the one that pulls most; then Newton steps, cut at the boundary, where what blocks leaves. Each
    entry lowers the objective, so the method ends. Returns how many atoms are in use, or -1 where `factor` has no room.
    """
    entered, solve = np.int64(-1), n > 0
    for _ in range(6 * w + 64):
        if not solve:
            pull, entered = noise, np.int64(-1)
            for j in range(w):
                if c[j] - lam > pull and state[j] == FREE:
                    pull, entered = c[j] - lam, j
            if entered < 0:
                break
            if n == factor.shape[0]:
                return -1
            append(gram, factor, order, n, entered)
            state[entered] = USED
            n += 1
        newton(factor, order, n, c, lam, step)
        if entered >= 0 and z[entered] == 0 and order[n - 1] == entered and step[n - 1] <= 0:
            # Only rounding turns an atom back that pulls.
            state[entered], entered, solve = BANNED, np.int64(-1), False
            n -= 1
            continue
        reach, blocker = 1.0, -1
        for i in range(n):
            if step[i] < 0 and z[order[i]] < -step[i] * reach:
                reach, blocker = -z[order[i]] / step[i], i
        for i in range(n):
            move = reach * step[i]
            z[order[i]] += move
            row = gram[order[i]]
            for j in range(w):
                c[j] -= move * row[j]
        solve = False
        if blocker >= 0:
            for i in range(n - 1, -1, -1):
                j = order[i]
                if i == blocker or (step[i] < 0 and z[j] <= 0):
                    z[j], state[j] = 0, FREE
                    remove(factor, order, n, i)
                    n -= 1
            solve = n > 0
    return n


@kernel
def keep_largest(values, indices, n, most):
    """Move the `most` largest of the first `n` values to the front (Hoare's selection); return how many there are."""
    lo, hi = 0, n - 1
    while most < n and lo < hi:
        bar, i, j = values[(lo + hi) // 2], lo, hi
        while i <= j:
            while values[i] > bar:
                i += 1
            while values[j] < bar:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                indices[i], indices[j] = indices[j], indices[i]
                i += 1
                j -= 1
        if most <= j + 1:
            hi = j
        elif most >= i:
            lo = i
        else:
            break
    return min(n, most)


@kernel
def measure(lam, squared, top, z, c, n):
    """Objective, T2 gap and T1 defect of a sample from `||r||^2`, the largest correlation, its codes and their correlations."""
    share = lam / top if top > lam else 1.0
    total, slack, defect = 0.0, 0.0, max(top - lam, 0.0)
    for i in range(n):
        total += z[i]
        slack += max(z[i] * (lam - share * c[i]), 0.0)
        defect = max(defect, abs(lam - c[i]))
    return 0.5 * squared + lam * total, 0.5 * (1 - share) ** 2 * squared + slack, defect / lam
