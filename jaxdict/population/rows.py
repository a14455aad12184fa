"""Fresh rows: taken in chunks, each with its weights and its exact codes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdict.encoding.exact import encode
from jaxdict.problem import Codes, Dictionary, Problem
from jaxdict.validation import check_codes, check_data, check_dictionary, check_problem

# Rows are taken in chunks of about this many entries (rows, atoms), so that data larger than memory can be given as a memory map.
CHUNK_ENTRIES = 2**24


def chunks(problem: Problem, dictionary: Dictionary, X: Float[Any, "samples d"], codes):
    """(problem with the chunk's weights, checked rows, the chunk's codes) over X; whole where it is a JAX array or being traced."""
    n, size = X.shape[0], max(1, CHUNK_ENTRIES // max(1, np.shape(dictionary.atoms)[0]))
    if isinstance(X, jax.Array) or n <= size:
        rows = check_data(X if isinstance(X, jax.Array) else X[:], wide="allow")
        check_dictionary(dictionary, rows)
        check_problem(problem, rows, zero_codes="allow")
        yield problem, rows, None if codes is None else check_codes(codes, dictionary, rows, signed=problem.signed)
        return
    for start in range(0, n, size):
        part = slice(start, start + size)
        rows = check_data(X[part], wide="allow")
        own = None if codes is None else jax.tree.map(lambda leaf: leaf[part], codes)  # noqa: B023
        own = own if own is None else check_codes(own, dictionary, rows, signed=problem.signed)
        here = subset(problem, part)
        check_problem(here, rows, zero_codes="allow")
        yield here, rows, own


def subset(problem: Problem, rows) -> Problem:
    """The problem with the weights of some rows, a slice or a mask."""
    weights = None if problem.weights is None else problem.weights[rows]
    return Problem(problem.lam, problem.offset, problem.signed, problem.gauge, problem.metric, weights)


def known(codes) -> bool:
    """Whether no part of the codes is traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(codes))


def exact_codes_of(problem, dictionary, X: Float[Array, "samples d"]) -> Codes:
    """Exact codes of fresh rows, whose weights have no part in them."""
    unweighted = Problem(problem.lam, problem.offset, problem.signed, problem.gauge, problem.metric)
    tol = 1e-10 if X.dtype == jnp.float64 else 1e-6
    return encode(unweighted, check_dictionary(dictionary, X), X, tol=tol).codes


def row_weights(problem: Problem, X: Float[Array, "samples d"]):
    """Weights as they were given, ones where there are none: T17's sums are not scaled to mean one."""
    return jnp.ones_like(X[:, 0]) if problem.weights is None else jnp.asarray(problem.weights, X.dtype)
