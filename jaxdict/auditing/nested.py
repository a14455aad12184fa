"""Children that are on only where their parent is, and what an SAE's training loss says of the two (T21 to T23)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.findings import candidate_pairs, padded
from jaxdict.auditing.gaps import Sample
from jaxdict.auditing.kinds import by_supports, has_power_penalty, has_prefixes
from jaxdict.auditing.nested_sentences import (
    MISSING_PREFIXES,
    determined_sentence,
    missing_power,
    penalised_sentence,
    penalty_sentence,
    prefixes_sentence,
    undetermined_sentence,
)
from jaxdict.conditions.open_pairs import cosine_at, flat_pairs, penalty_cosines, prefix_pairs
from jaxdict.objectives import residual
from jaxdict.problem import Dictionary, SparseCodes
from jaxdict.sae.models import SAE, Metadata


class Nested(NamedTuple):
    """What the loss says of nested pairs; each None where it is not of that kind."""

    undetermined: list[dict[str, Any]] | None  # T21
    prefixes: dict[str, Any] | None  # T22
    penalty: dict[str, Any] | None  # T23

    @property
    def listed(self) -> list[dict[str, Any]]:
        """The pairs of all three."""
        return [
            *(self.undetermined or []),
            *(pair for facts in (self.prefixes, self.penalty) if facts for pair in facts["pairs"]),
        ]


def nested_facts(sae: SAE, dictionary: Dictionary, table: CodeTable, sample: Sample, signed: bool, top: int) -> Nested:
    """Nested pairs as this SAE's loss has it, at most `top` of a kind; none are looked for where codes have both signs."""
    asked = by_supports(sae) or has_prefixes(sae) or has_power_penalty(sae)
    nested = nested_pairs(dictionary, table) if asked and not signed else []
    return Nested(
        undetermined_pairs(sae, nested, top),
        prefix_facts(sae, dictionary, nested, sample, top),
        penalty_facts(sae, dictionary, table, nested, top),
    )


def nested_pairs(dictionary: Dictionary, table: CodeTable) -> list[dict[str, Any]]:
    """Pairs with the child on only where the parent is, beyond chance, and the cosines at the ends of T21's path."""
    units = np.asarray(dictionary.atoms, np.float64)
    nested = candidate_pairs(units, table, share=1.0)
    if not nested:
        return []
    few, codes, i, j = _picked(dictionary, table, nested)
    found = flat_pairs(few, codes, i, j)
    lowest, absorbed = np.asarray(found.lowest), np.asarray(found.absorbed)
    return [
        {
            "parent": pair["i"],
            "child": pair["j"],
            "both": pair["both"],
            "rho": pair["rho"],
            "cosine": pair["cosine"],
            "opposite": -1.0,
            "absorbed": float(absorbed[k]),
            "lowest": float(lowest[k]),
        }
        for k, pair in enumerate(nested)
    ]


def _picked(dictionary: Dictionary, table: CodeTable, pairs: list[dict]) -> tuple[Dictionary, SparseCodes, Any, Any]:
    """The features of some pairs alone: their atoms, their codes, and the pairs among them, padded so that programs are shared."""
    picked = padded(np.unique([pair[side] for pair in pairs for side in "ij"]))
    place = {int(feature): k for k, feature in reversed(list(enumerate(picked)))}
    i, j = (padded(np.array([place[pair[side]] for pair in pairs])) for side in "ij")
    codes = SparseCodes(*map(jnp.asarray, table.slots(picked)))
    return Dictionary(jnp.asarray(dictionary.atoms)[picked]), codes, i, j


def undetermined_pairs(sae: SAE, nested: list[dict[str, Any]], top: int) -> list[dict[str, Any]] | None:
    """Children that are on only where their parent is, with the cosines between which the objective does not choose (T21).

    Those come first whose cosine is furthest from where it could be, the rows they share weighing as they should; at most `top`.
    None where the loss has another term, which may determine them: L1 (C1, T6), prefixes (T22), another penalty (T23).
    """
    if not by_supports(sae):
        return None
    rows: list[dict[str, Any]] = [pair | {"sentence": undetermined_sentence(pair)} for pair in nested]
    return sorted(rows, key=lambda row: -row["both"] * (row["absorbed"] - row["cosine"]))[:top]


def prefix_facts(
    sae: SAE, dictionary: Dictionary, nested: list[dict[str, Any]], sample: Sample, top: int
) -> dict[str, Any] | None:
    """What a Matryoshka's loss wants of nested pairs (T22), on the sample; None for another SAE.

    With the parent in an earlier group than the child the prefixes between them determine the cosine: `wanted`, the best that keeps
    supports, and `absorption_share`, what drawing the parent into the child as far as supports allow would cost, as a share of the
    loss. With both in one group no prefix parts them, and T21 holds. Those with most to gain come first; at most `top`. A prefix's
    codes are the SAE's own, cut there (trainers that let each prefix compete anew end at a threshold, which does the same).
    """
    if not has_prefixes(sae):
        return None
    prefixes, weights = sae.metadata.prefixes, sae.metadata.prefix_weights
    if not prefixes:
        return {"prefixes": None, "pairs": [], "sentence": MISSING_PREFIXES}
    loss, rows = matryoshka_loss(dictionary, sample, sae.metadata), []
    ordered = [pair for pair in nested if _group(prefixes, pair["parent"]) <= _group(prefixes, pair["child"])]
    if ordered:
        i, j = (padded(np.array([pair[side] for pair in ordered])) for side in ("parent", "child"))
        found = prefix_pairs(dictionary, sample.own, sample.X, prefixes, i, j, prefix_weights=weights or None)
        parts = {name: np.asarray(part, np.float64) for name, part in found._asdict().items()}
        at = [{name: float(part[k]) for name, part in parts.items()} for k in range(len(ordered))]
        rows = [_prefix_row(prefixes, pair, one, loss) for pair, one in zip(ordered, at, strict=True)]
        rows = [row for row in rows if row is not None]
    rows.sort(key=lambda row: (-(row["gain"] or 0.0), -row["both"]))
    return {
        "prefixes": list(prefixes),
        "rows": len(sample.rows),
        "loss": loss,
        "pairs": rows[:top],
        "sentence": prefixes_sentence(prefixes, rows),
    }


def _group(prefixes: tuple[int, ...], feature: int) -> int:
    """The group of a feature: how many prefixes are without it."""
    return int(np.searchsorted(prefixes, feature, side="right"))


def _prefix_row(prefixes: tuple[int, ...], pair: dict, at: dict[str, float], loss: float) -> dict[str, Any] | None:
    """One pair; None where it is parted but its child is never on in the sample."""
    parting = _group(prefixes, pair["child"]) - _group(prefixes, pair["parent"])
    if parting and not at["curvature"] > 0:
        return None
    row = pair | {"parting": parting}
    if not parting:
        missing = dict.fromkeys(
            ("slope", "slope_error", "curvature", "wanted", "gain", "gain_share", "absorption_share")
        )
        row |= missing
    else:
        step = max(at["step"], pair["lowest"])
        gain = -(at["slope"] * step + 0.5 * at["curvature"] * step**2)
        absorbing = at["slope"] * pair["lowest"] + 0.5 * at["curvature"] * pair["lowest"] ** 2 + gain
        row |= {name: at[name] for name in ("slope", "slope_error", "curvature")}
        row |= {"wanted": float(cosine_at(jnp.asarray(pair["cosine"]), step)), "gain": gain}
        row |= {
            "gain_share": gain / loss if loss > 0 else 0.0,
            "absorption_share": absorbing / loss if loss > 0 else 0.0,
        }
    return row | {"sentence": determined_sentence(row, len(prefixes))}


def matryoshka_loss(dictionary: Dictionary, sample: Sample, about: Metadata) -> float:
    """`sum_p v_p E 1/2 ||x - b - z_{<p} D_{<p}||^2` of the SAE's own codes, on the sample."""
    total, weights = 0.0, about.prefix_weights or (1.0,) * len(about.prefixes)
    for size, weight in zip(about.prefixes, weights, strict=True):
        part = sample.own._replace(values=jnp.where(sample.own.indices < size, sample.own.values, 0))
        left = residual(dictionary, part, sample.X)
        total += weight * float(0.5 * jnp.mean(jnp.sum(left * left, axis=1)))
    return total


def penalty_facts(
    sae: SAE, dictionary: Dictionary, table: CodeTable, nested: list[dict[str, Any]], top: int
) -> dict[str, Any] | None:
    """Nested pairs' cosines beside those that a penalty `sum f^p`, or its p-th root, forces on them (T23); None for another SAE.

    The penalty's weight has no part in it. Those that are furthest off come first, the rows they share weighing; at most `top`.
    """
    if not has_power_penalty(sae):
        return None
    kind, power = sae.metadata.penalty, sae.metadata.power
    missing = missing_power(kind, power)
    if missing or kind is None or power is None:
        return {"power": power, "penalty": kind, "pairs": [], "sentence": missing}
    rows: list[dict[str, Any]] = []
    if nested:
        pairs = [{"i": pair["parent"], "j": pair["child"]} for pair in nested]
        few, codes, i, j = _picked(dictionary, table, pairs)
        weights = root_weights(table, power) if kind == "norm" else None
        forced = np.asarray(penalty_cosines(few, codes, power_slope(power), i, j, weights=weights), np.float64)
        rows = [pair | {"forced": float(forced[k])} for k, pair in enumerate(nested) if np.isfinite(forced[k])]
        rows = [dict(row, sentence=penalised_sentence(row, kind, power)) for row in rows]
    rows.sort(key=lambda row: -row["both"] * abs(row["cosine"] - row["forced"]))
    return {"power": power, "penalty": kind, "pairs": rows[:top], "sentence": penalty_sentence(kind, power, len(rows))}


@functools.lru_cache(maxsize=64)
def power_slope(power: float) -> Callable:
    """The slope of `z^p`, over p: the same function each time, so that its program is found again.

    >>> power_slope(0.5)(4.0), power_slope(0.5) is power_slope(0.5)
    (0.5, True)
    """
    return lambda z: z ** (power - 1)


def root_weights(table: CodeTable, power: float) -> np.ndarray:
    """What a row's `sum_k f_k^p` counts for under its p-th root: `(sum_k f_k^p)^(1/p - 1)`, the largest being 1; nothing is on: 0.

    >>> table = CodeTable.from_dense(np.array([[4.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), np.arange(3))
    >>> root_weights(table, 0.5).tolist()
    [1.0, 0.5, 0.0]
    """
    powers = table.by_row.astype(np.float64)
    powers.data = np.abs(powers.data) ** power
    sums = np.asarray(powers.sum(axis=1)).ravel()
    logs = np.log(np.where(sums > 0, sums, 1.0)) * (1 / power - 1)
    on = sums > 0
    return np.where(on, np.exp(logs - logs[on].max(initial=-np.inf)) if on.any() else 0.0, 0.0)
