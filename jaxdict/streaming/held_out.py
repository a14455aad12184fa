"""The objective on rows kept aside, with its standard error, and gains between dictionaries row by row (T18)."""

import numpy as np
from jaxtyping import Float

from jaxdict.population import PopulationDefects, defects
from jaxdict.problem import Dictionary, Problem
from jaxdict.streaming.aside import Held
from jaxdict.streaming.sums import checked, chunk_rows, code_tol, solve_chunk


def held_values(problem: Problem, dictionary: Dictionary, held: Held) -> Float[np.ndarray, " samples"]:
    """F by row with exact codes, chunk by chunk."""
    size, out = chunk_rows(problem, *dictionary.atoms.shape), []
    for at in range(0, held.rows.shape[0], size):
        rows = checked(held.rows[at : at + size], at).astype(dictionary.atoms.dtype)
        out.append(solve_chunk(problem, dictionary, rows, code_tol(rows.dtype)).values)
    return np.concatenate(out)


def mean_and_error(values: Float[np.ndarray, " samples"], held: Held) -> tuple[float, float]:
    """The weighted mean over rows and its standard error, groups of rows taken as dependent; infinite where there is one group."""
    w = np.ones(len(values)) if held.weights is None else held.weights
    mean = np.sum(w * values) / np.sum(w)
    left = np.bincount(held.groups, w * (values - mean))
    count = int(np.sum(np.bincount(held.groups, w) > 0))
    if count < 2:
        return float(mean), float("inf")
    return float(mean), float(np.sqrt(np.sum(left * left) * count / (count - 1)) / np.sum(w))


def population_of(problem: Problem, dictionary: Dictionary, held: Held) -> PopulationDefects:
    """T17 on the rows kept aside."""
    fresh = Problem(problem.lam, problem.offset, problem.signed, problem.gauge, problem.metric, held.weights)
    return defects(fresh, dictionary, held.rows)
