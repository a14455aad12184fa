"""Absorption of one SAE along edges that a truth or labels name: parents that are silent where a child is on."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxdict.arbitration.splits import Coded
from jaxdict.arbitration.truths import Truth
from jaxdict.auditing.absorbing import by_label, edges_of
from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.findings import padded
from jaxdict.auditing.neighbours import neighbours
from jaxdict.conditions.absorptions import absorption, direction_present
from jaxdict.population.comparisons import SHOWN


class Edges(NamedTuple):
    """The gap of each edge, P(parent on | its concept there, no child) less the same with the child, and its standard error.

    NaN where an edge is not there: features that the SAE does not hold, or no such rows.
    """

    gap: Float[np.ndarray, " edges"]
    error: Float[np.ndarray, " edges"]
    by: str  # what says that the parent's concept is there

    @property
    def known(self) -> Bool[np.ndarray, " edges"]:
        """Which edges there are."""
        return np.isfinite(self.gap) & np.isfinite(self.error)

    def facts(self) -> dict[str, Any]:
        """How many edges, how many show absorption, and the mean gap with its standard error, edges being independent."""
        gap, error = self.gap[self.known], self.error[self.known]
        n = len(gap)
        return {
            "by": self.by,
            "edges": n,
            "shown": int(np.sum(gap > SHOWN * error)),
            "mean": float(gap.mean()) if n else None,
            "standard_error": float(np.sqrt(np.sum(error**2)) / n) if n else None,
        }


def edges_of_truth(found: Coded, fresh: slice, truth: Truth, on: Any, latents: np.ndarray) -> Edges:
    """Along the truth's edges, between the latents that hold their ends: -1 in `latents` (features,) for a feature that none holds.

    Where the true codes are known (`on`, of the fresh rows) they say on which rows the parent is there, else its direction in the data
    does.
    """
    named = truth.edges
    gap, error = np.full(len(named), np.nan), np.full(len(named), np.nan)
    by = "the parent's direction in the data" if on is None else "the true codes"
    held = np.array([k for k, (i, j) in enumerate(named) if latents[i] >= 0 and latents[j] >= 0], int)
    if not held.size:
        return Edges(gap, error, by)
    kept = padded(held)
    i, j = (np.array([latents[named[k][side]] for k in kept]) for side in (0, 1))
    codes, X = found.of(fresh)
    if on is None:
        present = direction_present(found.dictionary, codes, X, i, j)
    else:
        present = jnp.asarray(on[:, [named[k][0] for k in kept]].toarray().T > 0)
    one = absorption(codes, present, i, j, n_atoms=found.dictionary.atoms.shape[0])
    gap[held], error[held] = (np.asarray(part, float)[: len(held)] for part in (one.gap, one.standard_error))
    return Edges(gap, error, by)


def edges_of_labels(found: Coded, table: CodeTable, labels: np.ndarray) -> Edges:
    """Between near features, both ways, whose parent detects a label of the fresh rows: the rows of that label hold its concept."""
    near = neighbours(np.asarray(found.dictionary.atoms), 1)
    features = [
        {"feature": k, "nearest": int(near.nearest[k]), "nearest_cosine": float(near.cosine[k]), "dead": not count}
        for k, count in enumerate(table.counts)
    ]
    edges = [{"parent": parent, "child": child} for parent, child in edges_of([], features)]
    told = [row for row in by_label(table, labels, edges) if row is not None]
    gap, error = (np.array([row[name] for row in told], float) for name in ("gap", "standard_error"))
    return Edges(gap, error, "labels")
