"""The trust region's search of truncated Newton by numba kernels: conjugate gradients, supports factored once, one call for them all.

`solvers/newton.py` has the same search for accelerators.
"""

import jax.numpy as jnp

from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.numba_engine.ffi import Call, Result, call
from jaxdict.encoding.slots import Slots


def search_by_numba(lasso: Lasso, weights, slots: Slots, space, slopes, radius, accuracy, *, most: int):
    """The step (atoms, offset), what the model promises of it, whether it ends on the edge (1 or 0), products taken.

    `space` is (unit atoms, root of the metric, scales of atoms, scale of the offset, rates): the variables are atoms over `scales`
    and offset over its scale, where a scale of zero holds them. Works under jit and vmap. Products are sums over all samples: where
    these are sharded they are brought together, and every device takes the same steps.
    """
    dtype = lasso.targets.dtype
    units, root, scales, scale, rates = space
    results = tuple(Result(axes, dtype.name) for axes in ("u d", "d", "", "", ""))
    operands = ("n d", "k d", "n", "n slots", "n slots", "u d", "d", "u", "", "u", "u d", "d", "", "")
    spec = Call(f"newton_{dtype.name}", operands, results, (most,), split=False)
    numbers = (lasso.targets, lasso.atoms, weights, slots.values)
    others = (units, root, scales, scale, rates.reshape(-1), *slopes, radius, accuracy)
    targets, atoms, weights, values, *rest = (jnp.asarray(v, dtype) for v in (*numbers, *others))
    return call(spec, targets, atoms, weights, slots.indices.astype(jnp.int32), values, *rest)
