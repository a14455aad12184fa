"""Which rows an audit's split is measured on, and which others a better dictionary may be fitted to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdict.sae.models import SAE, Metadata
from jaxdict.validation import check_data

# Fewer rows, or documents, cannot be parted in three and compared.
LEAST_GROUPS = 8
# Of the rows that are not fresh so many, at most this share, are kept aside: they say when a descent stops.
MOST_ASIDE, SHARE_ASIDE = 512, 1 / 8
# Rows of a batch, fewer where many features make (rows, features) arrays large.
MOST_IN_BATCH, LEAST_IN_BATCH, BATCH_ENTRIES = 512, 32, 2**22


class Parting(NamedTuple):
    """Masks of a sample's rows: those to fit a step on, those to choose its length on, and fresh ones that had no part in either."""

    aim: Bool[np.ndarray, " rows"]
    reach: Bool[np.ndarray, " rows"]
    fresh: Bool[np.ndarray, " rows"]


class Source(NamedTuple):
    """Rows to fit a dictionary to, none of them fresh: which, and how they are read as the dictionary sees them.

    `read` gives rows by number, and how many features the SAE itself has on in each.
    """

    read: Callable[[np.ndarray], tuple[Float[Array, "rows d"], Int[np.ndarray, " rows"]]]
    train: Int[np.ndarray, " rows"]  # in the order in which they are taken
    aside: Int[np.ndarray, " rows"]
    batch: int


def parted(n_rows: int, groups) -> Parting | None:
    """Three eighths, one eighth and half of the rows, drawn at random; documents stay whole. None where there are too few.

    >>> [int(part.sum()) for part in parted(16, None)], parted(7, None)
    ([6, 2, 8], None)
    """
    _, of_row = np.unique(np.arange(n_rows) if groups is None else np.asarray(groups), return_inverse=True)
    n = int(of_row.max()) + 1
    if n < LEAST_GROUPS:
        return None
    turn = np.random.default_rng(0).permutation(n)[of_row]  # each row's document's place in a random order
    return Parting(turn < 3 * n // 8, (turn >= 3 * n // 8) & (turn < n // 2), turn >= n // 2)


def source_of(sae: SAE, X: Float[Any, "samples d_in"], fresh: np.ndarray, groups, slots: int) -> Source | None:
    """The rows of X that are not fresh, nor of a document with a fresh row; None where they are too few to be parted.

    `slots`: no row is said to have more features on than this.
    """
    n = X.shape[0]
    others = np.setdiff1d(np.arange(n), fresh) if groups is None else np.flatnonzero(~np.isin(groups, groups[fresh]))
    return source_between(sae, X, *set_aside(others, groups), slots)


def source_between(
    sae: SAE, X: Float[Any, "samples d_in"], train: np.ndarray, aside: np.ndarray, slots: int
) -> Source | None:
    """These rows to fit to, in their order, and those to keep aside; None where they are too few."""
    if len(train) < LEAST_GROUPS or len(aside) < 2:
        return None
    wanted = max(LEAST_IN_BATCH, min(MOST_IN_BATCH, BATCH_ENTRIES // sae.d_sae))
    return Source(_reader(sae, X, slots), train, aside, min(wanted, len(train)))


def set_aside(others: np.ndarray, groups) -> tuple[np.ndarray, np.ndarray]:
    """Rows in a random order, and those of them that are kept aside, whole documents where they are named.

    >>> [len(rows) for rows in set_aside(np.arange(80), None)]
    [70, 10]
    """
    if not len(others):
        return others, others
    rng = np.random.default_rng(1)
    others = rng.permutation(others)
    _, of_row = np.unique(others if groups is None else groups[others], return_inverse=True)
    turn = rng.permutation(int(of_row.max()) + 1)[of_row]
    order = np.argsort(turn, kind="stable")
    wanted = min(MOST_ASIDE, int(SHARE_ASIDE * len(others)))
    if not wanted:
        return others, others[:0]
    last = turn[order[wanted - 1]]  # the document with the last row that is wanted
    return others[turn > last], others[turn <= last]


def _reader(sae: SAE, X, slots: int):
    sae = replace(sae, metadata=Metadata())  # what it was trained with is no part of the program

    def read(rows: np.ndarray):
        x = check_data(np.asarray(X[np.sort(rows)]).astype(jnp.result_type(float)), wide="allow")  # type: ignore
        seen, sizes = _as_the_sae_sees(sae, x)
        return seen, np.minimum(np.asarray(sizes), slots).astype(np.int32)

    return read


@eqx.filter_jit
def _as_the_sae_sees(sae: SAE, x: Float[Array, "rows d_in"]) -> tuple[Float[Array, "rows d"], Int[Array, " rows"]]:
    return sae.normalise(x), jnp.sum(sae.encode(x) != 0, axis=-1)
