"""How far each feature's decoder row is from where the data want it, codes as they are: T20's condition, without bias by T17."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxdict.auditing.totals import Totals
from jaxdict.population.comparisons import SHOWN


class DecoderDefects(NamedTuple):
    """Of each feature alone, its codes held, the others as they are; NaN for dead ones, and where there is one unit of rows."""

    gain: Float[
        np.ndarray, " features"
    ]  # squared error a row that the best step of its row across itself would save; may be negative
    error: Float[np.ndarray, " features"]  # its standard error, from above
    defect: Float[
        np.ndarray, " features"
    ]  # that step's squared length, the decoder row's being one: scale-free; may be negative

    @property
    def shown(self) -> Bool[np.ndarray, " features"]:
        """Where the gain is above three standard errors."""
        known = np.isfinite(self.gain) & np.isfinite(self.error)
        return known & (np.where(known, self.gain, 0) > SHOWN * np.where(known, self.error, 0))


def decoder_defects(units: Float[np.ndarray, "features d"], totals: Totals) -> DecoderDefects:
    """T17 applied to `E[z_k r]` across u_k, which vanishes where no decoder row alone can be bettered (T20).

        U_k = ( ||sum_n t_nk||^2 - sum_g ||sum_{n in g} t_nk||^2 ) / ( n^2 - sum_g n_g^2 ),    t_nk = z_nk P_k r_n

    is unbiased for `||E t_k||^2`, g the units that are independent: rows, or documents of n_g rows. The step `E t_k / E z_k^2`
    gains `||E t_k||^2 / E z_k^2` of squared error a row; its length is the tangent of the angle that the decoder row is off by.
    Naively noise adds `nu_k = sum_g ||sum_g t||^2 / (n^2 - sum_g n_g^2)` to U_k. U's variance is `2 tr(C^2) / n^2 + 4 <m, C m> / n`,
    C the covariance of t and m its mean, at most `2 nu^2 + 4 U nu`: the standard error is no smaller than it should be.

    >>> # Residuals (2, 1) and (2, -1) at codes of 1; a decoder row along the first axis.
    >>> sums = {"rows": 2, "cross": np.array([[4.0, 0.0]]), "spread": np.array([2.0]), "squares": np.array([2.0])}
    >>> others = dict.fromkeys(Totals._fields, 0) | sums | {"unit_squares": 2, "counts": np.array([2.0])}
    >>> found = decoder_defects(np.array([[1.0, 0.0]]), Totals(**others))
    >>> found.gain.tolist(), found.defect.tolist(), found.shown.tolist()
    ([-1.0], [-1.0], [False])
    """
    n = float(totals.rows)
    pairs = n * n - float(totals.unit_squares)
    along = np.einsum("kd,kd->k", totals.cross, units)
    across = np.einsum("kd,kd->k", totals.cross, totals.cross) - along**2
    live = (np.asarray(totals.counts) > 0) & (pairs > 0)
    second = np.where(live, totals.squares / n, 1.0)
    square, noise = ((np.where(live, part, 0.0) / max(pairs, 1.0)) for part in (across - totals.spread, totals.spread))
    error = np.sqrt(2 * noise**2 + 4 * np.maximum(square, 0) * noise)
    return DecoderDefects(
        *(np.where(live, part, np.nan) for part in (square / second, error / second, square / second**2))
    )


def defect_facts(
    features: list[dict], totals: Totals, documents: int | None, *, named: bool, normalised: bool
) -> dict[str, Any]:
    """How many decoder rows are shown to be off, and what the rows were taken for; `named`: documents were given."""
    live = [row for row in features if not row["dead"]]
    shown = [row for row in live if row["decoder_shown"]]
    facts = {
        "unit": "squared error a row" + (" of the normalised input" if normalised else ""),
        "rows": int(totals.rows),
        "documents": documents,
        "cut": 0 if documents is None else int(totals.units) - documents,
        "live": len(live),
        "shown": len(shown),
    }
    return facts | {"sentence": f"{_shown_sentence(shown, facts)} {_units_sentence(facts, named)}"}


def _shown_sentence(shown: list[dict], facts: dict[str, Any]) -> str:
    if not shown:
        return (
            f"Of {facts['live']:,} live features none is shown to have a decoder row that is not where the data want it, its codes "
            "held (T17, T20): no gain of one alone is above three standard errors."
        )
    first = max(shown, key=lambda row: row["decoder_gain"])
    return (
        f"Of {facts['live']:,} live features {facts['shown']:,} are shown to have a decoder row that is not where the data want it, "
        f"its codes held (T17, T20). Moving the one of feature {first['feature']} alone would save most: {first['decoder_gain']:.3g} "
        f"of {facts['unit']}, +- {first['decoder_gain_error']:.1g} at most. Gains of several do not add."
    )


def _units_sentence(facts: dict[str, Any], named: bool) -> str:
    """What depends on what among the rows."""
    if facts["documents"] is None:
        why = " (documents are not taken as units where their rows do not follow one another)" if named else ""
        return f"The {facts['rows']:,} rows are treated as independent of one another{why}."
    parts = facts["documents"] + facts["cut"]
    cut = f" (long ones cut, {parts:,} parts in all)" if facts["cut"] else ""
    return (
        f"Documents are treated as independent of one another: {facts['documents']:,} of {facts['rows']:,} rows{cut}."
    )
