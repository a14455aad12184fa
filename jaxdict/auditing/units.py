"""Independent units of a pass, rows or documents, and what they leave to a mean: T17's second sum."""

import itertools
from typing import Any

import numpy as np
import scipy.sparse


def ends_of(groups: np.ndarray | None) -> np.ndarray | None:
    """Where documents end, the number of rows last; None where there are none, or one comes in several places.

    >>> ends_of(np.array(["a", "a", "b"])).tolist(), ends_of(np.array(["a", "b", "a"]))
    ([2, 3], None)
    """
    if groups is None:
        return None
    ends = np.append(np.flatnonzero(groups[1:] != groups[:-1]) + 1, len(groups))
    return ends if len(ends) == len(np.unique(groups)) else None


def chunk_end(start: int, size: int, n_rows: int, ends: np.ndarray | None) -> int:
    """Where a chunk of at most `size` rows ends: with a document, unless that leaves half of it empty.

    >>> ends = np.array([3, 7, 20])
    >>> chunk_end(0, 8, 20, ends), chunk_end(7, 8, 20, ends), chunk_end(7, 8, 20, None)
    (7, 15, 15)
    """
    stop = min(start + size, n_rows)
    if ends is None or stop == n_rows:
        return stop
    before = int(np.searchsorted(ends, stop, side="right"))
    whole = int(ends[before - 1]) if before else 0
    return whole if whole - start > size // 2 else stop


def cuts_of(start: int, stop: int, ends: np.ndarray | None) -> np.ndarray | None:
    """The ends of documents within a chunk, its own included, counted from its start; None where rows are the units.

    >>> cuts_of(2, 9, np.array([3, 7, 20])).tolist()
    [0, 1, 5, 7]
    """
    if ends is None:
        return None
    within = ends[(ends > start) & (ends < stop)]
    return np.concatenate([[start], within, [stop]]) - start


def spread_of(listed: Any, left: np.ndarray, units: np.ndarray, cuts: np.ndarray | None) -> np.ndarray:
    """`sum over units of ||P_k sum_n f_nk r_n||^2`, P_k off decoder row k: (features,).

    f are the codes, `listed` as compressed rows, r what is `left` of the rows (rows, d). A unit is a row, or the rows between two `cuts`.
    Only features that are on are looked at, a row or a document at a time.

    >>> codes, left = scipy.sparse.csr_matrix([[2.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 3.0], [0.0, 1.0]])
    >>> spread_of(codes, left, np.eye(2), None).tolist(), spread_of(codes, left, np.eye(2), np.array([0, 2])).tolist()
    ([37.0, 0.0], [49.0, 0.0])
    """
    if cuts is not None and len(cuts) <= listed.shape[0]:
        return _spread_of_documents(listed, left, units, cuts)
    starts, at, values = listed.indptr, listed.indices, listed.data.astype(np.float64)
    along = np.zeros(len(values), left.dtype)
    for n in range(listed.shape[0]):
        here = slice(starts[n], starts[n + 1])
        along[here] = units[at[here]] @ left[n]
    squares = np.repeat(np.einsum("nd,nd->n", left, left), np.diff(starts)).astype(np.float64)
    across = np.maximum(squares - along.astype(np.float64) ** 2, 0)
    return np.bincount(at, values**2 * across, minlength=listed.shape[1])


def _spread_of_documents(listed, left, units, cuts) -> np.ndarray:
    found = np.zeros(listed.shape[1])
    for first, last in itertools.pairwise(cuts):
        begin, end = listed.indptr[first], listed.indptr[last]
        used, place = np.unique(listed.indices[begin:end], return_inverse=True)
        shape, starts = (last - first, len(used)), listed.indptr[first : last + 1] - begin
        part = scipy.sparse.csr_matrix((listed.data[begin:end], place, starts), shape)
        sums = part.T @ left[first:last]
        along = np.einsum("kd,kd->k", sums, units[used])
        found[used] += np.maximum(np.einsum("kd,kd->k", sums, sums) - along**2, 0)
    return found
