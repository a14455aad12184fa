"""How sums over samples change with the dictionary, codes following on their supports: what products with the Hessian are made of.

As in `sums.py`, in plain form and float64.
"""

import numpy as np

from jaxdict.encoding.numba_engine.kernels.codes import product
from jaxdict.encoding.numba_engine.kernels.steps import kernel
from jaxdict.encoding.numba_engine.kernels.sums import NUMBERS, ROWS, SLOTS, STACK, in_parts, leave, n_parts, total

# A pivot of a sample's Gram matrix below this share of its diagonal: the atom is held.
PIVOT = 1e-10


@kernel
def _gram(gram, atoms, used, n, local):
    """The lower half of the Gram matrix of `n` used atoms, from the whole one where there is one."""
    for i in range(n):
        for j in range(i + 1):
            value = 0.0
            if gram.shape[0]:
                value = gram[used[i], used[j]]
            else:
                a, b = atoms[used[i]], atoms[used[j]]
                for p in range(a.shape[0]):
                    value += a[p] * b[p]
            local[i, j] = value


@kernel
def _factor(factor, n):
    """Cholesky in place, the diagonal inverted; an atom in the span of those before it gets zero there: its code is held."""
    for i in range(n):
        row, own = factor[i], factor[i, i]
        for j in range(i + 1):
            value, other = row[j], factor[j]
            for k in range(j):
                value -= row[k] * other[k]
            if j < i:
                row[j] = value * other[j]
            else:
                row[i] = 1 / np.sqrt(value) if value > PIVOT * own else 0.0


@kernel
def _factor_rows(lo, hi, part, atoms, gram, indices, starts, packed):
    """Cholesky factors of samples `lo` to `hi`, their lower halves row after row from `packed[starts[row]]`."""
    local = np.empty((indices.shape[1], indices.shape[1]))
    for row in range(lo, hi):
        at, n = starts[row], 0
        while n * (n + 1) // 2 < starts[row + 1] - at:
            n += 1
        _gram(gram, atoms, indices[row], n, local)
        _factor(local, n)
        for i in range(n):
            for j in range(i + 1):
                packed[at] = local[i, j]
                at += 1


@kernel
def _solve(factor, n, b):
    """`b <- (L L^T)^-1 b` in place, by a packed factor."""
    at = 0
    for i in range(n):
        value = b[i]
        for k in range(i):
            value -= factor[at + k] * b[k]
        b[i] = value * factor[at + i]
        at += i + 1
    for i in range(n - 1, -1, -1):
        at -= i + 1
        value = b[i] * factor[at + i]
        b[i] = value
        for k in range(i):
            b[k] -= factor[at + k] * value


@kernel
def _bend_rows(lo, hi, part, targets, atoms, weights, indices, values, starts, packed, turn, shift, crosses, pulls):
    """Sum over samples `lo` to `hi` the change of `-w z_k r` and `-w r` along `dA = turn`, `dy = -shift`, codes following on their support.

    With `q = shift + z dA`: `dz = (A_S A_S^T)^-1 (dA_S r - A_S q)`, `-dr = q + dz A`, and what is added is `w (z_k (-dr) - dz_k r)`.
    """
    cross, pull, d = crosses[part], pulls[part], targets.shape[1]
    r, q, dz = np.empty(d), np.empty(d), np.empty(indices.shape[1])
    for row in range(lo, hi):
        used, z, w = indices[row], values[row], weights[row]
        n = leave(targets[row], atoms, used, z, r)
        for p in range(d):
            q[p] = shift[p]
        for i in range(n):
            step, value = turn[used[i]], z[i]
            for p in range(d):
                q[p] += value * step[p]
        for i in range(n):
            atom, step, value = atoms[used[i]], turn[used[i]], 0.0
            for p in range(d):
                value += step[p] * r[p] - atom[p] * q[p]
            dz[i] = value
        _solve(packed[starts[row] : starts[row + 1]], n, dz)
        for i in range(n):
            atom, value = atoms[used[i]], dz[i]
            for p in range(d):
                q[p] += value * atom[p]
        for p in range(d):
            pull[p] += w * q[p]
        for i in range(n):
            into, a, b = cross[used[i]], w * z[i], w * dz[i]
            for p in range(d):
                into[p] += a * q[p] - b * r[p]


_STARTS = np.zeros(1, np.int64)
_factor_parts = in_parts("factor_rows", _factor_rows, ROWS, ROWS, SLOTS, _STARTS, NUMBERS)
_bend_parts = in_parts(
    "bend_rows", _bend_rows, ROWS, ROWS, NUMBERS, SLOTS, ROWS, _STARTS, NUMBERS, ROWS, NUMBERS, STACK, ROWS
)


@kernel
def support_factors(atoms, indices, values):
    """The supports' Cholesky factors, packed, and where each sample's begins."""
    (n, _), k = indices.shape, atoms.shape[0]
    starts = np.zeros(n + 1, np.int64)
    for row in range(n):
        count = np.sum(values[row] > 0)
        starts[row + 1] = starts[row] + count * (count + 1) // 2
    # The whole Gram matrix where it is less work than the samples' own.
    size = k if k * k <= starts[n] else 0
    gram, packed = np.empty((size, size)), np.empty(starts[n])
    product(atoms[:size], atoms[:size], gram)
    _factor_parts(n, n_parts(n, 0, starts[n]), (atoms, gram, indices, starts, packed))
    return starts, packed


@kernel
def bend(targets, atoms, weights, indices, values, starts, packed, turn, shift):
    """How the sums `-w z_k r` and `-w r` change along `dA = turn`, `dy = -shift`."""
    (n, d), k = targets.shape, atoms.shape[0]
    count = n_parts(n, k * d + d, 6 * d * np.sum(values > 0))
    crosses, pulls = np.zeros((count, k, d)), np.zeros((count, d))
    _bend_parts(n, count, (targets, atoms, weights, indices, values, starts, packed, turn, shift, crosses, pulls))
    return total(crosses), total(pulls)
