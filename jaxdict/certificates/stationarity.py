"""First-order optimality of a point, from the point alone: T1 of theory.md, by formula and by autodiff."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdict.geometry import ball_tangent, orthant_tangent, soft_threshold, sphere_tolerance
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import pairwise_sum, safe_divide, safe_norm, unit_rows
from jaxdict.objectives import Moments, moments_of, objective_of, penalty_rates, residual_of
from jaxdict.points import array_like, check_point, codes_like
from jaxdict.problem import Codes, Dictionary, Problem, dense_codes, metric_of, offset_of, sample_weights
from jaxdict.units import units_of


class Stationarity(NamedTuple):
    """Scale-free distances from first-order optimality (T1): zero where it holds, one where a defect equals the penalty's pull."""

    codes: Float[Array, ""]
    atoms: Float[Array, ""]
    offset: Float[Array, ""]
    worst: Float[Array, ""]
    by_atom: Float[Array, " atoms"]  # NaN for dead atoms


class Direction(NamedTuple):
    """A change of the point: atoms (K, d), codes (N, K), offset (d,)."""

    atoms: Float[Array, "atoms d"]
    codes: Float[Array, "samples atoms"]
    offset: Float[Array, " d"]


def stationarity(problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Stationarity:
    """T1 block by block, each scale-free, recomputed from the point.

    - codes: `max |1 - s_nk|` on the support, `max (s_nk - 1)_+` off it (infinite where a code is negative and signs are not free);
    - atoms, live k, `v_k = E[z_k m r] / (lam zbar_k)`: the norm of v_k's part tangent to the sphere joined by `min(<u_k, v_k>, 0)`;
      `||v_k||` for an atom inside the ball, and `||d_k|| - 1` is joined where an atom lies outside; penalised gauge `||v_k - u_k||`;
    - offset, where free: `||E[m r]|| / lam`.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> problem, point = jd.Problem(lam=0.5, offset=False), jd.Dictionary(jnp.array([[1.0, 0.0]]))
    >>> float(stationarity(problem, point, jnp.array([[1.5]]), jnp.array([[2.0, 0.0]])).worst)
    0.0
    """
    return _stationarity(*check_point(problem, dictionary, codes, X))


def _in_units(problem, dictionary, codes, X: Float[Array, "samples d"]) -> Stationarity:
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    dictionary, codes = units.scaled_dictionary(dictionary), units.scaled_codes(codes)
    return from_moments(problem, dictionary, moments_of(problem, dictionary, codes, X))


_stationarity = on_any_mesh(jax.jit(_in_units))


def from_moments(problem: Problem, dictionary: Dictionary, sums: Moments) -> Stationarity:
    """T1's measures from the sums of `jaxdict.objectives.moments` (which may have been streamed)."""
    by_atom = atom_defects(problem, dictionary, sums)
    atoms = jnp.max(jnp.where(sums.mean_codes > 0, by_atom, 0), initial=0)
    # A NaN code makes its own mean NaN, which no comparison notices: say it here.
    atoms = jnp.where(jnp.all(jnp.isfinite(sums.mean_codes)), atoms, jnp.nan)
    lam = jnp.asarray(problem.lam, sums.cross.dtype)
    offset = safe_norm(sums.mean_residual) / lam if problem.offset else jnp.zeros_like(atoms)
    worst = jnp.maximum(jnp.maximum(sums.codes_defect, atoms), offset)  # type: ignore
    return Stationarity(sums.codes_defect, atoms, offset, worst, by_atom)  # type: ignore


def atom_defects(problem: Problem, dictionary: Dictionary, sums: Moments) -> Float[Array, " atoms"]:
    """T1's atoms line for each atom; NaN where the atom is dead (`zbar_k = 0`)."""
    live = sums.mean_codes > 0
    atoms = jnp.asarray(dictionary.atoms, sums.cross.dtype)
    norms, units = safe_norm(atoms), unit_rows(atoms)
    v = safe_divide(sums.cross, (jnp.asarray(problem.lam, atoms.dtype) * sums.mean_codes)[:, None])
    along = jnp.sum(units * v, axis=1)
    if problem.gauge == "penalised":
        defects = safe_norm(v - units)
    else:
        tangent = safe_norm(v - along[:, None] * units)
        on_sphere = jnp.hypot(tangent, jnp.minimum(along, 0))
        slack = sphere_tolerance(atoms.dtype)
        defects = jnp.where(norms < 1 - slack, safe_norm(v), on_sphere)
        defects = jnp.where(norms > 1 + slack, jnp.hypot(defects, norms - 1), defects)
    return jnp.where(live, defects, jnp.nan)


def steepest_feasible_direction(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]
) -> Direction:
    """The projection of -grad F on the tangent cone (T1): the steepest feasible descent direction, zero iff the point is stationary.

    Gradients by `jax.grad`; codes at zero may only grow, atoms on the sphere may not leave the ball, the offset is free or fixed.
    In the signed variant a zero code moves along its least subgradient. The codes' part is dense (samples, atoms): any zero
    code may want to grow. F's slope along it is minus its squared norm.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> problem, X = jd.Problem(lam=0.5, offset=False), jnp.array([[2.0, 0.0]])
    >>> d = jd.steepest_feasible_direction(problem, jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[0.0]]), X)
    >>> d.codes.tolist()
    [[1.5]]
    """
    return _steepest(*check_point(problem, dictionary, codes, X))


def steepest_of(problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]) -> Direction:
    """`steepest_feasible_direction` at arrays that fit."""
    atoms, offset = dictionary.atoms, offset_of(dictionary)
    Z = dense_codes(codes, atoms.shape[0])
    if problem.signed:
        rates = penalty_rates(problem, dictionary) * (sample_weights(problem, X) / X.shape[0])[:, None]
        slopes = jax.grad(_data_term, argnums=(1, 2, 3))(problem, atoms, Z, offset, X)
        down_codes = jnp.where(Z != 0, -slopes[1] - rates * jnp.sign(Z), -soft_threshold(slopes[1], rates))
        norm_pull = jax.grad(lambda D: objective_of(problem, Dictionary(D, offset), Z, X))(atoms)
        down_atoms, down_offset = -norm_pull, -slopes[2]
    else:
        value = lambda D, Z, b: objective_of(problem, Dictionary(D, b), Z, X)  # noqa: E731
        slopes = jax.grad(value, argnums=(0, 1, 2))(atoms, Z, offset)
        down_atoms, down_codes, down_offset = -slopes[0], orthant_tangent(Z, -slopes[1]), -slopes[2]
    if problem.gauge == "constrained":
        down_atoms = jax.vmap(ball_tangent)(atoms, down_atoms)
    return Direction(down_atoms, down_codes, down_offset if problem.offset else jnp.zeros_like(offset))


_steepest = on_any_mesh(jax.jit(steepest_of), lambda rows: Direction(P(), P(rows), P()))  # type: ignore


def directional_derivative(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], direction: Direction
) -> Float[Array, ""]:
    """F's one-sided derivative along a direction at a point, by `jax.jvp`.

    `lim_{t -> 0+} (F(point + t direction) - F(point)) / t`. Signed codes are split in their two signs, `z = z+ - z-`, where F is
    smooth, so that a zero code is differentiated on the side that it moves to.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> problem, X = jd.Problem(lam=0.5, offset=False), jnp.array([[2.0, 0.0]])
    >>> point = jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[0.0]])
    >>> d = jd.steepest_feasible_direction(problem, *point, X)
    >>> float(jd.directional_derivative(problem, *point, X, d))
    -2.25
    """
    point = check_point(problem, dictionary, codes, X)
    return _slope(*point, direction_like(direction, point[1], point[3]))


def direction_like(direction: Direction, dictionary: Dictionary, X: Float[Array, "samples d"]) -> Direction:
    """A direction's arrays in the data's dtype, or a ValueError where they do not fit the point."""
    n_atoms = dictionary.atoms.shape[0]
    codes = dense_codes(codes_like(direction.codes, X.shape[0], n_atoms, X.dtype), n_atoms)
    atoms = array_like(direction.atoms, "direction.atoms", dictionary.atoms, "the point's atoms")
    row = jax.ShapeDtypeStruct(X.shape[1:], X.dtype)
    return Direction(atoms, codes, array_like(direction.offset, "direction.offset", row, "the point's offset"))


def slope_along(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], direction: Direction
) -> Float[Array, ""]:
    """`directional_derivative` of arrays that fit."""
    atoms, offset = dictionary.atoms, offset_of(dictionary)
    Z, dZ, tangents = dense_codes(codes, atoms.shape[0]), direction.codes, (direction.atoms, direction.offset)
    if not problem.signed:
        value = lambda D, b, Z: objective_of(problem, Dictionary(D, b), Z, X)  # noqa: E731
        return jax.jvp(value, (atoms, offset, Z), (*tangents, dZ))[1]

    def split_value(D, b, plus, minus):
        penalties = jnp.sum((plus + minus) * penalty_rates(problem, Dictionary(D, b)), axis=1)
        mean_penalty = pairwise_sum(sample_weights(problem, X) * penalties) / X.shape[0]
        return _data_term(problem, D, plus - minus, b, X) + mean_penalty

    up = jnp.where(Z > 0, dZ, jnp.where(Z < 0, 0, jnp.maximum(dZ, 0)))
    down = jnp.where(Z < 0, -dZ, jnp.where(Z > 0, 0, jnp.maximum(-dZ, 0)))
    return jax.jvp(split_value, (atoms, offset, jnp.maximum(Z, 0), jnp.maximum(-Z, 0)), (*tangents, up, down))[1]


_slope = on_any_mesh(jax.jit(slope_along))


def _data_term(problem, atoms, Z, offset, X: Float[Array, "samples d"]):
    r = residual_of(Dictionary(atoms, offset), Z, X)
    return pairwise_sum(sample_weights(problem, X) * 0.5 * jnp.sum(metric_of(problem, r) * r * r, axis=1)) / X.shape[0]
