"""Which rows a decoder's step is fitted to, and which fresh ones all SAEs are compared on: the same for all of them."""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxdict.auditing.gaps import take_rows
from jaxdict.auditing.labels import check_groups
from jaxdict.auditing.parting import LEAST_GROUPS, MOST_ASIDE, parted
from jaxdict.files import positions
from jaxdict.sae.models import SAE, check_activations


class Parts(NamedTuple):
    """Numbers of rows: of X, to fit a step on and to choose its length by; and of `source`, X itself or other rows, to compare on."""

    X: Any
    aim: Int[np.ndarray, " aim"]
    reach: Int[np.ndarray, " reach"]
    source: Any
    fresh: Int[np.ndarray, " fresh"]
    groups: np.ndarray | None  # the document of each fresh row
    said: str  # where the fresh rows come from
    train: Int[
        np.ndarray, " train"
    ]  # all of `aim`, in a random order, and some of `reach`: what a dictionary descends over
    aside: Int[np.ndarray, " aside"]

    def thinned(self, most: int) -> "Parts":
        """At most so many fresh rows, and as many to fit to, evenly spread."""
        fresh = take_rows(len(self.fresh), most)
        aim, reach = (rows[take_rows(len(rows), wanted)] for rows, wanted in zip(self[1:3], _shares(most), strict=True))
        groups = None if self.groups is None else self.groups[fresh]
        return self._replace(aim=aim, reach=reach, fresh=self.fresh[fresh], groups=groups)


class Taken(NamedTuple):
    """The rows themselves: those of `aim`, of `reach` and the fresh ones, one below the other, and which are which."""

    x: Float[np.ndarray, "rows d_in"]
    aim: slice
    reach: slice
    fresh: slice


def parts_of(sae: SAE, X: Float[Any, "samples d_in"], held_out, groups) -> Parts:
    """The rows to fit to and the fresh ones, documents whole where they are known; ValueError where rows do not fit or are too few.

    `held_out`: None (half of X, drawn at random), numbers of rows of X or a boolean for each, or other rows (rows, d_in). `groups` are
    those of X, or of `held_out` where that is rows of its own.
    """
    X = X if hasattr(X, "shape") and hasattr(X, "dtype") else np.asarray(X)
    _check(sae, X, "X")
    if held_out is not None and np.ndim(held_out) == 2:
        _check(sae, held_out, "held_out")
        named = _documents(held_out) if groups is None else check_groups(groups, held_out.shape[0])
        rest, fresh, source = np.arange(X.shape[0]), np.arange(held_out.shape[0]), held_out
        aim, reach = _aimed(rest, _documents(X))
        said = f"{len(fresh):,} rows of their own"
    else:
        source, named = X, _documents(X) if groups is None else check_groups(groups, X.shape[0])
        whole = "" if named is None else ", documents kept whole"
        if held_out is None:
            aim, reach, fresh = _halved(X.shape[0], named)
            said = f"half of the {X.shape[0]:,} rows of X, drawn at random{whole}"
        else:
            fresh = _numbers(held_out, X.shape[0])
            beside = np.setdiff1d(np.arange(X.shape[0]), fresh)
            rest = beside if named is None else beside[~np.isin(named[beside], named[fresh])]
            aim, reach = _aimed(rest, None if named is None else named[rest])
            said = f"the rows of X that held_out names{whole}"
    named = None if named is None else named[fresh]
    count = len(fresh) if named is None else len(np.unique(named))
    if count < LEAST_GROUPS:
        what = "fresh rows" if named is None else "documents of fresh rows"
        raise ValueError(f"{count} {what} say nothing of a standard error; give {LEAST_GROUPS} or more")
    luck = np.random.default_rng(1)
    train, aside = luck.permutation(aim), luck.permutation(reach)[:MOST_ASIDE]
    return Parts(X, aim, reach, source, fresh, named, said, train, aside)


def taken(parts: Parts) -> Taken:
    """The rows, read once for all SAEs, in the working precision; ValueError for NaN or infinity, with the row's number."""
    dtype = np.dtype(jnp.result_type(float))
    named = [
        ("X", parts.X, np.sort(parts.aim)),
        ("X", parts.X, np.sort(parts.reach)),
        ("held_out", parts.source, parts.fresh),
    ]
    read = []
    for name, source, rows in named:
        with np.errstate(over="ignore"):  # reported with NaN and infinity
            read.append(np.asarray(source[rows]).astype(dtype))
        bad = ~np.isfinite(read[-1]).all(axis=1)
        if bad.any():
            name = "X" if source is parts.X else name
            raise ValueError(f"row {rows[np.argmax(bad)]} of {name} holds NaN or infinity; leave such rows out")
    ends = np.cumsum([0, *map(len, read)])
    return Taken(np.concatenate(read), *(slice(int(a), int(b)) for a, b in itertools.pairwise(ends)))


def _shares(most: int) -> tuple[int, int]:
    """Of as many rows to fit to: three quarters to aim a step, the others to choose its length."""
    return max(1, 3 * most // 4), max(1, most // 4)


def _check(sae: SAE, X, name: str) -> None:
    if np.ndim(X) != 2:
        raise ValueError(
            f"{name} has shape {np.shape(X)}; jaxdict wants (samples, d_in): {name}.reshape(-1, {sae.d_in})"
        )
    check_activations(sae, X)


def _documents(X) -> np.ndarray | None:
    """The document of each row where the files say it, and of enough of them."""
    where = positions(X)
    return None if where is None or where.documents[-1] + 1 < LEAST_GROUPS else where.documents


def _halved(n_rows: int, groups):
    parting = parted(n_rows, groups)
    if parting is None:
        raise ValueError(_too_few(n_rows, groups))
    return tuple(np.flatnonzero(part) for part in parting)


def _aimed(rest: np.ndarray, groups) -> tuple[np.ndarray, np.ndarray]:
    """All of these rows but an eighth to fit to, that eighth to choose a step's length by."""
    parting = parted(len(rest), groups) if len(rest) else None
    if parting is None:
        raise ValueError(_too_few(len(rest), groups))
    return rest[~parting.reach], rest[parting.reach]


def _too_few(n_rows: int, groups) -> str:
    what = f"{n_rows} rows" if groups is None else f"{n_rows} rows of {len(np.unique(groups))} documents"
    return (
        f"{what} are too few to fit the decoders' steps to, beside fresh ones; give {LEAST_GROUPS} or more, or held_out"
    )


def _numbers(held_out, n_rows: int) -> np.ndarray:
    given = np.asarray(held_out)
    if given.dtype == bool and given.shape == (n_rows,):
        return np.flatnonzero(given)
    if given.ndim != 1 or given.dtype.kind not in "iu" or not given.size or given.min() < 0 or given.max() >= n_rows:
        raise ValueError(
            f"held_out has shape {given.shape} and dtype {given.dtype}; give fresh rows (rows, d_in), or numbers of rows of X from 0 to "
            f"{n_rows - 1}, or {n_rows} booleans"
        )
    return np.unique(given)
