"""Codes and atoms of the size-penalised problem for a fixed number of atoms, and directions for new ones: the jitted pieces (T15)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.geometry import project_orthant
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_norm, unit_rows
from jaxdict.problem import Problem, metric_of
from jaxdict.wide.polars import polar_height_of

# Codes and atoms alternate so often between two looks at the polar.
SWEEPS = 10


@on_any_mesh
@jax.jit
def alternate(problem: Problem, tau, X: Float[Array, "samples d"], atoms, codes):
    """Codes for fixed atoms, then atoms for fixed codes, some times; the codes last."""

    def sweep(_, point):
        atoms, codes = point
        codes = _solve_codes(problem, tau, X, atoms, codes, 50)
        return _solve_atoms(problem, X, atoms, codes), codes

    atoms, codes = jax.lax.fori_loop(0, SWEEPS, sweep, (atoms, codes))
    return atoms, _solve_codes(problem, tau, X, atoms, codes, 500)


@on_any_mesh
@jax.jit
def solve_codes(problem: Problem, tau, X: Float[Array, "samples d"], atoms, codes):
    """The codes alone, from good ones."""
    return _solve_codes(problem, tau, X, atoms, codes, 500)


@on_any_mesh
@jax.jit
def candidates(problem: Problem, tau, X: Float[Array, "samples d"], atoms, codes):
    """Directions that locally maximise `kappa(m R d)`, and their heights, from many starts."""
    pull = metric_of(problem, X) * _residual(problem, X, atoms, codes)
    largest = pull[jax.lax.top_k(safe_norm(pull), min(16, pull.shape[0]))[1]]
    right = jnp.linalg.svd(pull, full_matrices=False)[2][:8]
    starts = unit_rows(jnp.concatenate([largest, right, -right, atoms]))

    def climb(_, d):  # kappa(m R d) is a maximum of functions linear in d: the one active at d is maximised
        y = matmul(pull, d.T)
        above = project_orthant(y - polar_height_of(y, tau))
        new = matmul(above.T, pull)
        return jnp.where(safe_norm(new)[:, None] > 0, unit_rows(new), d)

    directions = jax.lax.fori_loop(0, 50, climb, starts)
    return directions, polar_height_of(matmul(pull, directions.T), tau)


def _residual(problem, X: Float[Array, "samples d"], atoms, codes):
    """The residual at the best offset."""
    left = X - matmul(codes, atoms)
    return left - jnp.mean(left, axis=0) if problem.offset else left


def _solve_codes(problem, tau, X: Float[Array, "samples d"], atoms, codes, steps):
    """Accelerated proximal gradient with restarts: threshold, clip at zero, then shrink each atom's whole column."""
    lam, weighed = problem.lam, atoms * metric_of(problem, X)
    curvature = jnp.maximum(jnp.linalg.eigvalsh(matmul(weighed, atoms.T))[-1], jnp.finfo(X.dtype).tiny)

    def forward(Z):
        moved = project_orthant(Z + (matmul(_residual(problem, X, atoms, Z), weighed.T) - lam) / curvature)
        sizes = safe_norm(moved, axis=0)
        return moved * jnp.maximum(1 - lam * tau / (curvature * jnp.where(sizes > 0, sizes, 1)), 0)

    def going(carry):
        _, _, _, change, step = carry
        return (step < steps) & (change > 10 * jnp.finfo(X.dtype).eps)

    def advance(carry):
        Z, ahead, t, _, step = carry
        new = forward(ahead)
        # Momentum that points uphill is dropped (O'Donoghue and Candes 2015).
        t = jnp.where(jnp.sum((ahead - new) * (new - Z)) > 0, 1, t)
        following = 0.5 * (1 + jnp.sqrt(1 + 4 * t * t))
        change = jnp.max(jnp.abs(new - Z)) / jnp.maximum(jnp.max(new), jnp.finfo(X.dtype).tiny)
        return new, new + (t - 1) / following * (new - Z), following, change, step + 1

    one = jnp.ones_like(X[0, 0])
    return jax.lax.while_loop(going, advance, (codes, codes, one, one, jnp.zeros_like(one, dtype=int)))[0]


def _solve_atoms(problem, X: Float[Array, "samples d"], atoms, codes):
    """Each atom in turn: along `m R^T z_k + max(m) ||z_k||^2 d_k`, its best for m = 1, else a step down; codes centred if b is free."""
    m = metric_of(problem, X)
    centred = codes - jnp.mean(codes, axis=0) if problem.offset else codes

    def one(left, atom_and_code):
        atom, code = atom_and_code
        new = m * matmul(code, left) + jnp.max(m) * matmul(code, code) * atom
        new = jnp.where(safe_norm(new) > 0, unit_rows(new), atom)
        return left - jnp.outer(code, new - atom), new

    return jax.lax.scan(one, _residual(problem, X, atoms, codes), (atoms, centred.T))[1]
