"""The reduced problem `phi(D, b) = min_{Z >= 0} F(D, Z, b)`: its value, its gradient (envelope theorem, T3), its stationarity."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdict.certificates.stationarity import from_moments
from jaxdict.encoding.choose import Solved, exact_codes, exact_from_slots
from jaxdict.encoding.duality import codes_of, lasso_of, plain_codes, zero_codes
from jaxdict.encoding.working_set import WorkingSet, slots_from_codes
from jaxdict.objectives import moments
from jaxdict.problem import Dictionary, Problem

ENCODE_STEPS = 2000


def encode_tol(dtype) -> float:
    """Relative gap of codes inside a solver: rounding with some room, 1.8e-12 in float64 and 6e-6 in float32."""
    return float(jnp.finfo(dtype).eps ** 0.75)


def defect_tol(dtype) -> float:
    """Bound on T1's codes line inside a solver: 1e-11 in float64, 1.4e-5 in float32."""
    return float(jnp.finfo(dtype).eps ** 0.7)


class Point(eqx.Module):
    """A dictionary with its exact codes, and all that solvers need to know of it."""

    dictionary: Dictionary
    codes: Float[Array, "samples atoms"]
    slots: WorkingSet
    objective: Float[Array, ""]
    stationarity: Float[Array, ""]
    atoms_slope: Float[Array, "atoms d"]  # dphi/dD = -E[z_k m r]
    offset_slope: Float[Array, " d"]  # dphi/db = -E[m r], zero where the offset is fixed
    mean_codes: Float[Array, " atoms"]
    solved: Bool[Array, ""]  # codes within tolerance


def first_point(problem: Problem, X, dictionary: Dictionary, n_slots: int) -> Point:
    """The point of a dictionary, its codes solved from zero."""
    Z = plain_codes(problem, dictionary, zero_codes(X, dictionary.atoms.shape[0]))
    lasso = lasso_of(problem, dictionary, X)
    n_slots = min(n_slots, lasso.atoms.shape[0])
    tols = encode_tol(X.dtype), defect_tol(X.dtype)
    Z, done = exact_codes(lasso, Z, tols[0], n_slots, ENCODE_STEPS, warm_up=True, defect_tol=tols[1], method="auto")
    return point_at(problem, X, dictionary, codes_of(problem, dictionary, Z), slots_from_codes(Z, n_slots), done)


def next_point(problem: Problem, X, dictionary: Dictionary, slots: WorkingSet) -> Point:
    """The point of a nearby dictionary, its codes solved from the last point's working sets."""
    lasso = lasso_of(problem, dictionary, X)
    slots, Z, done = exact_from_slots(
        lasso, slots, encode_tol(X.dtype), ENCODE_STEPS, defect_tol(X.dtype), method="auto"
    )
    return point_at(problem, X, dictionary, codes_of(problem, dictionary, Z), slots, done)


def point_at(
    problem: Problem, X, dictionary: Dictionary, codes, slots: WorkingSet, done: Solved | None = None
) -> Point:
    """The point of given codes: its moments, hence its slopes and stationarity; `done` tells how well the codes are solved."""
    sums = moments(problem, dictionary, codes, X)
    worst = from_moments(problem, dictionary, sums).worst
    offset_slope = -sums.mean_residual if problem.offset else jnp.zeros_like(sums.mean_residual)
    solved = worst >= 0 if done is None else jnp.all(done.gap <= 1e3 * encode_tol(X.dtype) * done.primal)
    return Point(dictionary, codes, slots, sums.objective, worst, -sums.cross, offset_slope, sums.mean_codes, solved)
