"""Points and their parts as arrays that fit one another, or an error that says what does not: the door of functions of a point."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.arrays import as_jax, data_array, is_concrete, look, real_array
from jaxdict.layouts import codes_like as codes_like
from jaxdict.layouts import codes_of_any_samples
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
    if n_atoms is None:
        n_atoms = _largest_index(codes.indices) + 1 if isinstance(codes, SparseCodes) else (np.shape(codes) or (0,))[-1]
    codes = codes_of_any_samples(codes, n_atoms)
    values = codes.values if isinstance(codes, SparseCodes) else codes
    return codes, weights_like(weights, values.shape[0], values.dtype, "the codes"), n_atoms


def check_activations_of(dictionary: Dictionary, codes: Codes, weights=None) -> tuple[Dictionary, Codes, Array | None]:
    """A dictionary and its codes without data, and the samples' weights, in one dtype."""
    values = real_array(codes.values if isinstance(codes, SparseCodes) else codes, "codes")
    dictionary = dictionary.alone(values)
    dtype = dictionary.atoms.dtype
    codes = codes_of_any_samples(codes, dictionary.atoms.shape[0], dtype)
    return dictionary, codes, weights_like(weights, values.shape[0], dtype, "the codes")


def check_pairs(i, j, n_atoms: int) -> tuple[Array, Array]:
    """The numbers of two features, or of many pairs: two integer arrays of one shape, or a ValueError.

    >>> check_pairs([0, 1], 2, 6)
    Traceback (most recent call last):
    ValueError: i has shape (2,) and j (); give pairs: two arrays of one shape
    """
    i, j = (check_feature(feature, n_atoms, name) for feature, name in ((i, "i"), (j, "j")))
    if i.shape != j.shape:
        raise ValueError(f"i has shape {i.shape} and j {j.shape}; give pairs: two arrays of one shape")
    return i, j


def array_like(array, name: str, like, what: str) -> Array:
    """An array in the dtype of another, or a ValueError where it is not of its shape.

    >>> array_like([1.0], "data", jnp.ones((2, 3)), "what changes")
    Traceback (most recent call last):
    ValueError: data has shape (1,) but what changes (2, 3); give one of that shape
    """
    given = real_array(array, name)
    if given.shape != like.shape:
        raise ValueError(f"{name} has shape {given.shape} but {what} {like.shape}; give one of that shape")
    return as_jax(given, like.dtype)


def weights_like(weights, n_samples: int, dtype, of: str = "the data", name: str = "weights") -> Array | None:
    """Weights of samples in a dtype, None where there are none, or a ValueError where they are not one a sample.

    >>> weights_like([[1.0], [2.0]], 2, "float32")
    Traceback (most recent call last):
    ValueError: weights has shape (2, 1) but the data 2 samples; give one weight for each sample
    """
    if weights is None:
        return None
    given = real_array(weights, name)
    if given.shape != (n_samples,):
        raise ValueError(
            f"{name} has shape {given.shape} but {of} {n_samples} samples; give one weight for each sample"
        )
    return as_jax(given, dtype)


def metric_like(metric, d: int, dtype) -> Array | None:
    """A metric in a dtype, None where there is none, or a ValueError where it is not one weight a feature.

    >>> metric_like([1.0], 3, "float32")
    Traceback (most recent call last):
    ValueError: metric has shape (1,) but the data 3 features; give one weight for each feature
    """
    if metric is None:
        return None
    given = real_array(metric, "metric")
    if given.shape != (d,):
        raise ValueError(f"metric has shape {given.shape} but the data {d} features; give one weight for each feature")
    return as_jax(given, dtype)


def _largest_index(indices) -> int:
    if not is_concrete(indices):
        raise ValueError("n_atoms is not given: under jit the width of sparse codes must be a Python integer")
    return int(look(lambda xp, at: xp.max(at, initial=0), real_array(indices, "indices")))
