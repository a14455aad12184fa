"""Which decoder rows lie close to one another, or nearly opposite: one look at all cosines, block by block of their upper half."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# Pairs of atoms closer than this, or as nearly opposite, are listed.
DUPLICATE, ANTIPODE = 0.9, -0.9
# Cosines are formed in blocks of so many entries.
BLOCK_ENTRIES = 2**24


class Pairs(NamedTuple):
    """Pairs of atoms, the first the lower number, and their cosines."""

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    cosine: Float[np.ndarray, " pairs"]


class Neighbours(NamedTuple):
    """Each atom's nearest other atom and their cosine (NaN for one alone), and the closest and most nearly opposite pairs."""

    nearest: Int[np.ndarray, " atoms"]
    cosine: Float[np.ndarray, " atoms"]
    close: Pairs
    opposite: Pairs


def neighbours(units: Float[np.ndarray, "atoms d"], top: int) -> Neighbours:
    """The nearest of each atom, and at most `top` pairs above `DUPLICATE` and `top` below `ANTIPODE`, the furthest first.

    Cosines in float32, each pair's once. Memory beside `units` in float32: one block of `BLOCK_ENTRIES` and lists of `top`.

    >>> found = neighbours(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), 5)
    >>> found.nearest.tolist(), found.opposite.first.tolist(), found.opposite.second.tolist(), len(found.close.first)
    ([1, 0, 1], [0], [2], 0)
    """
    n, units = len(units), np.asarray(units, np.float32)
    nearest, cosine = np.zeros(n, int), np.full(n, -np.inf, np.float32)
    close, opposite = _none(), _none()
    start = 0
    while start < n:
        stop = min(n, start + max(1, BLOCK_ENTRIES // (n - start)))
        block = units[start:stop] @ units[start:].T
        own = np.arange(stop - start)
        block[own, own] = 0  # no pair, and not listed
        close = _furthest(close, block, start, block > DUPLICATE, top, 1)
        opposite = _furthest(opposite, block, start, block < ANTIPODE, top, -1)
        block[own, own] = -np.inf
        _nearer(nearest, cosine, slice(start, stop), start + block.argmax(axis=1), block.max(axis=1))
        _nearer(
            nearest,
            cosine,
            slice(stop, n),
            start + block[:, stop - start :].argmax(axis=0),
            block[:, stop - start :].max(axis=0),
        )
        start = stop
    return Neighbours(nearest, np.where(np.isfinite(cosine), cosine, np.nan).astype(float), close, opposite)


def _nearer(nearest, cosine, at: slice, who, how_near) -> None:
    """Who is nearer than all before, so that of equals the lowest number stays."""
    better = how_near > cosine[at]
    nearest[at] = np.where(better, who, nearest[at])
    cosine[at] = np.where(better, how_near, cosine[at])


def _furthest(known: Pairs, block, start: int, listed, top: int, sign: int) -> Pairs:
    """The pairs known so far and those listed of a block, the `top` furthest of them; of equals the first."""
    if not listed.any():
        return known
    i, j = np.nonzero(listed)
    i, j = (both[i < j] for both in (i, j))  # in the block's own square each pair stands twice
    values = block[i, j]
    best = np.argsort(-sign * values, kind="stable")[:top]
    new = Pairs(start + i[best], start + j[best], values[best].astype(float))
    merged = Pairs(*(np.concatenate(parts) for parts in zip(known, new, strict=True)))
    kept = np.argsort(-sign * merged.cosine, kind="stable")[:top]
    return Pairs(*(part[kept] for part in merged))


def _none() -> Pairs:
    return Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
