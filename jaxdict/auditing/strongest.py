"""What each feature is strongest on, and how strongly it is on at all: kept while rows pass by, in bounded memory."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# Rows that are kept of each feature, and bins of its histogram, half an octave each.
EXAMPLES, BINS = 8, 16
# The octave of a feature that was never on: below that of the least float32.
NEVER = -(2**15)


class Strongest(NamedTuple):
    """Of each feature the rows where |f| is largest, strongest first, and a histogram of |f| that hangs from the largest.

    Bin b of feature k counts rows with `ceil(2 log2 |f|) = top[k] - b`, so that `2^((top - b - 1) / 2) < |f| <= 2^((top - b) / 2)`;
    the last bin counts all that are smaller. Equal codes: the earlier row first. What is kept does not depend on how the rows
    were cut into chunks, and takes `12 EXAMPLES + 8 BINS + 4` = 228 bytes a feature, whatever the number of rows.

    >>> held = never_on(2)
    >>> held = with_entries(held, np.array([0, 0, 1]), np.array([3, 5, 5]), np.array([1.0, 4.0, 0.5], np.float32))
    >>> held.rows[0, :3].tolist(), held.codes[0, :3].tolist()
    ([5, 3, -1], [4.0, 1.0, 0.0])
    >>> held.edges.tolist(), held.counts[0, :6].tolist()  # four is two octaves above one
    ([4.0, 0.5], [1, 0, 0, 0, 1, 0])
    """

    rows: Int[np.ndarray, "features examples"]  # -1 where there are fewer
    codes: Float[np.ndarray, "features examples"]
    counts: Int[np.ndarray, "features bins"]
    top: Int[np.ndarray, " features"]

    @property
    def edges(self) -> Float[np.ndarray, " features"]:
        """The upper edge of each feature's first bin."""
        return 2.0 ** (self.top / 2)

    def of(self, feature: int) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """The rows of the data on which a feature is strongest, and its codes there."""
        on = self.rows[feature] >= 0
        return self.rows[feature][on], self.codes[feature][on]


def never_on(n_features: int) -> Strongest:
    """Where no row was seen yet."""
    return Strongest(
        rows=np.full((n_features, EXAMPLES), -1, np.int64),
        codes=np.zeros((n_features, EXAMPLES), np.float32),
        counts=np.zeros((n_features, BINS), np.int64),
        top=np.full(n_features, NEVER, np.int32),
    )


def with_entries(
    held: Strongest,
    feature: Int[np.ndarray, " entries"],
    row: Int[np.ndarray, " entries"],
    code: Float[np.ndarray, " entries"],
) -> Strongest:
    """With the non-zero codes of more rows; rows come after those that were seen. A new record: the old one stays whole."""
    return Strongest(*_strongest_rows(held, feature, row, code), *_histogram(held, feature, np.abs(code)))


def _strongest_rows(held, feature, row, code):
    """The rows and codes of the features whose least example is beaten, merged with what was held."""
    beats = np.abs(code) > np.abs(held.codes[feature, -1])
    feature, row, code = feature[beats], row[beats], code[beats]
    order = np.lexsort((row, -np.abs(code), feature))
    feature, row, code = feature[order], row[order], code[order]
    touched, starts, sizes = np.unique(feature, return_index=True, return_counts=True)
    rank = np.arange(len(feature)) - np.repeat(starts, sizes)
    keep, place = rank < EXAMPLES, np.repeat(np.arange(len(touched)), sizes)
    both_rows = np.full((len(touched), 2 * EXAMPLES), -1, np.int64)
    both_codes = np.zeros((len(touched), 2 * EXAMPLES), np.float32)
    both_rows[:, :EXAMPLES], both_codes[:, :EXAMPLES] = held.rows[touched], held.codes[touched]
    both_rows[place[keep], EXAMPLES + rank[keep]] = row[keep]
    both_codes[place[keep], EXAMPLES + rank[keep]] = code[keep]
    best = np.argsort(-np.abs(both_codes), axis=1, kind="stable")[:, :EXAMPLES]
    rows, codes = held.rows.copy(), held.codes.copy()
    rows[touched] = np.take_along_axis(both_rows, best, axis=1)
    codes[touched] = np.take_along_axis(both_codes, best, axis=1)
    return rows, codes


def _histogram(held, feature, size):
    """Counts and tops with more sizes: where a feature's top rises, what it had moves down by as many bins."""
    level = np.ceil(2 * np.log2(size.astype(np.float64))).astype(np.int32)
    top, counts = held.top.copy(), held.counts.copy()
    np.maximum.at(top, feature, level)
    risen = np.flatnonzero((top > held.top) & (held.top > NEVER))
    moved = np.minimum(np.arange(BINS) + (top - held.top)[risen, None], BINS - 1)
    counts[risen] = 0
    np.add.at(counts, (np.broadcast_to(risen[:, None], moved.shape), moved), held.counts[risen])
    np.add.at(counts, (feature, np.minimum(top[feature] - level, BINS - 1)), 1)
    return counts, top
