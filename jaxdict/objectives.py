"""The objective of problem P, its residual, correlations and first moments: pure functions of a point (theory.md section 0)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, safe_norm, sum_in_blocks, unit_rows
from jaxdict.points import check_point, codes_like
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, dense_codes, metric_of, offset_of, sample_weights

# Samples are taken in blocks where codes are sparse, so that a (block, atoms) array has about this many entries.
BLOCK_ENTRIES = 2**22


def residual(dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Float[Array, "samples d"]:
    """What the codes leave over, `R = X - b - Z D`, shape (samples, d), in the data's units.

    >>> import jax.numpy as jnp
    >>> residual(Dictionary(jnp.eye(2)), jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]])).tolist()
    [[2.0, 4.0]]
    """
    X = data_array(X)
    dictionary = dictionary.like(X)
    return _residual(dictionary, codes_like(codes, X.shape[0], dictionary.atoms.shape[0], X.dtype), X)


def residual_of(dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Float[Array, "samples d"]:
    """`residual` of arrays that fit."""
    atoms = dictionary.atoms
    centred = X - offset_of(dictionary)
    if not isinstance(codes, SparseCodes):
        return centred - matmul(codes, atoms)

    def take_slot(left, slot):
        indices, values = slot
        return left - values[:, None] * atoms[indices], None

    return jax.lax.scan(take_slot, centred, (codes.indices.T, codes.values.T))[0]


_residual = on_any_mesh(jax.jit(residual_of), lambda rows: P(rows))


def penalty_rates(problem: Problem, dictionary: Dictionary) -> Float[Array, " atoms"]:
    """What one unit of each code costs: `lam` in the constrained gauge, `lam ||d_k||` in the penalised one."""
    atoms = jnp.asarray(dictionary.atoms)
    lam = jnp.asarray(problem.lam, atoms.dtype)
    return lam * safe_norm(atoms) if problem.gauge == "penalised" else jnp.full(atoms.shape[:1], lam)


def sample_penalties(problem: Problem, dictionary: Dictionary, codes: Codes) -> Float[Array, " samples"]:
    """The penalty of each sample, `lam sum_k ||d_k|| z_nk` (|z_nk| if signed; without ||d_k|| in the constrained gauge)."""
    rates = penalty_rates(problem, dictionary)
    if isinstance(codes, SparseCodes):
        values = jnp.abs(codes.values) if problem.signed else codes.values
        return jnp.sum(values * rates[codes.indices], axis=1)
    return matmul(jnp.abs(codes) if problem.signed else jnp.asarray(codes), rates)


def sample_objectives(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]
) -> Float[Array, " samples"]:
    """Each sample's share of the objective, `1/2 ||r_n||_m^2 + lam sum_k ||d_k|| z_nk`; `objective` is its weighted mean."""
    r = residual_of(dictionary, codes, X)
    return 0.5 * jnp.sum(metric_of(problem, r) * r * r, axis=1) + sample_penalties(problem, dictionary, codes)


def objective(problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Float[Array, ""]:
    """The objective `F(D, Z, b) = E[1/2 ||x - b - z D||_m^2] + lam sum_k ||d_k|| E[z_k]` (theory.md section 0).

    Penalty `lam E[sum_k z_k]` in the constrained gauge, where atoms have norm at most one; `|z_k|` in the signed variant.
    X is (samples, d), codes (samples, atoms) dense or `SparseCodes`. A scalar in squared units of the data; pure, and fit for
    jit, vmap and grad. Rounding: per-sample values are summed by quarters, so float32 holds about 1e-6 relative.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> float(jd.objective(jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(2)), jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 0.0]])))
    1.5
    """
    return _objective(*check_point(problem, dictionary, codes, X))


def objective_of(problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]):
    """`objective` of arrays that fit."""
    return pairwise_sum(sample_weights(problem, X) * sample_objectives(problem, dictionary, codes, X)) / X.shape[0]


_objective = on_any_mesh(jax.jit(objective_of))


def correlations(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]
) -> Float[Array, "samples atoms"]:
    """Normalised correlations `s_nk = <d_k, r_n>_m / lam`, unit atoms in the penalised gauge (theory.md section 0).

    At optimal codes `s <= 1`, and `s = 1` where the code is positive (T1). Dimensionless, shape (samples, atoms).

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.eye(2)), jnp.array([[2.5, 0.0]])
    >>> correlations(jd.Problem(lam=0.5), *point, jnp.array([[3.0, 0.25]])).tolist()
    [[1.0, 0.5]]
    """
    return _correlations(*check_point(problem, dictionary, codes, X))


def normalised(problem: Problem, dictionary: Dictionary, r: Float[Array, "samples d"]):
    """`correlations` of residuals r."""
    atoms = unit_rows(dictionary.atoms) if problem.gauge == "penalised" else dictionary.atoms
    return matmul(metric_of(problem, r) * r, atoms.T) / jnp.asarray(problem.lam, r.dtype)


@jax.jit
def _correlations_of(problem, dictionary, codes, X: Float[Array, "samples d"]):
    return normalised(problem, dictionary, residual_of(dictionary, codes, X))


_correlations = on_any_mesh(_correlations_of, lambda rows: P(rows))


class Moments(NamedTuple):
    """Sums over samples that every first-order condition is made of. E is the weighted mean over samples; None: not computed.

    Those of two chunks of samples combine: `combine(first, second, share)`.
    """

    mean_codes: Float[Array, " atoms"]  # zbar_k = E|z_k|
    mean_squares: Float[Array, " atoms"] | None  # E[z_k^2]
    cross: Float[Array, "atoms d"]  # E[z_k m r]
    mean_residual: Float[Array, " d"]  # E[m r]
    codes_defect: Float[Array, ""] | None = None  # T1, codes block
    objective: Float[Array, ""] | None = None
    gap: Float[Array, ""] | None = None  # T2, weighted mean over samples
    gap_max: Float[Array, ""] | None = None  # T2, largest over samples of positive weight
    residual_max: Float[Array, ""] | None = None  # max_n ||m r_n||


# What is the largest over samples, where the rest are means.
LARGEST = ("codes_defect", "gap_max", "residual_max")


def moments(problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Moments:
    """The moments of a point, in one pass over the samples.

    Sparse codes are taken in blocks, so no (samples, atoms) array is formed for them.
    """
    return _moments(*check_point(problem, dictionary, codes, X))


def combine(first: Moments, second: Moments, share) -> Moments:
    """The moments of two chunks of samples together; `share` is the second's part of the weight, `w_2 / (w_1 + w_2)`.

    Each chunk's are those of the same problem but for its samples' weights.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> of = lambda x: moments(jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(1)), jnp.ones((1, 1)), jnp.array([[x]]))
    >>> both = combine(of(1.0), of(5.0), 1 / 2)
    >>> both.cross.tolist(), float(both.residual_max)  # E[z r] = (0 + 4) / 2
    ([[2.0]], 4.0)
    """
    mixed = jax.tree.map(lambda a, b: a + share * (b - a), first, second)
    tops = {name: getattr(first, name) for name in LARGEST if getattr(first, name) is not None}
    return mixed._replace(**{name: jnp.maximum(top, getattr(second, name)) for name, top in tops.items()})


def moments_of(problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Moments:
    """`moments` of arrays that fit."""
    w = sample_weights(problem, X) / X.shape[0]
    if not isinstance(codes, SparseCodes):
        return _block_moments(problem, dictionary, codes, X, w)
    n_atoms = dictionary.atoms.shape[0]

    def one(block):
        indices, values, rows, w_rows = block
        return _block_moments(problem, dictionary, dense_codes(SparseCodes(indices, values), n_atoms), rows, w_rows)

    return sum_in_blocks(one, (*codes, X, w), max(1, BLOCK_ENTRIES // n_atoms), largest=LARGEST)


_moments = on_any_mesh(jax.jit(moments_of))


def _block_moments(problem, dictionary, Z, X: Float[Array, "samples d"], w) -> Moments:
    r = residual_of(dictionary, Z, X)
    mr = metric_of(problem, r) * r
    s = normalised(problem, dictionary, r)
    counted = w > 0
    gaps = sample_gaps(problem, dictionary, Z, r, s)
    values = 0.5 * jnp.sum(mr * r, axis=1) + sample_penalties(problem, dictionary, Z)
    return Moments(
        mean_codes=matmul(w, jnp.abs(Z)),
        mean_squares=matmul(w, Z * Z),
        cross=matmul((w[:, None] * Z).T, mr),
        mean_residual=matmul(w, mr),
        codes_defect=jnp.max(jnp.where(counted[:, None], codes_violation(problem, Z, s), 0), initial=0),
        objective=pairwise_sum(w * values),
        gap=pairwise_sum(w * gaps),
        gap_max=jnp.max(jnp.where(counted, gaps, 0), initial=0),
        residual_max=jnp.max(jnp.where(counted, safe_norm(mr), 0), initial=0),
    )


def codes_violation(problem: Problem, Z, s) -> Float[Array, "samples atoms"]:
    """How far each code is from T1: `|1 - s|` on the support, `(s - 1)_+` off it; infinite for a negative code where signs are not free."""
    if problem.signed:
        return jnp.where(Z != 0, jnp.abs(jnp.sign(Z) - s), jnp.maximum(jnp.abs(s) - 1, 0))
    feasible = jnp.where(Z > 0, jnp.abs(1 - s), jnp.maximum(s - 1, 0))
    return jnp.where(Z < 0, jnp.inf, feasible)


def sample_gaps(problem: Problem, dictionary: Dictionary, Z, r, s) -> Float[Array, " samples"]:
    """Duality gap of each sample's codes (T2), as a sum of non-negative terms so that nothing cancels.

    With `c = 1 / max(1, max_k s_nk)` and theta = c r, the gap equals `1/2 (1 - c)^2 ||r||_m^2 + sum_k rate_k z_k (1 - c s_k)`
    (expand T2 with `x - b = r + z D`); signed codes have `|z_k| - c z_k s_k` in the last bracket.
    """
    top = jnp.max(jnp.abs(s) if problem.signed else s, axis=1, initial=0)
    c = 1 / jnp.maximum(1, top)
    size = jnp.abs(Z) if problem.signed else Z
    slack = matmul(jnp.maximum(size - c[:, None] * Z * s, 0), penalty_rates(problem, dictionary))
    return 0.5 * (1 - c) ** 2 * jnp.sum(metric_of(problem, r) * r * r, axis=1) + slack
