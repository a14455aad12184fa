"""The objective on rows kept aside, with its standard error, and gains between dictionaries row by row (T18)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdict.population import PopulationDefects, defects_from_sums, population_sums
from jaxdict.problem import Dictionary, Problem
from jaxdict.streaming.aside import Held, View
from jaxdict.streaming.processes import ALONE, Processes
from jaxdict.streaming.sums import checked, chunk_rows, code_tol, solve_chunk


def held_values(
    problem: Problem, dictionary: Dictionary, held: Held, processes: Processes = ALONE
) -> Float[np.ndarray, " samples"]:
    """F by row with exact codes, chunk by chunk; each process codes its share of the rows."""
    n, size, out = held.rows.shape[0], chunk_rows(problem, *dictionary.atoms.shape), [np.zeros(0)]
    first, last = processes.share(n)
    for at in range(first, last, size):
        rows = checked(held.rows[at : min(last, at + size)], at).astype(dictionary.atoms.dtype)
        out.append(solve_chunk(problem, dictionary, rows, code_tol(rows.dtype)).values)
    ends = [Processes(k, processes.count).share(n) for k in range(processes.count)]
    return processes.joined(np.concatenate(out), [last - first for first, last in ends])


def mean_and_error(values: Float[np.ndarray, " samples"], held: Held) -> tuple[float, float]:
    """The weighted mean over rows and its standard error, groups of rows taken as dependent; infinite where there is one group."""
    w = np.ones(len(values)) if held.weights is None else held.weights
    mean = np.sum(w * values) / np.sum(w)
    left = np.bincount(held.groups, w * (values - mean))
    count = int(np.sum(np.bincount(held.groups, w) > 0))
    if count < 2:
        return float(mean), float("inf")
    return float(mean), float(np.sqrt(np.sum(left * left) * count / (count - 1)) / np.sum(w))


def population_of(
    problem: Problem, dictionary: Dictionary, held: Held, processes: Processes = ALONE
) -> PopulationDefects:
    """T17 on the rows kept aside; each process takes its share of them."""
    own = slice(*processes.share(held.rows.shape[0]))
    weights = None if held.weights is None else held.weights[own]
    fresh = Problem(problem.lam, problem.offset, problem.signed, problem.gauge, problem.metric, weights)
    sums = population_sums(fresh, dictionary, View(held.rows, np.arange(own.start, own.stop)))
    add = lambda first, second: jax.tree.map(np.add, first, second)  # noqa: E731
    return defects_from_sums(fresh, dictionary, jax.tree.map(jnp.asarray, processes.total(sums, add)))
