"""Truncated Newton on the reduced problem: conjugate gradients on products with T4's Hessian, codes eliminated, in a trust region."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.certificates.schur import schur_change, support_blocks, support_factors
from jaxdict.encoding.engines import NUMBA_ENGINE, Engine, on_engine
from jaxdict.encoding.exact import problem_slots
from jaxdict.encoding.jax_engine.spread import TracedCall
from jaxdict.encoding.lasso import lasso_of
from jaxdict.encoding.numba_engine.newton import search_by_numba
from jaxdict.encoding.split_calls import Result, over_shards
from jaxdict.numerics import select, unit_rows
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, metric_of, offset_of, sample_weights
from jaxdict.solvers.quasi_newton import dot, scales
from jaxdict.solvers.reduced import Iterate, codes_at, next_point

# Radius at the start: every atom may turn by about this much; and at most.
FIRST_RADIUS, LARGEST_RADIUS = 0.1, 1.0
# A trial is accepted if it brings this share of what the model promises.
ACCEPTED = 0.05
# The radius aims at steps on which the model is off by this share of its promise.
AIM = 0.5
# A model that promises less than this many roundings of the objective is judged by the slopes instead.
ROUNDINGS = 64


class TrustRegion(eqx.Module):
    """Where the method stands: the accepted point, the radius within which its model is trusted, the radius at most."""

    point: Iterate
    radius: Float[Array, ""]
    largest: Float[Array, ""]
    stuck: Bool[Array, ""]


class Search(eqx.Module):
    """Conjugate gradients under way, in scaled variables (atoms, offset)."""

    step: tuple[Array, Array]
    left: tuple[Array, Array]  # minus the model's slope at `step`
    direction: tuple[Array, Array]
    products: Int[Array, ""]
    edge: Bool[Array, ""]  # the step ends on the region's edge
    done: Bool[Array, ""]


class Newton(eqx.Module):
    """Truncated Newton on `phi(D, b) = min_Z F` over the product of unit spheres, in a trust region (Steihaug 1983).

    The Hessian is that of T4 with the codes eliminated on their supports; its products cost a fraction of solving codes anew. Up to
    `products` of them go into a step. Scaled by the roots of the Hessian's diagonal, `E[z_k^2] + lam zbar_k`. Directions of
    negative curvature are followed to the region's edge, so saddles are left on the way; near the end convergence is
    superlinear. A trial that does not descend shrinks the region. One step of the loop is one trial. Works under jit and vmap.

    >>> import jaxdict as jd
    >>> jd.solvers.Newton(products=50).products
    50
    """

    products: int = eqx.field(static=True, default=100)
    slots: int | None = eqx.field(static=True, default=None)
    # Whose search: "auto", or "working_set" for plain JAX's, which needs no device to see all samples.
    engine: str = eqx.field(static=True, default="auto")

    def init_at(self, problem: Problem, X: Float[Array, "samples d"], point: Iterate, codes) -> TrustRegion:
        turns = jnp.sum(jnp.where(point.mean_codes > 0, scales(problem, point) ** -2, 0))
        largest = LARGEST_RADIUS * jnp.sqrt(turns)
        return TrustRegion(point, largest * (FIRST_RADIUS / LARGEST_RADIUS), largest, ~jnp.isfinite(point.objective))

    def step(self, problem: Problem, X: Float[Array, "samples d"], state: TrustRegion) -> TrustRegion:
        dictionary, about = self.propose(problem, X, state)
        trial = next_point(problem, X, dictionary, state.point.slots)
        return self.take(problem, X, state, about, trial, None)

    def propose(self, problem: Problem, X: Float[Array, "samples d"], state: TrustRegion) -> tuple[Dictionary, tuple]:
        point = state.point
        search = partial(search_on, most=self.products)
        step, promise, edge = on_engine(self.engine, search, problem, X, point, state.radius)
        atoms, offset = point.dictionary.atoms + step[0], offset_of(point.dictionary) + step[1]
        return Dictionary(unit_rows(atoms), offset), (step, promise, edge)

    def take(self, problem: Problem, X: Float[Array, "samples d"], state: TrustRegion, about, trial: Iterate, codes):
        point, (step, promise, edge) = state.point, about
        gain, rounding = point.objective - trial.objective, jnp.finfo(X.dtype).eps * jnp.abs(point.objective)
        slopes = [dot(g, g) for g in (scaled_slopes(problem, trial), scaled_slopes(problem, point))]
        fine = promise <= ROUNDINGS * rounding  # values say nothing any more
        level = (gain >= -8 * rounding) & (slopes[0] < slopes[1])
        accepted = jnp.where(fine, level, gain > ACCEPTED * promise) & trial.solved
        ratio = jnp.where(trial.solved & jnp.isfinite(gain), gain / jnp.where(promise > 0, promise, 1), -jnp.inf)
        move = scaled(problem, point, step)
        length = jnp.sqrt(dot(move, move))
        aimed = length * jnp.clip(jnp.sqrt(AIM / jnp.maximum(jnp.abs(1 - ratio), 1e-3)), 0.25, 2)
        # Inside the region a good model says nothing against the radius; a bad one does.
        radius = jnp.where(edge | (aimed < length), aimed, state.radius)
        radius = jnp.where(fine, jnp.where(accepted, state.radius, 0.1 * length), jnp.minimum(radius, state.largest))
        stuck = ~(radius > 8 * jnp.finfo(X.dtype).eps * state.largest) | ~jnp.isfinite(promise)
        return TrustRegion(select(accepted, trial, point), radius, state.largest, stuck)

    def progress_of(self, state: TrustRegion):
        return state.point.objective, state.point.stationarity, state.stuck

    def point(
        self, problem: Problem, X: Float[Array, "samples d"], state: TrustRegion, *, sparse: bool = False
    ) -> tuple[Iterate, Codes]:
        return state.point, codes_at(problem, X, state.point, sparse=sparse)


def scaled(problem: Problem, point: Iterate, v, power: int = 1):
    """A change (atoms, offset) times a power of the roots of the Hessian's diagonal; zero for dead atoms and a fixed offset."""
    top = jnp.sqrt(jnp.max(metric_of(problem, point.atoms_slope)))
    atoms = v[0] * scales(problem, point)[:, None] ** -power
    offset = v[1] * top**power if problem.offset else jnp.zeros_like(v[1])
    return jnp.where(point.mean_codes[:, None] > 0, atoms, 0), offset


def tangent(atoms, v):
    """The part of a change that keeps the atoms' norms."""
    return v[0] - jnp.sum(v[0] * atoms, axis=1, keepdims=True) * atoms, v[1]


def scaled_slopes(problem: Problem, point: Iterate):
    """Slopes of phi on the spheres, in the scaled variables."""
    return scaled(problem, point, tangent(point.dictionary.atoms, (point.atoms_slope, point.offset_slope)), -1)


def _accuracy(point: Iterate, slopes):
    """How far the model is minimised: loosely at first, to the square root of the slopes near the end (superlinear convergence)."""
    return jnp.minimum(0.3, jnp.sqrt(jnp.sqrt(dot(slopes, slopes) / jnp.abs(point.objective))))


def _rates(problem: Problem, point: Iterate):
    """`lam zbar_k`, what the spheres' own curvature adds: the atoms' slopes along themselves are `-lam zbar_k`."""
    return jnp.asarray(problem.lam, point.mean_codes.dtype) * point.mean_codes


def search_on(engine: Engine, problem: Problem, X: Float[Array, "samples d"], point: Iterate, radius, *, most: int):
    """The search by an engine's means: they agree up to rounding."""
    search = _search_by_numba if engine is NUMBA_ENGINE else _search
    return search(problem, X, point, radius, most=most)


def _search(problem: Problem, X: Float[Array, "samples d"], point: Iterate, radius, *, most: int):
    """The model's minimum within the radius, roughly: the step (atoms, offset), what it promises, whether it ends on the edge.

    Each device has its own samples; products are sums over all of them, so that all devices take the same steps.
    """
    codes = problem_slots(problem, point.dictionary, point.slots)
    weights, slopes = sample_weights(problem, X) / X.shape[0], scaled_slopes(problem, point)
    place = (point.dictionary.atoms, offset_of(point.dictionary), metric_of(problem, X))
    operands = ("n d", "n", "n slots", "n slots", "k d", "d", "d", "k", "", "k", "k d", "d", "", "")
    results = Result("k d"), Result("d"), Result(""), Result("")
    call = TracedCall(_searched, operands, results, (("most", most),))
    numbers = (*_scale_of(problem, point), _rates(problem, point), *slopes, radius, _accuracy(point, slopes))
    atoms, offset, promise, edge = over_shards(call, X, weights, *codes, *place, *numbers)
    return (atoms, offset), promise, edge


def _searched(
    axes,
    X: Float[Array, "samples d"],
    weights,
    indices,
    values,
    atoms,
    offset,
    metric,
    scale,
    top,
    rates,
    *rest,
    most: int,
) -> list:
    """`_search`'s function: its operands and results in a row."""
    *slopes, radius, accuracy = rest
    dictionary = Dictionary(atoms, offset)
    blocks = support_blocks(metric, weights, dictionary, SparseCodes(indices, values), X)
    factors = support_factors(metric, dictionary, blocks, 8 * values.shape[1] * jnp.finfo(X.dtype).eps)

    def scaled(v):
        return v[0] * scale[:, None], v[1] * top

    def product(v):
        step = scaled(v)
        bent = schur_change(metric, dictionary, blocks, factors, step)[1]
        bent = jax.lax.psum(bent, axes) if axes else bent
        return scaled(tangent(atoms, (bent[0] + rates[:, None] * step[0], bent[1])))

    found = steihaug(product, tuple(slopes), radius, accuracy, most)
    promise = 0.5 * (dot(found.step, found.left) - dot(found.step, tuple(slopes)))
    return [*scaled(found.step), promise, found.edge]


def _scale_of(problem: Problem, point: Iterate):
    """What one unit of a scaled variable is: of each atom, zero for dead ones, and of the offset, zero where it is fixed."""
    ones = jnp.ones_like(point.atoms_slope), jnp.ones_like(point.offset_slope)
    atoms, offset = scaled(problem, point, ones, -1)
    return atoms[:, 0], offset[0]


def _search_by_numba(problem: Problem, X: Float[Array, "samples d"], point: Iterate, radius, *, most: int):
    """`_search` by numba's kernels, in one call."""
    lasso, weights = lasso_of(problem, point.dictionary, X), sample_weights(problem, X) / X.shape[0]
    slopes, rates = scaled_slopes(problem, point), _rates(problem, point)
    space = (point.dictionary.atoms, jnp.sqrt(metric_of(problem, X)), *_scale_of(problem, point), rates)
    accuracy = _accuracy(point, slopes)
    *step, promise, edge, _ = search_by_numba(lasso, weights, point.slots, space, slopes, radius, accuracy, most=most)
    return tuple(step), promise, edge > 0


def steihaug(product: Callable, slopes, radius, accuracy, most: int) -> Search:
    """Conjugate gradients for `min g v + 1/2 v H v`, `||v|| <= radius`, until `||g + H v|| <= accuracy ||g||` or the edge is met.

    Where a direction has negative curvature it is followed to the edge. At most `most` products.

    >>> import jax.numpy as jnp
    >>> saddle = lambda v: (v[0] * jnp.array([1.0, -1.0]), v[1])
    >>> found = steihaug(saddle, (jnp.array([0.0, 1.0]), jnp.zeros(1)), 3.0, 1e-6, 10)
    >>> found.step[0].tolist(), bool(found.edge)
    ([0.0, -3.0], True)
    """
    down = jax.tree.map(jnp.negative, slopes)
    size = dot(slopes, slopes)
    goal = accuracy**2 * size
    none = jnp.zeros_like(size, dtype=int)

    def going(search: Search):
        return ~search.done & (search.products < most)

    def body(search: Search) -> Search:
        step, left, direction = search.step, search.left, search.direction
        image = product(direction)
        bend, square = dot(direction, image), dot(left, left)
        ss, sd, dd = dot(step, step), dot(step, direction), dot(direction, direction)
        reach = square / jnp.where(bend > 0, bend, 1)
        out = (bend <= 0) | (ss + 2 * reach * sd + reach**2 * dd >= radius**2)
        # The positive root of ||step + t direction|| = radius, without cancellation.
        short = jnp.maximum(radius**2 - ss, 0)
        to_edge = short / (sd + jnp.sqrt(sd**2 + dd * short))
        length = jnp.where(out, jnp.where(short > 0, to_edge, 0), reach)
        step = jax.tree.map(lambda s, d: s + length * d, step, direction)
        left = jax.tree.map(lambda r, h: r - length * h, left, image)
        new = dot(left, left)
        direction = jax.tree.map(lambda r, d: r + new / square * d, left, direction)
        return Search(step, left, direction, search.products + 1, out, out | ~(new > goal))

    start = Search(jax.tree.map(jnp.zeros_like, slopes), down, down, none, size < 0, ~(size > 0))
    return jax.lax.while_loop(going, body, start)
