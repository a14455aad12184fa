"""The smallest eigenvalue of a symmetric operator that is known by its products only."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.numerics import matmul, safe_norm

# The smallest Ritz pair is looked at every so many steps.
CHECK_EVERY = 20


def lanczos_smallest(apply, start: Float[Array, " n"], max_iterations: int, *, above: float):
    """Smallest Ritz pair of a symmetric operator on (n,), by Lanczos from a start vector with full reorthogonalisation.

    Stops when the Ritz residual is below `eps^(2/5) max(1, |value|)`, when the Krylov space is exhausted, or at
    `max_iterations`. `above` is any number above the smallest eigenvalue: it fills the steps not taken. The value is
    the Rayleigh quotient of the unit vector returned, hence never below the smallest eigenvalue.

    >>> import jax.numpy as jnp
    >>> value, vector = lanczos_smallest(lambda v: jnp.array([1.0, -2.0, 0.5]) * v, jnp.ones(3), 3, above=4.0)
    >>> round(float(value), 5)
    -2.0
    """
    steps = min(max_iterations, start.shape[0])
    tolerance = float(jnp.finfo(start.dtype).eps ** 0.4)
    tiny = float(jnp.finfo(start.dtype).eps ** 0.75)

    def unit(v):
        norm = safe_norm(v)
        return v / jnp.where(norm > 0, norm, 1)

    def across(basis, v):
        return v - matmul(matmul(basis, v), basis)

    def step(i, carry):
        basis, diagonal, off, done = carry
        image = apply(basis[i])
        along = jnp.vdot(basis[i], image, precision=jax.lax.Precision.HIGHEST)
        scale = safe_norm(image)
        image = across(basis, across(basis, image))  # twice is enough to be orthogonal to rounding
        norm = safe_norm(image)
        diagonal = diagonal.at[i].set(jnp.where(done, above, along))
        done = done | ~(norm > tiny * scale)
        off = off.at[i].set(jnp.where(done, 0, norm))
        following = jnp.where(done, 0, unit(across(basis, unit(image))))
        return basis.at[i + 1].set(following, mode="drop"), diagonal, off, done

    def ritz(diagonal, off):
        tridiagonal = jnp.diag(diagonal) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)
        values, vectors = jnp.linalg.eigh(tridiagonal)
        return values[0], vectors[:, 0]

    def going(carry):
        i, done, error, *_ = carry
        return (i < steps) & ~done & (error > tolerance)

    def advance(carry):
        i, done, _, value, weights, basis, diagonal, off = carry
        stop = jnp.minimum(i + CHECK_EVERY, steps)
        basis, diagonal, off, done = jax.lax.fori_loop(i, stop, step, (basis, diagonal, off, done))
        # The last off-diagonal couples to a step not yet taken.
        value, weights = ritz(diagonal, off.at[stop - 1].set(0))
        error = off[stop - 1] * jnp.abs(weights[stop - 1]) / jnp.maximum(1, jnp.abs(value))
        return stop, done, error, value, weights, basis, diagonal, off

    first = unit(start)
    basis = jnp.zeros((steps, start.shape[0]), start.dtype).at[0].set(first)
    zero = jnp.zeros_like(start[0])
    diagonal = jnp.zeros_like(basis[:, 0]) + above
    none = jnp.zeros_like(diagonal)
    carry = (jnp.zeros_like(zero, dtype=int), zero > 1, zero + jnp.inf, zero + jnp.nan, none, basis, diagonal, none)
    _, _, _, value, weights, basis, _, _ = jax.lax.while_loop(going, advance, carry)
    return value, unit(matmul(weights, basis))
