"""An arbitration's document: what was measured, with its sentences, as plain data (schema "jaxdict-arbitration-1")."""

import itertools
from typing import Any

import jax
import numpy as np

from jaxdict.arbitration import sentences
from jaxdict.arbitration.comparing import Figure, differences, figures
from jaxdict.arbitration.measuring import Looked, Measured, Standing
from jaxdict.arbitration.truths import Truth
from jaxdict.auditing.sentences import ratio

SCHEMA = "jaxdict-arbitration-1"
# Edges of a truth that are listed, those with most absorption first.
LISTED_EDGES = 50
RECOVERED = ("mcc", "uniqueness", "precision", "recall", "f1")
COSTS = ("encoder", "decoder", "parameters", "milliseconds")


def arbitration_document(
    found: Measured, truth: Truth | None, labelled: bool, paths: dict[str, str], seconds: float
) -> dict[str, Any]:
    """The whole of an arbitration: the facts, then the verdict and its limits, which follow from them."""
    entries = [_entry(found, standing) for standing in found.standings]
    facts = {
        "schema": SCHEMA,
        "made_with": {"jax": jax.__version__, "numpy": np.__version__},
        "data": _data(found, labelled, paths),
        "match": _match(found),
        "entries": entries,
        "pairs": _pairs(found),
        "truth": None if truth is None else _truth(found, truth),
        "seconds": round(seconds, 2),
    }
    facts["entries"] = [entry | {"sentence": sentences.entry_sentence(entry)} for entry in entries]
    facts["pairs"] = [pair | {"sentence": sentences.pair_sentence(pair, facts)} for pair in facts["pairs"]]
    return facts | {"verdict": sentences.verdict(facts), "limits": sentences.limits(facts)}


def _data(found: Measured, labelled: bool, paths: dict[str, str]) -> dict[str, Any]:
    parts = found.parts
    return {
        "path": paths.get("data"),
        "fresh_rows": len(parts.fresh),
        "fitted_rows": len(parts.aim) + len(parts.reach),
        "documents": None if parts.groups is None else len(np.unique(parts.groups)),
        "width": int(parts.X.shape[1]),
        "variance": found.variance,
        "labelled": labelled,
        "sentence": sentences.rows_sentence(parts),
    }


def _match(found: Measured) -> dict[str, Any]:
    facts = {
        "l0": found.match.l0,
        "how": found.match.how,
        "interpolated": any(standing.place.interpolated for standing in found.standings),
    }
    told = [(standing.entry.name, standing.l0s, standing.place) for standing in found.standings]
    return facts | {"sentence": sentences.match_sentence(found.match, told)}


def _figure(figure: Figure, whole: float) -> dict[str, Any]:
    facts = {"mean": figure.mean, "standard_error": figure.standard_error, "share": ratio(figure.mean, whole)}
    return facts | {"shown": figure.shown}


def _entry(found: Measured, standing: Standing) -> dict[str, Any]:
    """A name: its SAEs, and, where it reaches the matched L0, all figures there."""
    weights = standing.place.weights or (0.0,) * len(standing.l0s)
    listed = zip(standing.entry.saes, standing.l0s, standing.own, weights, strict=True)
    facts: dict[str, Any] = {
        "name": standing.entry.name,
        "reached": standing.split is not None,
        "l0": standing.place.l0,
        "interpolated": standing.place.interpolated,
        "saes": [_sae(*one) for one in listed],
        "range": [standing.nodes[0].l0, standing.nodes[-1].l0],
        "sparsities": len(standing.nodes),
    }
    missing = ("own", "own_standard_error", "seed_error", "share_of_variance", "parts", "rest")
    of_features = ("flat", "absorption", "recovery", "stability", "cost")
    if standing.split is None:
        return facts | dict.fromkeys((*missing, *of_features))
    known = figures(standing.split, found.rows)
    own = known["own"]
    return facts | {
        "own": own.mean,
        "own_standard_error": own.standard_error,
        "seed_error": standing.seed_error,
        "share_of_variance": ratio(own.mean, found.variance),
        "parts": [{"name": name, **_figure(known[name], own.mean)} for name in standing.split.parts],
        "rest": _figure(known["rest"], own.mean),
        "flat": _flat(standing),
        "absorption": _absorption(standing),
        "recovery": _recovery(standing),
        "stability": standing.stability,
        "cost": _cost(standing),
    }


def _sae(sae, l0: float, own: Figure, weight: float) -> dict[str, Any]:
    about = sae.metadata
    return {
        "architecture": about.trained_as or about.architecture,
        "activation": sae.activation.kind,
        "k": sae.activation.k,
        "lam": about.lam,
        "features": sae.d_sae,
        "normalisation": sae.normalisation,
        "l0": l0,
        "own": own.mean,
        "own_standard_error": own.standard_error,
        "weight": weight,
    }


def _flat(standing: Standing) -> dict[str, Any] | None:
    looked = list(standing.looked.values())
    if any(one.flat is None for one in looked):
        return None
    of = lambda key: standing.blended(lambda one: (one.flat or {}).get(key))  # noqa: E731
    facts = {key: of(key) for key in ("pairs", "features_share", "interval")}
    return facts | {key: all((one.flat or {})[key] for one in looked) for key in ("open", "cut")}


def _absorption(standing: Standing) -> dict[str, Any] | None:
    known = {id(one): one.edges.facts() for one in standing.looked.values() if one.edges is not None}
    if not known or len(known) < len(standing.looked):
        return None
    of = lambda key: standing.blended(lambda one: known[id(one)][key])  # noqa: E731
    return {key: of(key) for key in ("edges", "shown", "mean", "standard_error")} | {
        "by": next(iter(known.values()))["by"]
    }


def _recovery(standing: Standing) -> dict[str, Any] | None:
    looked = list(standing.looked.values())
    if any(one.recovered is None for one in looked):
        return None
    return {key: standing.blended(lambda one, key=key: getattr(one.recovered, key)) for key in RECOVERED}


def _cost(standing: Standing) -> dict[str, Any]:
    facts = {key: standing.blended(lambda one, key=key: one.cost[key]) for key in COSTS}
    return facts | {"device": next(iter(standing.looked.values())).cost["device"]}


def _pairs(found: Measured) -> list[dict[str, Any]]:
    """Every two names that reach the matched L0, the one with the lower error first: the second's figures less the first's."""
    rows = []
    standing = [one for one in found.standings if one.split is not None]
    for one, other in itertools.combinations(standing, 2):
        known = differences(one.split, other.split, found.rows)  # type: ignore[arg-type]
        if known["own"].mean < 0:
            one, other = other, one
            known = {name: figure._replace(mean=-figure.mean) for name, figure in known.items()}
        own = known["own"]
        rows.append(
            {
                "first": one.entry.name,
                "second": other.entry.name,
                "l0": [one.place.l0, other.place.l0],
                "mean": own.mean,
                "standard_error": own.standard_error,
                "z": own.mean / own.standard_error if own.standard_error > found.rows.floor else None,
                "shown": own.shown,
                "ahead": _ahead(found, one, other, own),
                "rests_on_interpolation": own.shown and not _beyond_interpolation(found, one, other),
                "next_l0": _next(other)[1] if other.place.interpolated else None,
                "seed_error": _together(one.seed_error, other.seed_error),
                "parts": [{"name": name, **figure._asdict()} for name, figure in known.items() if name != "own"],
            }
        )
    return rows


def _ahead(found: Measured, one: Standing, other: Standing, own: Figure) -> str | None:
    """Who is ahead, if anyone: at a common L0 whose error is shown to be lower; without one only where it also has fewer features on."""
    if not own.shown:
        return None
    fewer = found.match.l0 is not None or (one.place.l0 or 0.0) <= (other.place.l0 or 0.0)
    return one.entry.name if fewer else None


def _beyond_interpolation(found: Measured, one: Standing, other: Standing) -> bool:
    """Whether the first is shown to be better even than the other's next sparsity, which has more features on and so a lower error.

    Where an error falls ever more slowly with L0 it lies below the straight line, so that a name that is interpolated looks worse than
    it is: this bounds by how much.
    """
    if not other.place.interpolated or one.split is None:
        return True
    figure = found.rows.figure(_next(other)[0] - one.split.own)
    return figure.shown and figure.mean > 0


def _next(standing: Standing) -> tuple[Any, float]:
    """Errors of the fresh rows, and the L0, of the higher of the two sparsities between which a name is interpolated."""
    node = next(node for node in reversed(standing.nodes) if any(k in standing.looked for k in node.members))
    own = [standing.looked[k].split.own for k in node.members]
    return sum(own) / len(own), node.l0


def _together(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else float(np.hypot(first, second))


def _truth(found: Measured, truth: Truth) -> dict[str, Any]:
    """What the truth is, and absorption edge by edge."""
    gaps = {
        one.entry.name: (one.blended(lambda at: _edges(at, "gap")), one.blended(lambda at: _edges(at, "error")))
        for one in found.standings
        if one.split is not None
    }
    known = {name: both for name, both in gaps.items() if both[0] is not None}
    rows = []
    for k, (parent, child) in enumerate(truth.edges if known else ()):
        at = {name: {"gap": float(gap[k]), "standard_error": float(error[k])} for name, (gap, error) in known.items()}
        rows.append({"parent": parent, "child": child, "by_name": at})
    rows.sort(
        key=lambda row: -max((one["gap"] for one in row["by_name"].values() if np.isfinite(one["gap"])), default=-2)
    )
    return {
        "features": len(truth.atoms),
        "coded": truth.codes is not None,
        "edges": len(truth.edges),
        "absorbed": rows[:LISTED_EDGES],
        "sentence": sentences.truth_sentence(truth),
    }


def _edges(looked: Looked, name: str):
    return None if looked.edges is None else getattr(looked.edges, name)
