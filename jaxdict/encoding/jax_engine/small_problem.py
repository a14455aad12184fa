"""Non-negative problems of samples on their few atoms: most of the way by gradients, all of it by Cholesky solves.

min_{z >= 0}  1/2 z A z - q z
"""

import jax
import jax.numpy as jnp

from jaxdict.numerics import PRECISION, einsum

# Steps between looks at how far they still move, looks, and the part of lam at which a sample's steps say who is in use.
STEPS, MOST_LOOKS, STILL = 10, 4, 1e-2
# Multiplications that bound a step.
BOUND_STEPS = 3


def accelerated(A, pull, start, inside, lam):
    """Some way to the minimiser over `z >= 0` on the entries inside, samples abreast: (z, q - A z), from `q - A start = pull`.

    Accelerated projected gradient, restarted where it points uphill (O'Donoghue and Candes 2015), until no step moves a sample's
    slope by more than a part of lam: that tells who is in use. Never worse than the start; takes no step from a minimiser.
    """
    step = 1 / _largest_eigenvalue_bound(A, inside)

    def slope(z):
        return pull - einsum("nst,nt->ns", A, z - start)

    def one_step(_, carry):
        z, y, t, _ = carry
        new = jnp.where(inside, jnp.maximum(y + step[:, None] * slope(y), 0), 0)
        uphill = jnp.sum((y - new) * (new - z), axis=1) > 0
        t = jnp.where(uphill, 1, t)
        t_new = 0.5 * (1 + jnp.sqrt(1 + 4 * t * t))
        momentum = jnp.where(uphill, 0, (t - 1) / t_new)
        return new, new + momentum[:, None] * (new - z), t_new, jnp.max(jnp.abs(new - y), axis=1) / step

    def going(state):
        (*_, moves), looks = state
        return jnp.any(moves > STILL * lam) & (looks < MOST_LOOKS)

    def some_steps(state):
        return jax.lax.fori_loop(0, STEPS, one_step, state[0]), state[1] + 1

    moves = jnp.max(jnp.where(inside, jnp.where(start > 0, jnp.abs(pull), pull), 0), axis=1, initial=0)
    looks = jnp.zeros_like(start[0, 0], dtype=jnp.int32)
    (z, *_), _ = jax.lax.while_loop(going, some_steps, ((start, start, jnp.ones_like(step), moves), looks))
    left = slope(z)
    gains = jnp.sum((z - start) * (pull + left), axis=1, keepdims=True) > 0
    return jnp.where(gains, z, start), jnp.where(gains, left, pull)


def _largest_eigenvalue_bound(A, inside):
    """A bound of each block's largest eigenvalue on the entries inside: `max_i (|A| v)_i / v_i` for any v > 0 (Collatz, Wielandt)."""
    A = jnp.abs(A)

    def times(v):
        return jnp.where(inside, einsum("nst,nt->ns", A, v), 0)

    def scaled(_, v):
        v = times(v)
        return v / jnp.maximum(jnp.max(v, axis=1, keepdims=True), tiny)

    tiny = jnp.finfo(A.dtype).tiny
    v = jax.lax.fori_loop(0, BOUND_STEPS, scaled, inside.astype(A.dtype))
    ratio = jnp.where(v > 0, times(v) / jnp.where(v > 0, v, 1), 0)
    bound = jnp.max(ratio, axis=1)
    return jnp.where(bound > 0, bound, 1)


def nonnegative_quadratic(A, pull, z_start, valid, lam, most=None):
    """Minimise `1/2 z A z - q z` over `z >= 0` on the valid entries, from a feasible start with `q - A z_start = pull`, for one sample.

    Active set with a Cholesky solve an iteration: step to the free entries' minimiser; where that leaves the orthant take the
    clipped point if it descends, else go to the boundary and drop what blocks; where it does not, free every entry that still
    pulls. Entries are freed one by one after a round of frees without descent, which makes the method finite (Lawson and
    Hanson 1974; Kim and Park 2011 for the exchange with a backup). All is computed from differences to the start, so that
    started at a solution it refines the rounding. After `most` iterations (by default, many more than are ever needed) it ends
    at a point that is feasible and no worse than the start.
    """
    most = 4 * A.shape[0] + 16 if most is None else most
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
        factor = jax.lax.linalg.cholesky(
            jnp.where(both, A, 0) + eye * jnp.where(free, ridge, 1)[None], symmetrize_input=False
        )
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
        return ~state[4] & (state[5] < most)

    free = valid & ((z_start > 0) | (pull > noise))
    false = jnp.zeros_like(valid[0])
    start = (z_start, free, jnp.full_like(pull[0], -jnp.inf), false, false, jnp.zeros_like(z_start[0], dtype=jnp.int32))
    return jax.lax.while_loop(going, body, start)[0]
