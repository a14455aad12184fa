"""Rows that are kept aside from a fit: which ones, what they weigh, and which of them depend on one another."""

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxdict.files import Shards

# Rows kept aside as one at most, taken as dependent by standard errors; the share and the most kept aside where nothing is asked for.
HELD_ROWS, HELD_SHARE, MOST_HELD = 256, 0.05, 2**15


class View:
    """Some rows of an array-like, by number, read where they are looked at: `shape`, `dtype`, `len`, a slice of rows.

    >>> View(np.arange(8.0).reshape(4, 2), np.array([3, 0]))[:].tolist()
    [[6.0, 7.0], [0.0, 1.0]]
    """

    ndim = 2

    def __init__(self, array, numbers: Int[np.ndarray, " samples"]):
        self.array, self.numbers = array, numbers
        self.shape, self.dtype = (len(numbers), array.shape[1]), array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        return np.asarray(self.array[self.numbers[rows]])


class Held(NamedTuple):
    """Rows kept aside: an array-like, their weights, and the group (block, shard, document) of each."""

    rows: Any
    weights: Float[np.ndarray, " samples"] | None
    groups: Int[np.ndarray, " samples"]


def set_aside(array, weights, held_out, key):
    """Runs of training rows and the rows kept aside."""
    n = array.shape[0]
    if held_out is not None and np.ndim(held_out) == 2:
        return [(0, n)], given_rows(held_out, array.shape[1])
    if held_out is not None and np.ndim(held_out) == 1:
        return _by_numbers(array, weights, np.asarray(held_out))
    wanted = rows_wanted(held_out, n)
    if not wanted:
        return [(0, n)], None
    edges = np.append(np.arange(0, n, _group_rows(wanted)), n)
    if isinstance(array, Shards) and len(array.arrays) >= 20 and np.max(np.diff(array.starts)) <= wanted:
        edges = array.starts
    sizes, taken = np.diff(edges), np.zeros(len(edges) - 1, bool)
    for k in permutation(key, len(sizes))[:-1]:
        if np.sum(sizes[taken]) >= wanted and np.sum(taken) > 1:
            break
        taken[k] = True
    numbers = np.concatenate([np.arange(edges[k], edges[k + 1]) for k in np.flatnonzero(taken)] or [np.zeros(0, int)])
    groups = np.repeat(np.arange(np.sum(taken)), sizes[taken])
    runs = [(int(edges[k]), int(edges[k + 1])) for k in np.flatnonzero(~taken)]
    return _merged(runs), _held(array, weights, numbers, groups)


def _by_numbers(array, weights, numbers):
    n = array.shape[0]
    if numbers.dtype == bool and numbers.shape == (n,):
        numbers = np.flatnonzero(numbers)
    if numbers.dtype.kind not in "iu" or not len(numbers) or np.min(numbers) < 0 or np.max(numbers) >= n:
        raise ValueError(f"held_out names rows that are not there: give numbers from 0 to {n - 1}, or {n} booleans")
    numbers = np.unique(numbers)
    edges = np.concatenate([[-1], numbers, [n]])
    runs = [(int(a) + 1, int(b)) for a, b in itertools.pairwise(edges)]
    apart = np.cumsum(np.diff(numbers, prepend=numbers[0]) > 1)
    groups = np.unique(np.stack([apart, numbers // _group_rows(len(numbers))]), axis=1, return_inverse=True)[1].ravel()
    return runs, _held(array, weights, numbers, groups)


def _held(array, weights, numbers, groups) -> Held:
    own = None if weights is None else np.asarray(weights, float)[numbers]
    if own is not None and not np.any(own > 0):
        raise ValueError("the rows kept aside all have weight zero; name others in held_out")
    return Held(View(array, numbers), own, groups)


def given_rows(held_out, d: int) -> Held | None:
    """Fresh rows that the caller gave, in groups of neighbours."""
    if held_out is None or np.ndim(held_out) != 2:
        return None
    n, width = held_out.shape
    if width != d or not n:
        raise ValueError(f"held_out has shape {(n, width)} but the source {d} features; give fresh rows (rows, {d})")
    return Held(held_out, None, np.arange(n) // _group_rows(n))


def _group_rows(count: int) -> int:
    """Rows of a group, so that there are 32 groups or more where rows allow it."""
    return min(HELD_ROWS, max(1, count // 32))


def rows_wanted(held_out, n: int) -> int:
    """How many rows to keep aside, at least; zero where they are given or none are wanted."""
    if held_out is None:
        return min(MOST_HELD, max(1, int(HELD_SHARE * n)))
    if np.ndim(held_out) == 2:
        return 0
    if np.ndim(held_out) or not 0 <= float(held_out) < 1:
        raise ValueError(
            f"held_out={held_out!r} makes no sense here; give a share of the rows from 0 to 1, or fresh rows"
        )
    return int(float(held_out) * n)


def _merged(runs):
    out: list[tuple[int, int]] = []
    for a, b in runs:
        if out and out[-1][1] == a:
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return out


def permutation(key, n: int) -> Int[np.ndarray, " n"]:
    """Numbers from 0 in an order drawn by the key."""
    return np.asarray(jax.random.permutation(key, n))
