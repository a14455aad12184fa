"""Exact codes by working sets: solve each sample's small problem exactly, look at all atoms once, add what is missing.

A sample keeps S slots: atom indices (the number of atoms marks an empty slot) and values. One round adds the atoms whose
correlation exceeds lam most, gathers the S x S Gram block, solves the non-negative problem on it to rounding by an active-set
method with batched Cholesky factors, and checks the duality gap over all atoms.
"""

from functools import partial
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
ADDED_PER_ROUND = 16
# Samples whose blocks are solved together.
LANES = 256
# Rounds that only refine rounding before a sample is left at its floor.
IDLE_ROUNDS = 3
# So many rounds without the gap shrinking by a tenth mean the same, whatever seems to be missing.
STALE_ROUNDS = 20
# More slots than this are tried at half their number first.
FEW_SLOTS = 24


class Rounds(NamedTuple):
    """Where the rounds stand. `overflow` marks samples that need more slots than there are."""

    slots: Slots
    check: Check
    overflow: Bool[Array, " samples"]
    idle: Int[Array, " samples"]  # rounds in a row in which nothing was missing: rounding is all that is left
    best: Float[Array, " samples"]  # the smallest gap so far
    stale: Int[Array, " samples"]  # rounds in a row in which it did not shrink by a tenth
    steps: Int[Array, ""]


def found(rounds: Rounds) -> Slots:
    """The slots with their codes; atoms that are in the set but not in use leave it."""
    used = rounds.slots.values > 0
    return Slots(jnp.where(used, rounds.slots.indices, 0), jnp.where(used, rounds.slots.values, 0))


def limited(rounds: Rounds, tol, max_rounds, defect_tol=None) -> Bool[Array, " samples"]:
    """Samples that more rounds would help: neither solved, nor short of slots, nor at the floor of rounding."""
    return _waiting(rounds, tol, defect_tol) & (rounds.steps >= max_rounds)


def _waiting(rounds: Rounds, tol, defect_tol):
    moving = (rounds.idle < IDLE_ROUNDS) & (rounds.stale < STALE_ROUNDS)
    return ~within(rounds.check, tol, defect_tol) & ~rounds.overflow & moving


def solve(lasso: Lasso, slots: Slots, tol, max_rounds, defect_tol=None) -> Rounds:
    """Exact codes from a working set, until every sample's gap is at most `tol` times its objective.

    The gap says little of a tiny code's own condition `s = 1`; where that matters (inside solvers) `defect_tol` bounds it too.
    Ends early where every unsolved sample has overflown its slots (the caller must grow the set or fall back: nothing stalls
    unseen) or is at the floor of rounding. A solved sample is not touched again.
    """
    gram = matmul(lasso.atoms, lasso.atoms.T) if lasso.atoms.shape[0] <= GRAM_ATOMS else None

    def unsolved(state: Rounds):
        return jnp.any(_waiting(state, tol, defect_tol)) & (state.steps < max_rounds)

    def one_round(state: Rounds) -> Rounds:
        wanted = ~within(state.check, tol, defect_tol)
        slots, overflow, missing = _advance(lasso, gram, state.slots, state.check.correlations, wanted)
        seen = _check(lasso, slots)
        stale = jnp.where(seen.gap < 0.9 * state.best, 0, state.stale + 1)
        best = jnp.minimum(state.best, seen.gap)
        return Rounds(slots, seen, overflow, jnp.where(missing, 0, state.idle + 1), best, stale, state.steps + 1)

    slots = Slots(jnp.where(slots.values > 0, slots.indices, lasso.atoms.shape[0]).astype(jnp.int32), slots.values)
    seen, zeros = _check(lasso, slots), jnp.zeros_like(slots.indices[:, 0])
    start = Rounds(slots, seen, zeros > 0, zeros, seen.gap, zeros, zeros[0])
    return jax.lax.while_loop(unsolved, one_round, start)


def _advance(lasso: Lasso, gram, slots: Slots, correlations, wanted):
    """One round for the wanted samples: add what is missing, solve their blocks; also which overflowed, and which missed something.

    They are taken in chunks, unsolved ones first, so that a chunk waits for its own slowest sample only and solved samples
    cost nothing.
    """
    n_samples = wanted.shape[0]
    lanes = n_samples if n_samples <= 2 * LANES else LANES
    n_chunks = -(-n_samples // lanes)
    order = jnp.nonzero(wanted, size=n_chunks * lanes, fill_value=n_samples)[0].reshape(n_chunks, lanes)

    def one_chunk(carry):
        state, chunk = carry
        rows = order[chunk]
        part = Slots(slots.indices[rows], slots.values[rows])  # a fill row repeats the last sample and is dropped below
        seen = correlations[rows]
        wider, short, missing = _add_violators(lasso, part, seen)
        solved = _solve_blocks(lasso, gram, wider, seen)
        new = (wider.indices, solved, short, missing)
        return tuple(old.at[rows].set(part, mode="drop") for old, part in zip(state, new, strict=True)), chunk + 1

    n_wanted, none = jnp.sum(wanted), jnp.zeros_like(wanted)
    start = ((slots.indices, slots.values, none, none), jnp.zeros_like(n_wanted))
    indices, values, overflow, missing = jax.lax.while_loop(lambda c: c[1] * lanes < n_wanted, one_chunk, start)[0]
    return Slots(indices, values), overflow, missing


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
    """Put the atoms outside the set with the largest correlations above lam in empty slots; also which samples lack room or an atom.

    Atoms that are neither in use nor pull leave the set, so that their slots are empty.
    """
    n_samples, n_slots = slots.indices.shape
    n_atoms = lasso.atoms.shape[0]
    threshold = lasso.lam * (1 + 8 * jnp.finfo(correlations.dtype).eps)
    pulls = (slots.indices < n_atoms) & (_slot_correlations(slots, correlations) > threshold)
    indices = jnp.where((slots.values > 0) | pulls, slots.indices, n_atoms)
    rows = jnp.arange(n_samples, dtype=indices.dtype)
    outside = correlations.at[rows[:, None], indices].set(-jnp.inf, mode="drop")
    values, atoms = jax.lax.top_k(outside, min(ADDED_PER_ROUND, n_atoms))
    violates = values > threshold
    empty, places = jax.lax.top_k((indices == n_atoms).astype(jnp.int32), min(ADDED_PER_ROUND, n_atoms, n_slots))
    put = violates[:, : places.shape[1]] & (empty > 0)
    old = jnp.take_along_axis(indices, places, axis=1)
    indices = indices.at[rows[:, None], places].set(jnp.where(put, atoms[:, : places.shape[1]].astype(jnp.int32), old))
    missing = jnp.any(put, axis=1)
    return Slots(indices, jnp.where(indices < n_atoms, slots.values, 0)), jnp.any(violates, axis=1) & ~missing, missing


def _solve_blocks(lasso: Lasso, gram, slots: Slots, correlations):
    """Codes of each sample's problem on its slots; on half of them, at a sixth of the cost, where all sets fit in that."""
    n_slots = slots.indices.shape[1]
    in_set, half = slots.indices < lasso.atoms.shape[0], 8 * -(-n_slots // 16)
    solve_on = partial(_solve_on, lasso, gram)
    if n_slots <= FEW_SLOTS:
        return solve_on(slots, correlations)

    def on_half(slots, correlations):
        kept = jax.lax.top_k(in_set.astype(jnp.int32), half)[1]
        part = Slots(*(jnp.take_along_axis(array, kept, axis=1) for array in slots))
        rows = jnp.arange(kept.shape[0], dtype=kept.dtype)[:, None]
        return jnp.zeros_like(slots.values).at[rows, kept].set(solve_on(part, correlations))

    fits = jnp.all(jnp.sum(in_set, axis=1) <= half)
    return jax.lax.cond(fits, on_half, solve_on, slots, correlations)


def _solve_on(lasso: Lasso, gram, slots: Slots, correlations):
    """Each sample's problem on its slots, started from the values there.

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
