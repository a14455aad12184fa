"""Sums over samples of exact codes by numba kernels: what a fit needs of a dictionary, in one call that forms no (samples, atoms) array."""

import jax.numpy as jnp

from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.numba_engine import calls
from jaxdict.encoding.numba_engine.ffi import Call, Result, call
from jaxdict.encoding.slots import Slots
from jaxdict.objectives import Moments


def sums_by_numba(lasso: Lasso, weights, slots: Slots, tol, defect_tol, max_steps: int, *, dense: bool):
    """Exact codes from given slots: their slots, the dense codes where asked for, `Moments` of the plain form, the worst relative gap.

    Moments are of all codes, also where slots are too few; E is the sum with `weights`. Works under jit and vmap, and shard by shard
    of the samples.
    """
    dtype = lasso.targets.dtype
    one = lambda axes, joined="sum": Result(axes, dtype.name, joined)  # noqa: E731
    spec = Call(
        f"sums_by_{calls.path_of(lasso)}_{dtype.name}",
        ("n d", "k d", "", "n", "", "", "n slots", "n slots"),
        (
            *(Result("n slots", "int32"), one("n slots", "")),
            *(one("k d"), one("k"), one("k"), one("d"), one(""), one("", "max"), one("", "max")),
            *((one("n k", ""),) if dense else ()),
        ),
        (max_steps, calls.ROOM, dense),
    )
    limits = [jnp.asarray(v, dtype) for v in (tol, defect_tol)]
    args = (*lasso, weights.astype(dtype), *limits, slots.indices.astype(jnp.int32), slots.values)
    indices, values, cross, codes, squares, residual, objective, defect, gap, *rest = call(spec, *args)
    moments = Moments(codes, squares, cross, residual, defect, objective, None, None, None)
    return Slots(indices, values), rest[0] if dense else None, moments, gap
