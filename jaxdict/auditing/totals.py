"""The sums of a pass over rows, and the pass while it is under way."""

from typing import Any, NamedTuple

import numpy as np

from jaxdict.auditing.strongest import Strongest

# A float64 number or array.
Sum = Any


class Totals(NamedTuple):
    """Sums over rows, float64; features in the canonical gauge (unit decoder rows), r the residual where the dictionary lives."""

    rows: Sum
    squared_data: Sum  # sum ||x - centre||^2
    data: Sum  # sum (x - centre), (d,)
    squared_error: Sum  # sum ||x - x_hat||^2, in the units of the activations
    squared_residual: Sum  # sum ||r||^2, where the dictionary lives (the same, unless the SAE normalises)
    penalty: Sum  # sum over rows and features of |f|
    active: Sum  # sum over rows of the number of features on
    beyond: Sum  # rows with ||r|| > lam
    largest_residual: Sum  # max ||r||
    counts: Sum  # rows on which each feature is on, (features,)
    codes: Sum  # sum |f|
    squares: Sum  # sum f^2
    largest: Sum  # max |f|
    cross: Sum  # sum f r, (features, d)
    spread: Sum  # T17's second sum, over units (rows, or documents): ||sum f r across d_k within one||^2, (features,)
    units: Sum  # units: rows, or documents, those that a chunk's end cuts twice
    unit_squares: Sum  # sum over units of the square of their rows
    residual: Sum  # sum r, (d,)


# Of these the largest is kept, not the sum.
MAXIMA = ("largest_residual", "largest")


class Running(NamedTuple):
    """A pass under way: sums, features kept and strongest rows so far, the next row, and an array to add the next `cross` up in."""

    totals: Totals
    parts: list
    strongest: Strongest
    start: int
    spare: np.ndarray | None = None


def no_rows(d_sae: int, d_out: int) -> Totals:
    """The sums before any row."""
    of_feature = ("counts", "codes", "squares", "largest", "spread")
    shapes = {"data": (d_out,), "residual": (d_out,), "cross": (d_sae, d_out)}
    return Totals(
        **{f: np.zeros(shapes.get(f, (d_sae,) if f in of_feature else ()), np.float64) for f in Totals._fields}
    )
