"""The trust region's search of truncated Newton on the host: conjugate gradients over the compiled kernels, one call for them all.

Supports are factored once a search. Everything here but `search_by_callback` is NumPy, as in `host.py`. `solvers/newton.py` has the
same search for accelerators.
"""

from functools import cache, partial

import jax
import numpy as np

from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.numba_engine.calls import batched, fixed
from jaxdict.encoding.numba_engine.sums import in_parts, sum_kernels
from jaxdict.encoding.slots import Slots


def search_by_callback(lasso: Lasso, weights, slots: Slots, space, slopes, radius, accuracy, *, most: int):
    """The step (atoms, offset), what the model promises of it, whether it ends on the edge (1 or 0), products taken.

    `space` is (unit atoms, root of the metric, scales of atoms, scale of the offset, rates): the variables are atoms over `scales`
    and offset over its scale, where a scale of zero holds them. Works under jit and vmap.
    """
    form = jax.ShapeDtypeStruct
    shapes = [form(a.shape, a.dtype) for a in (*slopes, radius, radius, radius)]
    args = (lasso.targets, lasso.atoms, weights, *slots, *space, *slopes, radius, accuracy)
    return jax.pure_callback(_searching(most), shapes, *args, vmap_method="expand_dims")


@cache
def _searching(most):
    """One object a setting, so that equal programs are seen to be equal."""
    return partial(batched, partial(search, most=most), (2, 2, 1, 2, 2, 2, 1, 1, 0, 1, 2, 1, 0, 0))


def search(
    targets, atoms, weights, indices, values, units, root, scales, scale, rates, slope, pull, radius, accuracy, *, most
):
    """See `search_by_callback`; NumPy in and out, float64 inside."""
    dtype, signed = slope.dtype, len(atoms) > len(units)
    units, root, rates, slope, pull = (fixed(a, float) for a in (units, root, rates, slope, pull))
    atom_scales, offset_scale = fixed(scales, float)[:, None], float(scale)
    bend = bending(targets, atoms, weights, indices, values)

    def product(v):
        step, shift = atom_scales * v[0], offset_scale * v[1]
        turn = root * step
        cross, image = bend(np.concatenate([turn, -turn]) if signed else turn, root * shift)
        cross = cross[: len(units)] - cross[len(units) :] if signed else cross
        bent = root * cross + rates[:, None] * step
        bent = bent - np.sum(bent * units, axis=1, keepdims=True) * units
        return atom_scales * bent, offset_scale * root * image

    step, left, edge, count = steihaug(product, (slope, pull), float(radius), float(accuracy), most)
    promise = 0.5 * (dot(step, left) - dot(step, (slope, pull)))
    found = (atom_scales * step[0], offset_scale * step[1], promise, edge, count)
    return tuple(np.asarray(part, dtype) for part in found)


def steihaug(product, slopes, radius, accuracy, most):
    """`solvers.newton.steihaug` in NumPy: the step, minus the model's slope there, whether it ends on the edge, products taken."""
    left = direction = tuple(-g for g in slopes)
    step, square, count = tuple(np.zeros_like(g) for g in slopes), dot(left, left), 0
    goal = accuracy**2 * square
    while square > goal and count < most:
        image = product(direction)
        bend, count = dot(direction, image), count + 1
        ss, sd, dd = dot(step, step), dot(step, direction), dot(direction, direction)
        reach = square / bend if bend > 0 else 0.0
        out = bend <= 0 or ss + 2 * reach * sd + reach**2 * dd >= radius**2
        if out:  # the positive root of ||step + t direction|| = radius, without cancellation
            short = max(radius**2 - ss, 0.0)
            reach = short / (sd + np.sqrt(sd**2 + dd * short)) if short > 0 else 0.0
        step = tuple(s + reach * d for s, d in zip(step, direction, strict=True))
        left = tuple(r - reach * h for r, h in zip(left, image, strict=True))
        if out:
            return step, left, True, count
        new = dot(left, left)
        direction = tuple(r + new / square * d for r, d in zip(left, direction, strict=True))
        square = new
    return step, left, False, count


def dot(a, b):
    """The inner product of two changes of (atoms, offset)."""
    return sum(float(np.vdot(x, y)) for x, y in zip(a, b, strict=True))


def bending(targets, atoms, weights, indices, values):
    """How the sums `-w z_k r` and `-w r` change along `(dA, -dy)`: a function, for which supports are factored once."""
    (n, d), k = targets.shape, atoms.shape[0]
    targets, atoms, weights, values = (fixed(a, float) for a in (targets, atoms, weights, values))
    indices, count = fixed(indices, np.int32), np.sum(values > 0, axis=1)
    starts = fixed(np.concatenate([[0], np.cumsum(count * (count + 1) // 2)]), np.int64)
    # The whole Gram matrix where it is less work than the samples' own.
    gram = fixed(atoms @ atoms.T if k * k <= starts[-1] else np.zeros((0, 0)), float)
    packed = np.empty(starts[-1])
    in_parts(sum_kernels().factor_rows, n, (atoms, gram, indices, starts, packed), (), work=int(starts[-1]))
    given = (targets, atoms, weights, indices, values, starts, fixed(packed, float))

    def bend(turn, shift):
        args = (*given, fixed(turn, float), fixed(shift, float))
        return in_parts(sum_kernels().bend_rows, n, args, ((k, d), (d,)), work=6 * d * int(np.sum(count)))

    return bend
