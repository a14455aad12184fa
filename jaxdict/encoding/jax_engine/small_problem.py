"""One sample's non-negative problem on its few atoms, exactly: an active set with a Cholesky solve an iteration."""

import jax
import jax.numpy as jnp

from jaxdict.numerics import PRECISION


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
        factor = jnp.linalg.cholesky(jnp.where(both, A, 0) + eye * jnp.where(free, ridge, 1)[None])
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
    start = (z_start, free, jnp.full_like(pull[0], -jnp.inf), false, false, jnp.zeros_like(z_start[0], dtype=jnp.int32))
    return jax.lax.while_loop(going, body, start)[0]
