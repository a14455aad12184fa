"""Exact codes of a chunk of rows and the sums over them that every step is made of: float64 on the host, no (samples, atoms) array kept.

Codes are solved on JAX's device; their sums are products with a sparse matrix, `n L0 d` operations where dense ones would
take `n K d`.
"""

from typing import NamedTuple

import jax
import numpy as np
import scipy.sparse as sp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from jaxdict.certificates.stationarity import from_moments
from jaxdict.encoding.exact import encode
from jaxdict.objectives import Moments
from jaxdict.problem import Dictionary, Problem, SparseCodes
from jaxdict.validation import check_data

# Entries of a chunk's largest array, (chunk, atoms) or (chunk, d) in float64, and the most rows of a chunk.
CHUNK_ENTRIES, MOST_ROWS = 2**24, 8192


class Sums(NamedTuple):
    """Sums over rows, float64: those of chunks add up by `plus`. Unit atoms."""

    weight: Float[np.ndarray, ""]  # sum w
    codes: Float[np.ndarray, " atoms"]  # sum w |z_k|
    squares: Float[np.ndarray, " atoms"]  # sum w z_k^2
    cross: Float[np.ndarray, "atoms d"]  # sum w z_k m r
    residual: Float[np.ndarray, " d"]  # sum w m r
    objective: Float[np.ndarray, ""]  # sum w (1/2 ||r||_m^2 + lam sum_k |z_k|)


class Chunk(NamedTuple):
    """A chunk's codes, as a sparse matrix, with its weighted residuals and its objective by row."""

    codes: sp.csr_matrix
    pulls: Float[np.ndarray, "samples d"]  # m r
    values: Float[np.ndarray, " samples"]


def chunk_rows(problem: Problem, n_atoms: int, d: int) -> int:
    """Rows of a chunk, so that its arrays stay below about 128 MiB each."""
    plain = n_atoms * (2 if problem.signed else 1)
    return max(64, min(MOST_ROWS, CHUNK_ENTRIES // max(plain, 8 * d)))


def code_tol(dtype) -> float:
    """Relative duality gap of codes where nothing else is asked for: rounding with some room."""
    return float(np.finfo(dtype).eps ** 0.75)


def solve_chunk(problem: Problem, dictionary: Dictionary, rows, tol: float, warm: SparseCodes | None = None) -> Chunk:
    """Exact codes of rows, and what they leave over; `values` are those of unit atoms."""
    rows = np.asarray(rows)
    unweighted = Problem(problem.lam, problem.offset, problem.signed, problem.gauge, problem.metric)
    targets, start = _placed(rows), None if warm is None else SparseCodes(*map(_placed, warm))
    found = encode(unweighted, dictionary, targets, tol=tol, codes=start, sparse=True)
    atoms, offset = (np.asarray(part, float) for part in dictionary)
    codes = as_matrix(SparseCodes(*(part[: len(rows)] for part in found.codes)), len(atoms))
    left = rows - offset
    left -= codes @ atoms
    pulls = left if problem.metric is None else np.asarray(problem.metric, float) * left
    values = 0.5 * np.einsum("nd,nd->n", left, pulls) + float(problem.lam) * np.asarray(abs(codes).sum(axis=1)).ravel()
    return Chunk(codes, pulls, values)


def _placed(rows) -> jax.Array:
    """Rows on the devices of this process, as many on each; rows of zeros fill the last."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return jax.numpy.asarray(rows)
    filled = np.pad(np.asarray(rows), [(0, -len(rows) % len(devices)), (0, 0)])
    return jax.device_put(filled, NamedSharding(Mesh(np.array(devices), ("rows",)), PartitionSpec("rows")))


def sums_of(chunk: Chunk, weights=None) -> Sums:
    """The sums of a chunk."""
    w = np.ones(len(chunk.values)) if weights is None else np.asarray(weights, float)
    weighted = chunk.codes if weights is None else sp.diags(w) @ chunk.codes
    by_atom = np.asarray(abs(weighted).sum(axis=0)).ravel(), np.asarray(chunk.codes.power(2).T @ w).ravel()
    return Sums(np.asarray(np.sum(w)), *by_atom, weighted.T @ chunk.pulls, w @ chunk.pulls, w @ chunk.values)


def no_sums(n_atoms: int, d: int) -> Sums:
    """Sums over no rows."""
    return Sums(*(np.zeros(shape) for shape in ((), n_atoms, n_atoms, (n_atoms, d), d, ())))


def plus(first: Sums, second: Sums) -> Sums:
    """Sums over the rows of both."""
    return Sums(*(a + b for a, b in zip(first, second, strict=True)))


def moments_of(sums: Sums) -> Moments:
    """Means in the place of sums; the codes' defect is left at zero, their gap being known where they were solved."""
    total = sums.weight if sums.weight > 0 else 1.0
    codes, squares, cross, residual, objective = (part / total for part in sums[1:])
    return Moments(codes, squares, cross, residual, np.zeros(()), objective, None, None, None)  # type: ignore[arg-type]


def stationarity_of(problem: Problem, dictionary: Dictionary, sums: Sums) -> float:
    """The worst of T1's atoms and offset lines."""
    constrained = Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric)
    moments = jax.tree.map(lambda part: jax.numpy.asarray(part, dictionary.atoms.dtype), moments_of(sums))
    return float(from_moments(constrained, dictionary, moments).worst)


def checked(rows, at: int) -> np.ndarray:
    """Rows as float32 or float64, finite; the error names the first of them."""
    return np.asarray(check_data(rows, name=f"the source from row {at} on", wide="allow"))


def padded(counts, indices, values, width: int) -> SparseCodes:
    """Padded sparse codes from those of one row after another; NumPy arrays."""
    filled = np.arange(width) < counts[:, None]
    own_indices, own_values = np.zeros(filled.shape, np.int32), np.zeros(filled.shape, values.dtype)
    own_indices[filled], own_values[filled] = indices, values
    return SparseCodes(own_indices, own_values)  # type: ignore[arg-type]


def as_matrix(codes: SparseCodes, n_atoms: int) -> sp.csr_matrix:
    """Sparse codes as a sparse matrix (rows, atoms), float64."""
    indices, values = np.asarray(codes.indices), np.asarray(codes.values, float)
    used = values != 0
    ends = np.concatenate([[0], np.cumsum(np.sum(used, axis=1))])
    return sp.csr_matrix((values[used], indices[used].astype(np.int32), ends), shape=(len(values), n_atoms))
