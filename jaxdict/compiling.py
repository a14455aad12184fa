"""Programs that jaxdict itself hands to a CPU's compiler, which is told to hurry: most of a first call's time is compiling.

Products go to libraries and codes to numba's kernels, whatever is told; of the rest LLVM's passes cost a first call more than they bring
it. A program within the caller's own (`jax.jit`, `vmap`) and one for another device are compiled as ever.
"""

import functools
import os
from collections.abc import Callable

import jax
from jax.core import Tracer, eval_context
from jax.extend.core import get_opaque_trace_state

Options = tuple[tuple[str, bool | int], ...]
NO_HURRY: Options = ()
# Loops by XLA's older emitters: as fast where measured, and about half as long to compile.
HURRY: Options = (("xla_cpu_use_fusion_emitters", False),)
# Also without LLVM's optimisation.
GREAT_HURRY: Options = (*HURRY, ("xla_backend_optimization_level", 0))
HURRIES = NO_HURRY, HURRY, GREAT_HURRY
# So many numbers in all operands are little.
LITTLE = 2**16
# Set in the environment to anything, it leaves the compiler as it is.
WITHOUT_HURRY = "JAXDICT_FULL_COMPILER"


def compiled_in_a_hurry(function: Callable, *, light: Callable[[], bool] = lambda: False, **options) -> Callable:
    """`jax.jit(function, **options)`; where it is a program of its own on a CPU, and data are little or `light()` holds, with `HURRY`.

    Where both, with `GREAT_HURRY`. Light is what runs once, or what kernels and libraries do most of.

    >>> import jax.numpy as jnp
    >>> double = compiled_in_a_hurry(lambda x: 2 * x)
    >>> float(double(jnp.ones(()))), float(jax.jit(double)(jnp.ones(())))
    (2.0, 2.0)
    """
    jitted = functools.cache(lambda hurry: jax.jit(function, **options, compiler_options=dict(hurry) or None))

    @functools.wraps(function)
    def run(*args, **kwargs):
        return jitted(_hurry_for(jax.tree.leaves((args, kwargs)), light))(*args, **kwargs)

    def clear_cache():
        for hurry in HURRIES:
            jitted(known(hurry)).clear_cache()  # type: ignore[attr-defined]

    run.clear_cache = clear_cache  # type: ignore[attr-defined]
    run._cache_size = lambda: sum(jitted(hurry)._cache_size() for hurry in {known(hurry) for hurry in HURRIES})  # type: ignore[attr-defined]
    return run


@functools.cache
def known(hurry: Options) -> Options:
    """Those options that this version's compiler takes: it is asked, each by a program of nothing."""

    def takes(option) -> bool:
        with eval_context():
            try:
                jax.jit(lambda x: x, compiler_options=dict([option])).lower(0.0).compile()
            except (RuntimeError, ValueError):  # jax's own errors are of the former's kind
                return False
        return True

    return tuple(option for option in hurry if takes(option))


def _hurry_for(leaves: list, light: Callable[[], bool]) -> Options:
    """What the compiler is told of a call with these operands: nothing, where it is no program of its own on this machine's CPU."""
    if os.environ.get(WITHOUT_HURRY) or jax.default_backend() != "cpu" or any(isinstance(v, Tracer) for v in leaves):
        return NO_HURRY
    placed = {device.platform for leaf in leaves if isinstance(leaf, jax.Array) for device in leaf.sharding.device_set}
    if placed - {"cpu"} or not _outside_traces():
        return NO_HURRY
    little = sum(getattr(leaf, "size", 1) for leaf in leaves) <= LITTLE
    return known(HURRIES[little + light()])


def _outside_traces() -> bool:
    """Whether no trace is under way: within one even a call of known arrays is a part of another program."""
    here = get_opaque_trace_state()
    with eval_context():
        return here == get_opaque_trace_state()
