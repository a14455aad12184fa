"""Exact codes by working sets: solve each sample's small problem exactly, look at all atoms once, add what is missing.

A sample keeps S slots: atom indices (the number of atoms marks an empty slot) and values. One round adds the atoms whose
correlation exceeds lam most, gathers the S x S Gram block, solves the non-negative problem on it to rounding by an active-set
method with batched Cholesky factors, and checks the duality gap over all atoms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.encoding.duality import Check, Lasso, gap_terms
from jaxdict.numerics import PRECISION, compensated_subtract, matmul

# Above this many atoms the Gram matrix is not formed: blocks come from gathered atoms.
GRAM_ATOMS = 2048
ADDED_PER_ROUND = 8
# Samples whose blocks are solved together.
LANES = 256
# Rounds that only refine rounding before a sample is left at its floor.
IDLE_ROUNDS = 3


class WorkingSet(NamedTuple):
    """Slots of each sample: `indices` (n_atoms where empty) and non-negative `values`."""

    indices: Int[Array, "samples slots"]
    values: Float[Array, "samples slots"]


class Rounds(NamedTuple):
    """Where the rounds stand. `overflow` marks samples that need more slots than there are."""

    slots: WorkingSet
    check: Check
    overflow: Bool[Array, " samples"]
    idle: Int[Array, " samples"]  # rounds in a row in which nothing was missing: rounding is all that is left
    steps: Int[Array, ""]


def slots_from_codes(Z: Float[Array, "samples atoms"], n_slots: int) -> WorkingSet:
    """The largest codes of each sample as a working set; slots of zero codes are left empty."""
    values, indices = jax.lax.top_k(Z, min(n_slots, Z.shape[1]))
    return WorkingSet(jnp.where(values > 0, indices, Z.shape[1]), jnp.maximum(values, 0))


def slots_from_correlations(lasso: Lasso, n_slots: int) -> WorkingSet:
    """A cold start: the atoms that correlate most with the sample, codes zero."""
    correlations = matmul(lasso.targets, lasso.atoms.T)
    values, indices = jax.lax.top_k(correlations, min(n_slots, correlations.shape[1]))
    return WorkingSet(jnp.where(values > lasso.lam, indices, lasso.atoms.shape[0]), jnp.zeros_like(values))


def dense_from_slots(slots: WorkingSet, n_atoms: int) -> Float[Array, "samples atoms"]:
    """Dense codes of a working set (empty slots fall off the end)."""
    zeros = jnp.zeros((slots.values.shape[0], n_atoms), slots.values.dtype)
    return zeros.at[jnp.arange(zeros.shape[0])[:, None], slots.indices].add(slots.values, mode="drop")


def solve(lasso: Lasso, slots: WorkingSet, tol, max_rounds, defect_tol=None) -> Rounds:
    """Exact codes from a working set, until every sample's gap is at most `tol` times its objective.

    The gap says little of a tiny code's own condition `s = 1`; where that matters (inside solvers) `defect_tol` bounds it too.
    Ends early where every unsolved sample has overflown its slots (the caller must grow the set or fall back: nothing stalls
    unseen) or is at the floor of rounding. A solved sample is not touched again.
    """
    gram = matmul(lasso.atoms, lasso.atoms.T) if lasso.atoms.shape[0] <= GRAM_ATOMS else None

    def is_solved(seen: Check):
        within = seen.gap <= tol * seen.primal
        return within if defect_tol is None else within & (seen.defect <= defect_tol)

    def unsolved(state: Rounds):
        waiting = ~is_solved(state.check) & ~state.overflow & (state.idle < IDLE_ROUNDS)
        return jnp.any(waiting) & (state.steps < max_rounds)

    def one_round(state: Rounds) -> Rounds:
        solved = is_solved(state.check)
        slots, overflow = _advance(lasso, gram, state.slots, state.check.correlations, ~solved)
        idle = jnp.where(jnp.any(slots.indices != state.slots.indices, axis=1), 0, state.idle + 1)
        return Rounds(slots, _check(lasso, slots), overflow, idle, state.steps + 1)

    seen = _check(lasso, slots)
    zeros = jnp.zeros_like(slots.indices[:, 0])
    start = Rounds(slots, seen, jnp.zeros_like(zeros, dtype=bool), zeros, zeros[0])
    return jax.lax.while_loop(unsolved, one_round, start)


def _advance(lasso: Lasso, gram, slots: WorkingSet, correlations, wanted):
    """One round for the wanted samples: add what is missing, solve their blocks; also which of them overflowed.

    They are taken in chunks, unsolved ones first, so that a chunk waits for its own slowest sample only and solved samples
    cost nothing.
    """
    n_samples = wanted.shape[0]
    lanes = n_samples if n_samples <= 2 * LANES else LANES
    n_chunks = -(-n_samples // lanes)
    order = jnp.nonzero(wanted, size=n_chunks * lanes, fill_value=n_samples)[0].reshape(n_chunks, lanes)

    def one_chunk(carry):
        indices, values, overflow, chunk = carry
        rows = order[chunk]
        part = WorkingSet(
            slots.indices[rows], slots.values[rows]
        )  # a fill row repeats the last sample and is dropped below
        seen = correlations[rows]
        wider, short = _add_violators(lasso, part, seen)
        solved = _solve_blocks(lasso, gram, wider, seen)
        indices = indices.at[rows].set(wider.indices, mode="drop")
        return indices, values.at[rows].set(solved, mode="drop"), overflow.at[rows].set(short, mode="drop"), chunk + 1

    n_wanted = jnp.sum(wanted)
    start = (slots.indices, slots.values, jnp.zeros_like(wanted), jnp.zeros_like(n_wanted))
    indices, values, overflow, _ = jax.lax.while_loop(lambda carry: carry[3] * lanes < n_wanted, one_chunk, start)
    return WorkingSet(indices, values), overflow


def _check(lasso: Lasso, slots: WorkingSet) -> Check:
    r = slot_residual(lasso, slots)
    correlations = matmul(r, lasso.atoms.T)
    return Check(
        r, correlations, *gap_terms(lasso.lam, slots.values, r, _slot_correlations(slots, correlations), correlations)
    )


def slot_residual(lasso: Lasso, slots: WorkingSet) -> Float[Array, "samples d"]:
    """`y - z A`. In float32 the sum over slots is compensated: a gap of 1e-6 of the objective is a difference of numbers that
    agree in their first six digits, and rounding y - z A in float32 would drown it.
    """
    n_atoms = lasso.atoms.shape[0]
    if lasso.targets.dtype == jnp.float64:
        if n_atoms <= GRAM_ATOMS:
            return lasso.targets - matmul(dense_from_slots(slots, n_atoms), lasso.atoms)
        used = lasso.atoms[jnp.minimum(slots.indices, n_atoms - 1)]
        return lasso.targets - jnp.einsum("ns,nsd->nd", slots.values, used, precision=PRECISION)

    def take_slot(carry, slot):
        index, value = slot
        high, low = carry
        return compensated_subtract(high, low, value[:, None], lasso.atoms[jnp.minimum(index, n_atoms - 1)]), None

    start = (lasso.targets, jnp.zeros_like(lasso.targets))
    (high, low), _ = jax.lax.scan(take_slot, start, (slots.indices.T, slots.values.T))
    return high + low


def _slot_correlations(slots, correlations):
    return jnp.take_along_axis(correlations, jnp.minimum(slots.indices, correlations.shape[1] - 1), axis=1)


def _add_violators(lasso: Lasso, slots: WorkingSet, correlations):
    """Put the atoms outside the set with the largest correlations above lam in slots whose code is zero."""
    n_samples, n_slots = slots.indices.shape
    rows = jnp.arange(n_samples)
    outside = correlations.at[rows[:, None], slots.indices].set(-jnp.inf, mode="drop")
    threshold = lasso.lam * (1 + 8 * jnp.finfo(correlations.dtype).eps)

    def add_one(_, carry):
        indices, taken, outside, overflow = carry
        best = jnp.argmax(outside, axis=1).astype(indices.dtype)
        violates = outside[rows, best] > threshold
        # Empty slots first, then slots of zero codes; never one that is in use or was filled in this round.
        room = jnp.where(taken, 0, jnp.where(indices == lasso.atoms.shape[0], 2, 1))
        slot = jnp.argmax(room, axis=1)
        fits = room[rows, slot] > 0
        put = violates & fits
        indices = indices.at[rows, slot].set(jnp.where(put, best, indices[rows, slot]))
        taken = taken.at[rows, slot].set(taken[rows, slot] | put)
        outside = outside.at[rows, best].set(jnp.where(put, -jnp.inf, outside[rows, best]))
        return indices, taken, outside, overflow | (violates & ~fits)

    # Slots whose atom still wants to grow are kept as well as those in use.
    in_set = slots.indices < lasso.atoms.shape[0]
    wanted = in_set & ((slots.values > 0) | (_slot_correlations(slots, correlations) > threshold))
    start = (slots.indices, wanted, outside, jnp.zeros_like(rows, dtype=bool))
    indices, _, _, overflow = jax.lax.fori_loop(0, min(ADDED_PER_ROUND, n_slots), add_one, start)
    return WorkingSet(indices, jnp.where(indices == slots.indices, slots.values, 0)), overflow


def _solve_blocks(lasso: Lasso, gram, slots: WorkingSet, correlations):
    """Solve each sample's problem on its slots, started from the values there.

    The gradient at the start comes from the true residual's correlations, so that each round refines the last one's rounding away.
    """
    valid = slots.indices < lasso.atoms.shape[0]
    at = jnp.minimum(slots.indices, lasso.atoms.shape[0] - 1)
    if gram is not None:
        blocks = gram[at[:, :, None], at[:, None, :]]
    else:
        used = lasso.atoms[at]
        blocks = jnp.einsum("nsd,ntd->nst", used, used, precision=PRECISION)
    pull = jnp.take_along_axis(correlations, at, axis=1) - lasso.lam
    return jax.vmap(nonnegative_quadratic, (0, 0, 0, 0, None))(blocks, pull, slots.values, valid, lasso.lam)


def nonnegative_quadratic(A, pull, z_start, valid, lam):
    """Minimise `1/2 z A z - q z` over `z >= 0` on the valid entries, from a feasible start with `q - A z_start = pull`, for one sample.

    Active set with a Cholesky solve an iteration: step to the free entries' minimiser; where that leaves the orthant take the
    clipped point if it descends, else go to the boundary and drop what blocks; where it does not, free every entry that still
    pulls. Entries are freed one by one after a round of frees without descent, which makes the method finite (Lawson and
    Hanson 1974; Kim and Park 2011 for the exchange with a backup). All is computed from differences to the start, so that
    started at a solution it refines the rounding.
    """
    eps = jnp.finfo(A.dtype).eps
    noise = 4 * eps * (lam + jnp.max(jnp.abs(pull), initial=0))
    ridge = (
        4 * eps * jnp.max(jnp.diagonal(A), initial=0)
    )  # duplicate atoms share a slot's weight instead of breaking the factor
    eye = jnp.eye(A.shape[0], dtype=A.dtype)

    def times(v):
        return jnp.dot(A, v, precision=PRECISION)

    def gain(z):
        step = z - z_start
        return jnp.dot(step, pull - 0.5 * times(step), precision=PRECISION)

    def body(state):
        z, free, best, single, _, it = state
        both = free[:, None] & free[None, :]
        factor = jnp.linalg.cholesky(jnp.where(both, A, 0) + eye * jnp.where(free, ridge, 1))
        slope = jnp.where(free, pull - times(z - z_start), 0)
        target = jnp.where(free, z + jax.scipy.linalg.cho_solve((factor, True), slope), 0)
        negative = free & (target < 0)
        ratio = jnp.where(negative, z / jnp.where(negative, z - target, 1), 1)
        reach = jnp.min(ratio, initial=1)
        on_boundary = jnp.where(negative & (ratio <= reach), 0, jnp.where(free, z + reach * (target - z), 0))
        clipped = jnp.maximum(target, 0)
        z_new = jnp.where(gain(clipped) > gain(z), clipped, on_boundary)
        free = free & (z_new > 0)
        left = jnp.any(negative)
        pulls_by = jnp.where(valid & ~free, pull - times(z_new - z_start), -jnp.inf)
        pulls = pulls_by > noise
        strongest = pulls & (jnp.arange(z.shape[0]) == jnp.argmax(pulls_by))
        now = gain(z_new)
        single = single | ~(left | (now > best))
        free = jnp.where(left, free, free | jnp.where(single, strongest, pulls))
        done = ~left & ~jnp.any(pulls)
        return z_new, free, jnp.where(left, best, jnp.maximum(best, now)), single, done, it + 1

    def going(state):
        return ~state[4] & (state[5] < 4 * A.shape[0] + 16)

    free = valid & ((z_start > 0) | (pull > noise))
    false = jnp.zeros_like(valid[0])
    start = (z_start, free, jnp.full_like(pull[0], -jnp.inf), false, false, jnp.zeros_like(z_start[0], dtype=int))
    return jax.lax.while_loop(going, body, start)[0]
