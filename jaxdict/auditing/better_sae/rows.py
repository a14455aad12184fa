"""Which rows polishing takes for what: most to fit to, some to choose by, and some to judge by that had no part in either."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.files import positions
from jaxdict.population.comparisons import Comparison, numbered, paired
from jaxdict.sae.models import SAE

# Of all rows so many are kept aside to choose by, and as many to judge by, at most.
SHARE_KEPT, MOST_KEPT = 1 / 8, 8192
# Neighbours count as one document where documents are not named: so many rows at most.
NEIGHBOURS, LEAST_BLOCKS = 256, 256
# Fewer documents, among the rows that judge and among those that choose, say nothing of a standard error.
LEAST_JUDGED, LEAST_ASIDE, LEAST_DOCUMENTS = 8, 4, 24


class Parts(NamedTuple):
    """Numbers of rows, in order, whole documents each; and the document of every row."""

    train: Int[np.ndarray, " train"]  # to fit to
    aside: Int[np.ndarray, " aside"]  # to say when to stop, and which of several to take
    judged: Int[np.ndarray, " judged"]  # to say what is better
    documents: Int[np.ndarray, " rows"]
    named: bool  # whether documents are those of the files or of the caller, not blocks of neighbours

    def gain(self, falls: Float[np.ndarray, " some"], rows: Int[np.ndarray, " some"]) -> Comparison:
        """The mean fall over rows of these numbers with its standard error, rows of one document being dependent (T18)."""
        fall = jnp.asarray(falls)
        return paired(fall, jnp.ones_like(fall), numbered(self.documents[rows]))

    def words(self) -> str:
        """The three kinds of rows, in words."""
        judged = len(np.unique(self.documents[self.judged]))
        what = f"{judged} documents" if self.named else f"{judged} blocks of neighbours"
        return (
            f"fitted to {len(self.train):,} rows, stopped by {len(self.aside):,} others, judged on {len(self.judged):,} rows of "
            f"{what} that had no part in either"
        )


def parts_of(n_rows: int, groups) -> Parts:
    """The rows in three parts, documents drawn at random and kept whole: `groups` (rows,) names them, else neighbours are taken as one.

    Raises ValueError where there are too few to be parted.

    >>> [len(rows) for rows in parts_of(80, None)[:3]]
    [60, 10, 10]
    """
    size = max(1, min(NEIGHBOURS, n_rows // LEAST_BLOCKS))
    of_row = np.arange(n_rows) // size if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(of_row)
    if len(sizes) < LEAST_DOCUMENTS:
        what = f"{n_rows} rows" if groups is None else f"{n_rows} rows of {len(sizes)} documents"
        raise ValueError(
            f"{what} are too few to keep some aside, without which nothing better can be shown; give {LEAST_DOCUMENTS} or more"
        )
    order = np.random.default_rng(0).permutation(len(sizes))
    ends, wanted = np.cumsum(sizes[order]), min(MOST_KEPT, int(SHARE_KEPT * n_rows))
    first = max(LEAST_JUDGED, int(np.searchsorted(ends, wanted)) + 1)
    second = max(first + LEAST_ASIDE, int(np.searchsorted(ends, ends[first - 1] + wanted)) + 1)
    turn = np.empty(len(sizes), int)
    turn[order] = np.arange(len(sizes))
    place = turn[of_row]
    train = np.flatnonzero(place >= second)
    if len(train) < n_rows // 4:
        raise ValueError(
            f"few documents hold most of the {n_rows} rows, so that only {len(train)} are left to fit to when some are kept aside; "
            "give more documents"
        )
    aside = np.flatnonzero((place >= first) & (place < second))
    return Parts(train, aside, np.flatnonzero(place < first), of_row, groups is not None)


def documents_in(X: Any) -> np.ndarray | None:
    """The document of each row where the files say it, and of enough documents to be parted; else None."""
    where = positions(X)
    return None if where is None or where.documents[-1] + 1 < LEAST_DOCUMENTS else where.documents


class Seen:
    """Rows of an array-like by number as an SAE's dictionary sees them, in one precision; read where they are looked at.

    `shape`, `dtype`, `len`, a slice or an array of rows; ValueError for rows that are not finite, with the first one's number.

    >>> from jaxdict.sae.encoders import tied_sae
    >>> from jaxdict.problem import Dictionary
    >>> rows = Seen(tied_sae(Dictionary(jnp.eye(2)), 0.1), np.arange(8.0).reshape(4, 2), np.array([3, 0]), np.dtype("f4"))
    >>> rows[:].tolist(), rows.shape
    ([[6.0, 7.0], [0.0, 1.0]], (2, 2))
    """

    ndim = 2

    def __init__(self, sae: SAE | None, X: Float[Any, "samples d"], numbers: Int[np.ndarray, " rows"], dtype):
        self.sae, self.X, self.numbers, self.dtype = sae, X, numbers, np.dtype(dtype)
        self.shape = (len(numbers), X.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> Float[np.ndarray, "some d"]:
        at = self.numbers[rows]
        with np.errstate(over="ignore"):  # reported with NaN and infinity
            x = np.asarray(self.X[at]).astype(self.dtype)
        bad = ~np.isfinite(x).all(axis=1)
        if bad.any():
            raise ValueError(f"row {at[np.argmax(bad)]} of X holds NaN or infinity; leave such rows out")
        return (
            x
            if self.sae is None or self.sae.normalisation == "none"
            else np.asarray(_normalised(self.sae, jnp.asarray(x)))
        )

    def of(self, numbers: Int[np.ndarray, " some"]) -> "Seen":
        """Others of the rows, by their numbers."""
        return Seen(self.sae, self.X, numbers, self.dtype)

    def chunks(self, size: int):
        """Runs of rows of one size, the last filled with zeros, and which of them are rows: one program serves all."""
        for at in range(0, len(self), size):
            x = self[at : at + size]
            yield jnp.asarray(np.pad(x, [(0, size - len(x)), (0, 0)])), slice(at, at + len(x))


@eqx.filter_jit
def _normalised(sae: SAE, x: Float[Array, "rows d"]) -> Float[Array, "rows d"]:
    return sae.normalise(x)


def working_dtype(X: Any) -> np.dtype:
    """The precision of what is computed from rows: theirs, float32 for halves, and without x64.

    >>> working_dtype(np.zeros(2, np.float16))
    dtype('float32')
    """
    return np.dtype(jax.dtypes.canonicalize_dtype(jnp.promote_types(X.dtype, jnp.float32)))
