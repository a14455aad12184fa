"""What is refused before any compute: each error says what is wrong, the value met and the remedy, in one line.

Checks that need values are skipped for traced arrays (`jit`, `vmap`, `grad`), where only shapes and dtypes are known.
"""

import hashlib
import warnings
from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes

# Distinct rows are counted over blocks of this many rows, so that data on a device is not copied whole.
ROWS_PER_BLOCK = 4096


def check_data(X, *, name: str = "X", wide: str = "warn") -> Float[Array, "samples d"]:
    """The data as a floating point array (samples, d), or a ValueError that says what is wrong with it.

    float16 and bfloat16 become float32; numpy's float64 becomes float32 unless x64 is enabled. Duplicate, zero and
    huge rows, constant columns and rank-deficient data are all fine. Fewer samples than features is legitimate but
    often means that the two were swapped: `wide` is "warn" (`UserWarning`), "error" or "allow".

    Raises ValueError for the wrong number of axes, no rows or no columns, integer, boolean, complex or object
    dtype, and NaN or infinity (with the first such row).

    >>> import numpy as np
    >>> check_data(np.ones((3, 2), np.float16)).dtype.name
    'float32'
    >>> check_data(np.array([[1.0], [np.nan]]))
    Traceback (most recent call last):
    ValueError: X has NaN or infinity in 1 of 2 rows, first in row 1; drop such rows: X[np.isfinite(X).all(axis=1)]
    """
    given = X if isinstance(X, jax.Array) else _as_numpy(X, name)
    if given.ndim != 2:
        remedy = f"; flatten to rows: {name}.reshape(-1, {given.shape[-1]})" if given.ndim > 2 else ""
        raise ValueError(f"{name} has shape {given.shape}; jaxdict wants (samples, features){remedy}")
    if 0 in given.shape:
        raise ValueError(f"{name} is empty: shape {given.shape}; give at least one sample and one feature")
    _check_floating(given.dtype, name)
    if given.shape[0] < given.shape[1] and wide != "allow":
        _object_to_wide(given.shape, name, wide)
    with np.errstate(over="ignore"):  # overflow is found, and named, with NaN and infinity
        X = jnp.asarray(given, jnp.float32) if jnp.finfo(given.dtype).bits < 32 else jnp.asarray(given)
    _check_finite(X, given, name)
    return X


def check_problem(problem: Problem, X: Float[Array, "samples d"], *, zero_codes: str = "error") -> None:
    """Raise ValueError if the problem does not fit the data, or has no meaningful optimum on it.

    A `lam` that is not a positive scalar; a metric or weights of the wrong length, NaN, or all zero. `zero_codes`
    says what to do with `lam >= lam_max(X)`, at which all codes are zero at the global optimum of every width:
    "error", or "allow" where codes for a given dictionary are asked for.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> check_problem(jd.Problem(lam=7.0, offset=False), jnp.array([[3.0, 4.0]]))
    Traceback (most recent call last):
    ValueError: lam=7 is too large: all codes would be zero, lam_max = 5; choose lam below
    """
    if jnp.ndim(problem.lam) != 0:
        raise ValueError(
            f"lam has shape {jnp.shape(problem.lam)}; give a scalar, or use fit_batch for several problems"
        )
    if problem.metric is not None and jnp.shape(problem.metric) != (X.shape[1],):
        shape = jnp.shape(problem.metric)
        raise ValueError(
            f"metric has shape {shape} but the data {X.shape[1]} features; give one weight for each feature"
        )
    if problem.weights is not None and jnp.shape(problem.weights) != (X.shape[0],):
        shape = jnp.shape(problem.weights)
        raise ValueError(
            f"weights has shape {shape} but the data {X.shape[0]} samples; give one weight for each sample"
        )
    for array, name in ((problem.metric, "metric"), (problem.weights, "weights")):
        if _is_concrete(array) and not bool(jnp.all(jnp.isfinite(array))):
            raise ValueError(f"{name} has NaN or infinity at index {_first_bad(array)}; give finite numbers")
    if _is_concrete(problem.weights) and not bool(jnp.any(problem.weights > 0)):
        raise ValueError("weights are all zero; give at least one sample a positive weight")
    _check_lam(problem, X, zero_codes)


def check_n_atoms(n_atoms: int, X: Float[Array, "samples d"]) -> int:
    """The number of atoms as an int, or a ValueError if it is not positive or exceeds the number of distinct samples.

    Beyond that number further atoms have nothing to do: one atom for each distinct sample reaches the optimum over
    all widths (theory.md T13).

    >>> import jax.numpy as jnp
    >>> check_n_atoms(3, jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    Traceback (most recent call last):
    ValueError: n_atoms=3 is more than the 2 distinct samples (of 3); use n_atoms <= 2
    """
    if isinstance(n_atoms, bool) or not hasattr(n_atoms, "__index__"):
        raise ValueError(f"n_atoms={n_atoms!r} is not a whole number; give a Python integer")
    n_atoms = int(n_atoms)
    if n_atoms < 1:
        raise ValueError(f"n_atoms={n_atoms} is not positive; give at least one atom")
    found = distinct_rows(X, at_most=n_atoms) if _is_concrete(X) else min(n_atoms, X.shape[0])
    if found < n_atoms:
        raise ValueError(
            f"n_atoms={n_atoms} is more than the {found} distinct samples (of {X.shape[0]}); use n_atoms <= {found}"
        )
    return n_atoms


def check_dictionary(dictionary: Dictionary, X: Float[Array, "samples d"]) -> Dictionary:
    """The dictionary in the data's dtype; ValueError if it does not fit, is not finite, or has a zero atom.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> check_dictionary(jd.Dictionary(jnp.eye(3)), jnp.ones((5, 2)))
    Traceback (most recent call last):
    ValueError: atoms have shape (3, 3) but the data 2 features; jaxdict wants (atoms, features), one atom a row
    """
    atoms = jnp.asarray(dictionary.atoms)
    if atoms.ndim != 2 or atoms.shape[1] != X.shape[1]:
        hint = ", was it transposed?" if atoms.ndim == 2 and atoms.shape[0] == X.shape[1] else ", one atom a row"
        raise ValueError(
            f"atoms have shape {atoms.shape} but the data {X.shape[1]} features; jaxdict wants (atoms, features){hint}"
        )
    if atoms.shape[0] == 0:
        raise ValueError(f"atoms have shape {atoms.shape}: the dictionary is empty; give at least one atom")
    offset = None if dictionary.offset is None else jnp.asarray(dictionary.offset)
    if offset is not None and offset.shape != (X.shape[1],):
        raise ValueError(
            f"offset has shape {offset.shape} but the data {X.shape[1]} features; give one number a feature"
        )
    for array, name in ((atoms, "atoms"), (offset, "offset")):
        if array is not None:
            _check_floating(array.dtype, name)
    with jax.ensure_compile_time_eval():  # a dictionary that a traced function closes over is known too
        _check_dictionary_values(atoms, offset)
    return Dictionary(atoms.astype(X.dtype), None if offset is None else offset.astype(X.dtype))


def _check_dictionary_values(atoms, offset):
    for array, name in ((atoms, "atoms"), (offset, "offset")):
        if _is_concrete(array) and not bool(jnp.all(jnp.isfinite(array))):
            raise ValueError(f"{name} has NaN or infinity in row {_first_bad(array)}; start from finite numbers")
    if _is_concrete(atoms):
        zero = np.flatnonzero(np.asarray(jnp.all(atoms == 0, axis=1)))
        if zero.size:
            raise ValueError(f"atom {zero[0]} is zero ({zero.size} such); the problem has no derivative there: drop it")


def check_codes(codes: Codes, dictionary: Dictionary, X: Float[Array, "samples d"], *, signed: bool = False) -> Codes:
    """The codes in the data's dtype; ValueError if they do not fit, are not finite, or are wrongly negative.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> check_codes(jnp.zeros((4, 3)), jd.Dictionary(jnp.eye(2)), jnp.ones((4, 2)))
    Traceback (most recent call last):
    ValueError: codes have shape (4, 3); this dictionary and these data want (samples, atoms) = (4, 2)
    """
    n_samples, n_atoms = X.shape[0], jnp.shape(dictionary.atoms)[0]
    if isinstance(codes, SparseCodes):
        indices, values = jnp.asarray(codes.indices), jnp.asarray(codes.values)
        _check_sparse(indices, values, n_samples, n_atoms)
    else:
        indices, values = None, jnp.asarray(codes)
        if values.shape != (n_samples, n_atoms):
            raise ValueError(
                f"codes have shape {values.shape}; this dictionary and these data want (samples, atoms) = "
                f"({n_samples}, {n_atoms})"
            )
    if _is_concrete(values):
        if not bool(jnp.all(jnp.isfinite(values))):
            raise ValueError(f"codes have NaN or infinity in row {_first_bad(values)}; give finite numbers")
        if not signed and bool(jnp.any(values < 0)):
            row = int(jnp.argmax(jnp.any(values < 0, axis=1)))
            raise ValueError(f"codes are negative, first in row {row}; clip them at zero, or use Problem(signed=True)")
    values = values.astype(X.dtype)
    return values if indices is None else SparseCodes(indices, values)


def distinct_rows(X, at_most: int | None = None) -> int:
    """The number of distinct rows, exactly, or `at_most` as soon as so many have been seen.

    >>> import numpy as np
    >>> distinct_rows(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 1.0]]))
    2
    """
    seen = set()
    for start in range(0, X.shape[0], ROWS_PER_BLOCK):
        block = np.asarray(X[start : start + ROWS_PER_BLOCK]) + 0  # -0 becomes 0, so that equal rows have equal bytes
        for row in block:
            # 16 bytes a row: two rows with one digest are not to be expected before 2^64 rows.
            seen.add(hashlib.blake2b(row.tobytes(), digest_size=16).digest())
            if at_most is not None and len(seen) >= at_most:
                return at_most
    return len(seen)


def _is_concrete(array) -> TypeGuard[Array]:
    """Whether values may be looked at: neither absent, nor traced, nor spread over other processes."""
    if array is None or isinstance(array, Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def _as_numpy(X, name):
    try:
        return np.asarray(X)
    except ValueError as error:  # ragged lists
        raise ValueError(f"{name} is not a rectangular array; jaxdict wants (samples, features)") from error


def _check_floating(dtype, name):
    if jnp.issubdtype(dtype, jnp.floating):
        return
    if jnp.issubdtype(dtype, jnp.complexfloating):
        remedy = "jaxdict works on real numbers: stack real and imaginary parts, or take the modulus"
    else:
        remedy = f"convert it if these are measurements: {name}.astype(np.float32)"
    raise ValueError(f"{name} has dtype {dtype}, not floating point; {remedy}")


def _object_to_wide(shape, name, wide):
    message = (
        f"{name} has {shape[0]} samples for {shape[1]} features; jaxdict wants (samples, features), was it transposed?"
    )
    if wide == "error":
        raise ValueError(f"{message} (allow_wide=True if it is meant so)")
    # 3: the line that called the function that called check_data.
    warnings.warn(message, UserWarning, stacklevel=4)


def _check_finite(X, given, name):
    if not _is_concrete(X) or bool(jnp.all(jnp.isfinite(X))):
        return
    bad = np.flatnonzero(np.asarray(~jnp.all(jnp.isfinite(X), axis=1)))
    if np.isfinite(np.asarray(given[bad[0]])).all():
        raise ValueError(
            f"{name} overflows {X.dtype.name} in {bad.size} of {X.shape[0]} rows, first in row {bad[0]}; enable x64 "
            "(jax.config.update('jax_enable_x64', True)) or rescale"
        )
    raise ValueError(
        f"{name} has NaN or infinity in {bad.size} of {X.shape[0]} rows, first in row {bad[0]}; "
        f"drop such rows: {name}[np.isfinite({name}).all(axis=1)]"
    )


def _first_bad(array) -> int:
    rows = np.asarray(~jnp.isfinite(array)).reshape(array.shape[0], -1)
    return int(np.flatnonzero(rows.any(axis=1))[0])


def _check_lam(problem, X, zero_codes):
    if not _is_concrete(problem.lam):
        return
    lam = float(problem.lam)
    if not lam > 0 or lam == float("inf"):
        raise ValueError(f"lam={lam:g} makes no sense here: sparsity needs a finite lam > 0, below lam_max(X)")
    if zero_codes == "error" and _is_concrete(X):
        largest = float(problem.lam_max(X))
        if lam >= largest:
            remedy = "choose lam below" if largest > 0 else "all samples are equal, so there is nothing to learn"
            raise ValueError(f"lam={lam:g} is too large: all codes would be zero, lam_max = {largest:.6g}; {remedy}")


def _check_sparse(indices, values, n_samples, n_atoms):
    if indices.ndim != 2 or indices.shape != values.shape or indices.shape[0] != n_samples:
        raise ValueError(
            f"sparse codes have indices {indices.shape} and values {values.shape}; both must be ({n_samples}, slots)"
        )
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"sparse codes have indices of dtype {indices.dtype}; give integers")
    if _is_concrete(indices) and indices.size and (int(indices.min()) < 0 or int(indices.max()) >= n_atoms):
        worst = int(indices.min()) if int(indices.min()) < 0 else int(indices.max())
        raise ValueError(f"sparse codes name atom {worst}, but the dictionary has {n_atoms}; indices run from 0")
