"""The reduced problem `phi(D, b) = min_{Z >= 0} F(D, Z, b)`: its value, its gradient (envelope theorem, T3), its stationarity.

An iterate keeps its codes in slots and, else, sums over samples only: where numba's kernels run no (samples, atoms) array is formed.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxdict.certificates.stationarity import from_moments
from jaxdict.compiling import compiled_in_a_hurry
from jaxdict.encoding.engines import on_engine, on_numba
from jaxdict.encoding.exact import MAX_ROUNDS, MORE_SLOTS, problem_slots
from jaxdict.encoding.lasso import codes_of, lasso_of, plain_codes
from jaxdict.encoding.slots import Slots, empty_slots, slots_from_codes
from jaxdict.objectives import Moments, moments
from jaxdict.problem import Dictionary, Problem, SparseCodes, metric_of, sample_weights


def encode_tol(dtype) -> float:
    """Relative gap of codes inside a solver: rounding with some room, 1.8e-12 in float64 and 6e-6 in float32."""
    return float(jnp.finfo(dtype).eps ** 0.75)


def defect_tol(dtype) -> float:
    """Bound on T1's codes line inside a solver: 1e-11 in float64, 1.4e-5 in float32."""
    return float(jnp.finfo(dtype).eps ** 0.7)


class Iterate(eqx.Module):
    """Where a solver stands: a dictionary with its exact codes, as slots of the plain form, and all that solvers need to know of it."""

    dictionary: Dictionary
    slots: Slots
    objective: Float[Array, ""]
    stationarity: Float[Array, ""]
    atoms_slope: Float[Array, "atoms d"]  # dphi/dD = -E[z_k m r]
    offset_slope: Float[Array, " d"]  # dphi/db = -E[m r], zero where the offset is fixed
    mean_codes: Float[Array, " atoms"]
    mean_squares: Float[Array, " atoms"]  # E[z_k^2]
    solved: Bool[Array, ""]  # codes within tolerance


def first_point(problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, n_slots: int, *, sparse=False):
    """The iterate of a dictionary, its codes solved from zero, and the codes as `next_point_and_codes` gives them."""
    n_slots = min(n_slots, dictionary.atoms.shape[0] * (2 if problem.signed else 1))
    return next_point_and_codes(problem, X, dictionary, empty_slots(X, n_slots), sparse=sparse)


def next_point(problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, slots: Slots) -> Iterate:
    """The iterate of a nearby dictionary, its codes solved from the last one's slots."""
    return _solved_from(problem, X, dictionary, slots, dense=False)[0]


def next_point_and_codes(
    problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, slots: Slots, *, sparse=False
) -> Any:
    """The iterate of a nearby dictionary and its codes: (samples, atoms), or sparse ones, those that its slots hold."""
    iterate, codes = _solved_from(problem, X, dictionary, slots, dense=not sparse)
    return iterate, problem_slots(problem, dictionary, iterate.slots) if sparse else codes


def codes_at(problem: Problem, X: Float[Array, "samples d"], iterate: Iterate, *, sparse=False) -> Any:
    """An iterate's codes. Dense: solved again from its slots, which hold all but those of overfull samples. Sparse: those."""
    if sparse:
        return problem_slots(problem, iterate.dictionary, iterate.slots)
    return _solved_from(problem, X, iterate.dictionary, iterate.slots, dense=True)[1]


def whole_codes(problem: Problem, X: Float[Array, "samples d"], iterate: Iterate) -> SparseCodes:
    """An iterate's codes, sparse, those of overfull samples too: solved in as many slots as it takes, where values are known."""
    plain = iterate.dictionary.atoms.shape[0] * (2 if problem.signed else 1)
    n_slots = iterate.slots.indices.shape[1]
    codes, overflow = _in_slots(problem, X, iterate.dictionary, iterate.slots, n_slots=n_slots)
    while not isinstance(overflow, Tracer) and bool(overflow) and n_slots < plain:
        n_slots = min(plain, MORE_SLOTS * n_slots)
        codes, overflow = _in_slots(problem, X, iterate.dictionary, iterate.slots, n_slots=n_slots)
    return codes


@partial(compiled_in_a_hurry, light=on_numba, static_argnames="n_slots")
def _in_slots(problem, X, dictionary, slots, *, n_slots: int):
    tol, defect = (jnp.asarray(tol, X.dtype) for tol in (encode_tol(X.dtype), defect_tol(X.dtype)))
    solve = lambda engine, *args: engine.solve(*args, n_slots=n_slots, dense=False, max_rounds=MAX_ROUNDS)  # noqa: E731
    found, _, done = on_engine("auto", solve, lasso_of(problem, dictionary, X), slots, tol, defect)
    return problem_slots(problem, dictionary, found), jnp.any(done.overflow)


def _solved_from(problem, X: Float[Array, "samples d"], dictionary, slots, *, dense):
    """Slots, sums and codes by one call of an engine. Unit atoms (the constrained gauge)."""
    lasso, weights = lasso_of(problem, dictionary, X), sample_weights(problem, X) / X.shape[0]
    tols = (jnp.asarray(tol, X.dtype) for tol in (encode_tol(X.dtype), defect_tol(X.dtype)))
    solve_and_sum = lambda engine, *args: engine.sums(*args, dense=dense)  # noqa: E731
    slots, Z, sums, gap = on_engine("auto", solve_and_sum, lasso, weights, slots, *tols)
    iterate = _iterate(problem, dictionary, slots, _of_problem(problem, X, sums), gap)
    return iterate, codes_of(problem, dictionary, Z) if dense else None


def _of_problem(problem: Problem, X: Float[Array, "samples d"], plain: Any) -> Moments:
    """The problem's moments from those of its plain form, whose data hold the metric's root and whose atoms are (D, -D) if signed."""
    mean_codes, squares, cross = plain.mean_codes, plain.mean_squares, plain.cross
    if problem.signed:
        half = len(mean_codes) // 2
        mean_codes, squares = mean_codes[:half] + mean_codes[half:], squares[:half] + squares[half:]
        cross = cross[:half] - cross[half:]
    root = jnp.sqrt(metric_of(problem, X))
    return plain._replace(
        mean_codes=mean_codes, mean_squares=squares, cross=root[None] * cross, mean_residual=root * plain.mean_residual
    )


def point_at(problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, codes, n_slots: int) -> Iterate:
    """The iterate of given codes, which need not be exact."""
    slots = slots_from_codes(plain_codes(problem, dictionary, codes), n_slots)
    sums: Any = moments(problem, dictionary, codes, X)
    return _iterate(problem, dictionary, slots, sums, jnp.zeros_like(sums.objective))


def _iterate(problem: Problem, dictionary: Dictionary, slots: Slots, sums: Any, gap) -> Iterate:
    pull = -sums.mean_residual if problem.offset else jnp.zeros_like(sums.mean_residual)
    return Iterate(
        dictionary,
        slots,
        sums.objective,
        from_moments(problem, dictionary, sums).worst,
        -sums.cross,
        pull,
        sums.mean_codes,
        sums.mean_squares,
        gap <= 1e3 * encode_tol(sums.cross.dtype),
    )
