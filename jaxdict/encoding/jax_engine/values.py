"""Best values on given supports by plain JAX: least squares of each sample on its few atoms, non-negative or with signs free."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.encoding.jax_engine.small_problem import nonnegative_quadratic
from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.slots import Slots
from jaxdict.numerics import cut_in_blocks, join_blocks, matmul

# Entries of the largest array of a block of samples.
BLOCK_ENTRIES = 2**24
# The second solve, from the first one's residual, only removes rounding.
SOLVES = 2


def values_by_jax(lasso: Lasso, slots: Slots, *, signed: bool) -> Float[Array, "samples slots"]:
    """Least squares on the slots in use; lam has no part in it."""

    def one(y, indices, values):
        inside = values != 0 if signed else values > 0
        used = jnp.where(inside[:, None], lasso.atoms[indices], 0)
        gram, z = matmul(used, used.T), jnp.where(inside, values, 0)
        scale = jnp.max(jnp.abs(matmul(used, y)), initial=0)

        def solve(_, z):
            return least_squares(gram, matmul(used, y - matmul(z, used)), z, inside, scale, signed=signed)

        return jax.lax.fori_loop(0, SOLVES, solve, z)

    (n, d), n_slots = lasso.targets.shape, slots.values.shape[1]
    return by_blocks(jax.vmap(one), (lasso.targets, *slots), n, n_slots * max(n_slots, d))


def by_blocks(call, arrays, n: int, entries: int, most: int = BLOCK_ENTRIES):
    """`call(*arrays)` with the rows in blocks, so that `entries` numbers a row stay below `most`."""
    size = max(1, most // entries)
    if n <= size:
        return call(*arrays)
    return join_blocks(jax.lax.map(lambda block: call(*block), cut_in_blocks(arrays, size)), n, size)


def least_squares(gram, pull, z, inside, scale, *, signed: bool) -> Float[Array, " slots"]:
    """The minimiser of `1/2 z G z - q z` on the slots inside, from z with `q - G z = pull`; z >= 0 unless signed. `scale` is q's size."""
    if not signed:
        return nonnegative_quadratic(gram, pull, z, inside, scale)
    return jnp.where(inside, z + support_solve(gram, inside)(jnp.where(inside, pull, 0)), 0)


def support_solve(gram, inside):
    """`v -> G^-1 v` on the slots inside, by Cholesky of G scaled to a unit diagonal; a ridge of rounding's size lets copies pass."""
    diagonal = jnp.where(inside, jnp.diagonal(gram), 1)
    scale = jnp.where(inside & (diagonal > 0), 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
    gram = scale[:, None] * gram * scale[None]
    ridge = 8 * gram.shape[0] * float(jnp.finfo(gram.dtype).eps)
    factor = jnp.linalg.cholesky(gram + jnp.diag(jnp.where(scale > 0, ridge, 1).astype(gram.dtype)))
    solve = partial(jax.scipy.linalg.cho_solve, (factor, True))

    def solved(v):
        first = solve(scale * v)
        return scale * (first + solve(scale * v - matmul(gram, first)))

    return solved
