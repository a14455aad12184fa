"""Where rows come from: anything with `shape` and row slices, or batches one after another; some of them are kept aside.

A source gives its training rows three ways: a sample to start from, shuffled batches of one size, and chunks in order.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdict.streaming.aside import Held, given_rows, permutation, rows_wanted, set_aside
from jaxdict.streaming.sums import checked

# Rows that are shuffled as one, so that a disk is read in runs; more where there would be more blocks than this.
BLOCK_ROWS, MOST_BLOCKS = 64, 2**20
# Of a batch: every row.
ALL = slice(None)


class Piece(NamedTuple):
    """Rows as they are asked for."""

    rows: Float[np.ndarray, "samples d"]
    weights: Float[np.ndarray, " samples"] | None


class Blocks:
    """Rows of an array, a memory map, `jaxdict.files.Shards`: anything with `shape` and row slices."""

    def __init__(self, array, weights, held_out, key):
        self.array, self.weights = array, weights
        n, self.d = array.shape
        if weights is not None and len(weights) != n:
            raise ValueError(f"weights has shape {np.shape(weights)} but the source {n} rows; give one weight a row")
        runs, self.held = set_aside(array, weights, held_out, key)
        self.runs = [(a, b) for a, b in runs if b > a]
        self.n = sum(b - a for a, b in self.runs)
        if not self.n:
            raise ValueError(f"held_out keeps all {n} rows aside; leave some to fit")
        self.block = max(BLOCK_ROWS, -(-self.n // MOST_BLOCKS))
        cuts = [(np.arange(a, b, self.block), b) for a, b in self.runs]
        self.starts = np.concatenate([first for first, _ in cuts])
        self.stops = np.concatenate([np.minimum(first + self.block, last) for first, last in cuts])

    def sample(self, count: int, key) -> Piece:
        """About so many rows, from blocks all over the source."""
        order = permutation(key, len(self.starts))
        blocks = np.sort(order[: -(-count // self.block) + 1])
        parts = [self._read(self.starts[k], self.stops[k]) for k in blocks]
        return _joined(parts)

    def batches(self, key, first: int, size: int, part: slice = ALL) -> Iterator[Piece]:
        """Batches of `size` rows from number `first` of an epoch on, blocks in an order drawn by the key; the end is cut.

        Of each batch only the rows in `part` are read and given.
        """
        order = permutation(key, len(self.starts))
        ranges = ((self.starts[k], self.stops[k]) for k in order)
        pieces = (_cut(piece, part) for piece in self._grouped(ranges, first, size, whole=True))
        yield from _ahead(_joined([self._read(*run) for run in piece]) for piece in pieces)

    def chunks(self, first: int, size: int, last: int | None = None) -> Iterator[Piece]:
        """Chunks of `size` rows in the source's order from number `first` up to `last`; the source's last one may be shorter."""
        pieces = itertools.islice(self._grouped(self.runs, first, size, whole=False), _how_many(first, last))
        yield from _ahead(_joined([self._read(*run) for run in piece]) for piece in pieces)

    def _grouped(self, ranges, first, size, whole):
        """Runs of rows that make a piece each."""
        skip, parts, have = first * size, [], 0
        for a, b in ranges:
            passed = min(skip, b - a)
            a, skip = a + passed, skip - passed
            while a < b:
                stop = min(b, a + size - have)
                parts.append((a, stop))
                have, a = have + stop - a, stop
                if have == size:
                    yield parts
                    parts, have = [], 0
        if parts and not whole:
            yield parts

    def _read(self, a, b) -> Piece:
        rows = checked(self.array[a:b], int(a))
        return Piece(rows, None if self.weights is None else np.asarray(self.weights[a:b], float))


class Batches:
    """Rows that come in batches, again and again: a list, an object that can be iterated anew, a function that returns an iterator.

    They are taken in the order in which they come, regrouped to the size asked for. One look at all of them at first counts rows and
    draws the batches that are kept aside, which are held in memory.
    """

    def __init__(self, source, weights, held_out, key):
        if weights is not None:
            raise ValueError("weights need a source with row slices; give an array, a memory map or shards")
        self.source = source
        sizes, width = [], None
        for batch in self._fresh():
            if np.ndim(batch) != 2 or (width is not None and np.shape(batch)[1] != width):
                raise ValueError(f"batch {len(sizes)} has shape {np.shape(batch)}; all must be (rows, {width or 'd'})")
            width = np.shape(batch)[1]
            sizes.append(len(batch))
        if not sizes:
            raise ValueError("the source has no batches; a factory must return a new iterator at each call")
        self.sizes, self.d = np.asarray(sizes), int(width or 0)
        self.aside = self._draw(held_out, key)
        self.n = int(np.sum(self.sizes[~self.aside]))
        held = [checked(batch, int(np.sum(self.sizes[:k]))) for k, batch in enumerate(self._fresh()) if self.aside[k]]
        if held:
            groups = np.repeat(np.arange(len(held)), [len(batch) for batch in held])
            self.held = Held(np.concatenate(held), None, groups)
        else:
            self.held = given_rows(held_out, self.d)

    def sample(self, count: int, key) -> Piece:
        """So many rows, drawn from all batches."""
        drawn = np.sort(permutation(key, self.n)[:count])
        parts, at = [], 0
        for batch in self._training():
            mine = drawn[(drawn >= at) & (drawn < at + len(batch))] - at
            parts.append(Piece(np.asarray(checked(batch[mine], at)), None)) if len(mine) else None
            at += len(batch)
        return _joined(parts)

    def batches(self, key, first: int, size: int, part: slice = ALL) -> Iterator[Piece]:
        """The rows in `part` of batches of `size` rows from number `first` of an epoch on, in the source's order."""
        yield from _ahead(Piece(piece.rows[part], None) for piece in self._grouped(first, size, whole=True))

    def chunks(self, first: int, size: int, last: int | None = None) -> Iterator[Piece]:
        """Chunks of `size` rows from number `first` up to `last`; the source's last one may be shorter."""
        yield from _ahead(itertools.islice(self._grouped(first, size, whole=False), _how_many(first, last)))

    def _grouped(self, first, size, whole):
        skip, parts, have, seen = first * size, [], 0, 0
        for batch in self._training():
            a, skip, at = min(skip, len(batch)), skip - min(skip, len(batch)), seen
            seen += len(batch)
            while a < len(batch):
                stop = min(len(batch), a + size - have)
                parts.append(Piece(checked(batch[a:stop], at + a), None))
                have, a = have + stop - a, stop
                if have == size:
                    yield _joined(parts)
                    parts, have = [], 0
        if seen != self.n:
            raise ValueError(
                f"the source gave {seen} rows where it gave {self.n} before; it must give the same ones each time"
            )
        if parts and not whole:
            yield _joined(parts)

    def _fresh(self):
        return iter(self.source() if callable(self.source) else self.source)  # type: ignore[call-overload]

    def _training(self):
        for k, batch in enumerate(self._fresh()):
            if k >= len(self.aside) or not self.aside[k]:
                yield np.asarray(batch)

    def _draw(self, held_out, key):
        aside, wanted = np.zeros(len(self.sizes), bool), rows_wanted(held_out, int(np.sum(self.sizes)))
        for k in permutation(key, len(self.sizes))[:-1] if wanted else ():
            if np.sum(self.sizes[aside]) >= wanted and np.sum(aside) > 1:
                break
            aside[k] = True
        return aside


def open_source(source, weights, held_out, key) -> Blocks | Batches:
    """The source that suits what is given."""
    if hasattr(source, "shape") and hasattr(source, "__getitem__"):
        if len(source.shape) != 2 or 0 in source.shape:
            raise ValueError(
                f"the source has shape {tuple(source.shape)}; jaxdict wants (samples, features), neither of them zero"
            )
        return Blocks(source, weights, held_out, key)
    if callable(source):
        return Batches(source, weights, held_out, key)
    if not hasattr(source, "__iter__"):
        raise ValueError(
            f"a {type(source).__name__} is no source; give an array, a memory map, shards, or batches of rows"
        )
    if iter(source) is source:
        raise ValueError(
            "the source can be iterated only once; give a function that returns a new iterator at each call"
        )
    return Batches(source, weights, held_out, key)


def _cut(runs, part: slice):
    """The rows in `part` of runs of rows taken together."""
    lo, hi, _ = part.indices(sum(b - a for a, b in runs))
    out, at = [], 0
    for a, b in runs:
        first, stop = max(a, a + lo - at), min(b, a + hi - at)
        out += [(first, stop)] if first < stop else []
        at += b - a
    return out


def _how_many(first: int, last: int | None) -> int | None:
    return None if last is None else max(0, last - first)


def _joined(parts: list[Piece]) -> Piece:
    rows = parts[0].rows if len(parts) == 1 else np.concatenate([part.rows for part in parts])
    weights = [part.weights for part in parts if part.weights is not None]
    return Piece(rows, np.concatenate(weights) if weights else None)


def _ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same, the next one being read while this one is worked on."""
    take: Callable = lambda: next(pieces, None)  # noqa: E731
    with ThreadPoolExecutor(1, thread_name_prefix="jaxdict-read") as reader:
        coming = reader.submit(take)
        while (piece := coming.result()) is not None:
            coming = reader.submit(take)
            yield piece
