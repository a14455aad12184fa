"""What a violated condition costs (T16): how far F falls along its direction, measured on the true F."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.certificates.stationarity import Direction, direction_like
from jaxdict.conditions.coactivations import column, counted, mean_weights, refuse_negative
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_norm, unit_rows
from jaxdict.objectives import objective_of, residual_of
from jaxdict.points import check_pairs, check_point
from jaxdict.problem import Codes, Dictionary, Problem, canonical, dense_codes, metric_of, offset_of
from jaxdict.units import units_of

# Steps tried along a direction, spread evenly on a log scale, before the best bracket is refined.
SHORTEST, LONGEST, TRIED = 1e-3, 30.0, 60
GOLDEN = 0.6180339887498949
REFINEMENTS = 30


class Cost(NamedTuple):
    """How far F falls along a violated condition's direction; zero where no step tried lowers it."""

    decrease: Float[Array, "..."]  # F(0) - min_t F(t), measured, in F's units
    step: Float[Array, "..."]  # the t that attains it, a constant to differentiation
    rate: Float[Array, "..."]  # minus F's slope at t = 0, one-sided
    guaranteed: Float[Array, "..."]  # a part of the decrease that needs no search


def pair_costs(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], i, j, constant=0.0
) -> Cost:
    """What it costs that feature j leaves feature i its own, for many pairs (T16 along the row of T6 and C1).

    The path absorbs t of atom i into atom j, unit atoms: `d_j(t) = (d_j + t d_i) / nu`, `nu = ||d_j + t d_i||`,
    `z_j(t) = nu z_j`, `z_i(t) = (z_i - t z_j + t c)_+`, `b(t) = b - t c d_i`. Where no code is clipped the reconstruction
    stays, and with `e = (t z_j - t c - z_i)_+`

        F(t) - F(0) = lam (t c + zbar_j (nu - 1 - t)) + E[ e (lam - <d_i, r>_m) + e^2 ||d_i||_m^2 / 2 ].

    `rate` is minus the slope at 0: `lam (zbar_j (1 - G_ij) - c)` less what the samples with z_i = 0, z_j > c take off.
    `guaranteed` follows T16: `rate tau - L tau^2 / 2`, tau the shorter of `rate / L` and the first step at which a code
    is clipped, L a bound of `lam zbar_j nu''`.

    `i`, `j` are integer arrays of one shape, `constant` (c >= 0) broadcasts against them and needs a free offset. Codes
    (samples, atoms) dense or sparse, not signed; X (samples, d). Fields have the shape of `i`; F's units. Under jit and
    vmap; differentiable almost everywhere. Raises ValueError for concrete negative codes.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> codes = jnp.array([[1.0, 1.0], [1.0, 0.0]])  # feature 1 fires only with feature 0: splitting pays
    >>> cost = pair_costs(jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(2)), codes, codes + 0.0, 0, 1)
    >>> round(float(cost.decrease), 4), round(float(cost.step), 2)  # at t = 1: lam / 2 (2 - sqrt(2))
    (0.1464, 1.0)
    """
    refuse_negative(codes, "the cost of a pair")
    problem, dictionary, codes, X = check_point(problem, dictionary, codes, X)
    i, j = check_pairs(i, j, dictionary.atoms.shape[0])
    return _pair_costs(problem, dictionary, codes, X, i, j, jnp.broadcast_to(jnp.asarray(constant, X.dtype), i.shape))


@jax.jit
def _pair_costs_of(problem, dictionary, codes, X: Float[Array, "samples d"], i, j, constant) -> Cost:
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    codes, constant = units.scaled_codes(codes), constant / units.data
    unit, codes = canonical(units.scaled_dictionary(dictionary), counted(codes, problem.weights))
    flat = (i.reshape(-1), j.reshape(-1), constant.reshape(-1))
    found = _flat_costs(problem, unit, codes, X, *flat)
    values = [units.of_objective(value) for value in (found.decrease, found.rate, found.guaranteed)]
    return jax.tree.map(lambda leaf: leaf.reshape(i.shape), Cost(values[0], found.step, *values[1:]))


_pair_costs = on_any_mesh(_pair_costs_of)


def _flat_costs(problem, unit, codes, X: Float[Array, "samples d"], i, j, constant):
    m = metric_of(problem, X)
    mr = m * residual_of(unit, codes, X)
    w = mean_weights(X, problem.weights)

    def one(args):
        a, b, c = args
        columns = (column(codes, k).astype(X.dtype) for k in (a, b))
        return _one_pair(problem.lam, unit.atoms[a], unit.atoms[b], m, w, *columns, mr, c)

    return jax.lax.map(one, (i, j, constant))


def _one_pair(lam, d_i, d_j, m, w, z_i, z_j, mr, c):
    """`pair_costs` for one pair, from the two features' columns."""
    slack, size = lam - matmul(mr, d_i), jnp.sum(m * d_i * d_i)
    cosine, mean = matmul(d_i, d_j), matmul(w, z_j)

    def change(t):
        nu = jnp.sqrt(jnp.maximum(1 + 2 * t * cosine + t * t, 0))
        e = jnp.maximum(t * (z_j - c) - z_i, 0)
        return lam * (t * c + mean * (nu - 1 - t)) + matmul(w, e * (slack + 0.5 * size * e))

    grows = jnp.where(z_i <= 0, jnp.maximum(z_j - c, 0), 0)
    rate = lam * (mean * (1 - cosine) - c) - matmul(w, grows * slack)
    best, step = lowest(change, mean)
    # nu'' = (1 - G^2) / nu^3, and nu >= sqrt(1 - G^2) where G < 0, else nu >= 1.
    sine = jnp.maximum(1 - cosine * cosine, jnp.finfo(z_j.dtype).eps)
    bend = lam * mean * jnp.where(cosine < 0, 1 / jnp.sqrt(sine), sine)
    clipped = jnp.min(jnp.where((z_j > c) & (w > 0), z_i / jnp.where(z_j > c, z_j - c, 1), jnp.inf))
    tau = jnp.minimum(jnp.maximum(rate, 0) / jnp.where(bend > 0, bend, 1), clipped)
    return Cost(0 - best, step, rate, jnp.maximum(rate * tau - 0.5 * bend * tau * tau, 0))


def direction_cost(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], direction: Direction
) -> Cost:
    """How far F falls along any direction, measured (T16): codes clipped at zero, atoms back on the sphere with their
    codes rescaled; the offset moves along.

    Directions of several conditions may be added first: decreases do not add, so the combined step is measured. Dense
    work, (samples, atoms) a step. `guaranteed` is zero (no bound of the curvature is known here). Works under jit, vmap.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Problem(lam=0.5, offset=False), jd.Dictionary(jnp.eye(2)), jnp.zeros((1, 2)), jnp.array([[2.0, 0.0]])
    >>> down = jd.steepest_feasible_direction(*point)
    >>> round(float(direction_cost(*point, down).decrease), 4)  # (2 - 1/2)^2 / 2
    1.125
    """
    point = check_point(problem, dictionary, codes, X)
    return _direction_cost(*point, direction_like(direction, point[1], point[3]))


@jax.jit
def _direction_cost_of(problem, dictionary, codes, X: Float[Array, "samples d"], direction) -> Cost:
    unit, codes = canonical(dictionary, codes)
    norms = safe_norm(dictionary.atoms)
    start = unit.atoms, offset_of(unit), dense_codes(codes, unit.atoms.shape[0])
    moves = direction.atoms / jnp.where(norms > 0, norms, 1)[:, None], direction.offset, direction.codes * norms
    rate = -jax.jvp(functools.partial(_value, problem, X), start, moves)[1]

    def change(t):
        atoms, offset, codes = (at + t * move for at, move in zip(start, moves, strict=True))
        codes = codes if problem.signed else jnp.maximum(codes, 0)
        return _value(problem, X, unit_rows(atoms), offset, codes * safe_norm(atoms)) - _value(problem, X, *start)

    best, step = lowest(change, jnp.ones_like(X[0, 0]))
    return Cost(0 - best, step, rate, jnp.zeros_like(rate))


_direction_cost = on_any_mesh(_direction_cost_of)


def _value(problem, X: Float[Array, "samples d"], atoms, offset, codes):
    return objective_of(problem, Dictionary(atoms, offset), codes, X)


def lowest(change, like):
    """The lowest value found of a function of a step t >= 0 with `change(0) = 0`, and its step: a grid, then golden section.

    >>> import jax.numpy as jnp
    >>> best, step = lowest(lambda t: (t - 0.3) ** 2 - 0.09, jnp.ones(()))
    >>> round(float(best), 4), round(float(step), 3)
    (-0.09, 0.3)
    """
    steps = jnp.asarray(jnp.geomspace(SHORTEST, LONGEST, TRIED), like.dtype)
    values = jax.lax.map(change, steps)
    at = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
    low = jnp.where(at > 0, steps[jnp.maximum(at - 1, 0)], 0)
    high = steps[jnp.minimum(at + 1, TRIED - 1)]

    def shrink(_, bracket):
        low, high = bracket
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        falls = change(left) < change(right)
        return jnp.where(falls, low, left), jnp.where(falls, right, high)

    low, high = jax.lax.fori_loop(0, REFINEMENTS, shrink, (low, high))
    middle = 0.5 * (low + high)
    refined = change(middle)
    better = refined < values[at]
    step = jax.lax.stop_gradient(jnp.where(better, middle, steps[at]))
    best = jnp.where(better, refined, values[at])
    finite = jnp.all(jnp.isfinite(values))
    fell = best < 0
    # No step tried lowers F: the decrease is zero, at step zero. NaN stays NaN.
    best = jnp.where(fell, best, 0.0)
    return jnp.where(finite, best, jnp.nan), jnp.where(fell, step, 0.0)


def turning_gains(
    atoms: Float[Array, "atoms d"], cross: Float[Array, "atoms d"], squares: Float[Array, " atoms"]
) -> Float[Array, " atoms"]:
    """How far F falls when one atom alone turns to its best place on the sphere, codes fixed (metric of ones).

    `||g_k|| - <g_k, u_k>` with `g_k = E[z_k r] + E[z_k^2] u_k`: F is linear in d_k on the sphere. `cross` is `E[z_k r]`
    (atoms, d), `squares` `E[z_k^2]` (atoms,), both for unit atoms. Zero iff T1's line for the atom holds; F's units.

    >>> import jax.numpy as jnp
    >>> turning_gains(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), jnp.array([1.0])).tolist()
    [0.41421353816986084]
    """
    units = unit_rows(jnp.asarray(atoms))
    g = cross + squares[:, None] * units
    norms, along = safe_norm(g), jnp.sum(g * units, axis=1)
    across = safe_norm(g - along[:, None] * units)
    # ||g|| - <g, u> without cancellation where the turn is small.
    below = jnp.where(norms + along > 0, norms + along, 1)
    return jnp.where(along > 0, across * across / below, norms - along)
