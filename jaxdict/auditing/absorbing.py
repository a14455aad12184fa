"""Absorption along the edges that an audit looks at: parents that are silent where a child carries their direction."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.findings import padded
from jaxdict.auditing.gaps import Sample
from jaxdict.conditions.absorptions import Absorption, absorption, absorption_by_label, direction_present
from jaxdict.population.comparisons import SHOWN
from jaxdict.problem import Dictionary, SparseCodes

# Neighbours closer than this may hold one another's direction; so many edges are looked at.
NEAR = 0.2
MOST_EDGES = 600
# A parent detects a label from this F1 on.
DETECTS = 0.5
# Labels of more kinds than this stand for their first letters.
MOST_CLASSES = 64
NO_SIGNED_EDGES = (
    "Absorption was not looked for: these features have both signs, and it is of codes that are not negative."
)
CRITERION = (
    "The parent's direction counts as present where what the other features leave of a row, both of the pair's own parts put back, "
    "reaches along the parent's decoder row what it reaches on nine in ten of the rows with the parent on and the child off. So a "
    "child whose decoder row carries its parent's direction is seen to do so, whatever it stands for."
)


def edges_of(listed: list[dict[str, Any]], features: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """The edges (parent, child) that are looked at: of listed pairs, then of nearest neighbours both ways, the closest first."""
    near = [row for row in features if row["nearest_cosine"] > NEAR and not row["dead"]]
    near.sort(key=lambda row: -row["nearest_cosine"])
    both = [edge for row in near for edge in ((row["feature"], row["nearest"]), (row["nearest"], row["feature"]))]
    edges = [(pair["parent"], pair["child"]) for pair in listed]
    return list(dict.fromkeys((*edges, *both)))[: max(MOST_EDGES, len(edges))]


def absorption_facts(dictionary: Dictionary, sample: Sample, edges: list[tuple[int, int]]) -> dict[str, Any]:
    """Every edge's P(parent on | its direction present, no child) less the same with the child, on the sample, by (parent, child)."""
    rows = []
    if edges:
        i, j = (padded(np.array([edge[side] for edge in edges])) for side in (0, 1))
        present = direction_present(dictionary, sample.own, sample.X, i, j)
        found = absorption(sample.own, present, i, j, n_atoms=dictionary.atoms.shape[0])
        parents, children = (np.asarray(dictionary.atoms[jnp.asarray(side)], np.float64) for side in (i, j))
        cosines = np.einsum("pd,pd->p", parents, children)
        rows = [
            _row(edge, float(cosines[k]), one)
            for k, (edge, one) in enumerate(zip(edges, numbers_of(found), strict=False))
        ]
    return {
        "criterion": CRITERION,
        "rows": len(sample.rows),
        "all": {(row["parent"], row["child"]): row for row in rows},
    }


def numbers_of(found: Absorption) -> list[dict[str, float]]:
    """The fields of each edge as numbers."""
    parts = {name: np.asarray(part, np.float64) for name, part in (found._asdict() | {"gap": found.gap}).items()}
    return [{name: float(part[k]) for name, part in parts.items()} for k in range(len(parts["gap"]))]


def _row(edge: tuple[int, int], cosine: float, one: dict[str, float]) -> dict[str, Any]:
    row = {"parent": int(edge[0]), "child": int(edge[1]), "cosine": cosine} | one
    row |= {"rows_alone": int(one["rows_alone"]), "rows_beside": int(one["rows_beside"])}
    return row | {"shown": bool(one["gap"] > SHOWN * one["standard_error"]), "label": None}


def with_absorption(pairs: list[dict[str, Any]], facts: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Listed pairs, each with its gap and the gap's standard error; None where it was not looked at."""
    known = {} if facts is None else facts["all"]
    rows = [known.get((pair["parent"], pair["child"]), {}) for pair in pairs]
    return [
        pair | {"absorption": row.get("gap"), "absorption_error": row.get("standard_error")}
        for pair, row in zip(pairs, rows, strict=True)
    ]


def absorption_report(
    facts: dict[str, Any] | None, table: CodeTable, labels: np.ndarray | None, top: int
) -> dict[str, Any]:
    """The edges of which a gap is shown, with what labels say of them, in plain data; codes of both signs have none."""
    if facts is None:
        return {"criterion": CRITERION, "rows": None, "edges": [], "sentence": NO_SIGNED_EDGES}
    shown = sorted(
        (row for row in facts["all"].values() if row["shown"]), key=lambda row: -row["gap"] * row["rows_beside"]
    )[:top]
    rows = [row | {"label": label} for row, label in zip(shown, by_label(table, labels, shown), strict=True)]
    return {
        "criterion": facts["criterion"],
        "rows": facts["rows"],
        "edges": [row | {"sentence": absorption_sentence(row)} for row in rows],
        "sentence": _report_sentence(len(facts["all"]), rows),
    }


def by_label(table: CodeTable, labels: np.ndarray | None, rows: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Absorption where the parent's label says that its concept is there; None for a parent that detects no label."""
    if labels is None or not rows:
        return [None] * len(rows)
    picked = padded(np.unique([row[side] for row in rows for side in ("parent", "child")]))
    place = {int(feature): k for k, feature in reversed(list(enumerate(picked)))}
    i, j = (np.array([place[row[side]] for row in rows]) for side in ("parent", "child"))
    codes = SparseCodes(*map(jnp.asarray, table.slots(picked)))
    found = absorption_by_label(codes, label_classes(labels)[table.rows], i, j, n_atoms=len(picked))
    told = zip(found.labels.tolist(), np.asarray(found.f1).tolist(), numbers_of(found.found), strict=True)
    return [{"name": name, "f1": f1} | one if f1 >= DETECTS else None for name, f1, one in told]


def label_classes(labels: np.ndarray) -> np.ndarray:
    """The class of each row: its label, or, of labels of many kinds, such as tokens, the first letter; none: nothing.

    >>> label_classes(np.array([" Short", "it"])).tolist()
    [' Short', 'it']
    >>> label_classes(np.array([f" S{k}" for k in range(99)] + ["7"]))[[0, -1]].tolist()
    ['s', '']
    """
    if len(np.unique(labels)) <= MOST_CLASSES:
        return labels
    first = [str(label).strip()[:1].lower() for label in labels]
    return np.array([letter if letter.isalpha() else "" for letter in first])


def absorption_sentence(row: dict[str, Any]) -> str:
    """What one edge shows."""
    told = (
        f"Where the direction of feature {row['parent']} is present it is on in {row['alone']:.0%} of rows without feature "
        f"{row['child']} and in {row['beside']:.0%} of the {row['rows_beside']:,} with it: {row['gap']:.0%} +- "
        f"{row['standard_error']:.0%} are absorbed (cosine of the two {row['cosine']:.2f})."
    )
    if row["label"] is None:
        return told
    label = row["label"]
    return (
        f"{told} By labels, feature {row['parent']} detecting {label['name']!r} (F1 {label['f1']:.2f}): on in {label['alone']:.0%} of "
        f"such rows without feature {row['child']}, in {label['beside']:.0%} with it."
    )


def _report_sentence(looked_at: int, rows: list[dict[str, Any]]) -> str:
    if not looked_at:
        return "No two features are near enough to absorb one another, and no pair is listed."
    if not rows:
        return f"Of {looked_at:,} edges from a parent to a child none shows absorption above three standard errors."
    first = rows[0]
    return (
        f"Of {looked_at:,} edges from a parent to a child these show absorption above three standard errors; the first is feature "
        f"{first['child']}, which silences feature {first['parent']} in {first['gap']:.0%} of {first['rows_beside']:,} rows."
    )
