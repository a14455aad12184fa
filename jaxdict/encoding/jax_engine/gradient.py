"""Dense accelerated projected gradient for codes (FISTA with adaptive restart): matmuls only, no set to choose.

Right for few atoms, for accelerators at moderate widths, and as the method that always gets there when a working set overflows.
"""

import jax
import jax.numpy as jnp

from jaxdict.encoding.lasso import Lasso, check, within
from jaxdict.numerics import matmul

# Gap checks cost a third matmul, so they come once in this many steps.
STEPS_PER_CHECK = 10
# So many checks without any unsolved sample's gap shrinking by a tenth mean that rounding is all that is left.
STALE_CHECKS = 30


def largest_eigenvalue(gram):
    """An upper estimate of a Gram matrix's largest eigenvalue: power iteration with 5% to spare, never above the row-sum bound."""
    row_sums = jnp.sum(jnp.abs(gram), axis=1)

    def power(_, v):
        v = matmul(gram, v)
        return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)

    v = jax.lax.fori_loop(0, 50, power, row_sums / jnp.maximum(jnp.linalg.norm(row_sums), jnp.finfo(gram.dtype).tiny))
    return jnp.minimum(jnp.max(row_sums), 1.05 * matmul(v, matmul(gram, v)))


def accelerated_gradient(lasso: Lasso, Z, tol, max_steps, wanted=None):
    """Codes by FISTA from Z, until every sample's gap is at most `tol` times its objective.

    `z+ = (y - (y G - q) / L)_+` with `q = Y A^T - lam`, momentum restarted sample by sample where it points uphill
    (O'Donoghue and Candes 2015). Only `wanted` samples (default all) are waited for. Returns (codes, check, steps); runs no step
    where Z is good enough, and stops where no gap shrinks any more.
    """
    n_atoms, d = lasso.atoms.shape
    atoms = lasso.atoms
    gram_fits = n_atoms <= 2 * d  # a step costs atoms^2 by the Gram matrix, 2 atoms d by the atoms
    gram = matmul(atoms, atoms.T) if gram_fits else None
    small = gram if gram is not None and n_atoms <= d else matmul(atoms.T, atoms)
    step = 1 / jnp.maximum(largest_eigenvalue(small), jnp.finfo(Z.dtype).tiny)
    q = matmul(lasso.targets, atoms.T) - lasso.lam

    def gradient(Y):
        return matmul(Y, gram) - q if gram is not None else matmul(matmul(Y, atoms), atoms.T) - q

    def one_step(_, carry):
        Z, Y, t = carry
        new = jnp.maximum(Y - step * gradient(Y), 0)
        uphill = jnp.sum((Y - new) * (new - Z), axis=1) > 0
        t = jnp.where(uphill, 1, t)
        t_new = 0.5 * (1 + jnp.sqrt(1 + 4 * t * t))
        momentum = jnp.where(uphill, 0, (t - 1) / t_new)
        return new, new + momentum[:, None] * (new - Z), t_new

    def unsolved(seen):
        left = ~within(seen, tol)
        return left if wanted is None else left & wanted

    def going(state):
        _, _, _, seen, _, stale, steps = state
        return jnp.any(unsolved(seen)) & (steps < max_steps) & (stale < STALE_CHECKS)

    def some_steps(state):
        Z, Y, t, seen, best, stale, steps = state
        moved = jax.lax.fori_loop(0, STEPS_PER_CHECK, one_step, (Z, Y, t))
        # A solved sample keeps its codes, so that a batch's slow samples cannot change it.
        moving = unsolved(seen)[:, None]
        Z, Y = jnp.where(moving, moved[0], Z), jnp.where(moving, moved[1], Y)
        seen = check(lasso, Z)
        shrinks = jnp.any(unsolved(seen) & (seen.gap < 0.9 * best))
        return (
            Z,
            Y,
            moved[2],
            seen,
            jnp.minimum(best, seen.gap),
            jnp.where(shrinks, 0, stale + 1),
            steps + STEPS_PER_CHECK,
        )

    seen, zero = check(lasso, Z), jnp.zeros_like(Z[0, 0], dtype=jnp.int32)
    state = jax.lax.while_loop(going, some_steps, (Z, Z, jnp.ones_like(Z[:, 0]), seen, seen.gap, zero, zero))
    return state[0], state[3], state[6]
