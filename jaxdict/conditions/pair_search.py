"""For every pair (i, j), the largest and smallest activation of j where i is off, without a (K, K, N) array.

Feature j's activations, largest first, settle most pairs at once: i is off at nearly all of them. What is left after a
short walk down the lists is settled feature by feature, to the end of j's list if need be, so the answer is exact.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.conditions.coactivations import outer_sum
from jaxdict.problem import SparseCodes

# One step of the exact walk holds about this many (activation, feature) flags.
FLAGS = 2**20


class Extremes(NamedTuple):
    """`largest[i, j] = max z_nj` and `smallest[i, j] = min z_nj` over n with i off; -inf, inf where i is never off."""

    largest: Float[Array, "atoms atoms"]
    smallest: Float[Array, "atoms atoms"]
    both: Int[Array, "atoms atoms"]
    active: Int[Array, " atoms"]


class _Lists(NamedTuple):
    """Every feature's activations, largest first, in one array: feature j owns `start[j] : start[j] + active[j]`."""

    entry: Int[Array, " entries"]  # flat position in the codes' values
    start: Int[Array, " atoms"]
    active: Int[Array, " atoms"]
    indices: Int[Array, "samples slots"]
    on: Array

    def row(self, position):
        return self.entry[jnp.clip(position, 0, self.entry.shape[0] - 1)] // self.on.shape[1]


@functools.partial(jax.jit, static_argnames="n_atoms")
def extremes_where_off(codes: SparseCodes, n_samples, n_atoms: int, quantile, depth) -> Extremes:
    """Extremes of every feature j on the samples where feature i is off, differentiable in the codes' values.

    `quantile` q takes the `floor(q #{j on})` largest activations of j among those samples for zero, and drops the
    `floor(q #{i off})` smallest. `n_samples` counts the samples of positive weight (the others have zero codes here).

    >>> import jax.numpy as jnp
    >>> codes = SparseCodes(jnp.array([[0, 1], [1, 0], [1, 0]]), jnp.array([[1.0, 5.0], [3.0, 0.0], [2.0, 0.0]]))
    >>> found = extremes_where_off(codes, 3, 2, 0.0, 8)
    >>> float(found.largest[0, 1]), float(found.smallest[0, 1])
    (3.0, 2.0)
    """
    on = codes.values > 0
    both = jnp.round(outer_sum(codes, on, on, n_atoms)).astype(int)
    active = jnp.diagonal(both)
    lists = _sorted_lists(codes.indices, jax.lax.stop_gradient(codes.values), active)

    # In this file's arrays row j, column i: "j's activations where i is off".
    apart = active[:, None] - both  # j on, i off
    off = jnp.broadcast_to(n_samples - active[None, :], apart.shape)  # i off
    # The 1e-4 guards floor against the rounding of q times a count.
    skip_top = jnp.floor(quantile * active + 1e-4).astype(apart.dtype)
    skip_low = jnp.floor(quantile * (n_samples - active) + 1e-4).astype(apart.dtype)
    both_off = off - apart
    wants_top = apart > skip_top[:, None]
    # The smallest value left is zero as soon as enough samples have both off; else it is the last but so many of j's
    # list.
    wants_low = (off > 0) & (both_off <= skip_low[None, :])
    nth_low = apart - (skip_low[None, :] - both_off)

    top = _walk_all(lists, skip_top, wants_top, depth)
    unsettled = (wants_top & (top < 0)) | wants_low
    top, low = _walk_some(lists, unsettled, skip_top, nth_low, wants_top, wants_low, top)

    values = codes.values.reshape(-1)[lists.entry]
    pick = lambda rank: values[jnp.clip(lists.start[:, None] + rank, 0, values.shape[0] - 1)]  # noqa: E731
    largest = jnp.where(off > 0, jnp.where(wants_top, pick(top), 0), -jnp.inf)
    smallest = jnp.where(off > 0, jnp.where(wants_low, pick(low), 0), jnp.inf)
    return Extremes(largest.T, smallest.T, both, active)


def _sorted_lists(indices, values, active) -> _Lists:
    flat = values.reshape(-1)
    feature = jnp.where(flat > 0, indices.reshape(-1), active.shape[0])  # silent slots go last
    position = jnp.arange(flat.shape[0], dtype=indices.dtype)
    _, _, entry = jax.lax.sort((feature, -flat, position), num_keys=2)
    return _Lists(entry, jnp.cumsum(active) - active, active, indices, values > 0)


def _walk_all(lists, skip_top, wanted, depth):
    """Rank in j's list of the activation at which i is off for time `skip_top[j] + 1`; -1 where deeper than `depth`.

    The number of i's activations met before that rank is all that is counted, so one step touches (atoms, slots)
    entries.
    """
    features = jnp.arange(wanted.shape[0])[:, None]

    def step(carry):
        rank, met = carry
        row = lists.row(lists.start + rank)
        here = lists.indices[row]
        met_here = met[features, here]
        before = rank - met_here <= skip_top[:, None]  # of those before `rank`, this many had i off
        counts = lists.on[row] & before & (rank < lists.active)[:, None]
        return rank + 1, met.at[features, here].add(counts.astype(met.dtype))

    def unfinished(carry):
        rank, met = carry
        return (rank < depth) & jnp.any(wanted & (skip_top[:, None] + met >= rank))

    met = jnp.zeros_like(wanted, dtype=skip_top.dtype)
    walked, met = jax.lax.while_loop(unfinished, step, (jnp.zeros_like(skip_top[0]), met))
    found = skip_top[:, None] + met
    return jnp.where(wanted & (found < walked), found, -1)


def _walk_some(lists, unsettled, skip_top, nth_low, wants_top, wants_low, top):
    """The exact ranks of the pairs left over: j by j, down the whole list where that is needed."""
    n_atoms = top.shape[0]
    chunk = max(1, min(lists.entry.shape[0], FLAGS // n_atoms))
    columns = jnp.any(unsettled, axis=1)
    order = jnp.argsort(~columns)  # the features with something left come first
    steps = jnp.arange(chunk)

    def walk(j, top_j):
        targets = (skip_top[j] + 1, nth_low[j])
        wanted = (wants_top[j], wants_low[j])

        def unfinished(carry):
            rank, _, ranks = carry
            missing = (wanted[0] & (ranks[0] < 0)) | (wanted[1] & (ranks[1] < 0))
            return (rank < lists.active[j]) & jnp.any(missing)

        def step(carry):
            rank, met_off, ranks = carry
            row = lists.row(lists.start[j] + rank + steps)
            flags = jnp.zeros((chunk, n_atoms), bool).at[steps[:, None], lists.indices[row]].max(lists.on[row])
            is_off = ~flags & (rank + steps < lists.active[j])[:, None]
            so_far = met_off + jnp.cumsum(is_off, axis=0, dtype=met_off.dtype)
            hits = [is_off & (so_far == target) for target in targets]
            ranks = tuple(
                jnp.where(jnp.any(hit, axis=0), rank + jnp.argmax(hit, axis=0).astype(old.dtype), old)
                for hit, old in zip(hits, ranks, strict=True)
            )
            return rank + chunk, so_far[-1], ranks

        start = (jnp.zeros_like(top_j[0]), jnp.zeros_like(top_j), (top_j, jnp.full_like(top_j, -1)))
        return jax.lax.while_loop(unfinished, step, start)[2]

    def one(carry):
        count, top, low = carry
        j = order[count]
        top_j, low_j = walk(j, top[j])
        return count + 1, top.at[j].set(top_j), low.at[j].set(low_j)

    low = jnp.full_like(top, -1)
    n_left = jnp.sum(columns)
    return jax.lax.while_loop(lambda carry: carry[0] < n_left, one, (jnp.zeros_like(n_left), top, low))[1:]
