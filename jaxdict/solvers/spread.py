"""Samples spread over devices: whether they are, and the same arrays under a mesh whose axes the compiler places (Auto)."""

from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, Float


def is_spread(X: Float[Array, "samples d"]) -> bool:
    """Whether several devices are known to hold parts of an array."""
    if isinstance(X, Tracer):
        return any(name is not None for name in jax.typeof(X).sharding.spec)
    return len(X.sharding.device_set) > 1 and not X.sharding.is_fully_replicated


def explicit_mesh(X: Float[Array, "samples d"]) -> Mesh | None:
    """The mesh of a known array where it has Explicit axes (`jax.make_mesh`'s default)."""
    if not isinstance(X, jax.Array) or isinstance(X, Tracer) or not isinstance(X.sharding, NamedSharding):
        return None
    mesh = X.sharding.mesh
    return mesh if isinstance(mesh, Mesh) and AxisType.Explicit in mesh.axis_types else None


def auto_axes_of(mesh: Mesh) -> Mesh:
    """The same devices in the same places, all axes Auto."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def moved_to(mesh: Mesh, tree: Any) -> Any:
    """Known arrays that lie on this mesh's devices, under its kinds of axes: nothing moves."""

    def move(leaf):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer) or not isinstance(leaf.sharding, NamedSharding):
            return leaf
        if leaf.sharding.device_set != set(mesh.devices.flat):
            return leaf
        return jax.device_put(leaf, NamedSharding(mesh, leaf.sharding.spec))

    return jax.tree.map(move, tree)
