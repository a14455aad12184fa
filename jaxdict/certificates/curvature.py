"""Second-order optimality: the smallest curvature of the Lagrangian on the critical subspace (T4 of theory.md).

The codes are eliminated: for a change `v = (dD, db)` of the dictionary each sample's best change of its codes on
their support solves a small linear system, and what is left, the Schur complement, has a negative direction iff the
whole Hessian has one.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.arrays import is_concrete, look
from jaxdict.certificates.lanczos import lanczos_smallest
from jaxdict.certificates.schur import schur_change, support_block_size, support_blocks, support_factors
from jaxdict.certificates.stationarity import Direction
from jaxdict.compiling import compiled_in_a_hurry
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import join_blocks, matmul, pairwise_sum, round_up, safe_divide, safe_norm
from jaxdict.objectives import objective_of
from jaxdict.points import check_point
from jaxdict.problem import (
    Codes,
    Dictionary,
    Problem,
    SparseCodes,
    canonical,
    dense_codes,
    metric_of,
    sample_weights,
)
from jaxdict.units import Units, units_of

# Up to this many unknowns the matrix is formed and its eigenvalues are exact; beyond, Lanczos.
EXACT_UNKNOWNS = 400
# Relative ridge on the codes that is tried first: large enough for a direction along which codes and atoms move alike.
RIDGE = 1e-2
# Scaled curvatures are at most one; directions that are not allowed are given this one.
FORBIDDEN = 4.0


class Curvature(NamedTuple):
    """The smallest scaled curvature (T4). Negative: the point is a saddle and `direction` escapes it."""

    eigenvalue: Float[Array, ""]  # at most 1; infinite where no direction is allowed
    residual_norm: Float[Array, ""]  # some eigenvalue lies within this distance of `eigenvalue`
    second_derivative: Float[Array, ""]  # of the Lagrangian along `direction`, by automatic differentiation
    direction: Direction  # in the canonical gauge, unit norm in (atoms, offset)


def curvature(
    problem: Problem,
    dictionary: Dictionary,
    codes: Codes,
    X: Float[Array, "samples d"],
    *,
    key=None,
    slots: int | None = None,
    max_iterations: int = 200,
) -> Curvature:
    """The smallest curvature of the Lagrangian on the critical subspace, and the direction that attains it (T4).

    The Hessian of `F + 1/2 sum_k lam zbar_k (||d_k||^2 - 1)` over: codes on their support; live atoms, tangent to the
    sphere (dead ones stay: F is flat in them); the offset where free. With `q = db + z dD` and the support's rows
    `D_S`, `A = D_S m D_S^T`,

        S(dD, db) = E[ ||q||_m^2 - (p - D_S m q)^T A^-1 (p - D_S m q) ] + sum_k lam zbar_k ||dD_k||^2,   p = dD_S m r.

    `eigenvalue` is the minimum of S over `sum_k (max(m) E[z_k^2] + lam zbar_k) ||dD_k||^2 + max(m) ||db||^2`,
    dimensionless and at most one; infinite where no direction is allowed. A gets a relative ridge, which only raises S,
    so that a negative value proves a saddle: `second_derivative`, the true one along the direction, by `jax.jvp`, is
    then negative too. First a ridge of 1/100 is tried, with which duplicate atoms (A singular, S unbounded) still give
    a direction in which codes and atoms move alike; if that is not negative, a ridge of the rounding's size decides.
    Gauges are made canonical first.

    Up to 400 unknowns (K d, plus d where the offset is free) the eigenvalue is exact; beyond, Lanczos with full
    reorthogonalisation takes at most `max_iterations` steps from a start drawn with `key` (default: a fixed key); its
    value is then an upper bound of the smallest. `slots` bounds the support's size (default: what concrete codes
    need, else all atoms); a row with more gives NaN. Memory: samples x slots^2, atoms^2, and max_iterations x
    unknowns numbers. Constant to differentiation.

    Two copies of an atom that share its code are a saddle:

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> X, D = jnp.array([[3.0, 1.0], [3.0, -1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> float(curvature(jd.Problem(lam=0.1, offset=False), jd.Dictionary(D), jnp.full((2, 2), 1.45), X).eigenvalue) < 0
    True
    """
    point = check_point(problem, dictionary, codes, X)
    slots = support_size(point[2], point[1]) if slots is None else slots
    return _curvature(*point, slots, max_iterations, key)


def strictness_tolerance(dtype) -> float:
    """Scaled curvatures up to this are zero as far as rounding and the ridge can tell: 1.5e-8 in float64, 3.5e-4 in float32."""
    return float(jnp.finfo(dtype).eps ** 0.5)


def in_data_units(found: Curvature, units: Units) -> Curvature:
    """The curvature of a problem in units of its size, its direction and second derivative in the data's own."""
    step, changes = units.unscaled(Dictionary(found.direction.atoms, found.direction.offset), found.direction.codes)
    length = jnp.sqrt(jnp.sum(step.atoms**2) + jnp.sum(step.offset**2))  # pyright: ignore[reportOptionalOperand]
    inverse = safe_divide(jnp.ones_like(length), length, 1)
    shorter = Units(inverse, inverse)
    step, changes = shorter.unscaled(step, changes)
    step = Dictionary(step.atoms * inverse, step.offset)
    second = units.of_objective(found.second_derivative * inverse) * inverse
    return Curvature(found.eigenvalue, found.residual_norm, second, Direction(step.atoms, changes, step.offset))  # type: ignore


def support_size(codes: Codes, dictionary: Dictionary) -> int:
    """The slots that the fullest row's non-zero codes need, in eights so that similar codes share a compilation.

    All atoms where dense codes are traced or live on other processes; the slots they have where they are sparse.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> support_size(jnp.eye(20), jd.Dictionary(jnp.eye(20)))
    8
    """
    if isinstance(codes, SparseCodes):
        return codes.values.shape[1]
    n_atoms = jnp.shape(dictionary.atoms)[0]
    if not is_concrete(codes):
        return n_atoms
    fullest = int(look(lambda xp, Z: xp.max(xp.sum(Z != 0, axis=1), initial=1), codes))
    return min(n_atoms, round_up(fullest, 8))


def _in_units(problem, dictionary, codes, X: Float[Array, "samples d"], slots, max_iterations, key):
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    point = problem, units.scaled_dictionary(dictionary), units.scaled_codes(codes), X
    return in_data_units(curvature_of(*point, slots, max_iterations, key), units)


_curvature = on_any_mesh(compiled_in_a_hurry(_in_units, static_argnums=(4, 5)))


def curvature_of(
    problem, dictionary, codes, X: Float[Array, "samples d"], slots: int, max_iterations: int = 200, key=None
) -> Curvature:
    """`curvature` of arrays that fit and are of moderate size."""
    key = jax.random.key(0) if key is None else key
    problem, dictionary, codes, X = jax.lax.stop_gradient((problem, dictionary, codes, X))
    problem = dataclasses.replace(problem, gauge="constrained")
    dictionary, given = canonical(dictionary, codes)
    codes = _supports(given, slots)
    weights = sample_weights(problem, X) / X.shape[0]
    blocks = support_blocks(metric_of(problem, X), weights, dictionary, codes, X)
    rates = problem.lam * _weighted(jnp.abs, blocks, dictionary)
    n_free = jnp.sum(rates > 0) * (X.shape[1] - 1) + (X.shape[1] if problem.offset else 0)

    def undecided(carry):
        level, eigenvalue, residual_norm, _, _ = carry
        return (level < 2) & ~(eigenvalue < -residual_norm)

    def solve(carry):
        ridge = jnp.where(carry[0] == 0, RIDGE, 8 * codes.values.shape[1] * jnp.finfo(X.dtype).eps)
        return carry[0] + 1, *_at_ridge(problem, dictionary, blocks, rates, ridge, key, max_iterations)

    zero = jnp.zeros_like(X[0, 0])
    step = jnp.zeros_like(dictionary.atoms), jnp.zeros_like(dictionary.offset)  # pyright: ignore[reportArgumentType]
    carry = (jnp.zeros_like(zero, dtype=int), zero + jnp.inf, zero, step, jnp.zeros_like(blocks.inside))
    _, eigenvalue, residual_norm, step, changes = jax.lax.while_loop(undecided, solve, carry)
    changes = SparseCodes(codes.indices, join_blocks(changes, X.shape[0], support_block_size(dictionary)))
    second = _second_derivative(problem, dictionary, codes, X, step, changes.values)
    second = second + jnp.sum(rates * jnp.sum(step[0] ** 2, axis=1))
    # A row with more codes than slots would lose some without a word.
    nonzero = given.values if isinstance(given, SparseCodes) else given
    too_many = jnp.any(jnp.sum(nonzero != 0, axis=1) > codes.values.shape[1])
    eigenvalue = jnp.where(too_many, jnp.nan, jnp.where(n_free > 0, eigenvalue, jnp.inf))
    changes = changes if isinstance(given, SparseCodes) else dense_codes(changes, dictionary.atoms.shape[0])
    return Curvature(eigenvalue, residual_norm, second, Direction(step[0], changes, step[1]))  # pyright: ignore[reportArgumentType]


def _at_ridge(problem, dictionary, blocks, rates, ridge, key, max_iterations):
    """Smallest scaled eigenvalue with a ridge on the codes, its residual norm, dictionary step, codes' response."""
    metric = metric_of(problem, dictionary.atoms)
    factors = support_factors(metric, dictionary, blocks, ridge)
    scales = _scales(problem, dictionary, blocks, rates)

    def tangent(v):
        atoms = v[0] - jnp.sum(v[0] * dictionary.atoms, axis=1)[:, None] * dictionary.atoms
        return jnp.where(rates[:, None] > 0, atoms, 0), v[1] if problem.offset else jnp.zeros_like(v[1])

    def scaled(v):
        return v[0] / scales[0][:, None], v[1] / scales[1]

    def product(v):
        inner = scaled(tangent(v))
        _, change = schur_change(metric, dictionary, blocks, factors, inner)
        return tangent(scaled((change[0] + rates[:, None] * inner[0], change[1])))

    eigenvalue, residual_norm, vector = _smallest(product, tangent, dictionary, key, max_iterations)
    step = scaled(tangent(vector))
    length = jnp.sqrt(jnp.sum(step[0] ** 2) + jnp.sum(step[1] ** 2))
    step = jax.tree.map(lambda leaf: leaf / jnp.where(length > 0, length, 1), step)
    return eigenvalue, residual_norm, step, schur_change(metric, dictionary, blocks, factors, step)[0]


def _supports(codes, slots):
    """The `slots` largest codes of each row (`sparse_codes` would raise where a row has more; here that is a NaN)."""
    if isinstance(codes, SparseCodes):
        return codes
    _, indices = jax.lax.top_k(jnp.abs(codes), min(slots, codes.shape[1]))
    return SparseCodes(indices, jnp.take_along_axis(codes, indices, axis=1))


def _scales(problem, dictionary, blocks, rates):
    """Square roots of the uncoupled curvatures, `max(m) E[z_k^2] + lam zbar_k` and `max(m)`: the spectrum ends at 1."""
    top = jnp.max(metric_of(problem, dictionary.atoms))
    power = _weighted(jnp.square, blocks, dictionary)
    atoms = top * power + rates
    return jnp.sqrt(jnp.where(rates > 0, atoms, 1)), jnp.sqrt(top)


def _weighted(of, blocks, dictionary) -> Float[Array, " atoms"]:
    """The weighted sums over samples of a function of the codes."""
    n_atoms = dictionary.atoms.shape[0]
    return pairwise_sum(jax.lax.map(lambda block: matmul(block.weights, of(block.codes(n_atoms))), blocks))


def _second_derivative(problem, dictionary, codes, X: Float[Array, "samples d"], step, slot_changes):
    """d^2/dt^2 of F along the direction at t = 0, on the support only."""

    def along(t):
        moved = Dictionary(dictionary.atoms + t * step[0], dictionary.offset + t * step[1])
        return objective_of(problem, moved, SparseCodes(codes.indices, codes.values + t * slot_changes), X)

    zero, one = jnp.zeros_like(X[0, 0]), jnp.ones_like(X[0, 0])
    slope = lambda t: jax.jvp(along, (t,), (one,))[1]  # noqa: E731
    return jax.jvp(slope, (zero,), (one,))[1]


def _smallest(product, tangent, dictionary, key, max_iterations):
    """Smallest eigenvalue of the operator on the allowed directions, residual norm, vector as (atoms, offset)."""
    shape = dictionary.atoms.shape
    size = shape[0] * shape[1] + shape[1]
    dtype = dictionary.atoms.dtype

    def fold(flat):
        return flat[: shape[0] * shape[1]].reshape(shape), flat[shape[0] * shape[1] :]

    def flat(v):
        return jnp.concatenate([v[0].ravel(), v[1]])

    def apply(vector):  # off the allowed directions the operator would be zero: lift those out of the way
        return flat(product(fold(vector))) + FORBIDDEN * (vector - flat(tangent(fold(vector))))

    if size <= EXACT_UNKNOWNS:
        matrix = jax.lax.map(apply, jnp.eye(size, dtype=dtype), batch_size=16)
        finite = jnp.all(jnp.isfinite(matrix))
        values, vectors = jnp.linalg.eigh(jnp.where(finite, 0.5 * (matrix + matrix.T), 0))
        value, vector = jnp.where(finite, values[0], jnp.nan), vectors[:, 0]
    else:
        start = flat(tangent(fold(jax.random.normal(key, (size,), dtype))))
        value, vector = lanczos_smallest(apply, start, max_iterations, above=FORBIDDEN)
    return value, safe_norm(apply(vector) - value * vector), fold(vector)
