"""Exact codes by working sets: solve each sample's small problem exactly, look at all atoms once, add what is missing.

A sample keeps S slots: atom indices (the number of atoms marks an empty slot) and values. One round adds the atoms whose
correlation exceeds lam most, gathers the S x S Gram block, solves the non-negative problem on it to rounding by an active-set
method with batched Cholesky factors, and checks the duality gap over all atoms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.encoding.jax_engine.small_problem import nonnegative_quadratic
from jaxdict.encoding.lasso import Check, Lasso, measured, within
from jaxdict.encoding.slots import Slots, dense_from_slots
from jaxdict.numerics import PRECISION, compensated_subtract, matmul

# Above this many atoms the Gram matrix is not formed: blocks come from gathered atoms.
GRAM_ATOMS = 2048
ADDED_PER_ROUND = 8
# Samples whose blocks are solved together.
LANES = 256
# Rounds that only refine rounding before a sample is left at its floor.
IDLE_ROUNDS = 3


class Rounds(NamedTuple):
    """Where the rounds stand. `overflow` marks samples that need more slots than there are."""

    slots: Slots
    check: Check
    overflow: Bool[Array, " samples"]
    idle: Int[Array, " samples"]  # rounds in a row in which nothing was missing: rounding is all that is left
    steps: Int[Array, ""]


def found(rounds: Rounds) -> Slots:
    """The slots with their codes; atoms that are in the set but not in use leave it."""
    used = rounds.slots.values > 0
    return Slots(jnp.where(used, rounds.slots.indices, 0), jnp.where(used, rounds.slots.values, 0))


def limited(rounds: Rounds, tol, max_rounds, defect_tol=None) -> Bool[Array, " samples"]:
    """Samples that more rounds would help: neither solved, nor short of slots, nor at the floor of rounding."""
    waiting = ~within(rounds.check, tol, defect_tol) & ~rounds.overflow & (rounds.idle < IDLE_ROUNDS)
    return waiting & (rounds.steps >= max_rounds)


def solve(lasso: Lasso, slots: Slots, tol, max_rounds, defect_tol=None) -> Rounds:
    """Exact codes from a working set, until every sample's gap is at most `tol` times its objective.

    The gap says little of a tiny code's own condition `s = 1`; where that matters (inside solvers) `defect_tol` bounds it too.
    Ends early where every unsolved sample has overflown its slots (the caller must grow the set or fall back: nothing stalls
    unseen) or is at the floor of rounding. A solved sample is not touched again.
    """
    gram = matmul(lasso.atoms, lasso.atoms.T) if lasso.atoms.shape[0] <= GRAM_ATOMS else None

    def unsolved(state: Rounds):
        waiting = ~within(state.check, tol, defect_tol) & ~state.overflow & (state.idle < IDLE_ROUNDS)
        return jnp.any(waiting) & (state.steps < max_rounds)

    def one_round(state: Rounds) -> Rounds:
        solved = within(state.check, tol, defect_tol)
        slots, overflow = _advance(lasso, gram, state.slots, state.check.correlations, ~solved)
        idle = jnp.where(jnp.any(slots.indices != state.slots.indices, axis=1), 0, state.idle + 1)
        return Rounds(slots, _check(lasso, slots), overflow, idle, state.steps + 1)

    slots = Slots(jnp.where(slots.values > 0, slots.indices, lasso.atoms.shape[0]).astype(jnp.int32), slots.values)
    seen = _check(lasso, slots)
    zeros = jnp.zeros_like(slots.indices[:, 0])
    start = Rounds(slots, seen, jnp.zeros_like(zeros, dtype=bool), zeros, zeros[0])
    return jax.lax.while_loop(unsolved, one_round, start)


def _advance(lasso: Lasso, gram, slots: Slots, correlations, wanted):
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
        part = Slots(slots.indices[rows], slots.values[rows])  # a fill row repeats the last sample and is dropped below
        seen = correlations[rows]
        wider, short = _add_violators(lasso, part, seen)
        solved = _solve_blocks(lasso, gram, wider, seen)
        indices = indices.at[rows].set(wider.indices, mode="drop")
        return indices, values.at[rows].set(solved, mode="drop"), overflow.at[rows].set(short, mode="drop"), chunk + 1

    n_wanted = jnp.sum(wanted)
    start = (slots.indices, slots.values, jnp.zeros_like(wanted), jnp.zeros_like(n_wanted))
    indices, values, overflow, _ = jax.lax.while_loop(lambda carry: carry[3] * lanes < n_wanted, one_chunk, start)
    return Slots(indices, values), overflow


def _check(lasso: Lasso, slots: Slots) -> Check:
    r = slot_residual(lasso, slots)
    correlations = matmul(r, lasso.atoms.T)
    return measured(lasso, slots.values, r, _slot_correlations(slots, correlations), correlations)


def slot_residual(lasso: Lasso, slots: Slots) -> Float[Array, "samples d"]:
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


def _add_violators(lasso: Lasso, slots: Slots, correlations):
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
    return Slots(indices, jnp.where(indices == slots.indices, slots.values, 0)), overflow


def _solve_blocks(lasso: Lasso, gram, slots: Slots, correlations):
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
