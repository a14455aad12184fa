"""F's slope along the unit steepest feasible direction, in variables that have no units (T1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.certificates.stationarity import Direction, slope_along, steepest_of
from jaxdict.geometry import ball_tangent, orthant_tangent, soft_threshold
from jaxdict.numerics import matmul, pairwise_sum, safe_divide, sum_in_blocks, unit_rows
from jaxdict.objectives import BLOCK_ENTRIES, Moments, penalty_rates, residual_of
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, dense_codes, metric_of, offset_of, sample_weights


def steepest_slope(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], sums: Moments
) -> Float[Array, ""]:
    """F's derivative along the unit steepest feasible direction in the variables (D, Z / l, b / l), l = lam / max(m), by `jax.jvp` (T1).

    In these variables every block of the gradient has F's units, so the slope has them too: it is covariant, `c^2` times
    as large for `c X` and `c lam`. It is minus the norm of the gradient's projection, zero iff the point is stationary.
    Sparse codes are taken in blocks of samples, since any zero code may want to grow and the direction is dense; the
    atoms' part is then read off the moments.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> from jaxdict.objectives import moments
    >>> X, dictionary = jnp.array([[2.0, 0.0]]), jd.Dictionary(jnp.array([[1.0, 0.0]]))
    >>> point = jd.Problem(lam=0.5, offset=False), dictionary, jnp.array([[0.0]]), X
    >>> float(steepest_slope(*point, moments(*point)))  # the code's slope, 2 - 1/2, times lam
    -0.75
    """
    square = _length(problem, X) ** 2
    if not isinstance(codes, SparseCodes):
        steepest = steepest_of(problem, dictionary, codes, X)
        direction = Direction(steepest.atoms, square * steepest.codes, square * steepest.offset)
        slope, squares = slope_along(problem, dictionary, codes, X, direction), jnp.sum(steepest.codes**2)
        down, down_offset = steepest.atoms, steepest.offset
    else:
        down, down_offset = _dictionary_descent(problem, dictionary, sums)
        slope, squares = _sparse_slope(problem, dictionary, codes, X, (down, square * down_offset))
    size = jnp.sqrt(jnp.sum(down**2) + square * (squares + jnp.sum(down_offset**2)))
    return safe_divide(slope, size)


def _length(problem, X: Float[Array, "samples d"]):
    """l, of the data's units, in which codes and offset are measured."""
    return problem.lam / jnp.max(metric_of(problem, X))


def _dictionary_descent(problem, dictionary, sums):
    """The atoms' and the offset's part of the steepest feasible direction, from the moments."""
    down = sums.cross
    if problem.gauge == "penalised":
        down = down - (problem.lam * sums.mean_codes)[:, None] * unit_rows(dictionary.atoms)
    else:
        down = jax.vmap(ball_tangent)(dictionary.atoms, down)
    return down, sums.mean_residual if problem.offset else jnp.zeros_like(sums.mean_residual)


def _sparse_slope(problem, dictionary, codes, X: Float[Array, "samples d"], tangents):
    """The slope when the codes move steepest, and the dictionary along the tangents; the codes' squared descent."""
    atoms, offset, n_atoms = dictionary.atoms, offset_of(dictionary), dictionary.atoms.shape[0]

    def one(block):
        indices, values, rows, w = block
        return _block_slope(
            problem, atoms, offset, dense_codes(SparseCodes(indices, values), n_atoms), rows, w, tangents
        )

    w = sample_weights(problem, X) / X.shape[0]
    return sum_in_blocks(one, (*codes, X, w), max(1, BLOCK_ENTRIES // n_atoms))


def _block_slope(problem, atoms, offset, Z, X: Float[Array, "samples d"], w, tangents):
    def share(D, b, Z, size):
        moved = Dictionary(D, b)
        r = residual_of(moved, Z, X)
        losses = 0.5 * jnp.sum(metric_of(problem, r) * r * r, axis=1)
        return pairwise_sum(w * (losses + matmul(size, penalty_rates(problem, moved))))

    r = residual_of(Dictionary(atoms, offset), Z, X)
    pull = w[:, None] * matmul(metric_of(problem, r) * r, atoms.T)
    cost = w[:, None] * penalty_rates(problem, Dictionary(atoms, offset))
    if problem.signed:
        dZ = jnp.where(Z != 0, pull - cost * jnp.sign(Z), soft_threshold(pull, cost))
        size, growth = jnp.abs(Z), jnp.where(Z != 0, jnp.sign(Z) * dZ, jnp.abs(dZ))
    else:
        dZ = orthant_tangent(Z, pull - cost)
        size, growth = Z, dZ
    square = _length(problem, X) ** 2
    slope = jax.jvp(share, (atoms, offset, Z, size), (*tangents, square * dZ, square * growth))[1]
    return slope, jnp.sum(dZ**2)
