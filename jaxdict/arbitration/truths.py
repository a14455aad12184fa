"""How near an SAE is to a truth that is known: matched directions, and features that are on where true ones are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxdict.auditing.code_tables import CodeTable, sparse_rows
from jaxdict.problem import Dictionary, SparseCodes, dense_codes
from jaxdict.recovery.benchmarks import BenchSums, metrics_of_directions, nearest_features
from jaxdict.synthetic_benchmark.models import BenchModel
from jaxdict.synthetic_parts import Planted

# A true feature is held by the latent that is matched to it from this cosine on.
HELD = 0.5
# More edges than this are not looked at.
MOST_EDGES = 600
KINDS = 'atoms (features, d), a Dictionary, planted data, a BenchModel, or {"atoms": ..., "codes": ..., "parents": ...}'


class Truth(NamedTuple):
    """True directions of length one; the rows' true codes, where they are known; parents, -1 for none."""

    atoms: Float[np.ndarray, "features d"]
    codes: Any
    parents: Int[np.ndarray, " features"] | None

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The (parent, child) pairs, at most `MOST_EDGES`."""
        parents = () if self.parents is None else self.parents
        return [(int(parent), child) for child, parent in enumerate(parents) if parent >= 0][:MOST_EDGES]

    def on(self, rows: np.ndarray) -> Any:
        """Which features are on in some rows, (rows, features) compressed by row; None where codes are not known."""
        if self.codes is None:
            return None
        if isinstance(self.codes, SparseCodes):
            part = SparseCodes(*(jnp.asarray(array)[rows] for array in self.codes))
            return sparse_rows(np.asarray(dense_codes(part, len(self.atoms))) > 0)
        return sparse_rows(np.asarray(self.codes)[rows] > 0)


class Recovered(NamedTuple):
    """How near, by SynthSAEBench's formulas: `recovery.BenchMetrics`, where each number is told."""

    mcc: float
    uniqueness: float
    precision: float | None  # None without codes, as the next two
    recall: float | None
    f1: float | None
    latents: Int[np.ndarray, " features"]  # the latent that holds each true feature; -1 for none


def truth_of(given: Any, d: int, n_rows: int) -> Truth | None:
    """A truth as it may be given, or a ValueError where it does not fit rows of width d, of which there are `n_rows`.

    >>> truth_of(np.eye(3), 2, 10)
    Traceback (most recent call last):
    ValueError: truth has atoms of shape (3, 3), these rows 2 features; give (features, 2), one atom a row
    """
    if given is None:
        return None
    atoms, codes, parents = _parts(given)
    atoms = np.asarray(atoms, float)
    if atoms.ndim != 2 or atoms.shape[1] != d:
        raise ValueError(
            f"truth has atoms of shape {atoms.shape}, these rows {d} features; give (features, {d}), one atom a row"
        )
    norms = np.linalg.norm(atoms, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        raise ValueError("truth has an atom that is zero or not finite; leave it out, with its codes")
    n = len(atoms)
    if parents is not None:
        parents = np.asarray(parents)
        if parents.shape != (n,) or parents.dtype.kind not in "iu" or parents.max(initial=-1) >= n:
            raise ValueError(
                f"truth has parents of shape {parents.shape}, {n} atoms; give each atom's parent, a number below {n}, -1 for none"
            )
    if codes is not None:
        _check_codes(codes, n_rows, n)
    return Truth(atoms / norms, codes, parents)


def recovered(units: Float[np.ndarray, "latents d"], table: CodeTable, truth: Truth, on: Any) -> Recovered:
    """How near an SAE's unit decoder rows are to the truth, and how well its features are on where the true ones are.

    `table` is of the SAE's own codes, `on` the truth's of the same rows, or None.

    >>> table, on = (CodeTable.from_dense(np.array([codes]), np.arange(1)) for codes in ([0.0, 1.0], [1.0, 0.0]))
    >>> found = recovered(np.eye(2)[::-1], table, Truth(np.eye(2), None, None), on.by_row)
    >>> found.mcc, found.uniqueness, found.f1, found.latents.tolist()
    (1.0, 1.0, 0.5, [1, 0])
    """
    rows = jnp.asarray(units)
    features = jnp.asarray(truth.atoms, rows.dtype)
    metrics, matched = metrics_of_directions(
        rows, features, _counts(table, on, nearest_features(rows, features), len(features))
    )
    mine, theirs = (np.asarray(part) for part in matched)
    held = np.sum(np.asarray(units, float)[mine] * truth.atoms[theirs], axis=1) >= HELD
    latents = np.full(len(truth.atoms), -1)
    latents[theirs] = np.where(held, mine, -1)
    detected = (metrics.precision, metrics.recall, metrics.f1_score)
    scores = (None if on is None else float(score) for score in detected)
    return Recovered(float(metrics.mcc), float(metrics.uniqueness), *scores, latents)


def _counts(table: CodeTable, on: Any, nearest, n_features: int) -> BenchSums:
    """On how many rows latents and features are on, where codes are known; nothing of reconstructions, whose numbers are not asked for."""
    latent_on, feature_on = jnp.asarray(table.counts), jnp.zeros(n_features, int)
    both, zero = jnp.zeros_like(latent_on), jnp.zeros(())
    if on is not None:
        feature_on = jnp.asarray(np.asarray(on.sum(axis=0)).ravel())
        together = (table.by_row != 0).multiply(on[:, np.asarray(nearest)] != 0)
        both = jnp.asarray(np.asarray(together.sum(axis=0)).ravel())
    return BenchSums(
        rows=jnp.asarray(table.by_row.shape[0]),
        feature_on=feature_on,
        latent_on=latent_on,
        both_on=both,
        ratios=zero,
        ratio_rows=jnp.zeros((), int),
        errors=zero,
        squares=zero,
        total=zero[None],
    )


def _parts(given):
    """Atoms, codes and parents."""
    if isinstance(given, Planted):
        return given.dictionary.atoms, given.codes, given.parents
    if isinstance(given, BenchModel):
        return given.dictionary.atoms, None, given.parents
    if isinstance(given, Dictionary):
        return given.atoms, None, None
    if not isinstance(given, Mapping):
        return given, None, None
    unknown = sorted(set(given) - {"atoms", "codes", "parents"})
    if unknown or "atoms" not in given:
        what = f"holds {unknown[0]!r}" if unknown else "holds no atoms"
        raise ValueError(f"truth {what}; give {KINDS}")
    return given["atoms"], given.get("codes"), given.get("parents")


def _check_codes(codes, n_rows: int, n_features: int) -> None:
    shape = np.shape(codes.values if isinstance(codes, SparseCodes) else codes)
    if shape[:1] != (n_rows,) or (not isinstance(codes, SparseCodes) and shape != (n_rows, n_features)):
        raise ValueError(
            f"truth has codes of shape {shape}; give {(n_rows, n_features)}, a row for each of those that fresh ones are taken from"
        )
