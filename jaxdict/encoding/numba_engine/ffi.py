"""Numba kernels as typed XLA FFI targets: in a running program there is no Python in the call, no callback and no lock.

A target is compiled, or loaded from disk, and registered when the first program that calls it is traced. Samples may have leading axes
(vmap) and may be sharded: each device then solves its own.
"""

import ctypes
import importlib
import itertools
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_registered: dict[str, Any] = {}
_lock = threading.RLock()


@cache
def kernels() -> Any:
    """The module of numba kernels, or None where numba is missing or does not work."""
    try:  # by name, since numba is an optional extra and takes half a second to import
        return importlib.import_module("jaxdict.encoding.numba_engine.kernels.targets")
    except ImportError:
        return None


def require_kernels():
    """Raises ImportError, with the remedy, where the kernels are missing."""
    if kernels() is None:
        raise ImportError('method="numba" needs numba, which is not installed here: pip install "jaxdict[fast]"')


def register(name: str) -> str:
    """Have a target compiled and known to XLA, once; its name there."""
    known = f"jaxdict_{name}"
    with _lock:
        if name not in _registered:
            compiled = kernels().compiled(name)
            capsule = ctypes.pythonapi.PyCapsule_New
            capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
            jax.ffi.register_ffi_target(known, capsule(compiled.address, None, None), platform="cpu", api_version=1)
            _registered[name] = compiled
    return known


class Result(NamedTuple):
    """One result of a call: its axes, its dtype, and how the results of shards of samples become one: "sum", "max", or side by side."""

    axes: str
    dtype: str
    joined: str = ""


class Call(NamedTuple):
    """A call of a target: axes of operands and results, as words of a rule ("n d": samples by dimensions), and its settings.

    `sizes` are those of axes that no operand has. Where samples may be split each shard of them is a call of its own.
    """

    target: str
    operands: tuple[str, ...]
    results: tuple[Result, ...]
    settings: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...] = ()
    split: bool = True


def call(spec: Call, *args) -> list:
    """The results of a target: works under jit and vmap, in shard_map, and with samples sharded over Auto or Explicit axes of a mesh."""
    register(spec.target)
    args = [jnp.asarray(arg) for arg in args]
    mesh = jax.typeof(args[0]).sharding.mesh
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return _over_axes(spec)(*args)
    rows = jax.typeof(args[0]).sharding.spec[0] if spec.split else None
    in_specs, out_specs = _specs(spec, rows)
    args = [jax.sharding.reshard(arg, NamedSharding(mesh, axes)) for arg, axes in zip(args, in_specs, strict=True)]
    return jax.shard_map(
        _joined(spec, rows, _over_axes(spec)), mesh=mesh, in_specs=tuple(in_specs), out_specs=out_specs
    )(*args)


def _specs(spec: Call, rows) -> tuple[list, list]:
    """Shardings of operands and results whose samples are split over the axes `rows`."""
    place = lambda axes: P(rows if "n" in axes.split() else None) if axes else P()  # noqa: E731
    return [place(axes) for axes in spec.operands], [place(result.axes) for result in spec.results]


def _joined(spec: Call, rows, solve) -> Callable:
    """The call on one shard, and then with the others' results where all samples are summed."""
    join = {"sum": jax.lax.psum, "max": jax.lax.pmax, "": lambda part, axes: part}

    def run(*shards):
        parts = solve(*shards)
        return [join[out.joined](part, rows) if rows else part for out, part in zip(spec.results, parts, strict=True)]

    return run


def _on_one_device(spec: Call, *args) -> list:
    sizes = dict(spec.sizes)
    for axes, arg in zip(spec.operands, args, strict=True):
        sizes.update(zip(axes.split(), arg.shape, strict=True))
    kinds = [jax.typeof(arg) for arg in args]
    varying = frozenset().union(*(kind.manual_axis_type.varying for kind in kinds))
    args = [_varying(arg, varying) for arg in args]
    mesh, manual = kinds[0].sharding.mesh, jax.typeof(args[0]).manual_axis_type
    known = {} if mesh.empty else {"sharding": NamedSharding(mesh, P()), "manual_axis_type": manual}
    shapes = [tuple(sizes[axis] for axis in out.axes.split()) for out in spec.results]
    forms = [jax.ShapeDtypeStruct(s, jnp.dtype(o.dtype), **known) for s, o in zip(shapes, spec.results, strict=True)]
    run = jax.ffi.ffi_call(register(spec.target), forms, vmap_method="sequential")
    return list(run(*args, settings=np.array(spec.settings, np.int32)))


def _varying(arg, axes):
    missing = tuple(axes - jax.typeof(arg).manual_axis_type.varying)
    return jax.lax.pcast(arg, missing, to="varying") if missing else arg


def _partitioned(spec: Call) -> Callable:
    """The call as the partitioner of a program sees it: samples where they are, all else on every device."""

    @custom_partitioning
    def run(*args):
        return _on_one_device(spec, *args)

    def partition(mesh, operands, results):
        rows = operands[0].sharding.spec[0] if spec.split and len(operands[0].sharding.spec) else None
        in_specs, out_specs = _specs(spec, rows)
        sharded = partial(NamedSharding, mesh)
        return (
            mesh,
            _joined(spec, rows, partial(_on_one_device, spec)),
            [sharded(s) for s in out_specs],
            tuple(sharded(s) for s in in_specs),
        )

    rule = f"{', '.join(spec.operands)} -> {', '.join(out.axes for out in spec.results)}"
    # In the order in which the rule names them, which is what the partitioner wants.
    named = (axes.split() for axes in (*spec.operands, *(out.axes for out in spec.results)))
    whole = tuple(axis for axis in dict.fromkeys(itertools.chain(*named)) if axis != "n" or not spec.split)
    run.def_partition(partition, sharding_rule=rule, need_replication_factors=whole)
    return run


@cache
def _over_axes(spec: Call) -> Callable:
    """The call under vmap: one where samples alone have further axes, else one after another."""
    partitioned = _partitioned(spec)
    by_row = [axes.startswith("n") for axes in spec.operands]

    @jax.custom_batching.custom_vmap
    def run(*args):
        return partitioned(*args)

    @run.def_vmap
    def over(size, batched, *args):
        if all(out.axes.startswith("n") for out in spec.results) and all(
            row or not several for row, several in zip(by_row, batched, strict=True)
        ):
            merged = [
                _merge(arg, size, several) if row else arg
                for arg, row, several in zip(args, by_row, batched, strict=True)
            ]
            found = [part.reshape(size, -1, *part.shape[1:]) for part in run(*merged)]
        else:
            some = [arg for arg, several in zip(args, batched, strict=True) if several]

            def one(some):
                rest = iter(some)
                return run(*(next(rest) if several else arg for arg, several in zip(args, batched, strict=True)))

            found = jax.lax.map(one, some)
        return found, [True] * len(found)

    return run


def _merge(arg, size, several):
    arg = arg if several else jnp.broadcast_to(arg, (size, *arg.shape))
    return arg.reshape(-1, *arg.shape[2:])
