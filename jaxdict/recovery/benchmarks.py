"""What SynthSAEBench measures of an SAE or a dictionary against the truth, by its formulas, and absorption per edge of the hierarchy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.optimize import linear_sum_assignment

from jaxdict.arrays import is_concrete
from jaxdict.conditions.absorptions import Absorption, absorption_of_counts
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, safe_divide, safe_norm, unit_rows
from jaxdict.objectives import residual
from jaxdict.points import check_point
from jaxdict.problem import Dictionary, Problem, dense_codes, offset_of
from jaxdict.recovery.autoencoders import assignment
from jaxdict.synthetic_parts import Planted

# Of rows shorter than this no ratio of norms is taken; data that vary less than this have no share explained.
LEAST_NORM, LEAST_VARIANCE = 1e-6, 1e-10


class BenchSums(NamedTuple):
    """What the metrics are made of; the sums of batches add up: `jax.tree.map(jnp.add, first, second)`."""

    rows: Int[Array, ""]
    feature_on: Int[Array, " features"]  # rows on which each true feature is on
    latent_on: Int[Array, " latents"]
    both_on: Int[Array, " latents"]  # rows on which a latent and the feature of nearest direction are on
    ratios: Float[Array, ""]  # sum of ||xhat|| / ||x||
    ratio_rows: Int[Array, ""]
    errors: Float[Array, ""]  # sum of ||x - xhat||^2
    squares: Float[Array, ""]  # sum of ||x - b||^2, b the true offset
    total: Float[Array, " d"]  # sum of x - b


class BenchMetrics(NamedTuple):
    """SynthSAEBench's metrics, by its names."""

    true_l0: Float[Array, ""]  # features on in a row
    sae_l0: Float[Array, ""]  # latents that are not zero in a row
    dead_latents: Int[Array, ""]  # latents that are zero on all rows
    shrinkage: Float[Array, ""]  # E ||xhat|| / ||x||, over rows with ||x|| > 1e-6
    explained_variance: Float[Array, ""]  # 1 - E||x - xhat||^2 / (E||x||^2 - ||E x||^2)
    mcc: Float[Array, ""]  # mean |cosine| of latents and features, matched one to one at the largest sum
    uniqueness: Float[Array, ""]  # features that are nearest to some latent, over the number of latents
    precision: Float[Array, ""]  # of each latent as a detector of its nearest feature; mean over all, dead ones 0
    recall: Float[Array, ""]
    f1_score: Float[Array, ""]
    accuracy: Float[Array, ""]

    def message(self) -> str:
        """The findings in a sentence."""
        return (
            f"F1 {float(self.f1_score):.3f}, MCC {float(self.mcc):.3f}, uniqueness {float(self.uniqueness):.3f}, explained variance "
            f"{float(self.explained_variance):.3f} at L0 {float(self.sae_l0):.1f} (true {float(self.true_l0):.1f}); "
            f"{int(self.dead_latents)} latents are dead."
        )


class EdgeAbsorption(NamedTuple):
    """Absorption along each edge of a planted hierarchy, by its child; NaN for features without a parent."""

    parents: Int[Array, " features"]  # -1 for none
    latents: Int[Array, " features"]  # whose direction is nearest to the parent's; -1 for none
    cosines: Float[Array, " features"]  # |cosine| of the two: where it is low no latent stands for the parent
    found: Absorption  # P(that latent on | parent on, child off), and child on

    def message(self) -> str:
        """The findings in a sentence."""
        gap, error = np.asarray(self.found.gap), np.asarray(self.found.standard_error)
        known = np.isfinite(error)
        if not known.any():
            return "No edge has rows both with its child and without it."
        shown = int((gap[known] > 3 * error[known]).sum())
        return (
            f"On {known.sum()} edges a parent's latent is on in {100 * gap[known].mean():.0f} points fewer of its rows where the child "
            f"is on than where it is off; above three standard errors on {shown}."
        )


def bench_metrics(found, planted: Planted, *, latents=None) -> BenchMetrics:
    """SynthSAEBench's metrics of an SAE, or of a dictionary with its codes, on planted data.

    `found` is anything with `encode`, `W_dec` (or `atoms`) and a call that reconstructs, such as `jd.sae.SAE`; or a
    `Dictionary`, with `latents` its codes of these rows, dense or sparse. A latent is on where it is not zero, a feature where it is
    above zero. Latents are matched with features by scipy, or under a trace by optax, whose program is slow beyond some hundreds.
    jit, vmap. Raises ValueError where shapes do not fit.

    >>> import jax, jaxdict as jd
    >>> planted = jd.synthetic.independent(jax.random.key(0), 50, 3)
    >>> truth = bench_metrics(planted.dictionary, planted, latents=planted.codes)
    >>> [round(float(value), 3) for value in (truth.mcc, truth.f1_score, truth.explained_variance, truth.shrinkage)]
    [1.0, 1.0, 1.0, 1.0]
    """
    sums = bench_sums(found, planted, latents=latents)
    return bench_metrics_from_sums(found, planted.dictionary, sums)


def bench_sums(found, planted: Planted, *, latents=None) -> BenchSums:
    """The sums of one batch for `bench_metrics_from_sums`; arguments as for `bench_metrics`.

    >>> import jax, jaxdict as jd
    >>> first, second = (jd.synthetic.independent(jax.random.key(0), n, 3) for n in (20, 30))
    >>> sums = [bench_sums(batch.dictionary, batch, latents=batch.codes) for batch in (first, second)]
    >>> int(jax.tree.map(jnp.add, *sums).rows)
    50
    """
    truth, codes, X = _truth(planted)
    rows, latents, X_hat = _read(found, latents, X)
    return _sums(unit_rows(rows), latents, X_hat, truth, codes, X)


def bench_metrics_from_sums(found, truth: Dictionary, sums: BenchSums) -> BenchMetrics:
    """The metrics of an SAE or a dictionary from sums over any number of batches; the true dictionary beside them.

    >>> import jax, jaxdict as jd
    >>> planted = jd.synthetic.independent(jax.random.key(0), 50, 3)
    >>> sums = bench_sums(planted.dictionary, planted, latents=planted.codes)
    >>> bool(bench_metrics_from_sums(planted.dictionary, planted.dictionary, sums).uniqueness == 1)
    True
    """
    return metrics_of_directions(*(unit_rows(part) for part in _directions(found, truth)), sums)[0]


def bench_absorption(found, planted: Planted, *, latents=None) -> EdgeAbsorption:
    """How much rarer a parent's latent is where the child is on, along every edge of a planted hierarchy:

        P(latent on | parent on, child off) - P(latent on | parent on, child on)

    The latent is the one whose decoder row is nearest to the parent's atom, by |cosine|; parent and child are the true features.
    Near 1 the child's latents have absorbed the parent. Standard errors as in `conditions.absorption`; arguments as for `bench_metrics`.

    >>> import jax, jaxdict as jd
    >>> planted = jd.synthetic.dog_labrador(jax.random.key(0), 200)
    >>> alone = planted.codes.at[:, 0].multiply(planted.codes[:, 1] == 0)  # "dog" is silent where "labrador" is on
    >>> absorbed = bench_absorption(planted.dictionary, planted, latents=alone)
    >>> float(absorbed.found.gap[1]), float(bench_absorption(planted.dictionary, planted, latents=planted.codes).found.gap[1])
    (1.0, 0.0)
    """
    truth, codes, X = _truth(planted)
    rows, latents, _ = _read(found, latents, X)
    return _edges(unit_rows(rows), latents, unit_rows(truth.atoms), codes, jnp.asarray(planted.parents))


def metrics_of_directions(rows, features, sums: BenchSums) -> tuple[BenchMetrics, tuple[Array, Array]]:
    """The metrics from decoder rows and features of length one, and the matching behind them: latents, and the feature of each.

    >>> import jax, jaxdict as jd
    >>> planted = jd.synthetic.independent(jax.random.key(0), 50, 3)
    >>> sums, atoms = bench_sums(planted.dictionary, planted, latents=planted.codes), planted.dictionary.atoms
    >>> [part.tolist() for part in metrics_of_directions(atoms[::-1], atoms, sums)[1]]
    [[0, 1, 2], [2, 1, 0]]
    """
    matched = _matched(rows, features)
    return _metrics(_cosines(rows, features), matched, sums), matched


def _truth(planted: Planted):
    if not isinstance(planted, Planted):
        raise ValueError(f"planted is a {type(planted).__name__}; give what a generator of jaxdict.synthetic returns")
    _, truth, codes, X = check_point(Problem(lam=1.0), planted.dictionary, planted.codes, planted.X)
    return truth, dense_codes(codes, truth.atoms.shape[0]), X


def _read(found: Any, latents, X: Float[Array, "samples d"]):
    """Decoder rows, latents and reconstructions of the data."""
    if isinstance(found, Dictionary):
        if latents is None:
            raise ValueError("found is a Dictionary, which has no encoder; give its codes of these rows, latents=...")
        _, found, latents, X = check_point(Problem(lam=1.0), found, latents, X)
        return found.atoms, dense_codes(latents, found.atoms.shape[0]), _difference(X, residual(found, latents, X))
    if latents is not None:
        raise ValueError("latents belong to a Dictionary; an SAE has its own encoder: leave them out")
    return _rows(found, X), found.encode(X), found(X)


_difference = on_any_mesh(jnp.subtract)


def _rows(found: Any, X: Float[Array, "samples d"]):
    if not hasattr(found, "encode"):
        raise ValueError(f"found is a {type(found).__name__}; give an SAE, or a Dictionary with its latents")
    rows = jnp.asarray(found.W_dec if hasattr(found, "W_dec") else found.atoms)
    if rows.shape[-1] != X.shape[1]:
        raise ValueError(
            f"the SAE's decoder has rows of {rows.shape[-1]} numbers but the data {X.shape[1]} features; match them"
        )
    return rows


def _directions(found: Any, truth: Dictionary):
    """Decoder rows and true atoms, in one dtype."""
    truth = truth.alone()
    return (found.like(truth.atoms).atoms if isinstance(found, Dictionary) else _rows(found, truth.atoms)), truth.atoms


@on_any_mesh
@jax.jit
def _cosines(rows, features):
    return jnp.abs(matmul(rows, features.T))


@on_any_mesh
@jax.jit
def nearest_features(rows, features) -> Int[Array, " latents"]:
    """The feature of largest |cosine| to each latent, both of length one."""
    return jnp.argmax(_cosines(rows, features), axis=1)


def _matched(rows, features) -> tuple[Int[Array, " pairs"], Int[Array, " pairs"]]:
    """Latents and features of the one-to-one matching of largest sum of |cosines|."""
    if is_concrete(rows) and is_concrete(features):
        with jax.ensure_compile_time_eval():
            cosines = np.abs(np.asarray(rows) @ np.asarray(features).T)
        latent, feature = linear_sum_assignment(cosines, maximize=True)
        return jnp.asarray(latent), jnp.asarray(feature)
    return _matched_in_program(jax.lax.stop_gradient(rows), jax.lax.stop_gradient(features))


@on_any_mesh
@jax.jit
def _matched_in_program(rows, features):
    n, m = rows.shape[0], features.shape[0]
    size = max(n, m)
    cosines = jnp.pad(_cosines(rows, features), ((0, size - n), (0, size - m)))
    if n <= m:
        return jnp.arange(n), assignment(-cosines)[:n]
    return assignment(-cosines.T)[:m], jnp.arange(m)


@on_any_mesh
@jax.jit
def _sums(rows, latents, X_hat, truth: Dictionary, codes, X: Float[Array, "samples d"]) -> BenchSums:
    nearest = nearest_features(rows, unit_rows(truth.atoms))
    on, true_on = latents != 0, codes > 0
    size, centred = safe_norm(X), X - offset_of(truth)
    counted = size > LEAST_NORM
    return BenchSums(
        rows=jnp.asarray(X.shape[0]),
        feature_on=jnp.sum(true_on, axis=0),
        latent_on=jnp.sum(on, axis=0),
        both_on=jnp.sum(on & true_on[:, nearest], axis=0),
        ratios=pairwise_sum(jnp.where(counted, safe_norm(X_hat) / jnp.where(counted, size, 1), 0)),
        ratio_rows=jnp.sum(counted),
        errors=pairwise_sum(jnp.sum((X - X_hat) ** 2, axis=1)),
        squares=pairwise_sum(jnp.sum(centred**2, axis=1)),
        total=pairwise_sum(centred),
    )


@on_any_mesh
@jax.jit
def _metrics(cosines, matched, sums: BenchSums) -> BenchMetrics:
    dtype, n = cosines.dtype, cosines.shape[0]
    nearest = jnp.argmax(cosines, axis=1)
    rows, on, both, true_on = (
        count.astype(dtype) for count in (sums.rows, sums.latent_on, sums.both_on, sums.feature_on[nearest])
    )
    precision, recall = safe_divide(both, on), safe_divide(both, true_on)
    return BenchMetrics(
        true_l0=jnp.sum(sums.feature_on.astype(dtype) / rows),
        sae_l0=jnp.sum(on / rows),
        dead_latents=jnp.sum(sums.latent_on == 0),
        shrinkage=safe_divide(sums.ratios, sums.ratio_rows.astype(dtype)),
        explained_variance=_explained(sums, rows),
        mcc=jnp.mean(cosines[matched]),
        uniqueness=jnp.sum(jnp.zeros(cosines.shape[1], dtype).at[nearest].set(1)) / n,
        precision=jnp.mean(precision),
        recall=jnp.mean(recall),
        f1_score=jnp.mean(safe_divide(2 * precision * recall, precision + recall)),
        accuracy=jnp.mean((rows - on - true_on + 2 * both) / rows),
    )


def _explained(sums: BenchSums, rows):
    """`1 - E||x - xhat||^2 / V`, V the variance about the mean; without any, 1 where nothing is left, else 0."""
    variance = sums.squares / rows - jnp.sum((sums.total / rows) ** 2)
    varies = variance >= LEAST_VARIANCE
    share = 1 - sums.errors / rows / jnp.where(varies, variance, 1)
    return jnp.where(varies, share, jnp.where(sums.errors < LEAST_VARIANCE, 1.0, 0.0).astype(share.dtype))


@on_any_mesh
@jax.jit
def _edges(rows, latents, features, codes, parents) -> EdgeAbsorption:
    cosines = _cosines(rows, features)
    latent, dtype = jnp.where(parents >= 0, jnp.argmax(cosines, axis=0)[parents], -1), codes.dtype
    there = (codes[:, parents] > 0) & (parents >= 0)
    child, on = codes > 0, latents[:, latent] != 0
    kinds = (there & ~child, there & child)
    totals = [jnp.sum(rows, axis=0).astype(dtype) for rows in kinds]
    hits = [jnp.sum(rows & on, axis=0).astype(dtype) for rows in kinds]
    near = jnp.where(parents >= 0, jnp.max(cosines, axis=0)[parents], jnp.nan)
    return EdgeAbsorption(parents, latent, near, absorption_of_counts(hits, totals, totals))
