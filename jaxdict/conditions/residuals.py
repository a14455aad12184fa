"""Features and residuals: what a feature may leave behind (T9), and the feature that mops it up (C4)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.arrays import as_jax, real_array
from jaxdict.certificates.stationarity import Direction
from jaxdict.conditions.barycentres import multipliers, unit_moments_of
from jaxdict.conditions.coactivations import mean_weights, values_of
from jaxdict.geometry import sphere_tangent
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_divide, safe_norm, unit_rows
from jaxdict.objectives import Moments, residual_of
from jaxdict.points import check_activations_of, check_feature, check_point
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, canonical, metric_of
from jaxdict.units import units_of


class ResidualConditions(NamedTuple):
    """T9 for every feature; NaN for dead ones."""

    norm: Float[Array, " atoms"]  # || (I - u_k u_k^T) E[z_k m r] || / (lam zbar_k), zero at stationary points
    direction: Float[Array, "atoms d"]  # the unit u, u . d_k = 0, that attains it; zero where the norm is zero
    along: Float[Array, " atoms"]  # <u_k, E[z_k m r]> / (lam zbar_k), one wherever the feature's codes are optimal


class MopUp(NamedTuple):
    """C4 for one feature and direction: what the residual along u still says about the feature."""

    covariance: Float[Array, ""]  # Cov(z_k, f) = fbar (E_f[z_k] - zbar_k)
    moment: Float[Array, ""]  # E[z_k <u, r>_m]
    f_mean: Float[Array, ""]  # fbar
    f_mean_code: Float[Array, ""]  # E_f[z_k], the f-weighted mean of the feature
    mean_code: Float[Array, ""]  # zbar_k
    sign: Float[Array, ""]  # move d_k along sign * u
    rate: Float[Array, ""]  # at which F then falls
    u: Float[Array, " d"]


def residual(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]
) -> ResidualConditions:
    """Whether residuals are uncorrelated with features, off their own direction (T9); holds for signed codes too.

    `norm_k = ||(I - u_k u_k^T) E[z_k m r]|| / (lam zbar_k)`, unit atoms, `zbar_k = E|z_k|`: shape (atoms,),
    dimensionless. Moving atom k along `direction[k]` lowers F at rate `lam zbar_k norm_k`. Codes dense or sparse; pure
    and differentiable.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[1.5]])
    >>> found = residual(jd.Problem(lam=0.5, offset=False), *point, jnp.array([[2.0, 1.0]]))
    >>> found.norm.tolist(), found.direction.tolist(), found.along.tolist()
    ([2.0], [[0.0, 1.0]], [1.0])
    """
    return _residual(*check_point(problem, dictionary, codes, X))


def _in_units(problem, dictionary, codes, X: Float[Array, "samples d"]) -> ResidualConditions:
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    dictionary = units.scaled_dictionary(dictionary)
    sums = unit_moments_of(problem, dictionary, units.scaled_codes(codes), X)
    return residual_from_sums(problem, dictionary, sums)


_residual = on_any_mesh(jax.jit(_in_units))


def residual_from_sums(problem: Problem, dictionary: Dictionary, sums: Moments) -> ResidualConditions:
    """`residual` from sums that may have been streamed over chunks."""
    v = multipliers(problem, sums)
    units = unit_rows(jnp.asarray(dictionary.atoms, v.dtype))
    tangent = jax.vmap(sphere_tangent)(units, v)
    live = jnp.asarray(sums.mean_codes) > 0
    norm = jnp.where(live, safe_norm(tangent), jnp.nan)
    direction = jnp.where(live[:, None], unit_rows(tangent), jnp.nan)
    return ResidualConditions(norm, direction, jnp.sum(units * v, axis=1))


def residual_samples(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], feature, u, top: int = 10
) -> tuple[Int[Array, " top"], Float[Array, " top"]]:
    """The samples that make up a feature's moment along u, largest share first: indices and shares.

    `share_n = w_n z_nk <u, r_n>_m / (N lam zbar_k)`; over all samples the shares sum to `norm_k` at `u = direction[k]`.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[1.0], [1.0]])
    >>> X, u = jnp.array([[1.5, 0.0], [1.5, 1.0]]), jnp.array([0.0, 1.0])
    >>> residual_samples(jd.Problem(lam=0.5, offset=False), *point, X, 0, u, top=1)[0].tolist()
    [1]
    """
    problem, dictionary, codes, X = check_point(problem, dictionary, codes, X)
    feature, u = check_feature(feature, dictionary.atoms.shape[0]), _vector(u, X, "u")
    return _samples(problem, dictionary, codes, X, feature, u, top)


@functools.partial(jax.jit, static_argnums=6)
def _samples_of(problem, dictionary, codes, X: Float[Array, "samples d"], feature, u, top):
    z, along_u, w = _feature_and_residual(problem, dictionary, codes, X, feature, u)
    shares = w * z * along_u / (problem.lam * jnp.sum(w * jnp.abs(z)))
    shares, samples = jax.lax.top_k(shares, min(top, shares.shape[0]))
    return samples, shares


_samples = on_any_mesh(_samples_of)


def mop_up(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], feature, direction
) -> MopUp:
    """Whether feature k predicts the residual along a direction, and would therefore take it over (C4).

    u is `direction` (d,) made orthogonal to d_k and unit. Offset free: `<u, r>_m = f - E f` with the least f >= 0, and
    `Cov(z_k, f) = fbar (E_f[z_k] - zbar_k)` must vanish; moving d_k along `sign u` (the offset keeping the mean)
    descends at rate `|Cov|`. No offset: `f = <u, r>_m` and the rate is `|E[z_k f]|`. `mop_up_direction` is that move.
    Units: those of F.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.array([[1.0, 0.0]]), jnp.zeros(2)), jnp.array([[1.0], [0.0]])
    >>> found = mop_up(jd.Problem(lam=0.5), *point, jnp.array([[1.5, 1.0], [0.0, -1.0]]), 0, jnp.array([0.0, 1.0]))
    >>> float(found.covariance), float(found.f_mean), float(found.f_mean_code)
    (0.5, 1.0, 1.0)
    """
    problem, dictionary, codes, X = check_point(problem, dictionary, codes, X)
    feature, direction = check_feature(feature, dictionary.atoms.shape[0]), _vector(direction, X, "direction")
    return _mop_up(problem, dictionary, codes, X, feature, direction)


@jax.jit
def _mop_up_of(problem, dictionary, codes, X: Float[Array, "samples d"], feature, direction) -> MopUp:
    u = unit_rows(sphere_tangent(unit_rows(dictionary.atoms)[feature], direction))
    z, along_u, w = _feature_and_residual(problem, dictionary, codes, X, feature, u)
    f = along_u - jnp.min(jnp.where(w > 0, along_u, jnp.inf)) if problem.offset else along_u
    f_mean, mean_code, moment = jnp.sum(w * f), jnp.sum(w * z), jnp.sum(w * z * along_u)
    f_mean_code = safe_divide(jnp.sum(w * f * z), f_mean)
    covariance = jnp.sum(w * (z - mean_code) * along_u)
    pull = covariance if problem.offset else moment
    return MopUp(covariance, moment, f_mean, f_mean_code, mean_code, jnp.sign(pull), jnp.abs(pull), u)


_mop_up = on_any_mesh(_mop_up_of)


def mop_up_direction(problem: Problem, dictionary: Dictionary, codes: Codes, feature, found: MopUp) -> Direction:
    """C4's move: `dd_k = sign u`, and with a free offset `db = -sign zbar_k u`; F's slope along it is `-found.rate`.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> problem, atoms = jd.Problem(lam=0.5), jd.Dictionary(jnp.array([[1.0, 0.0]]), jnp.zeros(2))
    >>> point = atoms, jnp.array([[1.0], [0.0]])
    >>> X = jnp.array([[1.5, 1.0], [0.0, -1.0]])
    >>> move = mop_up_direction(problem, *point, 0, mop_up(problem, *point, X, 0, jnp.array([0.0, 1.0])))
    >>> float(jd.directional_derivative(problem, *point, X, move))
    -0.5
    """
    dictionary, codes, _ = check_activations_of(dictionary, codes)
    atoms, feature = dictionary.atoms, check_feature(feature, dictionary.atoms.shape[0])
    step = found.sign * found.u
    still = jnp.zeros((values_of(codes).shape[0], atoms.shape[0]), atoms.dtype)
    d_offset = -found.mean_code * step if problem.offset else jnp.zeros_like(step)
    return Direction(jnp.zeros_like(atoms).at[feature].set(step * safe_norm(atoms[feature])), still, d_offset)


def _feature_and_residual(problem, dictionary, codes, X: Float[Array, "samples d"], feature, u):
    """The feature's codes (unit atoms), the residual along u in the metric, and the weights of the mean."""
    unit, codes = canonical(dictionary, codes)
    if isinstance(codes, SparseCodes):
        z = jnp.sum(jnp.where(codes.indices == feature, codes.values, 0), axis=1)
    else:
        z = codes[:, feature]
    along_u = matmul(metric_of(problem, X) * residual_of(unit, codes, X), u)
    return z.astype(X.dtype), along_u, mean_weights(X, problem.weights)


def _vector(u, X: Float[Array, "samples d"], name) -> Float[Array, " d"]:
    given = real_array(u, name)
    if given.shape != X.shape[1:]:
        raise ValueError(
            f"{name} has shape {given.shape} but the data {X.shape[1]} features; give one number a feature"
        )
    return as_jax(given, X.dtype)
