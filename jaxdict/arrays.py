"""What may be taken for an array of real numbers, and how its values are looked at without disturbing a trace.

Under `jit`, `scan` or `vmap` even operations on known arrays are traced, so checks must not ask `jax.numpy` in the usual way:
what lies in the host's memory is looked at with numpy, what lies on devices where it is, outside the trace.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float


def is_concrete(array) -> TypeGuard[Array]:
    """Whether values may be looked at: neither absent, nor traced, nor spread over other processes."""
    if array is None or isinstance(array, Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def look(measure: Callable, *arrays) -> Any:
    """`measure(xp, *arrays)` of concrete arrays with numpy for xp, or with jax.numpy, on their devices and outside any trace.

    >>> import jax, jax.numpy as jnp
    >>> known = jnp.array([1.0, 2.0])
    >>> jax.jit(lambda x: x + bool(look(lambda xp, a: xp.all(a > 0), known)))(1.0).item()
    2.0
    """
    if all(_on_host(array) for array in arrays):
        return measure(np, *(np.asarray(array) for array in arrays))
    with jax.ensure_compile_time_eval():
        return measure(jnp, *arrays)


def real_array(array, name: str, *, integers: bool = True):
    """A jax or numpy array of real numbers in the machine's byte order, or a ValueError that says what was given.

    Lists and scalars become numpy arrays, numpy's longdouble becomes float64. Integers are refused where `integers` is
    false: as data they are more often an accident than meant.

    >>> import numpy as np
    >>> real_array(np.array([1.5], ">f4"), "X").dtype.isnative
    True
    >>> real_array(np.array(["a"]), "X")
    Traceback (most recent call last):
    ValueError: X has dtype <U1, not floating point; convert it if these are measurements: X.astype(np.float32)
    """
    if isinstance(array, (list, tuple)) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(array)):
        array = jnp.asarray(array)
    if not isinstance(array, jax.Array):
        array = _numpy_array(array, name)
    if jnp.issubdtype(array.dtype, jnp.floating) or (integers and jnp.issubdtype(array.dtype, jnp.integer)):
        return array
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        remedy = "jaxdict works on real numbers: stack real and imaginary parts, or take the modulus"
    else:
        remedy = f"convert it if these are measurements: {name}.astype(np.float32)"
    raise ValueError(f"{name} has dtype {array.dtype}, not floating point; {remedy}")


def real_matrix(X: Float[Array, "samples d"], name: str = "X"):
    """Data as `real_array`, which must be (samples, features), floating, with at least one of each.

    >>> import numpy as np
    >>> real_matrix(np.ones((2, 3, 4)))
    Traceback (most recent call last):
    ValueError: X has shape (2, 3, 4); jaxdict wants (samples, features); flatten to rows: X.reshape(-1, 4)
    """
    given = real_array(X, name, integers=False)
    if given.ndim != 2:
        remedy = f"; flatten to rows: {name}.reshape(-1, {given.shape[-1]})" if given.ndim > 2 else ""
        raise ValueError(f"{name} has shape {given.shape}; jaxdict wants (samples, features){remedy}")
    if 0 in given.shape:
        raise ValueError(f"{name} is empty: shape {given.shape}; give at least one sample and one feature")
    return given


def data_array(X: Float[Array, "samples d"], name: str = "X") -> Array:
    """Data as `real_matrix`, in the dtype that jaxdict computes in: at least float32, float64 only where jax has it."""
    given = real_matrix(X, name)
    return as_jax(given, floating_dtype(given))


def floating_dtype(*arrays) -> Any:
    """The dtype to compute in: the widest of the floating arrays, at least float32; jax's default where all are integers.

    >>> import jax.numpy as jnp
    >>> floating_dtype(jnp.ones(2, jnp.bfloat16), jnp.ones(2, int)).name
    'float32'
    """
    kinds = [array.dtype for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
    if not kinds:
        return jnp.result_type(float)
    widest = max(kinds, key=lambda kind: jnp.finfo(kind).bits)
    return jnp.result_type(float) if jnp.finfo(widest).bits == 64 else jnp.dtype(jnp.float32)


def as_jax(array, dtype) -> Array:
    """The array as jax's, of this dtype. A known one stays known under a trace, so that later checks still see it."""
    if isinstance(array, jax.Array) and array.dtype == dtype and not array.aval.weak_type:
        return array
    if not is_concrete(array):
        return jnp.asarray(array, dtype)
    with jax.ensure_compile_time_eval(), np.errstate(over="ignore"):
        return jnp.asarray(array, dtype)


def _numpy_array(array, name) -> np.ndarray:
    try:
        array = np.asarray(array)
    except ValueError as error:  # ragged lists
        raise ValueError(f"{name} is not a rectangular array; jaxdict wants numbers in rows of one length") from error
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _on_host(array) -> bool:
    """Whether numpy can look at the array without a copy between devices."""
    if not isinstance(array, jax.Array):
        return True
    return len(array.sharding.device_set) == 1 and next(iter(array.sharding.device_set)).platform == "cpu"
