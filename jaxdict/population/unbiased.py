"""Unbiased defects of a population (T17): a mean's square, less the noise that squaring a mean of few rows adds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, safe_norm
from jaxdict.objectives import residual
from jaxdict.population.rows import chunks, exact_codes_of, known, row_weights
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, canonical, metric_of, sparse_codes
from jaxdict.validation import check_dictionary


class PopulationSums(NamedTuple):
    """Sums over fresh rows behind T17; those of chunks or of devices add: `jax.tree.map(jnp.add, first, second)`. Unit atoms."""

    rows: Int[Array, ""]
    weight: Float[Array, ""]  # sum w
    weight_squares: Float[Array, ""]  # sum w^2
    codes: Float[Array, " atoms"]  # sum w |z_k|
    code_squares: Float[Array, " atoms"]  # sum w^2 z_k^2
    pulls: Float[
        Array, "atoms d"
    ]  # sum w t_k, t_k = z_k P_k(m r): P_k the projection off u_k (penalised: z_k m r - lam |z_k| u_k)
    pull_squares: Float[Array, " atoms"]  # sum w^2 ||t_k||^2
    residual: Float[Array, " d"]  # sum w m r
    residual_squares: Float[Array, ""]  # sum w^2 ||m r||^2


class PopulationDefects(NamedTuple):
    """The population's defects as fresh rows show them (T17): squared ones may be negative; NaN for atoms used on fewer than two rows."""

    squared: Float[
        Array, " atoms"
    ]  # of ||E t_k||^2 / (lam zbar_k)^2: the square of T1's atoms line, of T9's in the constrained gauge
    naive: Float[
        Array, " atoms"
    ]  # ||mean t_k|| / (lam zbar_k), T1's atoms line on these rows: biased upwards by their noise
    offset_squared: Float[Array, ""]  # of ||E[m r]||^2 / lam^2; zero where the offset is fixed
    rows: Int[Array, ""]

    @property
    def rms(self) -> Float[Array, ""]:
        """Root mean square of the unbiased defects over live atoms; zero where their mean is negative, noise being all there is."""
        live = jnp.isfinite(self.squared)
        mean = jnp.sum(jnp.where(live, self.squared, 0)) / jnp.maximum(jnp.sum(live), 1)
        return jnp.sqrt(jnp.maximum(mean, 0))

    def message(self) -> str:
        """What is shown of rows like these, in a sentence."""
        live = np.isfinite(np.asarray(self.squared))
        if not live.any():
            return f"no atom is used on these {int(self.rows)} fresh rows, so nothing is shown of the population"
        naive = float(np.median(np.asarray(self.naive)[live]))
        return (
            f"population, from {int(self.rows)} fresh rows: root mean square defect {float(self.rms):.2g} over {live.sum()} atoms "
            f"in use (these rows alone show a median of {naive:.2g}, their own noise included)"
        )


def population_sums(
    problem: Problem, dictionary: Dictionary, X: Float[Any, "samples d"], codes: Codes | None = None
) -> PopulationSums:
    """The sums of T17 over fresh rows, in one pass; `problem.weights` are those of these rows, and codes default to exact ones.

    X is (samples, d): an array, or anything with `shape` and row slices (a memory map, shards), taken in chunks. Sums of chunks, or of
    devices, add. Works under jit with an array.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> D, X = jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[2.0, 1.0], [2.0, -1.0]])
    >>> sums = population_sums(jd.Problem(lam=0.5, offset=False), D, X)
    >>> sums.pulls.tolist(), sums.pull_squares.tolist()
    ([[0.0, 0.0]], [4.5])
    """
    total = None
    for part, rows, own in chunks(problem, dictionary, X, codes):
        solved = exact_codes_of(part, dictionary, rows) if own is None else own
        sums = sums_of_rows(
            part, check_dictionary(dictionary, rows), sparse_codes(solved) if known(solved) else solved, rows
        )
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    assert total is not None
    return total


def defects(
    problem: Problem, dictionary: Dictionary, X: Float[Any, "samples d"], codes: Codes | None = None
) -> PopulationDefects:
    """The population's squared defects, the noise of the rows taken out, from rows that the dictionary was not fitted to (T17).

    `U_k = (||sum_n w t_nk||^2 - sum_n w^2 ||t_nk||^2) / ((sum w)^2 - sum w^2)` is unbiased for `||E t_k||^2`, where
    `t_nk = z_nk P_k (m r_n)`, P_k the projection off u_k (penalised gauge `z_nk m r_n - lam |z_nk| u_k`). Over the same
    estimate of `(lam E|z_k|)^2`, `lam^2 ((sum_n w |z_nk|)^2 - sum_n w^2 z_nk^2) / ((sum w)^2 - sum w^2)`, it estimates the square of
    T1's atoms line: both without bias, their ratio up to terms of order 1/n. Naively the noise of n rows adds `E||t_k||^2 / n`.

    **Arguments:** X (samples, d) fresh rows, an array or anything with `shape` and row slices; codes default to exact ones.

    **Returns** `PopulationDefects(squared, naive, offset_squared, rows)`, dimensionless, with `rms` and `message()`. **Raises** ValueError
    as `jaxdict.encode`, and where fewer than two rows have a positive weight. Works under jit and vmap with an array.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> D, X = jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[2.0, 1.0], [2.0, -1.0]])
    >>> defects(jd.Problem(lam=0.5, offset=False), D, X).squared.tolist()
    [-4.0]
    """
    return defects_from_sums(problem, dictionary, population_sums(problem, dictionary, X, codes))


def defects_from_sums(problem: Problem, dictionary: Dictionary, sums: PopulationSums) -> PopulationDefects:
    """`defects` from sums that may have been added over chunks, devices or processes.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> problem, D = jd.Problem(lam=0.5, offset=False), jd.Dictionary(jnp.array([[1.0, 0.0]]))
    >>> parts = [population_sums(problem, D, jnp.array([[2.0, height]])) for height in (1.0, -1.0)]
    >>> defects_from_sums(problem, D, jax.tree.map(jnp.add, *parts)).squared.tolist()
    [-4.0]
    """
    pairs = sums.weight**2 - sums.weight_squares
    if not isinstance(pairs, Tracer) and not float(pairs) > 0:
        raise ValueError(
            "fewer than two rows have a positive weight, so noise cannot be told from a defect; give more rows"
        )
    lam = jnp.asarray(problem.lam, sums.pulls.dtype)
    live = sums.codes > 0
    unit = jnp.where(live, lam * sums.codes / sums.weight, 1)  # lam zbar_k
    # An atom of one row has no pair of rows, but for rounding: nothing is shown of it.
    over = sums.codes**2 - sums.code_squares
    paired = over > 16 * jnp.finfo(over.dtype).eps * sums.codes**2
    squared = (jnp.sum(sums.pulls**2, axis=1) - sums.pull_squares) / jnp.where(paired, lam**2 * over, 1)
    naive = safe_norm(sums.pulls) / sums.weight / unit
    offset = (jnp.sum(sums.residual**2) - sums.residual_squares) / pairs / lam**2
    offset = offset if problem.offset else jnp.zeros_like(offset)
    return PopulationDefects(jnp.where(paired, squared, jnp.nan), jnp.where(live, naive, jnp.nan), offset, sums.rows)


@on_any_mesh
@jax.jit
def sums_of_rows(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]
) -> PopulationSums:
    """The sums of one chunk, norms folded into the codes."""
    units, codes = canonical(dictionary, codes)
    mr = metric_of(problem, X) * residual(units, codes, X)
    w = row_weights(problem, X)
    squares = jnp.sum(mr * mr, axis=1)
    lam, n_atoms = jnp.asarray(problem.lam, X.dtype), units.atoms.shape[0]
    if not isinstance(codes, SparseCodes):
        along, values = matmul(mr, units.atoms.T), codes
        add = lambda array: pairwise_sum(array)  # noqa: E731
        cross = matmul((w[:, None] * values).T, mr)
    else:
        indices = codes.indices
        along, values = _along_slots(mr, units.atoms, indices), codes.values
        add = lambda array: jnp.zeros(n_atoms, X.dtype).at[indices].add(array)  # noqa: E731
        cross = _cross_of_slots(w, codes, mr, n_atoms)
    sizes = jnp.abs(values)
    if problem.gauge == "penalised":  # ||z m r - lam |z| u||^2
        spread = values**2 * squares[:, None] - 2 * lam * values * sizes * along + (lam * sizes) ** 2
    else:
        spread = values**2 * (squares[:, None] - along**2)
    codes_sum = add(w[:, None] * sizes)
    if problem.gauge == "penalised":
        pulls = cross - lam * codes_sum[:, None] * units.atoms
    else:
        pulls = cross - jnp.sum(cross * units.atoms, axis=1, keepdims=True) * units.atoms
    return PopulationSums(
        rows=jnp.sum(w > 0),
        weight=jnp.sum(w),
        weight_squares=jnp.sum(w * w),
        codes=codes_sum,
        code_squares=add((w * w)[:, None] * values**2),
        pulls=pulls,
        pull_squares=add((w * w)[:, None] * jnp.maximum(spread, 0)),
        residual=matmul(w, mr),
        residual_squares=jnp.sum(w * w * squares),
    )


def _along_slots(mr, units, indices):
    """`<u_k, m r_n>` at each slot, a slot at a time: no (samples, slots, d) array."""

    def one(_, index):
        return None, jnp.sum(units[index] * mr, axis=1)

    return jax.lax.scan(one, None, indices.T)[1].T


def _cross_of_slots(w, codes: SparseCodes, mr, n_atoms):
    """`sum w z_k m r`, a slot at a time: no (samples, atoms) array."""

    def one(total, slot):
        index, value = slot
        return total.at[index].add((w * value)[:, None] * mr), None

    zeros = jnp.zeros((n_atoms, mr.shape[1]), mr.dtype) + 0 * mr[:1]
    return jax.lax.scan(one, zeros, (codes.indices.T, codes.values.T))[0]
