"""Exact codes by numba kernels, in one call of a program."""

import jax.numpy as jnp
import numpy as np

from jaxdict.encoding.jax_engine.working_set import GRAM_ATOMS
from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.numba_engine.ffi import Call, Result, call, kernels, require_kernels
from jaxdict.encoding.slots import Slots

__all__ = ["codes_by_numba", "kernels", "require_kernels"]

# Atoms in use that the kernels have room for at first; samples that need more are taken again with more.
ROOM = 96


def codes_by_numba(lasso: Lasso, start, tol, max_steps: int, defect_tol=None, *, n_slots: int, dense: bool):
    """Exact codes by numba kernels: slots (n_slots of them), dense codes or None, gap, objective, atoms in use, steps.

    `start` is a `Slots`, dense codes, or None for a cold start. Works under jit and vmap, and shard by shard of the samples.
    """
    dtype = lasso.targets.dtype
    first = () if start is None else tuple(start) if isinstance(start, Slots) else (start,)
    slots = (Result("n slots", "int32"), Result("n slots", dtype.name)) if n_slots else ()
    codes = (Result("n k", dtype.name),) if dense else ()
    figures = (Result("n", dtype.name), Result("n", dtype.name), Result("n", "int32"), Result("n", "int32"))
    spec = Call(
        f"codes_by_{path_of(lasso)}_{dtype.name}",
        ("n d", "k d", "", "", "", *(("n start", "n start") if len(first) == 2 else ("n k",) * len(first))),
        (*figures, *slots, *codes),
        (max_steps, ROOM, len(first), bool(n_slots), dense),
        (("slots", n_slots),) if n_slots else (),
    )
    limits = [jnp.asarray(np.inf if v is None else v, dtype) for v in (tol, defect_tol)]
    if len(first) == 2:
        first = (first[0].astype(jnp.int32), first[1])
    gap, primal, used, looks, *rest = call(spec, *lasso, *limits, *first)
    none = lasso.targets[:, :0]
    found = Slots(*rest[:2]) if n_slots else Slots(none.astype(jnp.int32), none)
    return found, rest[-1] if dense else None, gap, primal, used, jnp.max(looks, initial=0)


def path_of(lasso: Lasso) -> str:
    """By the atoms' Gram matrix where they are few, else by passes over all atoms."""
    return "gram" if lasso.atoms.shape[0] <= GRAM_ATOMS else "passes"
