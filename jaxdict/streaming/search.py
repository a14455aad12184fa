"""L-BFGS on the product of spheres where each value costs a pass over the rows: plain NumPy, so that it can be put down and taken up.

As `jaxdict.solvers.QuasiNewton`: the variables are `V_k = d_k / scale_k`, `scale_k = (E[z_k^2] max m + lam zbar_k)^-1/2`, with
`d_k = V_k / ||V_k||`, so that spheres are met exactly and the scale is that of the Hessian's diagonal. The offset is the last row.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxdict.problem import Dictionary, Problem
from jaxdict.streaming.sums import Sums, moments_of

ARMIJO = 0.1
# Trials in a row without success before the memory is dropped, and again before the search gives up.
TRIALS = 6
# Change of the logarithm of an atom's scale beyond which all are scaled anew.
DRIFT = 1.5
# Pairs of (change, change of slope) that are kept.
MEMORY = 10


class Search(NamedTuple):
    """Where the search stands: the accepted point and its slopes, the pairs kept, the direction and the size of the next trial."""

    variables: Float[np.ndarray, "rows d"]
    slopes: Float[np.ndarray, "rows d"]
    scale: Float[np.ndarray, " rows"]
    objective: Float[np.ndarray, ""]
    changes: Float[np.ndarray, "pairs rows d"]
    bends: Float[np.ndarray, "pairs rows d"]
    direction: Float[np.ndarray, "rows d"]
    slope: Float[np.ndarray, ""]
    size: Float[np.ndarray, ""]
    failures: Int[np.ndarray, ""]
    stuck: Int[np.ndarray, ""]


def begin(problem: Problem, dictionary: Dictionary, sums: Sums) -> Search:
    """The search at a point whose sums are known: steepest descent comes first."""
    scale = _scales(problem, sums)
    variables = _variables(dictionary, scale)
    empty = np.zeros((0, *variables.shape), np.asarray(dictionary.atoms).dtype)
    slopes = _slopes(problem, variables, scale, dictionary, sums)
    return _aim(variables, slopes, scale, np.asarray(sums.objective / sums.weight), empty, empty)


def trial_of(search: Search) -> Dictionary:
    """The dictionary of the next trial."""
    variables, dtype = search.variables + search.size * search.direction, search.changes.dtype
    atoms = variables[:-1] / np.linalg.norm(variables[:-1], axis=1, keepdims=True)
    offset = search.scale[-1] * variables[-1]
    return Dictionary(jnp.asarray(atoms, dtype), jnp.asarray(offset, dtype))


def judge(problem: Problem, search: Search, trial: Dictionary, sums: Sums) -> tuple[Search, bool]:
    """The search after a trial's sums, and whether the trial is the new point.

    It is on Armijo's condition or, where values no longer differ beyond rounding, on its slope (Hager and Zhang 2005).
    """
    variables = search.variables + search.size * search.direction
    value, slopes = sums.objective / sums.weight, _slopes(problem, variables, search.scale, trial, sums)
    along = np.sum(search.direction * slopes)
    noise = 8 * np.finfo(search.changes.dtype).eps * abs(search.objective)
    descends = value <= search.objective + ARMIJO * search.size * search.slope
    flat = value <= search.objective + noise and along <= (2 * ARMIJO - 1) * search.slope
    if not (descends or flat):
        return _retreat(search, value), False
    scale = _scales(problem, sums)
    if np.max(np.abs(np.log(scale / search.scale))) > DRIFT:
        return begin(problem, trial, sums), True
    change, bend = variables - search.variables, slopes - search.slopes
    changes, bends = search.changes, search.bends
    if np.sum(change * bend) > 0:
        keep = lambda pairs, new: np.concatenate([pairs, new[None].astype(pairs.dtype)])[-MEMORY:]  # noqa: E731
        changes, bends = keep(changes, change), keep(bends, bend)
    return _aim(variables, slopes, search.scale, np.asarray(value), changes, bends), True


def _aim(variables, slopes, scale, objective, changes, bends) -> Search:
    direction = -_times_inverse(slopes, changes, bends)
    slope = np.sum(direction * slopes)
    if not slope < 0:
        changes, bends = changes[:0], bends[:0]
        direction = -slopes
        slope = np.sum(direction * slopes)
    zero = np.zeros((), int)
    stuck = np.asarray(int(not np.isfinite(objective)))
    size = np.asarray(1.0)
    return Search(variables, slopes, scale, objective, changes, bends, direction, slope, size, zero, stuck)


def _retreat(search: Search, value) -> Search:
    """A shorter step, to the minimum of the parabola through value and slope here and the value there; from scratch after many."""
    rise = value - search.objective - search.size * search.slope
    share = -0.5 * search.slope * search.size / rise / search.size if np.isfinite(rise) and rise > 0 else 0.1
    failures = search.failures + 1
    if failures < TRIALS:
        return search._replace(size=search.size * np.clip(share, 0.1, 0.5), failures=failures)
    fresh = len(search.changes) == 0
    again = _aim(*search[:4], search.changes[:0], search.bends[:0])
    return again._replace(stuck=np.asarray(int(fresh)))


def _times_inverse(slopes, changes, bends):
    """The inverse Hessian's product by the two loops over the pairs (Nocedal 1980)."""
    out, weights = np.array(slopes), []
    for s, y in zip(changes[::-1], bends[::-1], strict=True):
        rho = 1 / np.sum(s * y)
        weights.append((rho, rho * np.sum(s * out)))
        out -= weights[-1][1] * y
    if len(changes):
        out *= np.sum(changes[-1] * bends[-1]) / np.sum(bends[-1] ** 2)
    for (s, y), (rho, a) in zip(zip(changes, bends, strict=True), weights[::-1], strict=True):
        out += (a - rho * np.sum(y * out)) * s
    return out


def _scales(problem: Problem, sums: Sums):
    """One over the root of the Hessian's diagonal, bounded for atoms that are hardly used; the offset's is the metric's."""
    moments, top = moments_of(sums), 1.0 if problem.metric is None else float(np.max(np.asarray(problem.metric)))
    bend = top * np.asarray(moments.mean_squares) + float(problem.lam) * np.asarray(moments.mean_codes)
    largest = np.max(bend) or 1.0
    return 1 / np.sqrt(np.append(np.maximum(bend, 1e-6 * largest), top))


def _variables(dictionary: Dictionary, scale):
    return np.concatenate([np.asarray(dictionary.atoms), np.asarray(dictionary.offset)[None]]) / scale[:, None]


def _slopes(problem: Problem, variables, scale, dictionary: Dictionary, sums: Sums):
    """Slopes in the variables: `(I - d d^T) dphi/dD / ||V||` with `dphi/dD = -E[z m r]` (T3), zero for dead atoms."""
    moments, atoms = moments_of(sums), np.asarray(dictionary.atoms, float)
    slope = -np.asarray(moments.cross)
    tangent = slope - np.sum(slope * atoms, axis=1, keepdims=True) * atoms
    lengths = np.linalg.norm(variables[:-1], axis=1, keepdims=True)
    pull = -np.asarray(moments.mean_residual) * scale[-1] * float(problem.offset)
    return np.concatenate([tangent / lengths, pull[None]])
