"""What is refused before any compute: each error says what is wrong, the value met and the remedy, in one line.

Checks that need values are skipped for traced arrays (`jit`, `vmap`, `grad`), where only shapes and dtypes are known.
"""

import hashlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.arrays import as_jax, floating_dtype, is_concrete, look, real_matrix
from jaxdict.points import check_point as check_point
from jaxdict.points import codes_like
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes

# Distinct rows are counted over blocks of this many rows, so that data on a device is not copied whole.
ROWS_PER_BLOCK = 4096


def check_data(X: Float[Array, "samples d"], *, name: str = "X", wide: str = "warn") -> Float[Array, "samples d"]:
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
    given = real_matrix(X, name)
    if given.shape[0] < given.shape[1] and wide != "allow":
        _object_to_wide(given.shape, name, wide)
    dtype = floating_dtype(given)
    with np.errstate(over="ignore"):  # overflow is found, and named, with NaN and infinity
        converted = given if isinstance(given, jax.Array) else given.astype(dtype, copy=False)
    _check_finite(converted, given, name)
    return as_jax(converted, dtype)


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
    problem.like(X)
    for array, name in ((problem.metric, "metric"), (problem.weights, "weights")):
        if is_concrete(array) and not _all_finite(array):
            raise ValueError(f"{name} has NaN or infinity at index {_first_bad(array)}; give finite numbers")
    if is_concrete(problem.weights) and not bool(look(lambda xp, w: xp.any(w > 0), problem.weights)):
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
    found = distinct_rows(X, at_most=n_atoms) if is_concrete(X) else min(n_atoms, X.shape[0])
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
    given = dictionary
    dictionary = given.like(X)
    for array, name in ((given.atoms, "atoms"), (given.offset, "offset")):
        if is_concrete(array) and not _all_finite(array):
            raise ValueError(f"{name} has NaN or infinity in row {_first_bad(array)}; start from finite numbers")
    if is_concrete(given.atoms):
        zero = np.flatnonzero(look(lambda xp, atoms: xp.all(atoms == 0, axis=1), given.atoms))
        if zero.size:
            raise ValueError(f"atom {zero[0]} is zero ({zero.size} such); the problem has no derivative there: drop it")
    return dictionary


def check_codes(codes: Codes, dictionary: Dictionary, X: Float[Array, "samples d"], *, signed: bool = False) -> Codes:
    """The codes in the data's dtype; ValueError if they do not fit, are not finite, or are wrongly negative.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> check_codes(jnp.zeros((4, 3)), jd.Dictionary(jnp.eye(2)), jnp.ones((4, 2)))
    Traceback (most recent call last):
    ValueError: codes have shape (4, 3); this dictionary and these data want (samples, atoms) = (4, 2)
    """
    codes = codes_like(codes, X.shape[0], jnp.shape(dictionary.atoms)[0], X.dtype)
    values = codes.values if isinstance(codes, SparseCodes) else codes
    if is_concrete(values):
        if not _all_finite(values):
            raise ValueError(f"codes have NaN or infinity in row {_first_bad(values)}; give finite numbers")
        if not signed and float(look(lambda xp, z: xp.min(z, initial=0), values)) < 0:
            row = int(look(lambda xp, z: xp.argmax(xp.any(z < 0, axis=1)), values))
            raise ValueError(f"codes are negative, first in row {row}; clip them at zero, or use Problem(signed=True)")
    return codes


def distinct_rows(X: Float[Array, "samples d"], at_most: int | None = None) -> int:
    """The number of distinct rows, exactly, or `at_most` as soon as so many have been seen.

    >>> import numpy as np
    >>> distinct_rows(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 1.0]]))
    2
    """
    seen = set()
    for start in range(0, X.shape[0], ROWS_PER_BLOCK):
        part = look(lambda xp, a, start=start: a[start : start + ROWS_PER_BLOCK], X)
        block = np.asarray(part) + 0  # -0 becomes 0, so that equal rows have equal bytes
        for row in block:
            # 16 bytes a row: two rows with one digest are not to be expected before 2^64 rows.
            seen.add(hashlib.blake2b(row.tobytes(), digest_size=16).digest())
            if at_most is not None and len(seen) >= at_most:
                return at_most
    return len(seen)


def _object_to_wide(shape, name, wide):
    message = (
        f"{name} has {shape[0]} samples for {shape[1]} features; jaxdict wants (samples, features), was it transposed?"
    )
    if wide == "error":
        raise ValueError(f"{message} (allow_wide=True if it is meant so)")
    # 3: the line that called the function that called check_data.
    warnings.warn(message, UserWarning, stacklevel=4)


def _all_finite(array) -> bool:
    return bool(look(lambda xp, a: xp.all(xp.isfinite(a)), array))


def _check_finite(X: Float[Any, "samples d"], given, name):
    if not is_concrete(X) or _all_finite(X):
        return
    bad = np.flatnonzero(look(lambda xp, a: ~xp.all(xp.isfinite(a), axis=1), X))
    if np.isfinite(np.asarray(look(lambda xp, a: a[bad[0]], given))).all():
        raise ValueError(
            f"{name} overflows {X.dtype.name} in {bad.size} of {X.shape[0]} rows, first in row {bad[0]}; enable x64 "
            "(jax.config.update('jax_enable_x64', True)) or rescale"
        )
    raise ValueError(
        f"{name} has NaN or infinity in {bad.size} of {X.shape[0]} rows, first in row {bad[0]}; "
        f"drop such rows: {name}[np.isfinite({name}).all(axis=1)]"
    )


def _first_bad(array) -> int:
    rows = look(lambda xp, a: ~xp.all(xp.isfinite(a).reshape(a.shape[0], -1), axis=1), array)
    return int(np.flatnonzero(rows)[0])


def _check_lam(problem, X: Float[Array, "samples d"], zero_codes):
    if not is_concrete(problem.lam):
        return
    lam = float(np.asarray(problem.lam))
    if not lam > 0 or lam == float("inf"):
        raise ValueError(f"lam={lam:g} makes no sense here: sparsity needs a finite lam > 0, below lam_max(X)")
    if zero_codes == "error" and all(map(is_concrete, jax.tree.leaves((problem, X)))):
        with jax.ensure_compile_time_eval():  # someone else's trace must not record it
            largest = problem.lam_max(X)
        if is_concrete(largest) and lam >= float(largest):
            remedy = "choose lam below" if largest > 0 else "all samples are equal, so there is nothing to learn"
            raise ValueError(
                f"lam={lam:g} is too large: all codes would be zero, lam_max = {float(largest):.6g}; {remedy}"
            )
