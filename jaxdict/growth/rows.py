"""What growth stands on: rows that are fitted, some of them looked at for new atoms, and rows kept aside to judge by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.arrays import is_concrete
from jaxdict.encoding.exact import encode
from jaxdict.growth.fits import Fitted, fit_point, fitted
from jaxdict.problem import Dictionary, Problem, SparseCodes, sparse_codes
from jaxdict.streaming.aside import HELD_SHARE as STREAM_SHARE
from jaxdict.streaming.aside import Held
from jaxdict.streaming.run import fit_stream, rows_of
from jaxdict.streaming.sums import checked, code_tol
from jaxdict.validation import check_data, check_problem
from jaxdict.wide import bound

# New atoms are looked for, and their parents told, on at most so many training rows.
MOST_LOOKED_AT = 2**15
# Share of the rows in memory kept aside where nothing is asked for.
HELD_SHARE = 0.1


@dataclass(frozen=True)
class Ground:
    """Rows and problems."""

    plain: Problem  # constrained gauge, without weights: what rows kept aside are coded with
    training: Problem  # with the training rows' weights; without on streams
    X: Float[Array, "samples d"] | None  # the training rows; None on streams
    looked: Problem
    look: Float[Array, "rows d"]  # those that new atoms are looked for on
    held: Held | None
    n: int  # training rows
    numbers: Int[np.ndarray, " samples"] | None  # which rows of X they are; None on streams
    fit_from: Callable  # (dictionary, codes of the rows looked at before, tol, callback) -> where a fit ended
    read: Callable  # (where a fit ended, tol) -> Fitted

    def codes(self, dictionary: Dictionary) -> SparseCodes:
        """Exact codes of the rows looked at."""
        return _exact(self.looked, dictionary, self.look)

    def bounds(self) -> tuple[float, float]:
        """T11's bound on the training rows (NaN on streams), and on the rows kept aside (NaN where there are none)."""
        own = float("nan") if self.X is None else _bound(self.training, self.X)
        if self.held is None:
            return own, float("nan")
        weights = None if self.held.weights is None else jnp.asarray(self.held.weights)
        rows = jnp.asarray(np.asarray(self.held.rows[:]), self.look.dtype)
        return own, _bound(_with_weights(self.plain, weights), rows)


def in_memory(problem: Problem, X: Float[Any, "samples d"], held_out, groups, key, *, solver, max_steps: int) -> Ground:
    """Rows in memory, fitted by `jaxdict.fit`."""
    X = check_data(X, wide="allow")
    check_problem(problem, X)
    if not is_concrete(X):
        raise ValueError("X is traced: growth chooses its widths by the values; call grow outside of jit and vmap")
    held_out = HELD_SHARE if held_out is None else held_out
    rows = np.asarray(X)
    opened = rows_of(problem, rows, _by_documents(held_out, groups, len(rows), key), key)
    kept = np.concatenate([np.arange(a, b) for a, b in opened.runs])  # type: ignore[union-attr]
    weights = None if problem.weights is None else np.asarray(problem.weights)[kept]
    plain = _with_weights(problem, None).astype(X.dtype)
    training, own = _with_weights(plain, weights), jnp.asarray(rows[kept])
    check_problem(training, own)
    drawn = np.sort(np.asarray(jax.random.permutation(key, len(kept)))[:MOST_LOOKED_AT])
    looked = _with_weights(plain, None if weights is None else weights[drawn])
    look, all_looked = own[drawn], len(drawn) == len(kept)

    def fit_from(dictionary, before, tol, callback):
        options: dict[str, Any] = {"solver": solver, "max_steps": max_steps, "callback": callback}
        return fit_point(training, own, dictionary, before, tol=tol, **options)

    def read(found, tol) -> Fitted:
        there = fitted(training, found.dictionary, found.codes, own, tol)
        if all_looked:
            return there
        here = fitted(looked, found.dictionary, _exact(looked, found.dictionary, look), look, tol)
        return there._replace(codes=here.codes, worthwhile=here.worthwhile, looked=here.looked)

    held = _named(opened.held, groups, len(rows))
    return Ground(plain, training, own, looked, look, held, len(kept), kept, fit_from, read)


def on_stream(problem: Problem, source, held_out, groups, key, *, solver, passes: int) -> Ground:
    """Rows that stay where they are, fitted by `jaxdict.fit_stream`; a sample of them is looked at for new atoms."""
    if groups is not None and not hasattr(source, "shape"):
        raise ValueError("groups need a source with row slices; give an array, a memory map or shards")
    n = source.shape[0] if hasattr(source, "shape") else 0
    if groups is not None:
        held_out = _by_documents(STREAM_SHARE if held_out is None else held_out, groups, n, key)
    opened = rows_of(problem, source, held_out, key)
    drawn = opened.sample(MOST_LOOKED_AT, jax.random.fold_in(key, 3))
    look = jnp.asarray(checked(drawn.rows[:MOST_LOOKED_AT], 0))
    weights = None if drawn.weights is None else drawn.weights[:MOST_LOOKED_AT]
    plain = _with_weights(problem, None).astype(look.dtype)
    looked = _with_weights(plain, weights)
    check_problem(looked, look)

    def fit_from(dictionary, before, tol, callback):
        options: dict[str, Any] = {"solver": solver, "passes": passes, "tol": tol, "callback": callback}
        return fit_stream(problem, source, key=key, start=dictionary, held_out=held_out, **options)

    def read(found, tol) -> Fitted:
        here = fitted(looked, found.dictionary, _exact(looked, found.dictionary, look), look, tol)
        # Rows looked at are not all rows: they prove nothing of them.
        return here._replace(stationarity=float(found.stationarity), residual_ratio=float("inf"), is_global=False)

    held = _named(opened.held, groups, n)
    return Ground(plain, plain, None, looked, look, held, opened.n, None, fit_from, read)


def _exact(problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"]) -> SparseCodes:
    return sparse_codes(encode(problem, dictionary, X, tol=code_tol(X.dtype), sparse=True).codes)


def _by_documents(held_out, groups, n: int, key):
    """A share of the rows as the rows of whole documents, drawn by the key, where documents are named."""
    if groups is None or np.ndim(held_out) or not 0 < float(held_out) < 1:
        return held_out
    names = np.asarray(groups)
    if names.shape != (n,):
        raise ValueError(f"groups has shape {names.shape} but the data {n} rows; give one document a row")
    _, of_row, sizes = np.unique(names, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError("groups name one document, which cannot be parted; give at least two, or leave groups out")
    order = np.asarray(jax.random.permutation(key, len(sizes)))
    count = int(np.searchsorted(np.cumsum(sizes[order]), float(held_out) * n)) + 1
    return np.flatnonzero(np.isin(of_row, order[: min(count, len(sizes) - 1)]))


def _named(held: Held | None, groups, n: int) -> Held | None:
    """Rows kept aside, those of one document dependent on one another where documents are named."""
    if held is None or groups is None:
        return held
    names, rows = np.asarray(groups), held.rows
    names = names[rows.numbers] if hasattr(rows, "numbers") and names.shape == (n,) else names
    if names.shape != (rows.shape[0],):
        raise ValueError(
            f"groups has shape {np.shape(groups)} but the data {n} rows, of which {rows.shape[0]} are kept aside; give one "
            "document a row"
        )
    return held._replace(groups=np.unique(names, return_inverse=True)[1])


def _with_weights(problem: Problem, weights) -> Problem:
    return Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric, weights)


def _bound(problem: Problem, X: Float[Array, "samples d"]) -> float:
    options = {"offset": problem.offset, "signed": problem.signed, "metric": problem.metric, "weights": problem.weights}
    return float(bound(X, problem.lam, **options).dual_value)


def look_weights(ground: Ground) -> Float[np.ndarray, " rows"]:
    """Weights of the rows looked at, ones where there are none."""
    weights, n = ground.looked.weights, ground.look.shape[0]
    return np.ones(n) if weights is None else np.asarray(weights, float)
