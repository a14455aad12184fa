"""What dictionaries of any width could reach: the wide limit and its rays (T11 to T13 of theory.md)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxdict.arrays import data_array
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, safe_norm, unit_rows
from jaxdict.problem import Problem, metric_of, sample_weights
from jaxdict.units import units_of

# Reweighted means before the first Newton step: enough to leave far outliers behind.
REWEIGHTINGS = 12
# Longest line search: bisection from one step to machine precision.
HALVINGS = 60
# Sorted neighbours that a direction is compared with when rays are counted, and the numbers of each that are.
LOOK_BACK, SIGNATURE = 16, 8


class WideLimit(NamedTuple):
    """The optimum over dictionaries of any width (T11) and what it tells (T12, T13)."""

    value: Float[Array, ""]  # F_wide at the offset found: an upper value
    dual_value: Float[Array, ""]  # certified lower bound of F over all widths
    offset: Float[Array, " d"]
    radius: Float[Array, " samples"]  # ||xhat_n||, zero where ||m (x_n - b)|| <= lam
    n_rays: Int[Array, ""]  # atoms that the wide optimum needs
    imbalance: Float[Array, ""]  # ||E[m theta]|| / lam, zero at the best offset
    steps: Int[Array, ""]  # Newton steps taken


def wide_limit(problem: Problem, X: Float[Array, "samples d"], *, max_steps: int = 60) -> WideLimit:
    """The optimum over dictionaries of any width (T11), with a certified lower bound.

        F_wide = min_b E[ min_xhat 1/2 ||x - b - xhat||_m^2 + lam ||xhat|| ]

    The offset is a (multivariate) Huber location of the data, found by reweighted means, then Newton steps by
    conjugate gradients with a line search on the slope. `dual_value` is `E[<x, theta>_m - 1/2 ||theta||_m^2]` at the
    wide residual theta made feasible: its mean `E[m theta]` is subtracted, then all are scaled so that `||m theta_n||
    <= lam`. Samples of weight zero do not count. Signed codes have the same limit; `n_rays` then counts lines through
    b instead of rays.

    X is (samples, d); values in squared units of the data, computed in units of the data's own size: 0 or infinite where
    the dtype cannot hold them. Derivatives: those of `value` and `dual_value` in lam, X, metric and weights are the
    optimum's, by the envelope theorem (`dF_wide/dx_n = w_n m theta_n / N`); the rest are constants to differentiation.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> limit = wide_limit(jd.Problem(lam=1.0, offset=False), jnp.array([[3.0, 0.0], [0.0, 0.5]]))
    >>> float(limit.value), float(limit.dual_value), int(limit.n_rays)  # (3 - 1/2 + 1/8) / 2
    (1.3125, 1.3125, 1)
    """
    X = data_array(X)
    return _wide_limit(problem.like(X), X, max_steps)


def wide_limit_of(problem: Problem, X: Float[Array, "samples d"], max_steps: int = 60) -> WideLimit:
    """`wide_limit` of arrays that fit and are of moderate size."""
    given = problem, X
    problem, X = jax.lax.stop_gradient(given)
    w = sample_weights(problem, X) / X.shape[0]
    center, shift, steps = jnp.zeros_like(X[0]), jnp.zeros_like(X[0]), jnp.zeros_like(X[0, 0], dtype=int)
    if problem.offset:
        center, shift, steps = _huber_location(problem.lam, problem.metric, w, X, max_steps)
    # The data are centred first: what is left of the offset is small, so nothing cancels.
    Y = X - center - shift
    radius, pull = shrink(Y, problem.lam, problem.metric)
    lam, inverse = problem.lam, 1 / metric_of(problem, X)
    value = pairwise_sum(w * (0.5 * lam**2 * jnp.sum(inverse * pull * pull, axis=1) + lam * radius))
    imbalance = matmul(w, pull) if problem.offset else jnp.zeros_like(center)
    theta = pull - imbalance
    largest = jnp.max(jnp.where(w > 0, safe_norm(theta), 0), initial=0)
    theta = lam * theta / jnp.maximum(1, largest)  # this is m theta
    dual = pairwise_sum(w * jnp.sum(theta * (Y - 0.5 * inverse * theta), axis=1))
    slack = 1 + (safe_norm(X) + safe_norm(center)) / jnp.maximum(safe_norm(Y), jnp.finfo(X.dtype).tiny)
    directions = _up_to_sign(pull) if problem.signed else pull
    rays = count_rays(directions, (radius > 0) & (w > 0), slack)
    moves = _nothing_that_moves(*given, center, shift, radius, pull)
    return WideLimit(value + moves, dual + moves, center + shift, radius, rays, safe_norm(imbalance), steps)


def _nothing_that_moves(problem, X: Float[Array, "samples d"], center, shift, radius, pull):
    """Zero, with the derivatives of F_wide: those of the wide problem at the optimal offset and reconstruction, held fixed."""
    w, m = sample_weights(problem, X) / X.shape[0], metric_of(problem, X)
    residual = X - center - shift - radius[:, None] * pull
    value = pairwise_sum(w * (0.5 * jnp.sum(m * residual * residual, axis=1) + problem.lam * radius))
    value = jnp.where(jnp.isfinite(value), value, 0)
    return value - jax.lax.stop_gradient(value)


def _limit_in_units(problem, X: Float[Array, "samples d"], max_steps):
    units = units_of(problem, X)
    limit = wide_limit_of(*units.scaled(problem, X), max_steps)
    value, dual = units.of_objective(limit.value), units.of_objective(limit.dual_value)
    lengths = limit.offset * units.data, limit.radius * units.data
    return WideLimit(value, dual, *lengths, limit.n_rays, limit.imbalance, limit.steps)


_wide_limit = on_any_mesh(
    jax.jit(_limit_in_units, static_argnums=2),
    lambda rows: WideLimit(P(), P(), P(), P(rows), P(), P(), P()),  # type: ignore
)


def shrink(y: Float[Array, "*batch d"], lam, metric: Float[Array, " d"] | None):
    """The minimiser `xhat = t p` of `1/2 ||y - xhat||_m^2 + lam ||xhat||` (T11): its norm t, and p with ||p|| <= 1.

    `p = m y / (m t + lam)`, a unit vector where t > 0; t = 0 iff `||m y|| <= lam`; the residual is `y - xhat = lam p
    / m`. m = 1: `t = (||y|| - lam)_+`. Else t solves `||y / (t + lam/m)|| = 1` by Newton steps on `1/||.||`, which is
    concave and increasing in t: from a lower bound they climb to the root and never pass it. y is (..., d), lam
    scalar or (...).

    >>> import jax.numpy as jnp
    >>> t, p = shrink(jnp.array([3.0, 4.0]), 1.0, None)
    >>> float(t), [round(float(v), 3) for v in p]
    (4.0, [0.6, 0.8])
    """
    lam = jnp.asarray(lam, y.dtype)
    if metric is None:
        norms = safe_norm(y)
        top = jnp.maximum(norms, lam)
        return jnp.maximum(norms - lam, 0), y / jnp.where(top > 0, top, 1)[..., None]
    radius = jax.lax.stop_gradient(_radius(*jax.lax.stop_gradient((y, lam, metric))))
    scale = metric * radius[..., None] + lam[..., None]
    return radius, metric * y / jnp.where(scale > 0, scale, 1)


def _radius(y, lam, metric):
    """The root t of `||y / (t + lam/m)|| = 1`, zero where there is none."""
    edge = lam[..., None] / metric
    outside = safe_norm(metric * y) > lam

    def newton(t):
        spread = jnp.where(outside[..., None], t[..., None] + edge, 1)
        p = safe_norm(y / spread)
        slope = jnp.sum(y * y / spread**3, axis=-1)
        return jnp.where(outside, t + (p - 1) * p * p / jnp.where(slope > 0, slope, 1), 0)

    def climbing(carry):
        before, t, step = carry
        return (step < 60) & jnp.any(t - before > 4 * jnp.finfo(y.dtype).eps * t)

    start = jnp.where(outside, jnp.maximum(safe_norm(y) - jnp.max(edge, axis=-1), 0), 0)
    carry = (start, newton(start), jnp.zeros_like(start.ravel()[0], dtype=int))
    return jax.lax.while_loop(climbing, lambda c: (c[1], newton(c[1]), c[2] + 1), carry)[1]


def _huber_location(lam, metric, w, X: Float[Array, "samples d"], max_steps):
    """The offset minimising the wide problem as (centre, small shift), and the Newton steps taken.

    The gradient in b is `-lam E[p]` and the Hessian `lam E[c - (c p)(c p)^T / <p, c p>]` (last term where t > 0) with
    `c = m / (m t + lam)`; both are used divided by lam.
    """

    def pull_at(Y, b):
        radius, p = shrink(Y - b, lam, metric)
        if metric is None:
            return radius, p, (1 / jnp.maximum(radius + lam, jnp.finfo(X.dtype).tiny))[:, None]
        return radius, p, metric / (metric * radius[:, None] + lam)

    def reweight(_, b):  # b = E[c x] / E[c] lowers a quadratic upper bound of the objective
        weights = w[:, None] * pull_at(X, b)[2]
        total = jnp.sum(weights, axis=0)
        return jnp.where(total > 0, jnp.sum(weights * X, axis=0) / jnp.where(total > 0, total, 1), b)

    center = jax.lax.fori_loop(0, REWEIGHTINGS, reweight, matmul(w, X))
    Y = X - center

    def newton_direction(b, gradient):
        radius, p, c = pull_at(Y, b)
        cp = c * p
        share = jnp.where(radius > 0, w / jnp.maximum(jnp.sum(p * cp, axis=1), jnp.finfo(X.dtype).tiny), 0)
        diagonal = jnp.broadcast_to(matmul(w, c), b.shape)
        # Flat directions (one-dimensional or collinear data) need a floor, which vanishes with the gradient.
        floor = jnp.minimum(1e-3, safe_norm(gradient))

        def hessian(v):
            return (1 + floor) * diagonal * v - matmul(share * matmul(cp, v), cp)

        accuracy = jnp.minimum(0.1, safe_norm(gradient))
        return cg(hessian, gradient, tol=accuracy, maxiter=50, M=lambda v: v / diagonal)[0]  # pyright: ignore[reportArgumentType]

    def gradient_at(b):
        return matmul(w, shrink(Y - b, lam, metric)[1])

    return center, *_descend(gradient_at, newton_direction, jnp.zeros_like(center), max_steps)


def _descend(gradient_at, newton_direction, start, max_steps):
    """Newton steps with a slope search until `||E[p]||` is at its rounding floor, or four failed: best b, steps."""
    floor = 8 * jnp.finfo(start.dtype).eps
    zero = jnp.zeros_like(start[0], dtype=int)
    gradient = gradient_at(start)

    def going(carry):
        _, _, _, size, stalls, step = carry
        return (step < max_steps) & (size > floor) & (stalls < 4)

    def advance(carry):
        b, gradient, best, size, stalls, step = carry
        direction = newton_direction(b, gradient)
        length = _slope_search(lambda t: matmul(gradient_at(b + t * direction), direction), matmul(gradient, direction))
        b = b + length * direction
        gradient = gradient_at(b)
        now = safe_norm(gradient)
        better = now < size
        return (
            b,
            gradient,
            jnp.where(better, b, best),
            jnp.where(better, now, size),
            jnp.where(better, 0, stalls + 1),
            step + 1,
        )

    carry = (start, gradient, start, safe_norm(gradient), zero, zero)
    _, _, best, _, _, steps = jax.lax.while_loop(going, advance, carry)
    return best, steps


def _slope_search(fall_at, fall):
    """A step length at which a convex function's slope has at most half its first size: doubling, then bisection.

    `fall_at(t)` is minus the slope. Slopes, not values, are compared: near the optimum values no longer tell steps
    apart.
    """

    def searching(carry):
        low, high, _, now, step = carry
        return (step < HALVINGS) & (jnp.abs(now) > 0.5 * jnp.abs(fall)) & (high > low)

    def probe(carry):
        low, high, length, now, step = carry
        low, high = jnp.where(now > 0, length, low), jnp.where(now > 0, high, length)
        length = jnp.where(jnp.isinf(high), 2 * length, 0.5 * (low + high))
        return low, high, length, fall_at(length), step + 1

    one = jnp.ones_like(fall)
    carry = (jnp.zeros_like(fall), one * jnp.inf, one, fall_at(one), jnp.zeros_like(fall, dtype=int))
    return jax.lax.while_loop(searching, probe, carry)[2]


def count_rays(directions: Float[Array, "samples d"], counted: Bool[Array, " samples"], slack) -> Int[Array, ""]:
    """How many distinct unit directions there are among the counted rows (T13).

    Two are the same when they are closer than `eps^(3/4) (slack_i + slack_j)`, slack (samples,) being how much larger
    than the difference `x - b` its terms are. Rows are sorted by their product with a fixed irregular vector and
    compared with the 16 before them, so memory stays (samples, d); only more than 15 other directions between two
    equal ones would be counted twice. In more than 8 dimensions their products with 8 fixed orthonormal vectors are compared: no
    row moves between devices, and what is distinct and agrees in all 8 to that accuracy does not occur.

    >>> import jax.numpy as jnp
    >>> int(count_rays(jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), jnp.array([True, True, True]), jnp.ones(3)))
    2
    """
    probe = jnp.sin(1 + jnp.arange(directions.shape[1], dtype=directions.dtype) ** 2)
    order = jnp.argsort(jnp.where(counted, matmul(directions, unit_rows(probe)), jnp.inf))
    rows, counted = _signatures(directions)[order], counted[order]
    reach = jnp.finfo(rows.dtype).eps ** 0.75 * jnp.broadcast_to(slack, counted.shape)[order]
    place = jnp.arange(rows.shape[0])

    def compare(back, seen):
        close = safe_norm(rows - jnp.roll(rows, back, axis=0)) <= reach + jnp.roll(reach, back)
        return seen | (close & (place >= back))

    seen = jax.lax.fori_loop(1, min(LOOK_BACK, rows.shape[0] - 1) + 1, compare, jnp.zeros_like(counted))
    return jnp.sum(counted & ~seen)


def _signatures(directions: Float[Array, "samples d"]) -> Float[Array, "samples few"]:
    """Coordinates of each row that tell rows apart: all of few, else products with fixed orthonormal vectors, never farther apart."""
    d = directions.shape[1]
    if d <= SIGNATURE:
        return directions
    at = jnp.arange(d, dtype=directions.dtype)
    waves = jnp.arange(1, SIGNATURE + 1, dtype=directions.dtype)
    vectors = (2 / d) ** 0.5 * jnp.cos(jnp.pi / d * (at[:, None] + 0.5) * waves)
    return matmul(jnp.where(jnp.sin(1 + at**2) < 0, -directions, directions), vectors)


def _up_to_sign(rows):
    """Each row or its negative, whichever has its largest entry positive."""
    largest = jnp.take_along_axis(rows, jnp.argmax(jnp.abs(rows), axis=1)[:, None], axis=1)
    return jnp.where(largest < 0, -rows, rows)
