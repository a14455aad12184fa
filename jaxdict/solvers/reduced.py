"""The reduced problem `phi(D, b) = min_{Z >= 0} F(D, Z, b)`: its value, its gradient (envelope theorem, T3), its stationarity.

A point keeps its codes in slots and, else, sums over samples only: where the compiled kernels run no (samples, atoms) array is formed.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdict.certificates.stationarity import from_moments
from jaxdict.encoding.exact import exact_codes, exact_from_slots, where_best
from jaxdict.encoding.jax_engine.gradient import accelerated_gradient
from jaxdict.encoding.lasso import check, codes_of, lasso_of, plain_codes, zero_codes
from jaxdict.encoding.numba_engine.sums import sums_by_callback
from jaxdict.encoding.slots import Slots, dense_from_slots, slots_from_codes
from jaxdict.numerics import matmul
from jaxdict.objectives import Moments, moments
from jaxdict.problem import Dictionary, Problem, metric_of, sample_weights

# Steps of the gradient, and looks at all atoms of the kernels, that codes may take.
ENCODE_STEPS, LOOKS = 2000, 200


def encode_tol(dtype) -> float:
    """Relative gap of codes inside a solver: rounding with some room, 1.8e-12 in float64 and 6e-6 in float32."""
    return float(jnp.finfo(dtype).eps ** 0.75)


def defect_tol(dtype) -> float:
    """Bound on T1's codes line inside a solver: 1e-11 in float64, 1.4e-5 in float32."""
    return float(jnp.finfo(dtype).eps ** 0.7)


class Point(eqx.Module):
    """A dictionary with its exact codes, as slots of the plain form, and all that solvers need to know of it."""

    dictionary: Dictionary
    slots: Slots
    objective: Float[Array, ""]
    stationarity: Float[Array, ""]
    atoms_slope: Float[Array, "atoms d"]  # dphi/dD = -E[z_k m r]
    offset_slope: Float[Array, " d"]  # dphi/db = -E[m r], zero where the offset is fixed
    mean_codes: Float[Array, " atoms"]
    mean_squares: Float[Array, " atoms"]  # E[z_k^2]
    solved: Bool[Array, ""]  # codes within tolerance


class _Sums(NamedTuple):
    """What a point is made of."""

    moments: Moments
    squares: Float[Array, " atoms"]
    gap: Float[Array, ""]  # the worst sample's, over its objective


def first_point(problem: Problem, X, dictionary: Dictionary, n_slots: int):
    """The point of a dictionary, its codes solved from zero, and the codes, (samples, atoms)."""
    n_slots = min(n_slots, dictionary.atoms.shape[0] * (2 if problem.signed else 1))

    def compiled(problem, dictionary, X):
        return _by_kernels(problem, dictionary, X, slots_from_codes(_zero(problem, dictionary, X), n_slots), True)

    def by_jax(problem, dictionary, X):
        lasso, tols = lasso_of(problem, dictionary, X), (encode_tol(X.dtype), defect_tol(X.dtype))
        Z = _zero(problem, dictionary, X)
        Z, done = exact_codes(lasso, Z, tols[0], n_slots, ENCODE_STEPS, warm_up=True, defect_tol=tols[1])
        return slots_from_codes(Z, n_slots), *_sums_of(problem, dictionary, X, Z, done, True)

    slots, sums, Z = where_best("auto", compiled, by_jax, problem, dictionary, X)
    return _point(problem, dictionary, slots, sums), Z


def next_point(problem: Problem, X, dictionary: Dictionary, slots: Slots) -> Point:
    """The point of a nearby dictionary, its codes solved from the last point's slots."""
    return _solved_from(problem, X, dictionary, slots, dense=False)[0]


def next_point_and_codes(problem: Problem, X, dictionary: Dictionary, slots: Slots):
    """The point of a nearby dictionary and its codes, (samples, atoms)."""
    return _solved_from(problem, X, dictionary, slots, dense=True)


def _solved_from(problem, X, dictionary, slots, *, dense):
    def compiled(problem, dictionary, X, slots):
        return _by_kernels(problem, dictionary, X, slots, dense)

    def by_jax(problem, dictionary, X, slots):
        lasso = lasso_of(problem, dictionary, X)
        tols = encode_tol(X.dtype), defect_tol(X.dtype)
        slots, Z, done = exact_from_slots(lasso, slots, tols[0], ENCODE_STEPS, tols[1])
        return slots, *_sums_of(problem, dictionary, X, Z, done, dense)

    slots, sums, Z = where_best("auto", compiled, by_jax, problem, dictionary, X, slots)
    return _point(problem, dictionary, slots, sums), Z


def codes_at(problem: Problem, X, point: Point) -> Float[Array, "samples atoms"]:
    """A point's codes, dense; those of a sample with more codes than slots are solved again."""

    def compiled(problem, dictionary, X, slots):
        return _by_kernels(problem, dictionary, X, slots, True)[2]

    def by_jax(problem, dictionary, X, slots):
        lasso = lasso_of(problem, dictionary, X)
        Z = dense_from_slots(slots, lasso.atoms.shape[0])
        seen = check(lasso, Z)
        short = ~(seen.gap <= 1e3 * encode_tol(X.dtype) * seen.primal)
        short &= jnp.sum(slots.values > 0, axis=1) == slots.values.shape[1]
        Z = accelerated_gradient(lasso, Z, encode_tol(X.dtype), ENCODE_STEPS, wanted=short)[0]
        return codes_of(problem, dictionary, Z)

    return where_best("auto", compiled, by_jax, problem, point.dictionary, X, point.slots)


def point_at(problem: Problem, X, dictionary: Dictionary, codes, n_slots: int) -> Point:
    """The point of given codes, which need not be exact."""
    Z = plain_codes(problem, dictionary, codes)
    sums, _ = _sums_of(problem, dictionary, X, Z, None, False)
    return _point(problem, dictionary, slots_from_codes(Z, n_slots), sums)


def _zero(problem, dictionary, X) -> Float[Array, "samples plain"]:
    return plain_codes(problem, dictionary, zero_codes(X, dictionary.atoms.shape[0]))


def _sums_of(problem, dictionary, X, Z, done, dense):
    """The sums of plain codes, and the codes of the problem where asked for."""
    codes = codes_of(problem, dictionary, Z)
    sums = moments(problem, dictionary, codes, X)._replace(gap=None, gap_max=None, residual_max=None)
    squares = matmul(sample_weights(problem, X) / X.shape[0], codes * codes)
    gap = jnp.zeros_like(sums.objective) if done is None else jnp.max(done.gap / jnp.where(done.primal > 0, done.primal, 1))
    return _Sums(sums, squares, gap), codes if dense else None


def _by_kernels(problem, dictionary, X, slots, dense):
    """Slots, sums and, where asked for, codes, by one call to the host. Unit atoms (the constrained gauge)."""
    lasso, weights = lasso_of(problem, dictionary, X), sample_weights(problem, X) / X.shape[0]
    tols, root = (encode_tol(X.dtype), defect_tol(X.dtype)), jnp.sqrt(metric_of(problem, X))
    slots, Z, sums, gap = sums_by_callback(lasso, weights, slots, *tols, LOOKS, dense=dense)
    cross, codes, squares = sums.cross, sums.mean_codes, sums.mean_squares
    if problem.signed:  # plain atoms are (D, -D)
        half = dictionary.atoms.shape[0]
        cross, codes, squares = (
            cross[:half] - cross[half:],
            codes[:half] + codes[half:],
            squares[:half] + squares[half:],
        )
    first = Moments(codes, squares, root * cross, root * sums.mean_residual, sums.codes_defect, sums.objective, None, None, None)
    return slots, _Sums(first, squares, gap), codes_of(problem, dictionary, Z) if Z is not None else None


def _point(problem, dictionary, slots, sums: _Sums) -> Point:
    first = sums.moments
    pull = -first.mean_residual if problem.offset else jnp.zeros_like(first.mean_residual)
    return Point(
        dictionary,
        slots,
        first.objective,
        from_moments(problem, dictionary, first).worst,
        -first.cross,
        pull,
        first.mean_codes,
        sums.squares,
        sums.gap <= 1e3 * encode_tol(first.cross.dtype),
    )


def stays(where: Bool[Array, ""], new, old):
    """`new` where the condition holds, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(where, a, b), new, old)
