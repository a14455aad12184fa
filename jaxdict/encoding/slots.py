"""Sparse codes of the plain form: slots of each sample, and the way to dense codes and back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Slots(NamedTuple):
    """Each sample: atom `indices` and non-negative `values`; a value of zero marks an empty slot, whatever its index (in range)."""

    indices: Int[Array, "samples slots"]
    values: Float[Array, "samples slots"]


def empty_slots(targets: Float[Array, "samples d"], n_slots: int) -> Slots:
    """Slots with nothing in them, born from the data so that they shard as it does."""
    zeros = jnp.broadcast_to(0 * targets[:, :1], (targets.shape[0], n_slots))
    return Slots(zeros.astype(jnp.int32), zeros)


def slots_from_codes(Z: Float[Array, "samples atoms"], n_slots: int) -> Slots:
    """The largest codes of each sample as a working set; slots of zero codes are left empty."""
    values, indices = jax.lax.top_k(Z, min(n_slots, Z.shape[1]))
    return Slots(jnp.where(values > 0, indices, 0), jnp.maximum(values, 0))


def resized(slots: Slots, n_slots: int) -> Slots:
    """The largest values in so many slots, more of them empty where there were fewer."""
    values, order = jax.lax.top_k(slots.values, min(n_slots, slots.values.shape[1]))
    missing = [(0, 0), (0, n_slots - values.shape[1])]
    indices = jnp.where(values > 0, jnp.take_along_axis(slots.indices, order, axis=1), 0)
    return Slots(jnp.pad(indices, missing), jnp.pad(values, missing))


def dense_from_slots(slots: Slots, n_atoms: int) -> Float[Array, "samples atoms"]:
    """Dense codes of a working set."""
    zeros = jnp.zeros((slots.values.shape[0], n_atoms), slots.values.dtype)
    return zeros.at[jnp.arange(zeros.shape[0])[:, None], slots.indices].add(slots.values, mode="drop")
