"""Calls over samples that may be spread over devices: each device takes its own, and what is summed is joined; nothing is gathered.

Under `jit` on Auto axes only the compiler knows how samples are spread: it asks, by `custom_partitioning`. (A TPU's does not: what is
`portable` it places there as it sees fit.) Under Explicit axes the types say so. Leading axes (vmap) are the call's own affair.
"""

import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


class Result(NamedTuple):
    """One result of a call: its axes, its dtype where that must be said, and how the results of shards of samples become one.

    `joined`: "sum", "max", or "": side by side, or the same on all shards.
    """

    axes: str
    dtype: str = ""
    joined: str = ""


class SplitCall(Protocol):
    """A call as a value: equal calls are one. Axes of operands and results are words of a rule ("n d": samples by dimensions).

    The first operand has samples. `split`: whether they may be split; each shard of them is then a call of its own. `portable`: whether
    it is made of what any compiler takes.
    """

    @property
    def operands(self) -> tuple[str, ...]: ...

    @property
    def results(self) -> tuple[Result, ...]: ...

    @property
    def split(self) -> bool: ...

    @property
    def portable(self) -> bool: ...

    def alone(self, axes: tuple[str, ...], *args) -> list:
        """The results of the samples at hand, a part of all where they are split over these axes of a mesh."""
        ...

    def several(self, axes: tuple[str, ...], size: int, batched: list[bool], args) -> list:
        """The results of `size` calls, whose operands have one more axis in front where they are `batched`."""
        ...


def over_shards(call: SplitCall, *args) -> list:
    """The results: works under jit and vmap, in shard_map, and with samples sharded over Auto or Explicit axes of a mesh."""
    args = [jnp.asarray(arg) for arg in args]
    sharding = jax.typeof(args[0]).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return over_axes(call)(*args)
    rows = _rows_of(call, sharding)
    in_specs, out_specs = _specs(call, rows)
    args = [
        jax.sharding.reshard(arg, NamedSharding(sharding.mesh, spec)) for arg, spec in zip(args, in_specs, strict=True)
    ]
    one = _joined(call, rows, over_axes(call, rows))
    return jax.shard_map(one, mesh=sharding.mesh, in_specs=tuple(in_specs), out_specs=out_specs)(*args)


def varying_alike(args) -> list:
    """The operands, within `shard_map`, all varying over every axis over which one of them does."""
    kinds = [jax.typeof(arg).manual_axis_type.varying for arg in args]
    missing = [tuple(frozenset().union(*kinds) - kind) for kind in kinds]
    return [jax.lax.pcast(arg, axes, to="varying") if axes else arg for arg, axes in zip(args, missing, strict=True)]


@cache
def over_axes(call: SplitCall, axes: tuple[str, ...] = ()) -> Callable:
    """The call under vmap; `axes`: those of a mesh over which samples are split already."""
    here = partial(call.alone, axes)
    if call.portable and axes:
        return here  # it needs no rule of its own
    one = here if axes else _partitioned(call)
    if call.portable:
        one = partial(jax.lax.platform_dependent, tpu=here, default=one)

    @jax.custom_batching.custom_vmap
    def run(*args):
        return one(*args)

    @run.def_vmap
    def over(size, batched, *args):
        found = call.several(axes, size, batched, args)
        return found, [True] * len(found)

    return run


def _partitioned(call: SplitCall) -> Callable:
    """The call as the partitioner of a program sees it: samples where they are, all else on every device."""

    @custom_partitioning
    def run(*args):
        return call.alone((), *args)

    def partition(mesh, operands, results):
        rows = _rows_of(call, operands[0].sharding)
        in_specs, out_specs = _specs(call, rows)
        places = [tuple(NamedSharding(mesh, spec) for spec in specs) for specs in (in_specs, out_specs)]
        return mesh, _joined(call, rows, partial(call.alone, rows)), list(places[1]), places[0]

    rule = f"{', '.join(call.operands)} -> {', '.join(out.axes for out in call.results)}"
    # In the order in which the rule names them, which is what the partitioner wants.
    named = (axes.split() for axes in (*call.operands, *(out.axes for out in call.results)))
    whole = tuple(axis for axis in dict.fromkeys(itertools.chain(*named)) if axis != "n" or not call.split)
    run.def_partition(partition, sharding_rule=rule, need_replication_factors=whole)
    return run


def _rows_of(call: SplitCall, sharding) -> tuple[str, ...]:
    """The axes of the mesh over which the samples of the first operand are split, none where they may not be."""
    at = call.operands[0].split().index("n")
    rows = sharding.spec[at] if call.split and len(sharding.spec) > at else None
    return () if rows is None else rows if isinstance(rows, tuple) else (rows,)


def _specs(call: SplitCall, rows: tuple[str, ...]) -> tuple[list, list]:
    """Shardings of operands and results whose samples are split over the axes `rows`."""

    def place(axes: str):
        return P(*(rows if rows and axis == "n" else None for axis in axes.split()))

    return [place(axes) for axes in call.operands], [place(result.axes) for result in call.results]


def _joined(call: SplitCall, rows: tuple[str, ...], one: Callable) -> Callable:
    """The call on one shard, and then with the others' results where all samples are summed."""
    join = {"sum": jax.lax.psum, "max": jax.lax.pmax, "": lambda part, axes: part}

    def run(*shards):
        parts = one(*shards)
        return [join[out.joined](part, rows) if rows else part for out, part in zip(call.results, parts, strict=True)]

    return run
