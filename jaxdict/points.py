"""Points and their parts as arrays that fit one another, or an error that says what does not: the door of functions of a point."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.arrays import as_jax, data_array, floating_dtype, is_concrete, look, real_array
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes


def check_point(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]
) -> tuple[Problem, Dictionary, Codes, Float[Array, "samples d"]]:
    """The four in one dtype, the data's (at least float32), or a ValueError where kinds or shapes do not fit.

    The door of every function of a point. NaN, and codes negative where they may not be, pass: what is measured at
    such a point says so. Data and atoms are floating point; integer codes are converted.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> check_point(jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(2)), jnp.zeros((4, 1)), jnp.ones((3, 2)))
    Traceback (most recent call last):
    ValueError: codes have shape (4, 1); this dictionary and these data want (samples, atoms) = (3, 2)
    """
    X = data_array(X)
    dictionary = dictionary.like(X)
    return problem.like(X), dictionary, codes_like(codes, X.shape[0], dictionary.atoms.shape[0], X.dtype), X


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


def check_feature(feature, n_atoms: int, name: str = "feature") -> Array:
    """The number of a feature, or an array of them, or a ValueError where a known one is out of range.

    Traced numbers cannot be looked at: they are clipped into range.

    >>> check_feature(99, 6)
    Traceback (most recent call last):
    ValueError: feature=99 names no feature: there are 6, numbered from 0
    """
    given = real_array(feature, name)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(
            f"{name} has dtype {given.dtype}; give the number of a feature, an integer from 0 to {n_atoms - 1}"
        )
    if is_concrete(given) and given.size:
        numbers = np.asarray(given).ravel()
        wrong = numbers[(numbers < 0) | (numbers >= n_atoms)]
        if wrong.size:
            raise ValueError(f"{name}={wrong[0]} names no feature: there are {n_atoms}, numbered from 0")
    return jnp.clip(as_jax(given, jnp.result_type(int)), 0, n_atoms - 1)


def check_activations(codes: Codes, n_atoms: int | None = None, weights=None) -> tuple[Codes, Array | None, int]:
    """Codes that come without data, the samples' weights in their dtype, and how many atoms they speak of.

    That number is read off concrete sparse codes (the largest index used) where it is not given.

    >>> import jax.numpy as jnp
    >>> check_activations(jnp.ones(3))
    Traceback (most recent call last):
    ValueError: codes have shape (3,); jaxdict wants (samples, atoms)
    """
    sparse = isinstance(codes, SparseCodes)
    values = real_array(codes.values if sparse else codes, "codes")
    if values.ndim != 2:
        raise ValueError(f"codes have shape {values.shape}; jaxdict wants (samples, {'slots' if sparse else 'atoms'})")
    if n_atoms is None:
        n_atoms = _largest_index(codes.indices) + 1 if sparse else values.shape[1]
    dtype = floating_dtype(values)
    if weights is not None:
        weights = real_array(weights, "weights")
        if weights.shape != values.shape[:1]:
            raise ValueError(
                f"weights has shape {weights.shape} but the codes {values.shape[0]} samples; give one weight for each sample"
            )
        weights = as_jax(weights, dtype)
    return codes_like(codes, values.shape[0], n_atoms, dtype), weights, n_atoms  # type: ignore


def check_activations_of(dictionary: Dictionary, codes: Codes, weights=None) -> tuple[Dictionary, Codes, Array | None]:
    """A dictionary and its codes without data, and the samples' weights, in one dtype."""
    atoms = real_array(dictionary.atoms, "atoms", integers=False)
    if atoms.ndim != 2:
        raise ValueError(f"atoms have shape {atoms.shape}; jaxdict wants (atoms, features), one atom a row")
    codes, weights, _ = check_activations(codes, atoms.shape[0], weights)
    values = codes.values if isinstance(codes, SparseCodes) else codes
    dtype = floating_dtype(atoms, values)
    dictionary = dictionary.like(jax.ShapeDtypeStruct((1, atoms.shape[1]), dtype))  # pyright: ignore[reportArgumentType]
    codes = (
        SparseCodes(codes.indices, as_jax(values, dtype)) if isinstance(codes, SparseCodes) else as_jax(values, dtype)
    )
    return dictionary, codes, None if weights is None else as_jax(weights, dtype)


def _largest_index(indices) -> int:
    if not is_concrete(indices):
        raise ValueError("n_atoms is not given: under jit the width of sparse codes must be a Python integer")
    return int(look(lambda xp, at: xp.max(at, initial=0), real_array(indices, "indices")))
