"""Functions that run as they are whatever their caller has set: on Explicit meshes (`jax.make_mesh`'s default), without promotion."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, auto_axes
from jax.sharding import PartitionSpec as P


def on_any_mesh(function: Callable, out: Callable[[Any], Any] | None = None) -> Callable:
    """The function for arguments of any sharding: Explicit axes are Auto within it.

    Sharding-in-types refuses reshapes, products over a sharded axis, sorts and scatters whose result it would have to guess.
    `out(rows)` says where results lie, a PartitionSpec or a tree of them, rows being the mesh axes over which the samples
    are spread; by default every device has all of every result. (Under `jit` and `grad` jax itself asks for `jax.set_mesh`.)

    >>> import jax.numpy as jnp
    >>> on_any_mesh(lambda x: x.reshape(-1, 2).sum(0))(jnp.ones(4)).tolist()
    [2.0, 2.0]
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        # Written for numpy's promotion: a caller who forbids it in code of their own need not in ours.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return placed(*args, **kwargs)

    def placed(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
        shardings = [jax.typeof(leaves[i]).sharding for i in at]
        meshes = [sharding.mesh for sharding in shardings if AxisType.Explicit in sharding.mesh.axis_types]
        if not meshes:
            return function(*args, **kwargs)
        rows = next((s.spec[0] for s in shardings if len(s.spec) == 2 and s.spec[0] is not None), None)

        def within(*arrays):
            filled = list(leaves)
            for i, array in zip(at, arrays, strict=True):
                filled[i] = array
            args, kwargs = jax.tree.unflatten(tree, filled)
            return function(*args, **kwargs)

        places = P() if out is None else out(rows)
        places = jax.tree.map(lambda spec: NamedSharding(meshes[0], spec), places, is_leaf=lambda s: isinstance(s, P))
        return auto_axes(within, out_sharding=places)(*(leaves[i] for i in at))

    for name in ("clear_cache", "_cache_size"):  # what is jitted can still be asked how much it holds
        if hasattr(function, name):
            setattr(run, name, getattr(function, name))
    return run
