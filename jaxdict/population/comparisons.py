"""Refutations that generalise (T18): paired differences on fresh rows, exact codes on both sides, with a standard error."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxdict.certificates.stationarity import Direction
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, unit_rows
from jaxdict.objectives import sample_objectives
from jaxdict.population.rows import chunks, exact_codes_of, row_weights, subset
from jaxdict.population.unbiased import sums_of_rows
from jaxdict.problem import Dictionary, Problem, canonical, metric_of, offset_of
from jaxdict.validation import check_data, check_dictionary

# Shares of the step to the diagonal model's minimum that `refute` chooses from.
SHARES = (2.0, 1.0, 0.5, 0.25, 0.1, 0.03, 0.01)

_objectives = on_any_mesh(jax.jit(sample_objectives))


# A gain is shown above so many standard errors.
SHOWN = 3.0


class Comparison(NamedTuple):
    """A paired difference on fresh rows, in F's units: how much lower the second dictionary is, with its standard error (T18)."""

    gain: Float[Array, ""]
    standard_error: Float[Array, ""]
    rows: Int[Array, ""]
    groups: Int[Array, ""]  # documents; as many as rows where none were given

    @property
    def z(self) -> Float[Array, ""]:
        """The gain in standard errors; zero where both dictionaries agree on every row."""
        error = self.standard_error
        return jnp.where(error > 0, self.gain / jnp.where(error > 0, error, 1), 0)

    def message(self) -> str:
        """The comparison in a sentence: shown above three standard errors, else not."""
        z, gain = float(self.z), float(self.gain)
        what = "lower" if z > SHOWN else "higher" if z < -SHOWN else "not shown to differ"
        dependent = int(self.groups) < int(self.rows)
        unit = f"{int(self.groups)} documents" if dependent else "rows treated as independent"
        size = f"gain {gain:.3g} +- {float(self.standard_error):.1g} on {int(self.rows)} fresh rows ({unit})"
        return f"the second dictionary is {what}: {size}"


class Refutation(NamedTuple):
    """A descent direction chosen on one half of the rows and what it gains on the other (T18)."""

    comparison: Comparison
    direction: Direction  # codes None: they are solved exactly on both sides
    dictionary: Dictionary  # where the direction leads: the second one of the comparison

    @property
    def gain(self) -> Float[Array, ""]:
        """The comparison's gain."""
        return self.comparison.gain

    @property
    def standard_error(self) -> Float[Array, ""]:
        """The comparison's standard error."""
        return self.comparison.standard_error

    @property
    def z(self) -> Float[Array, ""]:
        """The gain in standard errors."""
        return self.comparison.z

    @property
    def rows(self) -> Int[Array, ""]:
        """Fresh rows of the comparison, those of the second half."""
        return self.comparison.rows

    def message(self) -> str:
        """Whether the dictionary is refuted, in a sentence."""
        verdict = "refuted as" if float(self.z) > SHOWN else "not refuted as"
        size = f"{float(self.gain):.3g} +- {float(self.standard_error):.1g} on the other {int(self.rows)}"
        return f"{verdict} a local optimum of the population: a step chosen on half of the rows gains {size}"


def compare(
    problem: Problem, first: Dictionary, second: Dictionary, X: Float[Any, "samples d"], *, groups=None
) -> Comparison:
    """How much lower F is at the second dictionary than at the first on fresh rows, exact codes on both sides, paired (T18).

    `gain = E[F(x; first) - F(x; second)]`, unbiased for the population's where neither dictionary was fitted to these rows. `groups`
    (samples,) names each row's document: rows of one depend on one another, and the standard error is then that of a ratio of
    sums over documents; without it rows are treated as independent. X as in `defects`.

    **Returns** `Comparison(gain, standard_error, rows, groups)` in F's units, with `z` and `message()`. **Raises** ValueError as
    `jaxdict.encode`, for groups of another length, and for fewer than two rows or documents. Works under jit with an array.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> X, problem = jnp.array([[2.0, 0.0], [3.0, 0.0]]), jd.Problem(lam=0.5, offset=False)
    >>> across, along = (jd.Dictionary(jnp.array([atom])) for atom in ([0.0, 1.0], [1.0, 0.0]))
    >>> float(compare(problem, across, along, X).gain)
    2.125
    """
    gains, weights = [], []
    for part, rows, _ in chunks(problem, first, X, None):
        gains.append(_values(part, first, rows) - _values(part, second, rows))
        weights.append(jnp.ones_like(gains[-1]) if part.weights is None else jnp.asarray(part.weights, rows.dtype))
    gain, weight = jnp.concatenate(gains), jnp.concatenate(weights)
    if groups is not None and np.shape(groups) != gain.shape:
        raise ValueError(
            f"groups has shape {np.shape(groups)} but the data {gain.shape[0]} rows; give one document a row"
        )
    return paired(gain, weight, None if groups is None else numbered(groups))


def refute(problem: Problem, dictionary: Dictionary, X: Float[Any, "samples d"], *, key, groups=None) -> Refutation:
    """Try to refute a dictionary as a local optimum of the population: a direction from half of the rows, tested on the others (T18).

    On three eighths of the rows the step is `-P_k E[dF/dd_k] / (E[z_k^2] + lam zbar_k)` for every atom and `-E[dF/db]` for the
    offset (the slopes of `phi = min_Z F` over the diagonal of its Hessian); on one eighth its length is chosen, so that a step
    learned by heart comes out short; on the other half the difference, exact codes on both sides, is independent of both choices.
    `groups` (samples,) keeps documents whole. `key` draws the parts.

    **Returns** `Refutation(comparison, direction, dictionary)`, with `gain`, `standard_error`, `z`, `rows` and `message()`.
    **Raises** ValueError as `compare`. For arrays that fit in memory; not under jit, since halves are cut by value.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> X = jnp.array([[2.0, 1.0]] * 40) + 0.01 * jax.random.normal(jax.random.key(0), (40, 2))
    >>> found = refute(jd.Problem(lam=0.5, offset=False), jd.Dictionary(jnp.array([[1.0, 0.0]])), X, key=jax.random.key(1))
    >>> float(found.z) > 3
    True
    """
    X = np.asarray(check_data(X, wide="allow"))  # halves are cut on the host
    names = np.arange(X.shape[0]) if groups is None else np.asarray(groups)
    if names.shape != X.shape[:1]:
        raise ValueError(f"groups has shape {names.shape} but the data {X.shape[0]} rows; give one document a row")
    documents, of_row = np.unique(names, return_inverse=True)
    if len(documents) < 4:
        raise ValueError(
            f"{len(documents)} documents cannot be parted in three and compared; give at least four, or leave groups out"
        )
    turn = np.asarray(jax.random.permutation(key, len(documents)))[
        of_row
    ]  # each row's document's place in a random order
    size, half = len(documents) // 2, min(len(documents) // 2 - 1, 3 * len(documents) // 8)
    aim, reach, test = (
        (subset(problem, rows), X[rows]) for rows in (turn < half, (turn >= half) & (turn < size), turn >= size)
    )
    dictionary = canonical(check_dictionary(dictionary, X), jnp.zeros((1, dictionary.atoms.shape[0]), X.dtype))[0]  # type: ignore
    whole = _descent(aim[0], dictionary, aim[1])
    steps = [jax.tree.map(lambda part: share * part, whole) for share in SHARES]  # noqa: B023
    there = [_moved(dictionary, step) for step in steps]
    values = [float(jnp.sum(row_weights(*reach) * _values(reach[0], other, reach[1]))) for other in there]
    best = int(np.argmin(values))
    against = None if groups is None else of_row[turn >= size]
    found = compare(test[0], dictionary, there[best], test[1], groups=against)
    return Refutation(found, Direction(steps[best][0], None, steps[best][1]), there[best])  # type: ignore[arg-type]


def _values(problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"]) -> Float[Array, " samples"]:
    """F by row, with exact codes."""
    dictionary = check_dictionary(dictionary, X)
    return _objectives(problem, dictionary, exact_codes_of(problem, dictionary, X), X)


@on_any_mesh
@jax.jit
def paired(gain, weight, of_row) -> Comparison:
    """The weighted mean, and its standard error by the sums of residuals over independent groups of rows."""
    total = jnp.sum(weight)
    mean = pairwise_sum(weight * gain) / total
    left = weight * (gain - mean)
    counted = weight > 0
    if of_row is not None:
        left = jnp.zeros_like(left).at[of_row].add(left)
        counted = jnp.zeros_like(counted).at[of_row].max(counted)
    groups = jnp.sum(counted)
    correction = (groups / jnp.maximum(groups - 1, 1)).astype(gain.dtype)
    spread = jnp.sum(left * left) * correction
    error = jnp.where(groups > 1, jnp.sqrt(spread) / total, jnp.inf)
    return Comparison(mean, error, jnp.sum(weight > 0), groups)


def numbered(groups) -> Int[Array, " samples"]:
    """Documents as numbers from 0; names of any kind unless they are traced."""
    if isinstance(groups, Tracer):
        return jnp.unique(groups, return_inverse=True, size=groups.shape[0])[1]
    return jnp.asarray(np.unique(np.asarray(groups), return_inverse=True)[1])


def _descent(problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"]):
    """The diagonal model's step from a dictionary of unit atoms, (atoms, offset): slopes of phi (T3) over `E[z_k^2] + lam zbar_k`."""
    return _slopes(problem, dictionary, exact_codes_of(problem, dictionary, X), X)


@on_any_mesh
@jax.jit
def _slopes(problem: Problem, dictionary: Dictionary, codes, X: Float[Array, "samples d"]):
    sums = sums_of_rows(problem, dictionary, codes, X)
    w, dense = row_weights(problem, X), codes
    bend = matmul(w, dense * dense) / sums.weight + jnp.asarray(problem.lam, X.dtype) * sums.codes / sums.weight
    live = sums.codes > 0
    atoms = jnp.where(live[:, None], sums.pulls / sums.weight / jnp.where(live, bend, 1)[:, None], 0)
    top = jnp.max(metric_of(problem, X))
    offset = sums.residual / sums.weight / top if problem.offset else jnp.zeros_like(sums.residual)
    return atoms, offset


def _moved(dictionary: Dictionary, step) -> Dictionary:
    return Dictionary(unit_rows(dictionary.atoms + step[0]), offset_of(dictionary) + step[1])
