"""Examples behind a finding: the rows that show it, with their labels, and the points of its picture."""

import numpy as np

from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.gaps import Sample
from jaxdict.auditing.strongest import EXAMPLES, Strongest
from jaxdict.conditions.residuals import residual_samples
from jaxdict.problem import Dictionary, Problem

POINTS = 400
FEATURE_CARDS = 30
LABELS_IN_A_ROW = 5


def label_of(labels, row) -> str | None:
    """The label of a row of the data; None where there are none."""
    return None if labels is None else str(labels[row])


def pair_card(table: CodeTable, pair: dict, labels) -> dict:
    """A pair's rows where the child is strongest, and the samples around its hull, in units of the features' means."""
    i, j = pair["i"], pair["j"]
    z_i, z_j = table.dense_column(i), table.dense_column(j)
    shown = np.argsort(-z_j, kind="stable")[:EXAMPLES]
    rows = [
        {"row": int(table.rows[n]), "label": label_of(labels, table.rows[n]), "z_i": z_i[n], "z_j": z_j[n]}
        for n in shown
        if z_j[n] > 0
    ]
    on = np.flatnonzero((z_i > 0) | (z_j > 0))
    # Rows with i off carry the condition: all of their extremes are among the points.
    off = on[z_i[on] == 0]
    extremes = off[np.argsort(-z_j[off], kind="stable")[: POINTS // 4]]
    spread = on[np.linspace(0, len(on) - 1, min(len(on), POINTS - len(extremes) - 1)).astype(int)] if len(on) else on
    silent = np.flatnonzero((z_i == 0) & (z_j == 0))[:1]
    picked = np.unique(np.concatenate([extremes, spread, silent]).astype(int))
    means = max(z_i.mean(), np.finfo(float).tiny), max(z_j.mean(), np.finfo(float).tiny)
    points = [[float(z_i[n] / means[0]), float(z_j[n] / means[1])] for n in picked]
    return {"i": i, "j": j, "points": points, "rows": rows}


def feature_card(
    problem: Problem, dictionary: Dictionary, sample: Sample, strongest: Strongest, feature: int, direction, labels
) -> dict:
    """A feature's strongest rows, and the rows whose residual pulls its atom most (T9, exact codes)."""
    rows, values = strongest.of(feature)
    found, shares = residual_samples(
        problem, dictionary, sample.exact_codes, sample.X, feature, direction, top=EXAMPLES
    )
    at, shares = sample.rows[np.asarray(found)], np.asarray(shares)
    pulled = [
        {"row": int(row), "label": label_of(labels, row), "share": float(share)}
        for row, share in zip(at, shares, strict=True)
        if np.isfinite(share) and share > 0
    ]
    return {
        "feature": feature,
        "rows": [
            {"row": int(row), "label": label_of(labels, row), "code": float(value)}
            for row, value in zip(rows, values, strict=True)
        ],
        "residual_rows": pulled,
    }


def top_labels(strongest: Strongest, feature: int, labels) -> str | None:
    """The labels of a feature's strongest rows, different ones only, joined."""
    if labels is None:
        return None
    rows, _ = strongest.of(feature)
    return ", ".join(list(dict.fromkeys(str(labels[row]) for row in rows))[:LABELS_IN_A_ROW]) or None


def examples(strongest: Strongest, feature: int) -> dict:
    """The rows of the data on which a feature is strongest, its codes there, and the histogram of its codes; None of a dead one."""
    rows, codes = strongest.of(feature)
    histogram = {"from": float(strongest.edges[feature]), "counts": strongest.counts[feature].tolist()}
    return {"rows": rows.tolist(), "codes": codes.tolist(), "histogram": histogram if rows.size else None}


def atom_rows(sample: Sample, atom, residuals, lam: float, labels) -> list[dict]:
    """The rows that would use a new atom most, `(<d, r_n> - lam)_+` (T10)."""
    codes = np.maximum(np.asarray(residuals) @ np.asarray(atom) - lam, 0)
    order = np.argsort(-codes, kind="stable")[:EXAMPLES]
    rows = [(int(sample.rows[n]), float(codes[n])) for n in order if codes[n] > 0]
    return [{"row": row, "label": label_of(labels, row), "code": code} for row, code in rows]
