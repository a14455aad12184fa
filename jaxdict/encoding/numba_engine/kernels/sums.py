"""Numba kernels for sums over samples of exact codes: what slopes and Hessian products are made of, NumPy in and out.

In plain form (`duality.py`): residuals `r = y - z A`, slots of a sample's codes, atoms with norms and metric absorbed. Sums are float64.
"""

import numpy as np

from jaxdict.encoding.numba_engine.kernels.steps import kernel

# A pivot of a sample's Gram matrix below this share of its diagonal: the atom is held.
PIVOT = 1e-10


@kernel
def _leave(target, atoms, used, z, r):
    """`r = y - z A` over the slots of one sample; how many there are (empty ones come last)."""
    for p in range(r.shape[0]):
        r[p] = target[p]
    n = 0
    while n < used.shape[0] and used[n] < atoms.shape[0]:
        atom, value = atoms[used[n]], z[n]
        for p in range(r.shape[0]):
            r[p] -= value * atom[p]
        n += 1
    return n


@kernel
def sum_rows(lo, hi, targets, atoms, lam, weights, indices, values, cross, by_atom, pull, objectives):
    """Add samples `lo` to `hi`: `cross += w z_k r`, `by_atom += w (z_k, z_k^2)`, `pull += w r`; `objectives` are weighted, by sample."""
    r = np.empty(targets.shape[1])
    for row in range(lo, hi):
        n, w = _leave(targets[row], atoms, indices[row], values[row], r), weights[row]
        squared, total = 0.0, 0.0
        for p in range(r.shape[0]):
            squared += r[p] * r[p]
            pull[p] += w * r[p]
        for i in range(n):
            z, into = w * values[row, i], cross[indices[row, i]]
            total += z
            by_atom[0, indices[row, i]] += z
            by_atom[1, indices[row, i]] += z * values[row, i]
            for p in range(r.shape[0]):
                into[p] += z * r[p]
        objectives[row] = 0.5 * w * squared + lam * total


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
def factor_rows(lo, hi, atoms, gram, indices, starts, packed):
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
def bend_rows(lo, hi, targets, atoms, weights, indices, values, starts, packed, turn, shift, cross, pull):
    """Add samples `lo` to `hi` of the change of `-w z_k r` and `-w r` along `dA = turn`, `dy = -shift`, codes following on their support.

    With `q = shift + z dA`: `dz = (A_S A_S^T)^-1 (dA_S r - A_S q)`, `-dr = q + dz A`, and what is added is `w (z_k (-dr) - dz_k r)`.
    """
    d = targets.shape[1]
    r, q, dz = np.empty(d), np.empty(d), np.empty(indices.shape[1])
    for row in range(lo, hi):
        used, z, w = indices[row], values[row], weights[row]
        n = _leave(targets[row], atoms, used, z, r)
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
