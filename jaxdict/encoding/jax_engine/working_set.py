"""Exact codes by working sets, made of products of whole blocks of samples.

A sample keeps S slots, atom indices and values. A round takes one look at all atoms; the many that correlate beyond lam most join
at once; the problem on the slots is solved by the accelerated gradient, which finds who stays, and then by Cholesky, exactly. The
next look is the proof, or the next round's beginning. Samples that are proved leave the rounds.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.encoding.jax_engine.looks import dealt, look
from jaxdict.encoding.jax_engine.small_problem import accelerated, nonnegative_quadratic
from jaxdict.encoding.lasso import Check, Lasso, within
from jaxdict.encoding.slots import Slots
from jaxdict.numerics import einsum, matmul, packed, round_up, select, unpacked

# Above this many atoms the Gram matrix is not formed: blocks come from gathered atoms.
GRAM_ATOMS = 2048
# Samples of a block, within so many entries of an array: on a CPU what stays in its cache; elsewhere what fills the device with
# products of so many multiplications, and no fewer samples than a product needs to be a good one.
ENTRIES, CPU_LANES, LANES, MULTIPLICATIONS = 2**28, 256, 1024, 2**31
# Rounds that only refine rounding before a sample is left at its floor.
IDLE_ROUNDS = 3
# So many rounds without the gap shrinking by a tenth mean the same, whatever seems to be missing.
STALE_ROUNDS = 20
# More slots than this are tried at half their number first.
FEW_SLOTS = 24
# Slots are full for good where their own correlations are within this part of lam, or where so many rounds changed nothing.
SETTLED, STALE_WHILE_FULL = 1e-3, 3
# Cholesky solves of the first round, twice as many in each later one: a few hard samples do not hold up the first, large ones.
FIRST_SOLVES, MOST_DOUBLED = 3, 8
# A sample with room for so many more atoms in half its slots takes no more than those: solving on half costs a sixth.
LEAN = 8


class Rows(NamedTuple):
    """Where the rounds stand, sample by sample."""

    slots: Slots
    check: Check  # of the slots, where the sample does not wait
    waiting: Bool[Array, " samples"]  # for a look at its slots
    overflow: Bool[Array, " samples"]  # needs more slots than there are
    limited: Bool[
        Array, " samples"
    ]  # neither solved, nor short of slots, nor at rounding's floor: more rounds would help
    idle: Int[
        Array, " samples"
    ]  # rounds in a row in which nothing was missing nor gained: rounding is all that is left
    best: Float[Array, " samples"]  # the smallest gap so far
    stale: Int[Array, " samples"]  # rounds in a row in which it did not shrink by a tenth


class Limits(NamedTuple):
    """When a sample is done, and whether a round may go on, with how many Cholesky solves."""

    tol: Float[Array, ""]
    defect_tol: Float[Array, ""] | None
    more: Bool[Array, ""]
    solves: Int[Array, ""]


def found(slots: Slots) -> Slots:
    """The slots in the form that callers keep: zeros where nothing is in use."""
    used = slots.values > 0
    return Slots(jnp.where(used, slots.indices, 0), jnp.where(used, slots.values, 0))


def solve(lasso: Lasso, slots: Slots, tol, max_rounds, defect_tol=None) -> tuple[Rows, Int[Array, ""]]:
    """Exact codes from a working set, until every sample's gap is at most `tol` times its objective; and the rounds it took.

    Slots in use stand first (as `resized` leaves them), so that half the slots suffice where they are few. The gap says little of a
    tiny code's own condition `s = 1`; where that matters (inside solvers) `defect_tol` bounds it too.
    Ends early where every unsolved sample has overflown its slots (the caller must grow the set or fall back: nothing stalls
    unseen) or is at the floor of rounding. A solved sample is not touched again.
    """
    gram = matmul(lasso.atoms, lasso.atoms.T) if lasso.atoms.shape[0] <= GRAM_ATOMS else None
    lasso = lasso._replace(atoms=dealt(lasso.atoms))
    lanes = _lanes(lasso, slots.values.shape[1])

    def one_round(state):
        rows, steps = state
        solves = FIRST_SOLVES * 2 ** jnp.minimum(steps, MOST_DOUBLED)
        limits = Limits(tol, defect_tol, steps < max_rounds, solves)
        rows = _where_waiting(lanes, partial(_round, lasso, gram, limits), lasso.targets, rows)
        return rows, steps + jnp.any(rows.waiting).astype(steps.dtype)

    zeros = 0 * lasso.targets[:, 0]
    none, never = zeros.astype(jnp.int32), zeros > 0
    unseen = Check(jnp.zeros_like(lasso.targets), None, zeros, zeros, zeros)
    slots = Slots(jnp.clip(slots.indices.astype(jnp.int32), 0, lasso.atoms.shape[0] - 1), slots.values)
    start = Rows(slots, unseen, ~never, never, never, none, zeros + jnp.inf, none)
    return jax.lax.while_loop(lambda state: jnp.any(state[0].waiting), one_round, (start, jnp.zeros_like(none[0])))


def _lanes(lasso: Lasso, n_slots: int) -> int:
    """Samples of a block."""
    (n_samples, d), n_atoms = lasso.targets.shape, lasso.atoms.shape[0]
    most = max(1, ENTRIES // max(n_atoms, n_slots * max(n_slots, d)))
    wanted = CPU_LANES if jax.default_backend() == "cpu" else max(LANES, MULTIPLICATIONS // (n_atoms * d))
    return n_samples if n_samples <= wanted <= most else min(most, wanted)


def _where_waiting(lanes: int, call, targets, rows: Rows) -> Rows:
    """`call(targets, rows)` for the samples that wait, gathered in blocks; all at once, where they are no more than a block."""
    n_samples = targets.shape[0]
    if n_samples <= lanes:
        return select(rows.waiting, call(targets, rows), rows)
    n_blocks = -(-n_samples // lanes)
    n_waiting = jnp.sum(rows.waiting)
    order = jnp.argsort(~rows.waiting, stable=True)
    order = jnp.where(jnp.arange(n_samples) < n_waiting, order, n_samples)
    order = jnp.pad(order, (0, n_blocks * lanes - n_samples), constant_values=n_samples).reshape(n_blocks, lanes)

    def one_block(carry):
        arrays, block = carry
        at = order[block]
        # A row that fills the last block repeats the last sample and is dropped.
        new = call(targets[at], unpacked([array[at] for array in arrays], rows))
        parts = zip(arrays, packed(new), strict=True)
        return tuple(array.at[at].set(part, mode="drop") for array, part in parts), block + 1

    start = packed(rows), jnp.zeros_like(n_waiting)
    return unpacked(jax.lax.while_loop(lambda c: c[1] * lanes < n_waiting, one_block, start)[0], rows)


def _round(lasso: Lasso, gram, limits: Limits, targets, rows: Rows) -> Rows:
    """A look at all atoms; samples that it does not prove solved take up what they miss and solve the problem on their slots."""
    lasso = lasso._replace(targets=targets)
    seen = look(lasso, rows.slots)
    check, slots = seen.check, rows.slots
    indices, joins, pull, full = _with_missing(lasso, slots, seen)
    shrinks = check.gap < 0.9 * rows.best
    stale = jnp.where(shrinks, 0, rows.stale + 1)
    idle = jnp.where(shrinks | jnp.any(joins, axis=1), 0, rows.idle + 1)
    off = jnp.max(jnp.where(slots.values > 0, jnp.abs(seen.own - lasso.lam), 0), axis=1, initial=0)
    settled = (off <= SETTLED * lasso.lam) | (stale >= STALE_WHILE_FULL)
    left = ~within(check, limits.tol, limits.defect_tol)
    overflow = left & full & settled
    going = left & ~overflow & (idle < IDLE_ROUNDS) & (stale < STALE_ROUNDS)
    waiting = going & limits.more

    def solve(slots, joins, pull):
        inside = ((slots.values > 0) | joins) & waiting[:, None]
        values = jnp.where(inside, slots.values, 0)
        return select(waiting, _solved(lasso, gram, limits.solves, indices, values, pull, inside), slots)

    slots = jax.lax.cond(jnp.any(waiting), solve, lambda slots, *_: slots, slots, joins, pull)
    best = jnp.minimum(rows.best, check.gap)
    return Rows(slots, check, waiting, overflow, going & ~limits.more, idle, best, stale)


def _with_missing(lasso: Lasso, slots: Slots, seen):
    """Slots with the atoms outside them that pull most: indices, which have joined, pulls `<a, r> - lam` of all; who lacks room."""
    used = slots.values > 0
    known = jnp.any((seen.atoms[:, :, None] == slots.indices[:, None, :]) & used[:, None, :], axis=2)
    violates = (seen.pulls > lasso.lam * (1 + 8 * jnp.finfo(seen.pulls.dtype).eps)) & ~known
    # The first that violates takes the first empty slot, and so on: no sorting, no scattering.
    turn, place = (_running_count(flags) for flags in (violates, ~used))
    half = _half(used.shape[1])
    many = jnp.sum(used, axis=1, keepdims=True) > half - LEAN
    room = ~used & (many | (jnp.arange(used.shape[1]) < half)[None])
    put = (turn[:, :, None] == place[:, None, :]) & violates[:, :, None] & room[:, None, :]
    joins = jnp.any(put, axis=1)
    indices = jnp.where(
        used, slots.indices, jnp.sum(jnp.where(put, seen.atoms[:, :, None], 0), axis=1, dtype=jnp.int32)
    )
    pulls = jnp.where(used, seen.own, jnp.sum(jnp.where(put, seen.pulls[:, :, None], 0), axis=1))
    return indices, joins, pulls - lasso.lam, jnp.any(violates, axis=1) & jnp.all(used, axis=1)


def _running_count(flags: Bool[Array, "samples flags"]) -> Float[Array, "samples flags"]:
    """How many hold up to and with each: a product with a triangle, one kernel where a running sum is several."""
    triangle = jnp.triu(jnp.ones((flags.shape[1], flags.shape[1]), jnp.float32))
    return matmul(flags.astype(triangle.dtype), triangle)


def _solved(lasso: Lasso, gram, solves, *arrays) -> Slots:
    """Each sample's problem on its slots (indices, values, pulls, inside), solved; on half of them where all sets lie in those."""
    n_slots, half = arrays[0].shape[1], _half(arrays[0].shape[1])

    def on_all(*arrays):
        return _solved_on(lasso, gram, solves, *arrays)

    def on_half(*arrays):
        return _widened(on_all(*(array[:, :half] for array in arrays)), n_slots)

    if half == n_slots:
        return on_all(*arrays)
    return jax.lax.cond(jnp.any(arrays[-1][:, half:]), on_all, on_half, *arrays)


def _solved_on(lasso: Lasso, gram, solves, indices, values, pull, inside) -> Slots:
    """By gradients, then exactly; the latter on those in use alone, where all of them fit in half the slots: an eighth of the work."""
    n_slots, half = indices.shape[1], _half(indices.shape[1])
    blocks = _blocks(lasso, gram, indices)
    near, pull = accelerated(blocks, pull, values, inside, lasso.lam)

    def exactly(blocks, pull, near, inside):
        exact = partial(nonnegative_quadratic, most=solves)
        return jax.vmap(exact, (0, 0, 0, 0, None))(blocks, pull, near, inside, lasso.lam)

    def on_all(blocks, indices, pull, near):
        return Slots(indices, exactly(blocks, pull, near, inside))

    def on_those_in_use(blocks, indices, pull, near):
        values, kept = jax.lax.top_k(near, half)
        indices, pull = (jnp.take_along_axis(array, kept, axis=1) for array in (indices, pull))
        blocks = jax.vmap(lambda block, at: block[at[:, None], at[None]])(blocks, kept)
        return _widened(Slots(indices, exactly(blocks, pull, values, values > 0)), n_slots)

    if n_slots <= 2 * FEW_SLOTS:
        return on_all(blocks, indices, pull, near)
    fits = jnp.all(jnp.sum(near > 0, axis=1) <= half)
    return jax.lax.cond(fits, on_those_in_use, on_all, blocks, indices, pull, near)


def _half(n_slots: int) -> int:
    """Half of the slots, in eights; all of them where they are few."""
    return n_slots if n_slots <= FEW_SLOTS else round_up(-(-n_slots // 2), 8)


def _widened(slots: Slots, n_slots: int) -> Slots:
    """The slots and empty ones behind them."""
    more = [(0, 0), (0, n_slots - slots.values.shape[1])]
    return Slots(jnp.pad(slots.indices, more), jnp.pad(slots.values, more))


def _blocks(lasso: Lasso, gram, indices) -> Float[Array, "samples slots slots"]:
    """Each sample's block of the Gram matrix, from where it lies or from its atoms."""
    if gram is not None:
        places = gram.shape[1] * indices[:, :, None] + indices[:, None, :]
        return gram.ravel().at[places].get(mode="promise_in_bounds")
    used = lasso.atoms[indices]
    return einsum("nsd,ntd->nst", used, used)
