"""Sums over samples of exact codes on the host: what a fit needs of a dictionary, in one call that forms no (samples, atoms) array.

Everything here but `sums_by_callback` is NumPy, as in `host.py`.
"""

import importlib
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.numba_engine.calls import batched, fixed, kernels, pool, solve_rows
from jaxdict.encoding.slots import Slots

# Samples are summed in parts of about this much work, at most so many, whatever the threads: the same data give the same sums.
PART_WORK, PARTS = 2**21, 16
# Numbers that all parts' sums may hold.
PART_ENTRIES = 2**25


class LassoSums(NamedTuple):
    """Weighted sums over samples of a `Lasso`'s codes z and residuals r."""

    cross: Float[Array, "atoms d"]  # sum w z_k r
    codes: Float[Array, " atoms"]  # sum w z_k
    squares: Float[Array, " atoms"]  # sum w z_k^2
    residual: Float[Array, " d"]  # sum w r
    objective: Float[Array, ""]
    defect: Float[Array, ""]  # T1's codes line, the worst sample of positive weight
    gap: Float[Array, ""]  # the worst gap over objective, all samples


def sums_by_callback(lasso: Lasso, weights, slots: Slots, tol, defect_tol, max_steps: int, *, dense: bool):
    """Exact codes from given slots: their slots and sums, and the dense codes where asked for. Works under jit and vmap."""
    (n, d), k, dtype = lasso.targets.shape, lasso.atoms.shape[0], lasso.targets.dtype
    form = jax.ShapeDtypeStruct
    shapes = [form(slots.indices.shape, jnp.int32), form(slots.values.shape, dtype)]
    shapes += [form(shape, dtype) for shape in ((n, k) if dense else (0, k), (k, d), (k,), (k,), (d,), (), (), ())]
    limits = [jnp.asarray(v, dtype) for v in (tol, defect_tol)]
    args = (*lasso, weights, *limits, *slots)
    found = jax.pure_callback(_summing(max_steps, dense), shapes, *args, vmap_method="expand_dims")
    indices, values, Z, *sums = found
    return Slots(indices.astype(slots.indices.dtype), values), Z if dense else None, LassoSums(*sums)


@cache
def sum_kernels():
    """The module of compiled sums, by name, since numba is an optional extra; ask `kernels` first whether it is there."""
    return importlib.import_module("jaxdict.encoding.numba_engine.kernels.sums")


@cache
def _summing(max_steps, dense):
    """One object a setting, so that equal programs are seen to be equal."""
    return partial(batched, partial(solve_and_sum, max_steps=max_steps, dense=dense), (2, 2, 0, 1, 0, 0, 2, 2))


def solve_and_sum(targets, atoms, lam, weights, tol, defect_tol, indices, values, *, max_steps, dense):
    """Exact codes and their sums, NumPy in and out. Sums are of all codes, slots keep the largest where they are too few."""
    dtype, n_slots = targets.dtype, indices.shape[1]
    options = {"max_steps": max_steps, "dense": dense}
    limits = (lam, tol, defect_tol)
    used, z, Z, out = solve_rows(targets, atoms, *limits, indices, values, n_slots=n_slots, **options)
    kept = (used, z)
    if np.max(out[:, 3], initial=0) > n_slots:
        wide = int(out[:, 3].max())
        used, z, Z, out = solve_rows(targets, atoms, *limits, used, z, n_slots=wide, **options)
    (n, d), k, objectives = targets.shape, atoms.shape[0], np.zeros(len(targets))
    args = (
        fixed(targets, float),
        fixed(atoms, float),
        float(lam),
        fixed(weights, float),
        fixed(used, np.int32),
        fixed(z, float),
    )
    shapes, work = ((k, d), (2, k), (d,)), 3 * d * int(np.sum(out[:, 3]))
    cross, by_atom, pull = in_parts(sum_kernels().sum_rows, n, args, shapes, (objectives,), work=work)
    ok = np.all(np.isfinite(out[:, 4]))
    counted = out[weights > 0, 4]
    worst = np.max(out[:, 0] / np.maximum(out[:, 1], 1e-300), initial=0)
    sums = (cross, *by_atom, pull, np.sum(objectives) if ok else np.nan, np.max(counted, initial=0), worst)
    return *kept, Z, *(np.asarray(part, dtype) for part in sums)


def in_parts(run, n, args, shapes, more=(), *, work):
    """Sums of `run(lo, hi, *args, *sums, *more)` over parts of n rows, added in a fixed order; `work` tells how many parts."""
    size = sum(int(np.prod(shape)) for shape in shapes)
    count = max(1, min(PARTS, PART_ENTRIES // max(size, 1), n, work // PART_WORK))
    sums = [[np.zeros(shape) for shape in shapes] for _ in range(count)]
    cuts = np.linspace(0, n, count + 1).astype(int)

    def one(part):
        run(cuts[part], cuts[part + 1], *args, *sums[part], *more)

    if count == 1 or kernels().threads() == 1:
        for part in range(count):
            one(part)
    else:
        list(pool(kernels().threads()).map(one, range(count)))
    total = sums[0]
    for others in sums[1:]:
        for into, more_of_it in zip(total, others, strict=True):
            into += more_of_it
    return total
