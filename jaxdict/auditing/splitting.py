"""An SAE's error in its architecture's own currency (theory.md section 8): what its values, its supports and its dictionary cost.

Squared errors of rows, codes of as many features as the SAE itself uses on each: lam has no part in it, so it is the same question for
every architecture. Each step is a paired mean over rows with its standard error (T18).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.auditing.descending import Descent, Search, descended, revived, widened
from jaxdict.auditing.parting import Parting, Source, parted
from jaxdict.auditing.split_rows import Budget
from jaxdict.auditing.steps import best_share, decoder_step, squared_errors
from jaxdict.encoding.subsets.values import refit_values
from jaxdict.numerics import unit_rows
from jaxdict.population.comparisons import SHOWN, numbered, paired
from jaxdict.problem import Dictionary, SparseCodes, canonical, offset_of


class Part(NamedTuple):
    """What one part costs: the paired mean of the fall of the squared error, its standard error, and of how many rows."""

    name: str
    mean: float
    standard_error: float
    rows: int
    shown: bool
    fitted: int | None = None  # rows that a better dictionary was fitted to
    added: int | None = None  # atoms that were added
    changed: bool = True  # whether any dictionary gained on rows kept aside


class Split(NamedTuple):
    """The mean squared error a row and what of it each part costs; parts that could not be measured are not among them."""

    own: float
    own_error: float  # the standard error of that mean
    rows: int
    groups: int | None  # documents that the rows come from, where they were named
    pursuit: float  # the error of the supports that greedy pursuit alone finds
    parts: tuple[Part, ...]


class Others(NamedTuple):
    """What a better dictionary may be fitted to: rows that are not fresh, a budget for each descent, features that never fire."""

    source: Source
    budget: Callable[[int], Budget]  # of the next descent, where so many are to come
    dead: Int[np.ndarray, " dead"]
    tell: Callable[[str], Any] = lambda stage: None


class Fresh(NamedTuple):
    """Rows that no change of the dictionary saw, with the codes found so far at each row's own number of features."""

    X: Float[Array, "rows d"]
    sizes: Int[np.ndarray, " rows"]
    codes: SparseCodes
    groups: Any
    floor: float  # what sums of squares of this size are rounded by


def split_error(
    dictionary: Dictionary,
    X: Float[Array, "samples d"],
    own: SparseCodes,
    *,
    signed: bool,
    groups=None,
    others: Others | None = None,
) -> Split:
    """What the SAE's own codes lose to their values, to their supports, and then to the decoder and its width, on these rows.

    Values: the best ones on the SAE's own supports. Supports: the best found of the same size, row by row. Decoder: with these
    codes held, T20's step, fitted on half of the rows (documents, where `groups` names them) and measured on the other half, the
    fresh ones. Dictionary, where there are `others`: a descent over those, codes found anew at the same number of features. Atoms: the
    same with more of them.
    """
    sizes = np.count_nonzero(np.asarray(own.values), axis=1)
    search = Search(signed, own.values.shape[1])
    values = refit_values(dictionary, own, X, signed=signed)
    best = search(dictionary, X, sizes, start=own)
    pursued = search(dictionary, X, sizes, max_steps=0)
    at_own, at_values, at_best = (squared_errors(dictionary, codes, X) for codes in (own, values, best))
    floor = 64 * float(jnp.finfo(X.dtype).eps) * float(jnp.mean(jnp.sum((X - offset_of(dictionary)) ** 2, axis=1)))
    parts = [
        _part("values", at_own - at_values, groups, floor),
        _part("supports", at_values - at_best, groups, floor),
    ]
    parting = parted(X.shape[0], groups)
    if parting is not None:
        part, chosen = decoder_part(dictionary, X, best, parting, groups, floor)
        parts.append(part)
        if others is not None:
            names = None if groups is None else np.asarray(groups)[parting.fresh]
            fresh = Fresh(X[parting.fresh], sizes[parting.fresh], codes_of(best, parting.fresh), names, floor)
            parts += dictionary_parts(chosen, fresh, others, search)
    return Split(
        float(jnp.mean(at_own)),
        _part("own", at_own, groups, floor).standard_error,
        X.shape[0],
        None if groups is None else len(np.unique(groups)),
        float(jnp.mean(squared_errors(dictionary, pursued, X))),
        tuple(parts),
    )


def codes_of(codes: SparseCodes, rows) -> SparseCodes:
    """The codes of some of the rows."""
    return SparseCodes(codes.indices[rows], codes.values[rows])


def _part(name: str, falls: Float[Array, " rows"], groups, floor: float, **facts) -> Part:
    found = paired(falls, jnp.ones_like(falls), None if groups is None else numbered(groups))
    mean, error = float(found.gain), float(found.standard_error)
    return Part(name, mean, error, int(found.rows), mean > max(SHOWN * error, floor), **facts)


def decoder_part(
    dictionary: Dictionary, X: Float[Array, "samples d"], codes: SparseCodes, parting: Parting, groups, floor: float
) -> tuple[Part, Dictionary]:
    """T20's step for the codes as they are, fitted, its length chosen, and paired on rows of their own; and where it leads."""
    at = [(codes_of(codes, rows), X[rows]) for rows in parting]
    chosen = best_share(dictionary, decoder_step(dictionary, *at[0]), *at[1])
    falls = squared_errors(dictionary, *at[2]) - squared_errors(chosen, *at[2])
    return _part("decoder", falls, None if groups is None else np.asarray(groups)[parting.fresh], floor), chosen


def dictionary_parts(decoder: Dictionary, fresh: Fresh, others: Others, search: Search) -> list[Part]:
    """What fresh rows gain when the dictionary descends over other rows at the same sparsity, and then with more atoms.

    A descent whose budget allowed no step measures nothing: its part is not among them.

    Codes are found anew, started from the former ones, so that each part begins where the one before it ended. Where no dictionary
    gained on rows kept aside there is no change, and only codes found anew for the decoder as it is count for the first part.
    """
    others.tell("a better dictionary")
    _, codes = canonical(decoder, fresh.codes)
    at, fresh = Dictionary(unit_rows(decoder.atoms), decoder.offset), fresh._replace(codes=codes)
    budget = others.budget(2)
    start, _ = revived(at, others.dead, others.source, search)
    descent = descended(start, others.source, search, budget, beside=at)
    if not descent.rows:
        return []
    first, fresh = descent_part("dictionary", at, descent, fresh, search)
    others.tell("more atoms")
    at, budget = descent.dictionary or at, others.budget(1)
    start, placed = widened(at, others.source, search)
    descent = descended(start, others.source, search, budget, beside=at)
    if not descent.rows:
        return [first]
    second, _ = descent_part("atoms", at, descent, fresh, search, added=len(placed))
    return [first, second]


def descent_part(
    name: str, at: Dictionary, descent: Descent, fresh: Fresh, search: Search, **facts
) -> tuple[Part, Fresh]:
    """The paired fall of the fresh rows' error at the best codes found, and the rows with their codes there."""
    there = descent.dictionary or at
    codes = search(there, fresh.X, fresh.sizes, start=fresh.codes)
    falls = squared_errors(at, fresh.codes, fresh.X) - squared_errors(there, codes, fresh.X)
    facts |= {"fitted": descent.rows, "changed": descent.dictionary is not None}
    return _part(name, falls, fresh.groups, fresh.floor, **facts), fresh._replace(codes=codes)
