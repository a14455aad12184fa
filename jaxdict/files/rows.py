"""Rows that stay on disk until they are looked at, and what is known of each: its document, its position there, its token."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int


class Positions(NamedTuple):
    """Where each row stands: the document that it belongs to, numbered from 0, and its position in it."""

    documents: Int[np.ndarray, " samples"]
    positions: Int[np.ndarray, " samples"]


class Rows:
    """An array of any number of axes as rows (samples, d): the last axes make a row, those before them say where it stands.

    `read` gives the array when it is first looked at; `leading` are the axes before the features, such as (batch, position);
    `ids` gives the token of each row where the file holds them.

    >>> rows = Rows(lambda: np.arange(12.0).reshape(2, 3, 2), (2, 3, 2), np.dtype(float), width=2)
    >>> rows.shape, rows[1:3].tolist(), rows.leading
    ((6, 2), [[2.0, 3.0], [4.0, 5.0]], (2, 3))
    """

    ndim = 2

    def __init__(self, read: Callable[[], np.ndarray], shape: tuple[int, ...], dtype, *, width: int, ids=None):
        self.read, self.dtype, self.ids, self.stored = read, np.dtype(dtype), ids, shape
        self.leading = shape[: leading_axes(shape, width)]
        self.shape = (math.prod(self.leading), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> Float[np.ndarray, "rows d"]:
        return self.read().reshape(self.shape)[rows]


def leading_axes(shape: tuple[int, ...], width: int | None) -> int:
    """How many axes come before those of the features: all but the last ones whose product is `width`; 0 where none is.

    >>> leading_axes((10, 12, 64), 768), leading_axes((10, 12, 64), 64), leading_axes((10, 12, 64), 7)
    (1, 2, 0)
    """
    return next((k for k in range(len(shape) - 1, 0, -1) if math.prod(shape[k:]) == width), 0)


class Shards:
    """Arrays of one width, one below the other, read only where they are looked at.

    What a memory-mapped array can be asked for here: `shape`, `dtype`, `len`, a row, a slice or an array of rows. `names` are those of
    the files, in the order of the rows, `left_out` those of files that could not be read; rows are given as `dtype`, by default
    one that holds all of theirs.

    >>> shards = Shards([np.zeros((2, 3)), np.ones((2, 3))])
    >>> shards.shape, shards[1:3].tolist(), shards[np.array([3, 0])][:, 0].tolist(), shards[-1].tolist()
    ((4, 3), [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], [1.0, 0.0], [1.0, 1.0, 1.0])
    """

    ndim = 2

    def __init__(self, arrays, names=(), dtype=None, left_out=()):
        self.arrays, self.names, self.left_out = list(arrays), tuple(names), tuple(left_out)
        self.starts = np.cumsum([0, *(len(array) for array in self.arrays)])
        self.shape = (int(self.starts[-1]), self.arrays[0].shape[1])
        own = functools.reduce(jnp.promote_types, (array.dtype for array in self.arrays))
        self.dtype = own if dtype is None else np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        if np.ndim(rows) == 0 and not isinstance(rows, slice):
            return self[np.array([rows])][0]
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.arange(len(self))[rows]
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        for k in np.unique(shard):
            mine = shard == k
            inside = rows[mine] - self.starts[k]
            whole = slice(inside[0], inside[-1] + 1) if np.all(np.diff(inside) == 1) else inside
            out[mine] = self.arrays[k][whole]
        return out


def pieces(X: Any) -> list[Any]:
    """The arrays that rows are made of, in order, however deep they are nested."""
    return [piece for array in X.arrays for piece in pieces(array)] if isinstance(X, Shards) else [X]


def positions(X: Any) -> Positions | None:
    """The document and the position of each row; None where the files do not say it of every row.

    >>> read = lambda: np.zeros((2, 3, 4))
    >>> where = positions(Shards([Rows(read, (2, 3, 4), np.dtype(float), width=4)]))
    >>> where.documents.tolist(), where.positions.tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    """
    found, first = [], 0
    for piece in pieces(X):
        leading = getattr(piece, "leading", ())
        if len(leading) < 2:
            return None
        document, position = np.divmod(np.arange(len(piece)), leading[-1])
        found.append((document + first, position))
        first += math.prod(leading[:-1])
    return Positions(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def token_ids(X: Any) -> Int[np.ndarray, " samples"] | None:
    """The token of each row, where the files of the activations hold those of all of them."""
    all_pieces = pieces(X)
    readers = [piece.ids for piece in all_pieces if getattr(piece, "ids", None) is not None]
    if len(readers) < len(all_pieces):
        return None
    return np.concatenate([np.asarray(read()).reshape(-1) for read in readers])
