"""Codes in their two layouts, dense and padded sparse: from one to the other, and the door that both come through."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxdict.arrays import as_jax, floating_dtype, is_concrete, look, real_array
from jaxdict.meshes import on_any_mesh


class SparseCodes(NamedTuple):
    """Padded sparse codes: row n is `sum_s values[n, s] e_{indices[n, s]}`. Padding has value 0 and any index in range."""

    indices: Int[Array, "samples slots"]
    values: Float[Array, "samples slots"]


Codes = Float[Array, "samples atoms"] | SparseCodes


def codes_like(codes: Codes, n_samples: int, n_atoms: int, dtype) -> Codes:
    """The codes as jax arrays of a dtype, or a ValueError where they are not (n_samples, n_atoms), or no such sparse codes.

    Concrete indices of sparse codes must lie in range. Traced ones cannot be looked at: one out of range names no atom,
    and is read as padding.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> codes_like(jd.SparseCodes(jnp.array([[7]]), jnp.ones((1, 1))), 1, 6, jnp.float32)
    Traceback (most recent call last):
    ValueError: sparse codes name atom 7, but the dictionary has 6; indices run from 0
    """
    if isinstance(codes, SparseCodes):
        return sparse_codes_like(codes, n_samples, n_atoms, dtype)
    values = real_array(codes, "codes")
    if values.shape != (n_samples, n_atoms):
        hint = "; were they transposed?" if values.shape == (n_atoms, n_samples) else ""
        raise ValueError(
            f"codes have shape {values.shape}; this dictionary and these data want (samples, atoms) = "
            f"({n_samples}, {n_atoms}){hint}"
        )
    return as_jax(values, dtype)


def sparse_codes_like(codes: SparseCodes, n_samples: int, n_atoms: int, dtype) -> SparseCodes:
    """`codes_like` of sparse codes."""
    indices, values = real_array(codes.indices, "indices"), real_array(codes.values, "values")
    if indices.ndim != 2 or indices.shape != values.shape or indices.shape[0] != n_samples:
        raise ValueError(
            f"sparse codes have indices {indices.shape} and values {values.shape}; both must be ({n_samples}, slots)"
        )
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"sparse codes have indices of dtype {indices.dtype}; give integers")
    if is_concrete(indices) and indices.size:
        ends = look(lambda xp, at: (xp.min(at), xp.max(at)), indices)
        least, most = int(ends[0]), int(ends[1])
        if least < 0 or most >= n_atoms:
            worst = least if least < 0 else most
            raise ValueError(f"sparse codes name atom {worst}, but the dictionary has {n_atoms}; indices run from 0")
        return SparseCodes(as_jax(indices, jnp.result_type(int)), as_jax(values, dtype))
    indices, values = jnp.asarray(indices, jnp.result_type(int)), jnp.asarray(values, dtype)
    named = (indices >= 0) & (indices < n_atoms)
    return SparseCodes(jnp.where(named, indices, 0), jnp.where(named, values, 0))


def codes_of_any_samples(codes: Codes, n_atoms: int, dtype=None) -> Codes:
    """`codes_like` of as many samples as there are, in their own dtype (at least float32) where none is given."""
    values = real_array(codes.values if isinstance(codes, SparseCodes) else codes, "codes")
    if values.ndim != 2:
        what = "slots" if isinstance(codes, SparseCodes) else "atoms"
        raise ValueError(f"codes have shape {values.shape}; jaxdict wants (samples, {what})")
    return codes_like(codes, values.shape[0], n_atoms, floating_dtype(values) if dtype is None else dtype)


def dense_codes(codes: Codes, n_atoms: int) -> Float[Array, "samples atoms"]:
    """Codes as a dense (samples, atoms) array.

    >>> import jax.numpy as jnp
    >>> dense_codes(SparseCodes(jnp.array([[2, 0]]), jnp.array([[5.0, 0.0]])), 3).tolist()
    [[0.0, 0.0, 5.0]]
    """
    codes = codes_of_any_samples(codes, n_atoms)
    return _filled(n_atoms, codes) if isinstance(codes, SparseCodes) else codes


def _into_zeros(n_atoms: int, codes: SparseCodes):
    zeros = jnp.zeros((codes.values.shape[0], n_atoms), codes.values.dtype)
    return zeros.at[jnp.arange(zeros.shape[0])[:, None], codes.indices].add(codes.values, mode="drop")


_filled = on_any_mesh(_into_zeros, out=lambda rows: P(rows, None))


def sparse_codes(codes: Codes, slots: int | None = None) -> SparseCodes:
    """Codes as `SparseCodes`, the `slots` largest magnitudes of each row (default: as many as the fullest row needs).

    Under jit `slots` must be given. Raises ValueError if a concrete row has more non-zeros than slots.

    >>> import jax.numpy as jnp
    >>> sparse_codes(jnp.array([[0.0, 3.0, 0.0], [1.0, 0.0, 2.0]])).values.tolist()
    [[3.0, 0.0], [2.0, 1.0]]
    """
    if isinstance(codes, SparseCodes):
        return codes
    Z: Any = codes_of_any_samples(codes, (np.shape(codes) or (0,))[-1])
    if is_concrete(Z):
        fullest = int(look(lambda xp, Z: xp.max(xp.sum(Z != 0, axis=1), initial=0), Z))
        if slots is not None and fullest > slots:
            raise ValueError(f"slots={slots} is too small: a row has {fullest} non-zero codes; give slots >= {fullest}")
        slots = max(1, fullest) if slots is None else slots
    if slots is None:
        raise ValueError("slots is not given: under jit the number of slots must be a Python integer")
    _, indices = jax.lax.top_k(jnp.abs(Z), min(slots, Z.shape[1]))
    return SparseCodes(indices, jnp.take_along_axis(Z, indices, axis=1))
