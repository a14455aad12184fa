"""Sparse codes of the plain form: slots of each sample, and the way to dense codes and back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Slots(NamedTuple):
    """Each sample: `indices` (n_atoms where empty) and non-negative `values`."""

    indices: Int[Array, "samples slots"]
    values: Float[Array, "samples slots"]


def slots_from_codes(Z: Float[Array, "samples atoms"], n_slots: int) -> Slots:
    """The largest codes of each sample as a working set; slots of zero codes are left empty."""
    values, indices = jax.lax.top_k(Z, min(n_slots, Z.shape[1]))
    return Slots(jnp.where(values > 0, indices, Z.shape[1]), jnp.maximum(values, 0))


def dense_from_slots(slots: Slots, n_atoms: int) -> Float[Array, "samples atoms"]:
    """Dense codes of a working set (empty slots fall off the end)."""
    zeros = jnp.zeros((slots.values.shape[0], n_atoms), slots.values.dtype)
    return zeros.at[jnp.arange(zeros.shape[0])[:, None], slots.indices].add(slots.values, mode="drop")
