"""Work done on each device's own samples, where it is known how they are spread: nothing is gathered."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float


class Rows(NamedTuple):
    """How samples are spread: a mesh, and those of its axes that cut the first axis of an array."""

    mesh: Any
    axes: tuple[str, ...]


def rows_of(X: Float[Array, "samples d"]) -> Rows | None:
    """How the rows of an array are spread over devices, where that is known: of a concrete array, or under Explicit axes."""
    traced = isinstance(X, Tracer)
    sharding = jax.typeof(X).sharding if traced else X.sharding
    if not isinstance(sharding, NamedSharding) or not sharding.spec or sharding.spec[0] is None:
        return None
    mesh, axes = sharding.mesh, sharding.spec[0]
    axes = axes if isinstance(axes, tuple) else (axes,)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    known = not traced or all(kinds[name] == AxisType.Explicit for name in axes)
    return Rows(mesh, axes) if known and any(mesh.shape[name] > 1 for name in axes) else None


def by_shards(rows: Rows | None, call: Callable, shared, by_sample):
    """`call(shared, by_sample)` on each device's samples: the leaves of `by_sample`, and of the result, have samples first.

    Leaves that are not spread as the rows are, are first.
    """
    if rows is None:
        return call(shared, by_sample)
    of_rows, kinds = P(rows.axes), dict(zip(rows.mesh.axis_names, rows.mesh.axis_types, strict=True))
    if all(kinds[name] == AxisType.Explicit for name in rows.axes):
        by_sample = jax.sharding.reshard(by_sample, NamedSharding(rows.mesh, of_rows))
    return jax.shard_map(call, mesh=rows.mesh, in_specs=(P(), of_rows), out_specs=of_rows)(shared, by_sample)
