"""Nearest point of a hull or cone, by an active set that ends at the answer (Wolfe 1976; Lawson and Hanson 1974)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.numerics import matmul, safe_norm


class Nearest(NamedTuple):
    """The nearest point is `weights @ points`; `steps` counts least-squares solves."""

    weights: Float[Array, " samples"]
    steps: Int[Array, ""]


class _State(NamedTuple):
    """The working set: `slot_sample[k]` carries `slot_weight[k]` where `taken[k]`."""

    slot_sample: Int[Array, " slots"]
    slot_weight: Float[Array, " slots"]
    taken: Bool[Array, " slots"]
    refused: Bool[Array, " samples"]  # points that rounding alone made look ahead, since the last move
    inner: Bool[Array, ""]  # the last solve met a negative weight: solve again before taking a new sample
    done: Bool[Array, ""]
    steps: Int[Array, ""]


def nearest_point(points, allowed, target, *, hull: bool, axes=None, max_steps: int | None = None) -> Nearest:
    """Weights w >= 0 on the allowed points that minimise `||target - sum_n w_n p_n||` (with `sum w = 1` for the hull).

    points (samples, d), allowed (samples,) flags, target (d,), axes (d,) flags of the coordinates that count (default
    all). Each step takes the point furthest along `target - current`, solves least squares on the points held (by QR,
    so conditioning is not squared), and drops points whose weight would turn negative. Ends when no point is further
    along: the answer to rounding. A step costs samples x d + 4 d^3. With no allowed point the weights are zero. Vmapped
    over allowed, target and axes, the points are shared, not copied.

    >>> import jax.numpy as jnp
    >>> square = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> found = nearest_point(square, jnp.ones(4, bool), jnp.array([1.0, 3.0]), hull=True)
    >>> (found.weights @ square).tolist()
    [1.0, 2.0]
    """
    n_samples, d = points.shape
    # No more points than d + 1 are affinely (linearly, for the cone) independent; one more slot for the point that
    # enters.
    slots = min(n_samples, d + 1) + 1
    limit = 20 * slots + 100 if max_steps is None else max_steps
    axes = jnp.ones_like(target) if axes is None else jnp.asarray(axes, target.dtype)
    target = target * axes
    squares = matmul(points * points, axes)
    sizes = jnp.where(allowed, jnp.sqrt(squares), 0)
    eps = jnp.finfo(points.dtype).eps

    def left(state):
        return target - matmul(state.slot_weight, points[state.slot_sample]) * axes

    def enter(state):
        """Take in the point that is furthest ahead; done if none is ahead of the current one."""
        v = left(state)
        length = safe_norm(v)
        # At the cone's best weights v is orthogonal to the current point.
        here = jnp.dot(target - v, v, precision=jax.lax.Precision.HIGHEST) if hull else 0
        ahead = matmul(points, v) - here
        # The cone does not see the points' lengths, so the steepest in angle is taken: far fewer steps.
        score = ahead if hull else ahead / jnp.where(sizes > 0, sizes, 1)
        held = jnp.zeros_like(allowed).at[state.slot_sample].max(state.taken)
        sample = jnp.argmax(jnp.where(allowed & ~held & ~state.refused, score, -jnp.inf))
        slot = jnp.argmin(state.taken)
        # Rounding of a product with v, and of v itself: a difference of vectors that may be much longer.
        stop = ahead[sample] <= 8 * eps * (sizes[sample] + safe_norm(target)) * length
        stop = stop | (length <= 2 * eps * (safe_norm(target) + matmul(state.slot_weight, sizes[state.slot_sample])))
        stop = stop | held[sample] | state.refused[sample] | ~allowed[sample] | jnp.all(state.taken)
        put = lambda array, value: jnp.where(stop, array, array.at[slot].set(value))  # noqa: E731
        entered = state._replace(slot_sample=put(state.slot_sample, sample), taken=put(state.taken, True))
        return entered._replace(slot_weight=put(state.slot_weight, 0), done=stop)

    def step(state):
        entered = enter(state)
        state = jax.tree.map(lambda new, old, inner=state.inner: jnp.where(inner, old, new), entered, state)
        solved = _solve(state, points, axes, target, hull)
        return jax.tree.map(lambda new, old, done=state.done: jnp.where(done, old, new), solved, state)

    # The hull starts from (about) its point nearest to the target, the cone from its apex.
    first = jnp.argmin(jnp.where(allowed, squares - 2 * matmul(points, target), jnp.inf))
    start = _start(first, allowed, target, slots, hull)
    state = jax.lax.while_loop(lambda s: ~s.done & (s.steps < limit), step, start)
    weight = state.slot_weight / jnp.where(jnp.any(state.taken) & hull, jnp.sum(state.slot_weight), 1)
    return Nearest(jnp.zeros_like(points[:, 0]).at[state.slot_sample].add(weight), state.steps)


def _start(sample, allowed, target, slots, hull):
    taken = jnp.zeros(slots, bool).at[0].set(allowed[sample] & hull)
    zero = jnp.zeros_like(sample)
    return _State(
        slot_sample=jnp.full((slots,), zero).at[0].set(jnp.where(taken[0], sample, zero)),
        slot_weight=jnp.where(taken, 1, jnp.zeros_like(target[0])),
        taken=taken,
        refused=jnp.zeros_like(allowed),
        inner=jnp.zeros_like(taken[0]),
        done=~jnp.any(allowed),
        steps=zero,
    )


def _solve(state, points, axes, target, hull):
    """Least squares on the points held; where it leaves the orthant, back to its edge, dropping points on it."""
    best, spanned = _least_squares(points[state.slot_sample] * axes, state.taken, target, state.slot_weight, hull)
    # A point in the span of those held is not ahead, but for rounding.
    best = jnp.where(spanned & ~state.inner, jnp.where(state.slot_weight > 0, state.slot_weight, -1), best)
    out = state.taken & (best <= 0)
    ratio = state.slot_weight / jnp.where(out, state.slot_weight - best, 1)
    length = jnp.min(jnp.where(out, ratio, 1), initial=1)
    weight = state.slot_weight + length * (best - state.slot_weight)
    leaving = out & ((ratio <= length) | (weight <= 0))
    taken = state.taken & ~leaving
    weight = jnp.where(taken, weight, 0)
    # A point that enters moves the weights, but for rounding: it is passed over until another has moved them.
    refused = state.refused.at[state.slot_sample].max(leaving) & (length <= 0)
    inner = jnp.any(leaving) & (length > 0)
    return state._replace(slot_weight=weight, taken=taken, refused=refused, inner=inner, steps=state.steps + 1)


def _least_squares(held, taken, target, weight, hull):
    """Best weights of the points held, signs free (the hull's sum to one), and whether the points are dependent."""
    base_slot = jnp.argmax(jnp.where(taken, weight, -1))
    is_base = (jnp.arange(taken.shape[0]) == base_slot) & hull
    base = jnp.where(hull, held[base_slot], jnp.zeros_like(target))
    free = taken & ~is_base
    columns = jnp.where(free[:, None], held - base, 0).T
    lengths = jnp.where(free, safe_norm(columns, axis=0), 1)
    lengths = jnp.where(lengths > 0, lengths, 1)
    # An empty slot gets a column of its own, so the matrix keeps full rank whatever is held.
    matrix = jnp.concatenate([columns / lengths, jnp.diag((~free).astype(columns.dtype))])
    q, r = jnp.linalg.qr(matrix)
    # The columns are of length one: an entry of the diagonal is the sine of a column's angle to those before it.
    diagonal = jnp.diagonal(r)
    spanned = jnp.min(jnp.abs(diagonal)) <= 64 * jnp.finfo(r.dtype).eps
    r = r + jnp.diag(jnp.where(diagonal == 0, 1, 0).astype(r.dtype))
    # The correction to the current weights is solved for, not the weights: its rounding is relative to a small number.
    current = jnp.where(free, weight, 0)
    left = target - base - matmul(columns, current)
    change = jax.scipy.linalg.solve_triangular(r, matmul(q[: target.shape[0]].T, left)) / lengths
    best = jnp.where(free, current + change, 0)
    return (jnp.where(is_base, 1 - jnp.sum(best), best) if hull else best), spanned
