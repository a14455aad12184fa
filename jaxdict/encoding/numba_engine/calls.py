"""Exact codes on the host: the compiled kernels over blocks of samples and threads, and the callback through which JAX calls them.

Everything here but `codes_by_callback` is NumPy: a callback that called JAX would wait for itself.
"""

import importlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdict.encoding.jax_engine.working_set import GRAM_ATOMS
from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.slots import Slots

# Atoms that join a sample's problem at a look: few where looks are cheap, many where each is a pass over all atoms.
ADDED_BY_GRAM, ADDED_BY_PASS = 16, 64
# Entries of the largest array of a block of samples: (block, atoms).
GRAM_BLOCK, WIDE_BLOCK = 2**21, 2**24
# Atoms in use that the kernels have room for at first; samples that need more are taken again with more.
ROOM = 96
# Products up to this size stay on the calling thread in OpenBLAS; its own threads spin for a while after larger ones.
SERIAL_PRODUCT = 2**18
# Below this many entries of (rows, atoms) threads cost more than they bring.
THREADED = 2**15


@cache
def kernels() -> Any:
    """The module of compiled kernels, or None where numba is missing or does not work."""
    try:  # by name, since numba is an optional extra and takes half a second to import
        return importlib.import_module("jaxdict.encoding.numba_engine.kernels.codes")
    except ImportError:
        return None


def require_kernels():
    """Raises ImportError, with the remedy, where the kernels are missing."""
    if kernels() is None:
        raise ImportError('method="numba" needs numba, which is not installed here: pip install "jaxdict[fast]"')


def codes_by_callback(lasso: Lasso, start, tol, max_steps: int, defect_tol=None, *, n_slots: int, dense: bool):
    """Exact codes by the compiled kernels: slots (n_slots of them), dense codes or None, gap, objective, atoms in use, steps.

    `start` is a `Slots`, dense codes, or None for a cold start. Works under jit and vmap; the data go to the host.
    """
    (n, _), k, dtype = lasso.targets.shape, lasso.atoms.shape[0], lasso.targets.dtype
    form = jax.ShapeDtypeStruct
    shapes = [form((n, n_slots), jnp.int32), form((n, n_slots), dtype), form((n, k) if dense else (0, k), dtype)]
    shapes += [form((n,), dtype), form((n,), dtype), form((n,), jnp.int32), form((), jnp.int32)]
    limits = [jnp.asarray(np.inf if v is None else v, dtype) for v in (tol, defect_tol)]
    first = () if start is None else tuple(start) if isinstance(start, Slots) else (start,)
    call = _callback(max_steps, n_slots, dense)
    found = jax.pure_callback(call, shapes, *lasso, *limits, *first, vmap_method="expand_dims")
    return Slots(*found[:2]), found[2] if dense else None, *found[3:]


@cache
def _callback(max_steps, n_slots, dense):
    """One object a setting, so that equal programs are seen to be equal."""
    return partial(_batched, max_steps=max_steps, n_slots=n_slots, dense=dense)


def _batched(*args, **options):
    """`solve` over leading axes: one call where only samples have them, else one call a problem."""
    args = [np.asarray(arg) for arg in args]
    ranks = (2, 2, 0, 0, 0, 2, 2)
    leads = [arg.shape[: arg.ndim - rank] for arg, rank in zip(args, ranks, strict=False)]
    lead = np.broadcast_shapes(*leads)
    if not lead:
        return _finish(solve(*args, **options), ())
    if all(size == 1 for some in leads[1:5] for size in some):
        rows = [np.broadcast_to(arg, lead + arg.shape[-2:]).reshape(-1, arg.shape[-1]) for arg in [args[0], *args[5:]]]
        shared = [arg.reshape(arg.shape[arg.ndim - rank :]) for arg, rank in zip(args[1:5], ranks[1:5], strict=True)]
        return _finish(solve(rows[0], *shared, *rows[1:], **options), lead)
    return batched(lambda *one: _finish(solve(*one, **options), ()), ranks[: len(args)], *args)


def batched(call, ranks, *args):
    """`call` over leading axes, one problem after another."""
    args = [np.asarray(arg) for arg in args]
    leads = [arg.shape[: arg.ndim - rank] for arg, rank in zip(args, ranks, strict=True)]
    lead = np.broadcast_shapes(*leads)
    if not lead:
        return call(*args)
    args = [np.broadcast_to(arg, lead + arg.shape[len(some) :]) for arg, some in zip(args, leads, strict=True)]
    parts = [call(*(arg[at] for arg in args)) for at in np.ndindex(*lead)]
    return tuple(np.stack(part).reshape(lead + np.shape(part[0])) for part in zip(*parts, strict=True))


def _finish(found, lead):
    *rows, steps = found
    rows = [
        part.reshape(*lead, -1 if part.size else part.shape[0] // max(1, np.prod(lead, dtype=int)), *part.shape[1:])
        for part in rows
    ]
    return *rows, np.max(steps.reshape(*lead, -1), axis=-1, initial=0).astype(np.int32)


def solve(targets, atoms, lam, tol, defect_tol, *start, max_steps, n_slots, dense):
    """Exact codes of each row of targets, NumPy in and out; a row that is not finite gets the gap NaN and codes of zero.

    Returns slots (indices, values), dense codes (or none), gap, objective, atoms in use and looks at all atoms, by sample.
    """
    indices, values, Z, out = solve_rows(
        targets, atoms, lam, tol, defect_tol, *start, max_steps=max_steps, n_slots=n_slots, dense=dense
    )
    gap, primal = out[:, :2].T.astype(targets.dtype)
    return indices, values, Z, gap, primal, out[:, 3].astype(np.int32), out[:, 2]


def solve_rows(targets, atoms, lam, tol, defect_tol, *start, max_steps, n_slots, dense):
    """`solve`, by sample: slots, dense codes, and gap, objective, looks, atoms in use and T1 defect as columns."""
    (n, _), k, dtype = targets.shape, atoms.shape[0], targets.dtype
    indices, values = np.full((n, n_slots), k, np.int32), np.zeros((n, n_slots), dtype)
    Z, out = np.zeros((n if dense else 0, k), dtype), np.zeros((n, 5))
    first = _first(start, n, k)
    lam, tol, defect_tol = float(lam), float(tol), float(defect_tol)
    good = np.isfinite(np.einsum("nd,nd->n", targets, targets, dtype=float))
    good &= bool(np.isfinite(np.sum(atoms, dtype=float))) and lam > 0 and np.isfinite(lam)
    out[~good, :2] = out[~good, 4] = np.nan
    few = k <= GRAM_ATOMS
    atoms = fixed(atoms, float if few else dtype)
    gram = _product(atoms, atoms, np.empty((k, k))) if few else None
    block = max(1, (GRAM_BLOCK if few else WIDE_BLOCK) // max(k, 1))
    for lo in range(0, n, block):
        part = slice(lo, lo + block)
        todo = np.flatnonzero(good[part])
        limits = (lam, tol, defect_tol, max_steps)
        block_first = tuple(array[part] for array in first)
        results = (indices[part], values[part], Z[part], out[part])
        if few:
            _solve_gram(targets[part], atoms, gram, todo, limits, block_first, results)
        else:
            _solve_wide(fixed(targets[part], dtype), atoms, todo, limits, block_first, results)
    return indices, values, Z, out


def _solve_gram(targets, atoms, gram, todo, limits, first, results):
    k, out = atoms.shape[0], results[-1]
    targets = targets.astype(float)
    Q, squares = _product(targets, atoms, np.empty((len(targets), k))), np.einsum("nd,nd->n", targets, targets)
    room = min(k, ROOM)
    while len(todo):
        args = (todo, gram, Q, squares, *limits, ADDED_BY_GRAM, room, *first, *results)
        _threaded(lambda lo, hi, args=args: kernels().gram_rows(lo, hi, *args), len(todo), k)
        todo, room = todo[out[todo, 3] < 0], min(k, 2 * room)


def _solve_wide(targets, atoms, todo, limits, first, results):
    """Rounds over a block: correlations of the residuals of the rows that are left, in one product, then their few atoms."""
    (n, d), k, dtype = targets.shape, atoms.shape[0], targets.dtype
    indices, values, Z, out = results
    lam, room = limits[0], min(k, max(ROOM, first[0].shape[1]))
    used, z, count = np.full((n, room), k), np.zeros((n, room)), np.zeros(n, int)
    _load(first, k, used, z, count)
    # Rounding of a correlation taken in the data's dtype, for a residual of norm one.
    margin = (
        (8 + 0.5 * np.sqrt(d))
        * float(np.finfo(dtype).eps)
        * float(np.sqrt(np.max(np.sum(atoms * atoms, axis=1), initial=0)))
    )
    idle, done = np.zeros(n, int), np.zeros(n, bool)
    R = targets[todo].copy()
    for at, row in enumerate(todo):
        if count[row]:
            R[at] -= (z[row, : count[row]] @ atoms[used[row, : count[row]]]).astype(dtype)
    C = np.empty((len(todo), k), dtype)
    while len(todo):
        np.matmul(R, atoms.T, out=C[: len(todo)])
        turn = np.arange(len(todo))
        while len(turn):
            args = (
                turn,
                todo,
                targets,
                atoms,
                C[: len(todo)],
                R,
                *limits[:3],
                margin,
                limits[3],
                ADDED_BY_PASS,
                used,
                z,
                count,
            )
            args += (idle, out, done)
            _threaded(lambda lo, hi, args=args: kernels().wide_round(lo, hi, *args), len(turn), k)
            turn = turn[out[todo[turn], 3] < 0]
            if len(turn):
                more = min(k, 2 * used.shape[1]) - used.shape[1]
                used, z = np.pad(used, [(0, 0), (0, more)], constant_values=k), np.pad(z, [(0, 0), (0, more)])
        left = ~done[todo]
        todo, R = todo[left], R[left]
    if Z.shape[0]:
        rows, at = np.nonzero(np.arange(used.shape[1]) < count[:, None])
        Z[rows, used[rows, at]] = z[rows, at]
    else:
        kernels().cut_rows(targets, atoms, lam, indices.shape[1], used, z, count, out)
    size = min(indices.shape[1], used.shape[1])
    kept = np.arange(size) < count[:, None]
    indices[:, :size], values[:, :size] = np.where(kept, used[:, :size], k), np.where(kept, z[:, :size], 0)


def _product(left, right, out):
    """`out = left right^T`: small problems in pieces on our threads, large ones on BLAS's."""
    (n, d), k = left.shape, right.shape[0]
    rows = SERIAL_PRODUCT // max(1, d * k)
    if rows < 8:
        return np.matmul(left, right.T, out=out)

    def pieces(lo, hi):
        for at in range(lo, hi, rows):
            part = slice(at, min(hi, at + rows))
            np.matmul(left[part], right.T, out=out[part])

    _threaded(pieces, n, k)
    return out


def _threaded(run, n, k):
    """`run(lo, hi)` over ranges of n rows, small ones in turn to whichever thread is free: samples differ in difficulty."""
    threads = kernels().threads() if n * k >= THREADED else 1
    if threads == 1:
        return run(0, n)
    chunk, ticket = max(16, n // (16 * threads)), itertools.count()

    def take_turns():
        while (lo := next(ticket) * chunk) < n:
            run(lo, min(n, lo + chunk))

    for turn in [pool(threads).submit(take_turns) for _ in range(threads)]:
        turn.result()


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """The threads that the kernels run on, kept: starting them anew for each call would take as long as a small call."""
    return ThreadPoolExecutor(threads, thread_name_prefix="jaxdict")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # a forked process has none of its parent's threads


def _first(start, n, k):
    """Slots to start from, as the kernels take them: none, given ones, or the positive entries of dense codes."""
    if len(start) == 2:
        return fixed(start[0], np.int32), fixed(start[1], float)
    rows, atoms = np.nonzero(start[0] > 0) if start else (np.zeros(0, int), np.zeros(0, int))
    count = np.bincount(rows, minlength=n)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    indices, values = np.full((n, np.max(count, initial=0)), k, np.int32), np.zeros((n, np.max(count, initial=0)))
    indices[rows, place] = atoms
    if start:
        values[rows, place] = start[0][rows, atoms]
    return fixed(indices, np.int32), fixed(values, float)


def _load(first, k, used, z, count):
    indices, values = first
    rows, at = np.nonzero((indices < k) & (values > 0))
    count[:] = np.bincount(rows, minlength=len(count))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    used[rows, place], z[rows, place] = indices[rows, at], values[rows, at]


def fixed(array, dtype):
    """A contiguous read-only view: the kernels are compiled once for these, whether JAX or NumPy made them."""
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view
