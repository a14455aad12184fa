"""A look at all atoms from sparse codes: residual, gap, and the atoms that correlate most. The one dense product of a round.

    r = y - z A,      C = r A^T      (samples, atoms)

Of C only what is small leaves the look: the correlations of the slots, the largest of all, and the atoms that pull most.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.encoding.lasso import Check, Lasso, measured
from jaxdict.encoding.slots import Slots
from jaxdict.numerics import compensated_subtract, matmul, round_up

# Atoms are dealt into so many bins, and the strongest of each bin are ranked: sorting all of them would cost more than the product.
# Two that pull and share a bin join one look after the other; the gap is taken from the largest of all, exactly.
BINS = 256
# Atoms that may join in one round.
ADDED_PER_ROUND = 32
# Slots whose atoms are subtracted together; where none of them is in use in any sample, they cost nothing.
SLOTS_AT_ONCE = 8


class Look(NamedTuple):
    """What a round needs of a look at all atoms."""

    check: Check
    own: Float[Array, "samples slots"]  # correlations of the slots' atoms
    atoms: Int[Array, "samples strongest"]
    pulls: Float[Array, "samples strongest"]  # their correlations, the largest first


def look(lasso: Lasso, slots: Slots) -> Look:
    """The look from codes in slots; `lasso.atoms` as `dealt` returns them."""
    r = slot_residual(lasso, slots)
    correlations = matmul(r, lasso.atoms.T)
    own = jnp.take_along_axis(correlations, _within(lasso, slots.indices), axis=1, mode="promise_in_bounds")
    n_atoms = lasso.atoms.shape[0]
    if n_atoms <= BINS:
        pulls, atoms = jax.lax.top_k(correlations, min(ADDED_PER_ROUND, n_atoms))
        strongest = pulls[:, :1]
    else:
        dealt = correlations.reshape(-1, n_atoms // BINS, BINS)
        strongest = jnp.max(dealt, axis=1)
        pulls, bins = jax.lax.top_k(strongest, ADDED_PER_ROUND)
        turns = jnp.argmax(dealt, axis=1).astype(bins.dtype)
        atoms = BINS * jnp.take_along_axis(turns, bins, axis=1) + bins
    seen = measured(lasso, slots.values, r, own, strongest)._replace(correlations=None)
    return Look(seen, own, atoms.astype(jnp.int32), pulls)


def dealt(atoms: Float[Array, "atoms d"]) -> Float[Array, "more d"]:
    """The atoms, and zeros that fill the bins: a zero atom correlates with nothing and never joins."""
    n_atoms = atoms.shape[0]
    return atoms if n_atoms <= BINS else jnp.pad(atoms, [(0, round_up(n_atoms, BINS) - n_atoms), (0, 0)])


def slot_residual(lasso: Lasso, slots: Slots) -> Float[Array, "samples d"]:
    """`y - z A`. In float32 the sum over slots is compensated: a gap of 1e-6 of the objective is a difference of numbers that
    agree in their first six digits, and rounding y - z A in float32 would drown it.
    """
    exact = lasso.targets.dtype == jnp.float64

    def subtract(carry, indices, values):
        high, low = carry
        for index, value in zip(indices, values, strict=True):
            atoms = lasso.atoms[index]
            high, low = (
                (high - value[:, None] * atoms, low)
                if exact
                else compensated_subtract(high, low, value[:, None], atoms)
            )
        return high, low

    def some_slots(carry, part):
        in_use = jnp.any(part[1] != 0)
        return jax.lax.cond(in_use, subtract, lambda carry, *_: carry, carry, *part), None

    n_slots = slots.indices.shape[1]
    size = min(SLOTS_AT_ONCE, n_slots)
    short = [(0, round_up(n_slots, size) - n_slots), (0, 0)]
    parts = [jnp.pad(a.T, short).reshape(-1, size, a.shape[0]) for a in (_within(lasso, slots.indices), slots.values)]
    (high, low), _ = jax.lax.scan(some_slots, (lasso.targets, jnp.zeros_like(lasso.targets)), parts)
    return high + low


def _within(lasso: Lasso, indices):
    """Indices that may be gathered: those of empty slots may be anything."""
    return jnp.clip(indices, 0, lasso.atoms.shape[0] - 1)
