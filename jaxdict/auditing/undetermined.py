"""Pairs of features that an SAE's objective leaves open (T21), for architectures without a penalty on the size of codes."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.findings import candidate_pairs, padded
from jaxdict.auditing.kinds import by_supports
from jaxdict.conditions.open_pairs import flat_pairs
from jaxdict.problem import Dictionary, SparseCodes
from jaxdict.sae.models import SAE


def undetermined_pairs(sae: SAE, dictionary: Dictionary, table: CodeTable, top: int) -> list[dict[str, Any]] | None:
    """Children that are on only where their parent is, with the cosines between which the objective does not choose (T21).

    Those come first whose cosine is furthest from where it could be, the rows they share weighing as they should; at most `top`.
    None where the loss has another term, which may determine them: L1 (C1, T6), prefixes (T22), another penalty (T23).
    """
    if not by_supports(sae):
        return None
    units = np.asarray(dictionary.atoms, np.float64)
    nested = candidate_pairs(units, table, share=1.0)
    if not nested:
        return []
    picked = padded(np.unique([pair[side] for pair in nested for side in "ij"]))
    place = {int(feature): k for k, feature in reversed(list(enumerate(picked)))}
    i, j = (padded(np.array([place[pair[side]] for pair in nested])) for side in "ij")
    codes = SparseCodes(*map(jnp.asarray, table.slots(picked)))
    found = flat_pairs(Dictionary(jnp.asarray(dictionary.atoms)[picked]), codes, i, j)
    lowest, absorbed = np.asarray(found.lowest), np.asarray(found.absorbed)
    rows = [_row(pair, float(lowest[k]), float(absorbed[k])) for k, pair in enumerate(nested)]
    return sorted(rows, key=lambda row: -row["both"] * (row["absorbed"] - row["cosine"]))[:top]


def _row(pair: dict, lowest: float, absorbed: float) -> dict[str, Any]:
    row = {
        "parent": pair["i"],
        "child": pair["j"],
        "both": pair["both"],
        "rho": pair["rho"],
        "cosine": pair["cosine"],
        "opposite": -1.0,
        "absorbed": absorbed,
        "lowest": lowest,
    }
    return row | {"sentence": undetermined_sentence(row)}


def undetermined_sentence(row: dict) -> str:
    """What T21 says of one pair."""
    return (
        f"Feature {row['child']} is on only where feature {row['parent']} is ({row['both']:,} rows), so the objective does not "
        f"determine this pair: their decoder rows have cosine {row['cosine']:.2f}, and anything from -1 to {row['absorbed']:.2f} "
        "leaves every reconstruction and every support as it is."
    )
