"""The kernels as targets that XLA calls: operands and results of a call frame, one target for each kind of call and each dtype.

Results say NaN before anything else is done, so that a call that fails says so.
"""

from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from jaxdict.encoding.numba_engine.kernels import frame as of
from jaxdict.encoding.numba_engine.kernels.codes import by_gram, by_passes
from jaxdict.encoding.numba_engine.kernels.disk import c_function
from jaxdict.encoding.numba_engine.kernels.exchanges import Rules
from jaxdict.encoding.numba_engine.kernels.refits import refit
from jaxdict.encoding.numba_engine.kernels.search import search
from jaxdict.encoding.numba_engine.kernels.steps import Limits, careful
from jaxdict.encoding.numba_engine.kernels.subsets import solve_by_gram, solve_by_passes, subset
from jaxdict.encoding.numba_engine.kernels.sums import put
from jaxdict.encoding.numba_engine.kernels.sums import solve_and_sum as summed
from jaxdict.encoding.numba_engine.kernels.threads import BODIES, threads

__all__ = ["compiled", "threads"]

operand, result, settings = of.operand, of.result, of.settings
ints, int_vector, size = of.ints, of.int_vector, of.size


@careful
def _called(frame):
    """Whether to compute. At registration BLAS is looked up, which takes the interpreter's lock, this once."""
    if not of.asks_for_version(frame):
        return of.executes(frame)
    for numbers in (np.ones((2, 2), np.float32),):
        np.dot(np.dot(numbers, numbers), numbers[0])
    for numbers in (np.ones((2, 2), np.float64),):
        np.dot(np.dot(numbers, numbers), numbers[0])
    return False


@careful
def _slots_of(codes, k):
    """The positive entries of dense codes, as slots."""
    most = 0
    for row in range(len(codes)):
        most = max(most, np.sum(codes[row] > 0))
    indices, values = np.zeros((len(codes), most), np.int32), np.zeros((len(codes), most))
    for row in range(len(codes)):
        n = 0
        for j in range(codes.shape[1]):
            if codes[row, j] > 0:
                indices[row, n], values[row, n] = j, codes[row, j]
                n += 1
    return indices, values


@careful
def _limits(lam, tol, defect_tol, most):
    return Limits(np.float64(lam[0]), np.float64(tol[0]), np.float64(defect_tol[0]), most)


@careful
def _rules(tol, exchanges, free, eps):
    return Rules(np.float64(tol[0]), exchanges, free, eps)


def _codes(real, solve_rows):
    """Targets, atoms, lam, tol, defect tol, and where to start: nothing, dense codes, or slots.

    Gives slots, gap, objective, atoms in use and looks by sample, and dense codes where there is a place for them.
    """
    matrix, vector, scalar = real

    @careful
    def codes(frame):
        if not _called(frame):
            return 0
        gap, primal = vector(result(frame, 0)), vector(result(frame, 1))
        used, looks = int_vector(result(frame, 2)), int_vector(result(frame, 3))
        gap.fill(np.nan)
        primal.fill(np.nan)
        used.fill(0)
        looks.fill(0)
        given = settings(frame)
        most, room = np.int64(given[0]), np.int64(given[1])
        started, slots, dense = given[2], given[3], given[4]
        targets, atoms = matrix(operand(frame, 0)), matrix(operand(frame, 1))
        n, k = len(targets), len(atoms)
        indices, values = np.empty((n, 0), np.int32), np.empty((n, 0), atoms.dtype)
        if slots:
            indices, values = ints(result(frame, 4)), matrix(result(frame, 5))
        Z = matrix(result(frame, 6 if slots else 4)) if dense else np.empty((0, k), atoms.dtype)
        if started == 2:
            first = (ints(operand(frame, 5)).copy(), matrix(operand(frame, 6)).astype(np.float64))
        elif started == 1:
            first = _slots_of(matrix(operand(frame, 5)), k)
        else:
            first = (np.empty((n, 0), np.int32), np.empty((n, 0)))
        limits = _limits(scalar(operand(frame, 2)), scalar(operand(frame, 3)), scalar(operand(frame, 4)), most)
        out = solve_rows(targets, atoms, limits, room, first, indices, values, Z)
        for row in range(n):
            gap[row], primal[row], used[row], looks[row] = out[row, 0], out[row, 1], out[row, 3], out[row, 2]
        return 0

    return codes


def _sums(real, solve_rows):
    """Targets, atoms, lam, weights, tol, defect tol, slots to start from.

    Gives slots, `w z_k r`, `w z_k`, `w z_k^2`, `w r`, objective, worst defect and relative gap, and dense codes where there is a place.
    """
    matrix, vector, scalar = real
    solve_and_sum = summed(solve_rows)

    @careful
    def sums(frame):
        if not _called(frame):
            return 0
        objective, defect, gap = scalar(result(frame, 6)), scalar(result(frame, 7)), scalar(result(frame, 8))
        objective[0], defect[0], gap[0] = np.nan, np.nan, np.nan
        targets, atoms, weights = matrix(operand(frame, 0)), matrix(operand(frame, 1)), vector(operand(frame, 3))
        given = settings(frame)
        most, room, dense = np.int64(given[0]), np.int64(given[1]), given[2]
        limits = _limits(scalar(operand(frame, 2)), scalar(operand(frame, 4)), scalar(operand(frame, 5)), most)
        Z = matrix(result(frame, 9)) if dense else np.empty((0, len(atoms)), atoms.dtype)
        kept = ints(result(frame, 0)), matrix(result(frame, 1))
        indices, values = ints(operand(frame, 6)), matrix(operand(frame, 7))
        found = solve_and_sum(targets, atoms, limits, weights, room, indices, values, kept, Z)
        put(matrix(result(frame, 2)), found[0])
        put(vector(result(frame, 3)), found[1][0])
        put(vector(result(frame, 4)), found[1][1])
        put(vector(result(frame, 5)), found[2])
        objective[0], defect[0], gap[0] = found[3], found[4], found[5]
        return 0

    return sums


def _newton(real):
    """Targets, atoms, weights, slots, unit atoms, root of the metric, scales, scale, rates, slopes (atoms, offset), radius, accuracy.

    Gives the step (atoms, offset), what is promised of it, whether it ends on the edge, products taken.
    """
    matrix, vector, scalar = real

    @careful
    def newton(frame):
        if not _called(frame):
            return 0
        promise, edge, count = scalar(result(frame, 2)), scalar(result(frame, 3)), scalar(result(frame, 4))
        promise[0], edge[0], count[0] = np.nan, 0, 0
        wide = np.float64
        n_atoms, d = size(operand(frame, 10), 0), size(operand(frame, 10), 1)
        slopes = np.empty((n_atoms + 1, d))
        put(slopes[:n_atoms], matrix(operand(frame, 10)))
        put(slopes[n_atoms], vector(operand(frame, 11)))
        found = search(
            matrix(operand(frame, 0)).astype(wide),
            matrix(operand(frame, 1)).astype(wide),
            vector(operand(frame, 2)).astype(wide),
            ints(operand(frame, 3)),
            matrix(operand(frame, 4)).astype(wide),
            matrix(operand(frame, 5)).astype(wide),
            vector(operand(frame, 6)).astype(wide),
            vector(operand(frame, 7)).astype(wide),
            wide(scalar(operand(frame, 8))[0]),
            vector(operand(frame, 9)).astype(wide),
            slopes,
            wide(scalar(operand(frame, 12))[0]),
            wide(scalar(operand(frame, 13))[0]),
            np.int64(settings(frame)[0]),
        )
        put(matrix(result(frame, 0)), found[0][:n_atoms])
        put(vector(result(frame, 1)), found[0][n_atoms])
        promise[0], edge[0], count[0] = found[1], found[2], found[3]
        return 0

    return newton


def _refits(real, refitted):
    """Targets, atoms, slots; gives the best values on them."""
    matrix, _, _ = real

    @careful
    def refits(frame):
        if _called(frame):
            out, values = matrix(result(frame, 0)), matrix(operand(frame, 3))
            free = np.int64(settings(frame)[0])
            refitted(matrix(operand(frame, 0)), matrix(operand(frame, 1)), ints(operand(frame, 2)), values, free, out)
        return 0

    return refits


def _subsets(real, eps, solve):
    """Targets, atoms, how many atoms a sample may use, slots to start from, tol.

    Gives slots, exchanges made, and whether more were left to try.
    """
    matrix, _, scalar = real
    found = subset(solve)

    @careful
    def subsets(frame):
        if not _called(frame):
            return 0
        given = settings(frame)
        rules = _rules(scalar(operand(frame, 5)), np.int64(given[0]), np.int64(given[1]), eps)
        start = (ints(operand(frame, 3)), matrix(operand(frame, 4)))
        found(
            matrix(operand(frame, 0)),
            matrix(operand(frame, 1)),
            int_vector(operand(frame, 2)),
            start,
            rules,
            ints(result(frame, 0)),
            matrix(result(frame, 1)),
            int_vector(result(frame, 2)),
            int_vector(result(frame, 3)),
        )
        return 0

    return subsets


def _all():
    """Every target by name, and what its threads run."""
    found: dict[str, Any] = {
        "newton_float32": (_newton(of.FLOAT32), NEWTON),
        "newton_float64": (_newton(of.FLOAT64), NEWTON),
    }
    for real, arrays in ((np.float32, of.FLOAT32), (np.float64, of.FLOAT64)):
        name = np.dtype(real).name
        for path, solver, bodies in (
            ("gram", by_gram(real), ("product_float64", f"gram_rows_{name}")),
            ("passes", by_passes(real), (f"round_{name}",)),
        ):
            found[f"codes_by_{path}_{name}"] = _codes(arrays, solver), bodies
            found[f"sums_by_{path}_{name}"] = _sums(arrays, solver), (*bodies, "sum_rows")
        eps = float(np.finfo(real).eps)
        by_gram_rows = _subsets(arrays, eps, solve_by_gram)
        found[f"subset_by_gram_{name}"] = by_gram_rows, ("product_float64", "subset_gram_rows")
        found[f"subset_by_passes_{name}"] = _subsets(arrays, eps, solve_by_passes), ("subset_round",)
        found[f"refit_{name}"] = _refits(arrays, refit(real)), (f"refit_rows_{name}",)
    return found


NEWTON = ("product_float64", "factor_rows", "bend_rows")
TARGETS = _all()


@cache
def _body(name):
    compiled = c_function(name, BODIES[name])
    llvm.add_symbol(f"jaxdict_{name}", compiled.address)
    return compiled


@cache
def compiled(name):
    """A target's C function, after what its threads run; to be kept, since its code goes with it."""
    function, bodies = TARGETS[name]
    for body in bodies:
        _body(body)
    return c_function(name, function)
