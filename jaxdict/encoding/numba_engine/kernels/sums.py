"""Sums over samples of exact codes: what slopes and Hessian products are made of.

In plain form (`encoding/lasso.py`): residuals `r = y - z A`, slots of a sample's codes, atoms with norms and metric absorbed. Sums
are float64, taken in parts that do not depend on the threads.
"""

import numpy as np

from jaxdict.encoding.numba_engine.kernels.steps import careful, kernel
from jaxdict.encoding.numba_engine.kernels.threads import next_of, shared, threads_now

# Samples are summed in parts of about this much work, at most so many, whatever the threads: the same data give the same sums.
PART_WORK, PARTS = 2**21, 16
# Numbers that all parts' sums may hold.
PART_ENTRIES = 2**25


@kernel
def leave(target, atoms, used, z, r):
    """`r = y - z A` over the slots of one sample; how many there are (empty ones come last)."""
    for p in range(r.shape[0]):
        r[p] = target[p]
    n = 0
    while n < used.shape[0] and z[n] > 0:
        atom, value = atoms[used[n]], z[n]
        for p in range(r.shape[0]):
            r[p] -= value * atom[p]
        n += 1
    return n


def in_parts(name, run, *example):
    """A kernel `(n, count, arguments)`: `run(lo, hi, part, *arguments)` over `count` parts of n rows, on whichever threads are free."""

    @kernel
    def turns(given):
        tickets, n, count, arguments = given
        part = next_of(tickets)
        while part < count:
            run(part * n // count, (part + 1) * n // count, part, *arguments)
            part = next_of(tickets)

    share = shared(name, turns, (np.zeros(1, np.int64), 1, 1, example))

    @kernel
    def over_parts(n, count, arguments):
        share((np.zeros(1, np.int64), n, count, arguments), min(threads_now(), count) - 1)

    return over_parts


@kernel
def n_parts(n, entries, work):
    """How many parts n samples are summed in, whose sums have so many entries and take so much work."""
    return max(1, min(PARTS, PART_ENTRIES // max(entries, 1), n, work // PART_WORK))


@kernel
def total(parts):
    """The parts' sums added up, in order."""
    flat = parts.reshape(len(parts), -1)
    for part in range(1, len(parts)):
        for p in range(flat.shape[1]):
            flat[0, p] += flat[part, p]
    return parts[0]


@kernel
def put(into, values):
    """Values in a place of the same form. A loop, since numba's own assignment takes seconds to compile for the sake of its errors."""
    place, given = into.reshape(-1), values.reshape(-1)
    for p in range(len(given)):
        place[p] = given[p]


@kernel
def _sum_rows(lo, hi, part, targets, atoms, lam, weights, indices, values, crosses, by_atoms, pulls, objectives):
    """Sums of samples `lo` to `hi`: `cross = w z_k r`, `by_atom = w (z_k, z_k^2)`, `pull = w r`; `objectives` are weighted, by sample."""
    cross, by_atom, pull = crosses[part], by_atoms[part], pulls[part]
    r = np.empty(targets.shape[1])
    for row in range(lo, hi):
        n, w = leave(targets[row], atoms, indices[row], values[row], r), weights[row]
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


SLOTS, ROWS, NUMBERS = np.zeros((1, 1), np.int32), np.zeros((1, 1)), np.zeros(1)
STACK = np.zeros((1, 1, 1))  # one matrix a part
_sum_parts = in_parts("sum_rows", _sum_rows, ROWS, ROWS, 0.0, NUMBERS, SLOTS, ROWS, STACK, STACK, ROWS, NUMBERS)


@kernel
def _summed(targets, atoms, lam, weights, indices, values, used):
    """The sums of solved codes: `w z_k r`, `w (z_k, z_k^2)`, `w r` and the objective."""
    (n, d), k = targets.shape, atoms.shape[0]
    count = n_parts(n, k * d + 2 * k + d, 3 * d * used)
    crosses, by_atoms, pulls = np.zeros((count, k, d)), np.zeros((count, 2, k)), np.zeros((count, d))
    objectives = np.zeros(n)
    _sum_parts(n, count, (targets, atoms, lam, weights, indices, values, crosses, by_atoms, pulls, objectives))
    return total(crosses), total(by_atoms), total(pulls), np.sum(objectives)


@careful
def _worst(out, weights):
    """The worst T1 defect of samples of positive weight, the worst gap over objective, and whether all samples are finite."""
    defect, gap, fine = 0.0, 0.0, True
    for row in range(len(out)):
        if weights[row] > 0 and (out[row, 4] > defect or out[row, 4] != out[row, 4]):
            defect = out[row, 4]
        share = out[row, 0] / max(out[row, 1], 1e-300)
        if share > gap or share != share:
            gap = share
        fine = fine and out[row, 4] == out[row, 4]
    return defect, gap, fine


def solve_and_sum(solve_rows):
    """A kernel: exact codes from slots, and their sums. Sums are of all codes; slots keep the largest where they are too few."""

    @careful
    def summed(targets, atoms, limits, weights, room, indices, values, kept, Z):
        first = (indices, values.astype(np.float64))
        out = solve_rows(targets, atoms, limits, room, first, kept[0], kept[1], Z)
        used, z = kept
        most = int(np.max(out[:, 3])) if len(out) else 0
        if most > indices.shape[1]:
            used, z = np.empty((len(out), most), np.int32), np.empty((len(out), most), values.dtype)
            first = (kept[0], kept[1].astype(np.float64))
            out = solve_rows(targets, atoms, limits, room, first, used, z, Z)
        rows, atoms64, w = targets.astype(np.float64), atoms.astype(np.float64), weights.astype(np.float64)
        codes, n_used = z.astype(np.float64), int(np.sum(out[:, 3]))
        cross, by_atom, pull, objective = _summed(rows, atoms64, limits.lam, w, used, codes, n_used)
        defect, gap, fine = _worst(out, w)
        return cross, by_atom, pull, objective if fine else np.nan, defect, gap

    return summed
