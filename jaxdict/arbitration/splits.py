"""One SAE's squared error, row by row: its own, and what better values, other features and a step of the decoder take off it."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Int

from jaxdict.arbitration.rows import Parts, Taken
from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.descending import Search, descended, revived, widened
from jaxdict.auditing.gaps import sample_rows
from jaxdict.auditing.measuring import in_precision
from jaxdict.auditing.parting import source_between
from jaxdict.auditing.split_rows import budgets
from jaxdict.auditing.splitting import codes_of
from jaxdict.auditing.steps import best_share, decoder_step, squared_errors
from jaxdict.encoding.subsets.values import refit_values
from jaxdict.numerics import unit_rows
from jaxdict.problem import Dictionary, SparseCodes, canonical, sparse_codes
from jaxdict.sae.models import SAE, centre_and_spread
from jaxdict.streaming.sums import as_matrix

# Entries of a block's dense codes (rows, features), and rows that say which features are never on.
BLOCK_ENTRIES, MOST_LOOKED = 2**24, 2**14
# What is taken off the error, in this order, and what is taken off after it where it is asked for.
PARTS = ("values", "supports", "decoder")
FURTHER = ("dictionary", "atoms")


class Coded(NamedTuple):
    """An SAE with unit decoder rows and its own codes of all rows that are taken, as its dictionary sees them."""

    sae: SAE
    dictionary: Dictionary
    X: Float[Array, "rows d"]
    own: SparseCodes
    unit: Float[Array, " rows"]  # a squared error where the dictionary lives times this is one of the activations
    signed: bool

    def of(self, rows: slice) -> tuple[SparseCodes, Float[Array, "some d"]]:
        """Codes and rows of a part."""
        return codes_of(self.own, rows), self.X[rows]

    def active(self, rows: slice) -> Float[np.ndarray, " some"]:
        """How many features are on, row by row."""
        return np.count_nonzero(np.asarray(self.own.values[rows]), axis=1).astype(float)

    def errors(self, rows: slice) -> Float[Array, " some"]:
        """Squared errors of the SAE as it runs, in the units of the activations."""
        return squared_errors(self.dictionary, *self.of(rows)) * self.unit[rows]


class RowSplit(NamedTuple):
    """Squared errors of fresh rows in the units of the activations: `own = values + supports + decoder + ... + rest`, row by row."""

    active: Float[Array, " rows"]  # features on
    own: Float[Array, " rows"]
    values: Float[Array, " rows"]
    supports: Float[Array, " rows"]
    decoder: Float[Array, " rows"]
    rest: Float[Array, " rows"]
    dictionary: Float[Array, " rows"] | None = None  # where it was asked for
    atoms: Float[Array, " rows"] | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """What was taken off, in this order."""
        return tuple(name for name in (*PARTS, *FURTHER) if getattr(self, name) is not None)


def coded(sae: SAE, rows: Taken) -> Coded:
    """The SAE's own codes of the rows, a block at a time."""
    sae = in_precision(sae, jnp.result_type(float)).canonical()
    size = max(1, BLOCK_ENTRIES // sae.d_sae)
    blocks = [np.arange(start, min(start + size, len(rows.x))) for start in range(0, len(rows.x), size)]
    seen, codes = zip(*(sample_rows(sae, rows.x, block) for block in blocks), strict=True)
    slots = max(part.values.shape[1] for part in codes)
    wide = [jax.tree.map(lambda a: jnp.pad(a, [(0, 0), (0, slots - a.shape[1])]), part) for part in codes]
    own = jax.tree.map(lambda *parts: jnp.concatenate(parts), *wide)
    unit = jnp.ones(len(rows.x), own.values.dtype)
    if sae.normalisation != "none":
        unit = centre_and_spread(sae.normalisation, jnp.asarray(rows.x))[1][:, 0] ** 2
    dictionary = Dictionary(*(jnp.asarray(part, own.values.dtype) for part in sae.dictionary))
    return Coded(sae, dictionary, jnp.concatenate(seen), own, unit, bool(jnp.any(own.values < 0)))


def split_rows(found: Coded, rows: Taken, wanted: Sequence[str], others: Parts) -> RowSplit:
    """The parts of the error of each fresh row, as an audit takes them (theory.md section 8), at that row's own number of features.

    Values: the best ones on the SAE's own features. Supports: other features, as many, the best that a search finds. Decoder: with
    these codes held a step (T20) that was fitted to the other rows, whose length still others chose. Then what is wanted of descents
    over all `others` (`descents_of`). The rest: what is left.
    """
    search = Search(found.signed, found.own.values.shape[1])
    sizes = np.count_nonzero(np.asarray(found.own.values), axis=1)
    best = search(found.dictionary, found.X, sizes, start=found.own)
    own, X = found.of(rows.fresh)
    values = refit_values(found.dictionary, own, X, signed=found.signed)
    (aim, at), (reach, there) = ((codes_of(best, part), found.X[part]) for part in (rows.aim, rows.reach))
    moved = best_share(found.dictionary, decoder_step(found.dictionary, aim, at), reach, there)
    last, unit = codes_of(best, rows.fresh), found.unit[rows.fresh]
    errors = [
        squared_errors(dictionary, codes, X) * unit
        for dictionary, codes in (
            (found.dictionary, own),
            (found.dictionary, values),
            (found.dictionary, last),
            (moved, last),
        )
    ]
    falls = [before - after for before, after in itertools.pairwise(errors)]
    more = {}
    for name, there in descents_of(found, moved, last, X, wanted, others, search):
        errors.append(there * unit)
        more[name] = errors[-2] - errors[-1]
    return RowSplit(jnp.asarray(found.active(rows.fresh), unit.dtype), errors[0], *falls, errors[-1], **more)


def descents_of(
    found: Coded, decoder: Dictionary, codes: SparseCodes, X: Float[Array, "fresh d"], wanted: Sequence[str], others: Parts,
    search: Search,
) -> Iterator[tuple[str, Float[Array, " fresh"]]]:  # fmt: skip
    """Squared errors of fresh rows after a descent over other rows at the same number of features, and after one with more atoms.

    As in an audit each begins where the one before it ended, codes found anew; features that are on in none of the other rows are
    placed anew first (T10), and only a dictionary that gains on rows kept aside counts.
    """
    source = source_between(found.sae, others.X, others.train, others.aside, search.slots) if wanted else None
    if source is None:
        return
    sizes = np.count_nonzero(np.asarray(codes.values), axis=1)
    codes = sparse_codes(canonical(decoder, codes)[1])
    at, budget = Dictionary(unit_rows(decoder.atoms), decoder.offset), budgets(found.sae.d_sae, sizes.mean(), math.inf)
    for name in FURTHER:
        if name in wanted:
            placed = (
                revived(at, _dead(found.sae, others), source, search)
                if name == "dictionary"
                else widened(at, source, search)
            )
            at = descended(placed[0], source, search, budget(1), beside=at).dictionary or at
            codes = search(at, X, sizes, start=codes)
            yield name, squared_errors(at, codes, X)


def _dead(sae: SAE, others: Parts) -> Int[np.ndarray, " dead"]:
    """Features that are on in none of many rows to fit to."""
    rows = np.sort(others.train[:MOST_LOOKED])
    fires = np.zeros(sae.d_sae, bool)
    for block in np.array_split(rows, max(1, len(rows) * sae.d_sae // BLOCK_ENTRIES)):
        fires |= np.any(np.asarray(sae.encode(jnp.asarray(others.X[block], sae.W_enc.dtype))) != 0, axis=0)
    return np.flatnonzero(~fires)


def table_of(codes: SparseCodes, n_features: int) -> CodeTable:
    """Sparse codes as an audit's table, by row and by feature.

    >>> table = table_of(SparseCodes(jnp.array([[1, 0], [2, 0]]), jnp.array([[5.0, 0.0], [1.0, 2.0]])), 3)
    >>> table.by_row.toarray().tolist()
    [[0.0, 5.0, 0.0], [2.0, 0.0, 1.0]]
    """
    listed = scipy.sparse.csr_matrix(as_matrix(codes, n_features), dtype=np.float32)
    listed.sort_indices()
    return CodeTable(listed, np.arange(len(codes.values)))
