"""Numba kernels as typed XLA FFI targets: in a running program there is no Python in the call, no callback and no lock.

A target is compiled, or loaded from disk, and registered when the first program that calls it is traced. Samples may have leading axes
(vmap) and may be sharded: each device then solves its own.
"""

import ctypes
import importlib
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdict.encoding.split_calls import Result as Result
from jaxdict.encoding.split_calls import over_axes, over_shards, varying_alike

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


@dataclass(frozen=True)
class Call:
    """A call of a target (`split_calls.SplitCall`): axes of operands and results, and its settings.

    `sizes` are those of axes that no operand has. Where samples may be split each shard of them is a call of its own.
    """

    target: str
    operands: tuple[str, ...]
    results: tuple[Result, ...]
    settings: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...] = ()
    split: bool = True
    portable: bool = False

    def alone(self, axes: tuple[str, ...], *args) -> list:
        """One call, of the samples at hand."""
        sizes = dict(self.sizes)
        for words, arg in zip(self.operands, args, strict=True):
            sizes.update(zip(words.split(), arg.shape, strict=True))
        args = varying_alike(args)
        mesh, manual = jax.typeof(args[0]).sharding.mesh, jax.typeof(args[0]).manual_axis_type
        known = {} if mesh.empty else {"sharding": NamedSharding(mesh, P()), "manual_axis_type": manual}
        shapes = [tuple(sizes[axis] for axis in out.axes.split()) for out in self.results]
        forms = [
            jax.ShapeDtypeStruct(s, jnp.dtype(o.dtype), **known) for s, o in zip(shapes, self.results, strict=True)
        ]
        run = jax.ffi.ffi_call(register(self.target), forms, vmap_method="sequential")
        return list(run(*args, settings=np.array(self.settings, np.int32)))

    def several(self, axes: tuple[str, ...], size: int, batched: list[bool], args) -> list:
        """One call where samples alone have further axes, else one after another."""
        run, by_row = over_axes(self, axes), [words.startswith("n") for words in self.operands]
        if all(out.axes.startswith("n") for out in self.results) and all(
            row or not several for row, several in zip(by_row, batched, strict=True)
        ):
            rows = zip(args, by_row, batched, strict=True)
            merged = [_merge(arg, size, several) if row else arg for arg, row, several in rows]
            return [part.reshape(size, -1, *part.shape[1:]) for part in run(*merged)]
        some = [arg for arg, several in zip(args, batched, strict=True) if several]

        def one(some):
            rest = iter(some)
            return run(*(next(rest) if several else arg for arg, several in zip(args, batched, strict=True)))

        return jax.lax.map(one, some)


def call(spec: Call, *args) -> list:
    """The results of a target, as `split_calls.over_shards` gives them."""
    register(spec.target)
    return over_shards(spec, *args)


def _merge(arg, size, several):
    arg = arg if several else jnp.broadcast_to(arg, (size, *arg.shape))
    return arg.reshape(-1, *arg.shape[2:])
