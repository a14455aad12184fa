"""A width's fit without a certificate, and what sums over the rows say of where it ended."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdict.certificates.stationarity import Stationarity, from_moments
from jaxdict.fitting import driven
from jaxdict.objectives import Moments, moments_of
from jaxdict.problem import Dictionary, Problem, SparseCodes, sparse_codes
from jaxdict.solvers.combined import Combined, with_slots
from jaxdict.solvers.reduced import whole_codes
from jaxdict.solvers.stopping import hand_over
from jaxdict.solvers.task import slots_of, task_of
from jaxdict.solvers.widening import worthwhile_of
from jaxdict.units import units_of


class Point(NamedTuple):
    """Where a fit ended, nothing of it certified."""

    dictionary: Dictionary
    codes: SparseCodes


class Fitted(NamedTuple):
    """A width's fit: F on the training rows (on streams on those looked at), the worst of T1, and `max ||m r_n|| / lam` (T13)."""

    dictionary: Dictionary
    codes: SparseCodes  # exact ones of the rows looked at
    objective: float
    stationarity: float
    residual_ratio: float
    is_global: bool
    worthwhile: Bool[np.ndarray, " atoms"]  # which of its atoms are worth keeping
    looked: float  # F on the rows looked at


def fit_point(
    problem: Problem, X: Float[Array, "samples d"], start: Dictionary, before, *, solver, tol, max_steps: int, callback
) -> Point:
    """`jaxdict.fit` from a dictionary, sparse, without the certificate, whose programs take seconds to compile at each width.

    `before` are codes of the rows at the last width, or None: a row is given half as many slots again as the fullest had there. An
    exception of the callback, or Ctrl-C, has the point reached as its attribute `solution`.
    """
    if before is not None:
        solver = with_slots(Combined() if solver is None else solver, slots_of(fullest(before), start.atoms.shape[0]))
    task = task_of(problem, X, start.atoms.shape[0], None, start, np.asarray(tol, X.dtype), solver, sparse=True)
    ended, stopped = driven(task, {"max_steps": max_steps, "second_order": False, "sparse": True}, callback)
    codes = whole_codes(task.problem, task.X, ended.iterate)
    dictionary, codes = task.units.unscaled(ended.iterate.dictionary, codes)
    found = Point(dictionary, sparse_codes(codes))
    if stopped is None:
        return found
    hand_over(stopped, solution=found)
    raise stopped


def fullest(codes: SparseCodes) -> int:
    """Active atoms of the fullest row."""
    return int(np.max(np.sum(np.asarray(codes.values) != 0, axis=1)))


@jax.jit
def told(
    problem: Problem, dictionary: Dictionary, codes: SparseCodes, X: Float[Array, "samples d"]
) -> tuple[Moments, Stationarity]:
    """The sums of a point, and T1's measures."""
    sums = moments_of(problem, dictionary, codes, X)
    return sums, from_moments(problem, dictionary, sums)


def fitted(problem: Problem, dictionary: Dictionary, codes: SparseCodes, X: Float[Array, "samples d"], tol) -> Fitted:
    """What the rows say of a point; T13's proof is that of `Certificate.is_globally_optimal`."""
    units = units_of(problem, X)
    here, rows = units.scaled(problem, X)
    sums, blocks = told(here, units.scaled_dictionary(dictionary), units.scaled_codes(codes), rows)
    ratio = float(np.asarray(sums.residual_max)) / float(here.lam)
    is_global = max(float(blocks.codes), float(blocks.offset)) <= tol and ratio <= 1 + tol
    value = float(units.of_objective(np.asarray(sums.objective)))
    kept = worthwhile_of(here, dictionary, sums, rows)
    return Fitted(dictionary, codes, value, float(blocks.worst), ratio, is_global, kept, value)
