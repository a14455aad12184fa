"""Certified lower bounds: of problem P over dictionaries of any width (T11 to T13), and of the size-penalised problem, loosely (T15)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.certificates.wide_limits import WideLimit, shrink, wide_limit, wide_limit_of
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_norm
from jaxdict.problem import Problem, metric_of


def bound(
    X: Float[Array, "samples d"], lam, *, offset=True, signed=False, metric=None, weights=None, max_steps: int = 60
) -> WideLimit:
    """The optimum of problem P over dictionaries of any width, with a certified lower bound (T11 to T13).

    X is (samples, d); the other arguments are those of `jaxdict.Problem`. `dual_value` bounds the objective of every
    dictionary of every width from below; `n_rays` is the number of atoms beyond which more do not help.

    >>> import jax.numpy as jnp
    >>> limit = bound(jnp.array([[3.0, 0.0], [0.0, 0.5]]), 1.0, offset=False)
    >>> float(limit.value), int(limit.n_rays)
    (1.3125, 1)
    """
    problem = Problem(lam, offset=offset, signed=signed, metric=metric, weights=weights)
    return wide_limit(problem, X, max_steps=max_steps)


def loose_bound(
    X: Float[Array, "samples d"], lam, tau, *, offset: bool = False, metric=None, steps: int = 40
) -> Float[Array, ""]:
    """A certified lower bound of the size-penalised optimum: `1/2 ||X||_m^2 - 1/2 ||X - theta||_m^2`, `m theta = A + B` (T15, loose).

    Rows of A of norm at most lam, spectral norm of B at most `lam tau` (column sums zero where the offset is free);
    for unit d and z >= 0 then `<(A + B) d, z> <= lam (||z||_1 + tau ||z||_2)`. A and B are improved in turn, which
    only raises the bound; every step is certified, so it may stop anywhere. X is (samples, d), metric (d,) or None.
    Derivatives hold the offset that each step takes off A's rows: where it is free they are not the bound's own.

    >>> import jax.numpy as jnp
    >>> round(float(loose_bound(jnp.array([[3.0, 0.0]]), 1.0, 0.0)), 6)  # Huber: 3 - 1/2
    2.5
    """
    X = data_array(X)
    problem = Problem(lam, offset=offset, metric=metric).like(X)
    return _loose_bound(problem, X, jnp.asarray(tau, X.dtype), steps)


@on_any_mesh
@functools.partial(jax.jit, static_argnames="steps")
def _loose_bound(problem, X: Float[Array, "samples d"], tau, steps):
    X = X - jnp.mean(X, axis=0) if problem.offset else X
    lam, m = problem.lam, metric_of(problem, X)
    least = jnp.min(m)

    def rows_within(B):
        """The wide residual of what B leaves: the best A for this B (column sums zero where the offset is free)."""
        Y = X - B / m
        free = wide_limit_of(problem, Y).offset if problem.offset else 0
        pull = shrink(Y - free, lam, problem.metric)[1]
        pull = pull - jnp.mean(pull, axis=0) if problem.offset else pull
        return lam * pull / jnp.maximum(1, jnp.max(safe_norm(pull)))

    def spectrum_within(Y):
        left, sizes, right = jnp.linalg.svd(Y, full_matrices=False)
        return matmul(left * jnp.minimum(sizes, lam * tau), right)

    def improve(_, B):  # the best A, then a projected step in B, which is exact for m = 1
        return spectrum_within(B + least * (X - (rows_within(B) + B) / m))

    B = jax.lax.fori_loop(0, steps, improve, jnp.zeros_like(X))
    theta = rows_within(B) + B  # this is m theta
    return jnp.sum(theta * (X - 0.5 * theta / m))
