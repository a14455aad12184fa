"""The barycentre identity (T7; signed T8): the residual's correlations carry the decoder's cosines."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdict.conditions.coactivations import mean_weights, refuse_negative
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_divide, unit_rows
from jaxdict.objectives import Moments, moments_of, residual_of
from jaxdict.points import check_feature, check_point
from jaxdict.problem import Codes, Dictionary, Problem, canonical, metric_of
from jaxdict.units import units_of


def unit_moments(problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Moments:
    """The moments behind T7 and T9: those of the point with unit atoms, norms folded into the codes.

    Those of chunks of samples combine (`jaxdict.objectives.combine`); `problem.weights` are those of the chunk.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.eye(2)), jnp.array([[1.0, 0.0]])
    >>> unit_moments(jd.Problem(lam=0.5), *point, jnp.array([[1.5, 0.0]])).cross.tolist()
    [[0.5, 0.0], [0.0, 0.0]]
    """
    return _unit_moments(*check_point(problem, dictionary, codes, X))


def unit_moments_of(problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Moments:
    """`unit_moments` of arrays that fit."""
    return moments_of(problem, *canonical(dictionary, codes), X)


_unit_moments = on_any_mesh(jax.jit(unit_moments_of))


def multipliers(problem: Problem, sums: Moments) -> Float[Array, "atoms d"]:
    """`v_k = E[z_k m r] / (lam zbar_k)`, equal to the unit atom u_k at a stationary point (T1); NaN for dead k."""
    cross, mean = jnp.asarray(sums.cross), jnp.asarray(sums.mean_codes)
    lam = jnp.asarray(problem.lam, cross.dtype)
    return safe_divide(cross, (lam * mean.astype(cross.dtype))[:, None], jnp.nan)  # type: ignore


def barycentre(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]
) -> Float[Array, "atoms atoms"]:
    """The barycentre identity's defect, `[i, j] = E[z_j s_i] / zbar_j - G_ij`, zero where stationary (T7, signed T8).

    Unit atoms (norms are folded into the codes), `s_ni = <u_i, r_n>_m / lam`, `zbar_j = E|z_j|`; i any feature, j a
    live one, NaN for dead j. Dimensionless. Since s is linear in r it equals `<u_i, v_j - u_j>`, v_j of `multipliers`:
    atoms^2 d work after one pass over the samples, dense or sparse codes, and differentiable. Signed codes are allowed.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.array([[1.0], [-1.0]])), jnp.array([[1.5, 0.0], [0.0, 0.5]])  # T14's antipodal pair
    >>> abs(barycentre(jd.Problem(lam=0.5, offset=False), *point, jnp.array([[2.0], [-1.0]]))).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    return _barycentre(*check_point(problem, dictionary, codes, X))


def _in_units(problem, dictionary, codes, X: Float[Array, "samples d"]):
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    dictionary = units.scaled_dictionary(dictionary)
    sums = unit_moments_of(problem, dictionary, units.scaled_codes(codes), X)
    return barycentre_from_sums(problem, dictionary, sums)


_barycentre = on_any_mesh(jax.jit(_in_units))


def barycentre_from_sums(problem: Problem, dictionary: Dictionary, sums: Moments) -> Float[Array, "atoms atoms"]:
    """`barycentre` from sums that may have been streamed over chunks.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> from jaxdict.objectives import combine
    >>> problem, atoms = jd.Problem(lam=0.5, offset=False), jd.Dictionary(jnp.array([[1.0]]))
    >>> chunk = lambda x: unit_moments(problem, atoms, jnp.array([[x - 0.5]]), jnp.array([[x]]))
    >>> barycentre_from_sums(problem, atoms, combine(chunk(1.0), chunk(2.0), 1 / 2)).tolist()
    [[0.0]]
    """
    units = unit_rows(jnp.asarray(dictionary.atoms))
    return matmul(units, (multipliers(problem, sums) - units).T)


def barycentre_weights(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], feature
) -> Float[Array, " samples"]:
    """T5's convex combination, written down by the residual: `q_i(n) = w_n (1 - s_ni) / N` (T7). Shape (samples,).

    At a stationary point it is non-negative, carried by the samples with i off, and
    `sum_n q_i(n) z_nj = zbar_j (1 - G_ij)` for live j; with a free offset it sums to one. Codes >= 0: raises ValueError
    for a signed problem.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.array([[1.0], [-1.0]])), jnp.array([[1.5, 0.0], [0.0, 0.5]])
    >>> barycentre_weights(jd.Problem(lam=0.5, offset=False), *point, jnp.array([[2.0], [-1.0]]), 0).tolist()
    [0.0, 1.0]
    """
    if problem.signed:
        raise ValueError(
            "problem is signed; the residual's slack is a convex weight for codes >= 0 only: use `barycentre`"
        )
    refuse_negative(codes, "the barycentre")
    point = check_point(problem, dictionary, codes, X)
    return _weights(*point, check_feature(feature, point[1].atoms.shape[0]))


@jax.jit
def _weights_of(problem, dictionary, codes, X: Float[Array, "samples d"], feature):
    unit, codes = canonical(dictionary, codes)
    mr = metric_of(problem, X) * residual_of(unit, codes, X)
    s = matmul(mr, unit.atoms[feature]) / problem.lam
    return mean_weights(X, problem.weights) * (1 - s)


_weights = on_any_mesh(_weights_of, lambda rows: P(rows))
