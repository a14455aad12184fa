"""The pair condition (T6): what each feature's activations allow its cosine with every other feature to be."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxdict.arrays import is_concrete, look
from jaxdict.conditions.coactivations import count_samples, counted, feature_sums, refuse_negative, values_of
from jaxdict.conditions.pair_search import extremes_where_off
from jaxdict.encoding.shards import by_shards, rows_of
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, round_up, safe_norm, unit_rows
from jaxdict.points import check_activations, check_activations_of, check_feature
from jaxdict.problem import Codes, Dictionary, SparseCodes

# Down to this rank every feature's list of activations is walked at once; the few pairs left are walked feature by
# feature.
DEPTH = 64


class PairStatistics(NamedTuple):
    """What T6 needs of the codes. Statistics of chunks of samples merge exactly (`merge_pair_statistics`)."""

    largest: Float[Array, "atoms atoms"]  # [i, j]: max of z_j where i is off; -inf where i is never off
    smallest: Float[Array, "atoms atoms"]
    both: Int[Array, "atoms atoms"]
    active: Int[Array, " atoms"]
    samples: Int[Array, ""]
    sums: Float[Array, " atoms"]  # sum_n w_n z_nk
    weight: Float[Array, ""]  # sum_n w_n


class PairViolation(NamedTuple):
    """One row of `PairConditions.violations`: plain Python numbers."""

    i: int
    j: int
    margin: float
    cosine: float
    lower: float
    upper: float
    rate: float  # the descent rate over lam, zbar_j |margin|


class PairConditions(NamedTuple):
    """T6 for all pairs: entry [i, j] speaks of feature j on the samples where i is off; it holds iff `margin >= 0`.

    NaN on the diagonal and where either feature is dead; a feature that is never off has margin -inf (offset free).
    """

    lower: Float[Array, "atoms atoms"]
    upper: Float[Array, "atoms atoms"]
    cosine: Float[Array, "atoms atoms"]
    margin: Float[Array, "atoms atoms"]
    largest: Float[Array, "atoms atoms"]  # max of z_j / zbar_j where i is off
    smallest: Float[Array, "atoms atoms"]
    means: Float[Array, " atoms"]  # zbar, unit atoms

    def violations(self, top: int | None = 20, tolerance: float = 0.0) -> list[PairViolation]:
        """The violated pairs, worst margin first, at most `top` (None: all). Host side: not for jit.

        A pair counts as violated when `margin < -tolerance`. `rate` times lam is how fast the row of `separating_row`
        descends.
        """
        margin = np.asarray(self.margin)
        i, j = np.nonzero(margin < -tolerance)
        with np.errstate(invalid="ignore"):
            rate = np.asarray(self.means)[j] * -margin[i, j]
        order = np.lexsort((-rate, margin[i, j]))[:top]
        columns = [np.asarray(array)[i, j] for array in (self.margin, self.cosine, self.lower, self.upper)]
        return [PairViolation(int(i[n]), int(j[n]), *(float(c[n]) for c in columns), float(rate[n])) for n in order]

    def separating_row(self, i, j, *, offset: bool = True) -> tuple[Float[Array, " atoms"], Float[Array, ""]]:
        """Row `A_i` and constant `c_i` of a violated pair: along `row_direction` F falls at rate `lam zbar_j |margin|`.

        Lower bound violated: `A_ij = -1`, `c_i = max z_j`; upper bound: `A_ij = 1`, `c_i = -min z_j`; no offset:
        `A_ij = -1`. Exact at `quantile=0` and where i is off somewhere.
        """
        i, j = (check_feature(feature, self.means.shape[0], name) for feature, name in ((i, "i"), (j, "j")))
        below = self.cosine[i, j] - self.lower[i, j] <= self.upper[i, j] - self.cosine[i, j]
        sign = jnp.where(below | (not offset), -1, 1).astype(self.means.dtype)
        bound = jnp.where(below, self.largest[i, j], self.smallest[i, j]) * self.means[j]
        constant = -sign * bound if offset else jnp.zeros_like(bound)
        return jnp.zeros_like(self.means).at[j].set(sign), constant


def pairs(
    dictionary: Dictionary,
    codes: Codes,
    *,
    offset: bool = True,
    quantile: float = 0.0,
    weights=None,
    depth: int = DEPTH,
) -> PairConditions:
    """The pair condition for all pairs of features (T6), necessary at a stationary point, for codes >= 0.

    Offset free: `1 - max_{I_i} z_nj / zbar_j <= G_ij <= 1 - min_{I_i} z_nj / zbar_j`, `I_i = {n : z_ni = 0}`, and
    `margin = min(G_ij - lower, upper - G_ij)`, in units of a cosine; an empty I_i gives -inf. No offset: some n in I_i
    has `z_nj > 0`, or `d_i = d_j`. Then `margin = max_{I_i} z_nj / zbar_j` where that is positive, else `G_ij - 1`
    (lower is -inf or 1, upper is 1). Either way a violated pair descends at rate `lam zbar_j |margin|`.

    **Arguments**

    - `codes`: (samples, atoms) dense, or `SparseCodes`; atoms' norms are folded in (the condition does not see scales).
    - `quantile`: discounts rare co-occurrences: the `floor(quantile #{j on})` largest activations of j where i is off
      are taken for zero, and the `floor(quantile #{i off})` smallest are dropped. 0 is T6 itself.
    - `weights`: sample weights; samples of weight 0 do not count. `depth`: tuning only, no effect on the result.

    Exact, in time about samples x slots^2 + atoms^2. Differentiable in atoms and codes except where the extreme sample
    changes. Under jit give sparse codes; dense ones are then taken to be full. Raises ValueError for concrete negative
    codes (T8 has no T6).

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> codes = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])  # feature 1 fires only with feature 0
    >>> found = pairs(jd.Dictionary(jnp.eye(2)), codes)
    >>> float(found.margin[0, 1]), [(row.i, row.j) for row in found.violations()]
    (-1.0, [(0, 1)])
    """
    dictionary, codes, weights = check_activations_of(dictionary, codes, weights)
    n_atoms = dictionary.atoms.shape[0]
    statistics = pair_statistics(codes, n_atoms=n_atoms, quantile=quantile, weights=weights, depth=depth)
    return pairs_from_statistics(dictionary, statistics, offset=offset)


def pair_statistics(
    codes: Codes, *, n_atoms: int | None = None, quantile: float = 0.0, weights=None, depth: int = DEPTH
) -> PairStatistics:
    """What T6 needs of one chunk of codes: extremes where others are off, counts and sums; arguments as for `pairs`.

    >>> import jax.numpy as jnp
    >>> float(pair_statistics(jnp.array([[1.0, 2.0], [0.0, 3.0]])).largest[0, 1])
    3.0
    """
    refuse_negative(codes, "the pair condition")
    codes, weights, n_atoms = check_activations(codes, n_atoms, weights)
    slots = n_atoms
    if isinstance(codes, SparseCodes):
        slots = codes.values.shape[1]
    elif is_concrete(codes):
        slots = min(n_atoms, round_up(int(look(lambda xp, Z: xp.max(xp.sum(Z != 0, axis=1)), codes)), 8))
    sizes = n_atoms, max(1, slots)
    rows = rows_of(values_of(codes))
    if rows is None or isinstance(quantile, Tracer) or float(quantile) != 0:
        return _statistics(codes, weights, quantile, depth, *sizes)
    return _merged(_by_shards(codes, weights, depth, *sizes, rows))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _by_shards(codes, weights, depth, n_atoms, slots, rows) -> PairStatistics:
    """The statistics of each device's samples, on a new first axis: no list of activations leaves its device."""

    def one(depth, part):
        return jax.tree.map(lambda leaf: leaf[None], _statistics_of(*part, 0.0, depth, n_atoms, slots))

    return by_shards(rows, one, depth, (codes, weights))


def _merge_all(parts: PairStatistics) -> PairStatistics:
    """`merge_pair_statistics` of the chunks on the first axis."""
    total = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, dtype=leaf.dtype), parts)
    return total._replace(largest=jnp.max(parts.largest, axis=0), smallest=jnp.min(parts.smallest, axis=0))


_merged = on_any_mesh(jax.jit(_merge_all))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _statistics_of(codes, weights, quantile, depth, n_atoms, slots) -> PairStatistics:
    codes = counted(codes, weights)
    w = jnp.ones_like(values_of(codes)[:, 0]) if weights is None else weights
    sums = feature_sums(codes, w[:, None] * values_of(codes), n_atoms)
    if not isinstance(codes, SparseCodes):
        indices = jax.lax.top_k(jnp.abs(codes), slots)[1]
        codes = SparseCodes(indices, jnp.take_along_axis(codes, indices, axis=1))
    samples = count_samples(codes, weights)
    return PairStatistics(*extremes_where_off(codes, samples, n_atoms, quantile, depth), samples, sums, jnp.sum(w))


_statistics = on_any_mesh(_statistics_of)


def merge_pair_statistics(first: PairStatistics, second: PairStatistics) -> PairStatistics:
    """Statistics of two chunks of samples together: the same as of all the samples at once.

    With a quantile, rare co-occurrences are discounted within each chunk, never more of them than the quantile of all.
    """
    return jax.tree.map(jnp.add, first, second)._replace(
        largest=jnp.maximum(first.largest, second.largest), smallest=jnp.minimum(first.smallest, second.smallest)
    )


def pairs_from_statistics(dictionary: Dictionary, statistics: PairStatistics, *, offset: bool = True) -> PairConditions:
    """`pairs` from statistics that may have been streamed over chunks.

    >>> import functools, jax.numpy as jnp, jaxdict as jd
    >>> chunks = jnp.array([[1.0, 1.0], [1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> merged = functools.reduce(merge_pair_statistics, map(pair_statistics, chunks))
    >>> float(pairs_from_statistics(jd.Dictionary(jnp.eye(2)), merged).margin[0, 1])
    -1.0
    """
    dictionary = dictionary.alone()
    units, norms = unit_rows(dictionary.atoms), safe_norm(dictionary.atoms)
    if np.shape(statistics.sums) != norms.shape:
        raise ValueError(
            f"statistics are of {np.shape(statistics.sums)[-1]} features but the dictionary has {norms.shape[0]}; "
            "give those of its own codes"
        )
    cosine = matmul(units, units.T)
    raw = statistics.sums / statistics.weight
    live = (raw > 0) & (norms > 0)
    scale = jnp.where(live, raw, 1)[None, :]
    largest, smallest = statistics.largest / scale, statistics.smallest / scale
    if offset:
        lower, upper = 1 - largest, 1 - smallest
        margin = jnp.minimum(cosine - lower, upper - cosine)
    else:
        reached = largest > 0
        lower = jnp.where(reached, -jnp.inf, jnp.ones_like(cosine))
        upper = jnp.ones_like(cosine)
        # where, not minimum: the derivative of the branch not taken must not be inf times zero
        margin = jnp.where(reached, jnp.where(reached, largest, 0), cosine - 1)
    counts = live[:, None] & live[None, :] & ~jnp.eye(live.shape[0], dtype=bool)
    lower, upper, margin, cosine = (jnp.where(counts, array, jnp.nan) for array in (lower, upper, margin, cosine))
    return PairConditions(lower, upper, cosine, margin, largest, smallest, raw * norms)
