"""Where a fit starts: atoms from the data or at random, by an explicit key."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.numerics import matmul, pairwise_sum, unit_rows
from jaxdict.problem import Dictionary, Problem, sample_weights

STARTS = ("data", "random")


def initial_offset(problem: Problem, X: Float[Array, "samples d"]) -> Float[Array, " d"]:
    """The weighted mean where the offset is free (optimal for zero codes), else zeros."""
    if not problem.offset:
        return jnp.zeros_like(X[0])
    return pairwise_sum(sample_weights(problem, X)[:, None] * X) / X.shape[0]


@partial(jax.jit, static_argnames=("n_atoms", "start"))
def start_dictionary(
    problem: Problem, X: Float[Array, "samples d"], n_atoms: int, key, start: str = "data"
) -> Dictionary:
    """Unit atoms to start from: "data", directions of distinct samples; "random", uniform on the sphere.

    Samples are drawn without replacement, those whose direction repeats another's (found by sorting one random projection)
    or has weight or length zero only when no others are left.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> start_dictionary(jd.Problem(lam=0.1), jnp.eye(4), 3, jax.random.key(0)).atoms.shape
    (3, 4)
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r} is unknown; use one of {STARTS} or a Dictionary")
    offset = initial_offset(problem, X)
    if start == "random":
        return Dictionary(unit_rows(jax.random.normal(key, (n_atoms, X.shape[1]), X.dtype)), offset)
    draw, project = jax.random.split(key)
    directions = unit_rows(X - offset)
    usable = (sample_weights(problem, X) > 0) & jnp.any(directions != 0, axis=1)
    height = matmul(directions, jax.random.normal(project, X.shape[1:], X.dtype))
    order = jnp.argsort(height)
    sorted_height = height[order]
    close = jnp.abs(jnp.diff(sorted_height)) <= 32 * jnp.finfo(X.dtype).eps * (1 + jnp.abs(sorted_height[1:]))
    repeats = jnp.zeros_like(usable).at[order[1:]].set(close)
    luck = jax.random.uniform(draw, usable.shape, X.dtype) + jnp.where(usable & ~repeats, 1, 0)
    atoms = directions[jax.lax.top_k(luck, n_atoms)[1]]
    spare = unit_rows(jax.random.normal(project, atoms.shape, X.dtype))
    return Dictionary(jnp.where(jnp.any(atoms != 0, axis=1)[:, None], atoms, spare), offset)
