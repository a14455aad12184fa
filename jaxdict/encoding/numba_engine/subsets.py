"""Best values on given supports, and best supports of a given size, by numba kernels: one call of a program each."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.numba_engine.ffi import Call, Result, call
from jaxdict.encoding.slots import Slots

# Above this many atoms their Gram matrix is not formed: its rows come from products, as they are wanted.
GRAM_ATOMS = 4096


def values_by_numba(lasso: Lasso, slots: Slots, *, signed: bool) -> Float[Array, "samples slots"]:
    """Least squares on the slots in use, non-negative or `signed`; lam has no part in it. Works under jit and vmap, shard by shard."""
    dtype = lasso.targets.dtype.name
    spec = Call(f"refit_{dtype}", ("n d", "k d", "n slots", "n slots"), (Result("n slots", dtype),), (int(signed),))
    return call(spec, lasso.targets, lasso.atoms, slots.indices.astype(jnp.int32), slots.values)[0]


def supports_by_numba(
    lasso: Lasso, start: Slots, most: Int[Array, " samples"], tol, *, signed: bool, max_steps: int
) -> tuple[Slots, Int[Array, " samples"], Int[Array, " samples"]]:
    """At most `most` atoms a sample from those in `start`; exchanges made, and one where `max_steps` cut them short."""
    dtype = lasso.targets.dtype.name
    path = "gram" if lasso.atoms.shape[0] <= GRAM_ATOMS else "passes"
    slots = Result("n slots", "int32"), Result("n slots", dtype)
    spec = Call(
        f"subset_by_{path}_{dtype}",
        ("n d", "k d", "n", "n slots", "n slots", ""),
        (*slots, Result("n", "int32"), Result("n", "int32")),
        (max_steps, int(signed)),
    )
    given = (most.astype(jnp.int32), start.indices.astype(jnp.int32), start.values, jnp.asarray(tol, dtype))
    indices, values, made, cut = call(spec, lasso.targets, lasso.atoms, *given)
    return Slots(indices, values), made, cut
