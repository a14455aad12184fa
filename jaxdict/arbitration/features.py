"""What one SAE's features are like beside its error: pairs that its loss leaves open, how stable they are, what they cost."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import linear_sum_assignment

from jaxdict.arbitration.splits import Coded
from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.findings import MOST_CANDIDATES
from jaxdict.auditing.kinds import by_supports
from jaxdict.auditing.nested import nested_pairs
from jaxdict.numerics import unit_rows
from jaxdict.sae.models import SAE, Metadata

# Seeds with more features than this are not matched: the time grows with the third power of their number.
MOST_MATCHED = 4096
# Rows of a timed call, and how many calls.
TIMED_ROWS, CALLS = 1000, 3


def flat_facts(found: Coded, table: CodeTable) -> dict[str, Any] | None:
    """Pairs with the child on only where the parent is, beyond chance, and the cosines that T21 leaves open; None for signed codes.

    `open`: supports and reconstructions alone make up the SAE's loss, so that it leaves these pairs open; another loss has a term
    that may determine them (C1, T22, T23). `interval`: the length of the range of cosines, from -1 to where the parent is absorbed.
    """
    if found.signed:
        return None
    pairs = nested_pairs(found.dictionary, table)
    live = int(np.sum(table.counts > 0))
    inside = {pair[side] for pair in pairs for side in ("parent", "child")}
    return {
        "pairs": len(pairs),
        "features_share": len(inside) / live if live else 0.0,
        "interval": float(np.median([1 + pair["absorbed"] for pair in pairs])) if pairs else None,
        "open": by_supports(found.sae),
        "cut": len(pairs) == MOST_CANDIDATES,
    }


def stability(saes: Sequence[SAE]) -> dict[str, Any] | None:
    """The mean cosine of decoder rows of every two SAEs, matched one to one at the largest sum; None for one alone, or very wide ones.

    >>> from jaxdict.problem import Dictionary
    >>> from jaxdict.sae.encoders import tied_sae
    >>> stability([tied_sae(Dictionary(rows), 0.1) for rows in (jnp.eye(2), jnp.eye(2)[::-1])])
    {'cosine': 1.0, 'saes': 2}
    """
    if len(saes) < 2 or max(sae.d_sae for sae in saes) > MOST_MATCHED:
        return None
    units = [np.asarray(unit_rows(jnp.asarray(sae.W_dec)), float) for sae in saes]
    means = []
    for first, second in itertools.combinations(units, 2):
        cosines = first @ second.T
        means.append(cosines[linear_sum_assignment(-cosines)].mean())
    return {"cosine": float(np.mean(means)), "saes": len(saes)}


def cost_facts(sae: SAE, l0: float, x: Float[np.ndarray, "rows d_in"]) -> dict[str, Any]:
    """Multiply-adds a row of the encoder and of a decoder that reads active features alone, numbers held, and the encoder's time."""
    rounds = (sae.activation.k or 1) if sae.activation.kind == "matching_pursuit" else 1
    arrays = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)
    return {
        "encoder": rounds * sae.d_in * sae.d_sae,
        "decoder": l0 * sae.d_out,
        "parameters": sum(int(np.size(array)) for array in arrays if array is not None),
        "milliseconds": _milliseconds(sae, x),
        "device": jax.devices()[0].device_kind,
    }


def _milliseconds(sae: SAE, x) -> float:
    """The encoder's time for a thousand rows, compiled: the best of a few calls."""
    sae, rows = replace(sae, metadata=Metadata()), jnp.asarray(x[:TIMED_ROWS])
    jax.block_until_ready(_encoded(sae, rows))
    took = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        jax.block_until_ready(_encoded(sae, rows))
        took.append(time.perf_counter() - begin)
    return 1000 * min(took) * TIMED_ROWS / len(rows)


@eqx.filter_jit
def _encoded(sae: SAE, x: Float[Array, "rows d_in"]) -> Float[Array, "rows d_sae"]:
    return sae.encode(x)
