"""Figures of one name and differences between two, on the same fresh rows: means, paired, with standard errors (T18)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.arbitration.splits import RowSplit
from jaxdict.population.comparisons import SHOWN, numbered, paired


class Figure(NamedTuple):
    """A mean over rows, its standard error, and whether it is shown to differ from zero: three of them, and more than rounding."""

    mean: float
    standard_error: float
    shown: bool


class Rows(NamedTuple):
    """What depends on what among the fresh rows, and what their numbers are rounded by."""

    groups: Array | None  # the document of each, numbered
    floor: float

    def figure(self, values: Float[Array, " rows"]) -> Figure:
        """The mean of some rows, documents being independent where they are known."""
        found = paired(values, jnp.ones_like(values), self.groups)
        mean, error = float(found.gain), float(found.standard_error)
        return Figure(mean, error, abs(mean) > max(SHOWN * error, self.floor))


def rows_of(groups: np.ndarray | None, x: Float[np.ndarray, "rows d"]) -> Rows:
    """The fresh rows' documents, and 64 units of rounding of their mean square about their mean."""
    spread = float(np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))
    return Rows(None if groups is None else numbered(groups), 64 * float(np.finfo(x.dtype).eps) * spread)


def interpolated(weights: Sequence[float], splits: Sequence[RowSplit]) -> RowSplit:
    """Weighted sums row by row, so that errors of means and of differences are those of the interpolated rows."""
    return jax.tree.map(lambda *parts: sum(w * part for w, part in zip(weights, parts, strict=True)), *splits)


def figures(split: RowSplit, rows: Rows) -> dict[str, Figure]:
    """The SAE's own error, its parts and the rest."""
    return {name: rows.figure(getattr(split, name)) for name in ("own", *split.parts, "rest")}


def differences(first: RowSplit, second: RowSplit, rows: Rows) -> dict[str, Figure]:
    """The second's less the first's, row by row: positive where the first loses less."""
    gaps = jax.tree.map(lambda a, b: b - a, first, second)
    return figures(gaps, rows)
