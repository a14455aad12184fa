"""What the sums and the sample say of features and pairs: one row of plain numbers each."""

import jax.numpy as jnp
import numpy as np

from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.decoder_rows import decoder_defects
from jaxdict.auditing.gaps import Sample
from jaxdict.auditing.neighbours import Neighbours
from jaxdict.auditing.totals import Totals
from jaxdict.conditions.barycentres import barycentre_from_sums
from jaxdict.conditions.costs import pair_costs, turning_gains
from jaxdict.conditions.hierarchies import tail_evidence
from jaxdict.conditions.pair_conditions import PairConditions, pairs
from jaxdict.conditions.residuals import residual_from_sums
from jaxdict.objectives import Moments
from jaxdict.problem import Dictionary, Problem, SparseCodes

# A feature on in more than this share of rows is dense.
DENSE = 0.1
# A pair is a candidate when the parent is on in this share of the child's rows, and not by chance.
SHARE_OF_CHILD = 0.5
LEAST_TOGETHER = 5
SIGNIFICANCE = 0.01
MOST_CANDIDATES = 600
LEAST_PADDED = 64
# Features whose pairs are looked at one by one in a dense array.
MOST_IN_PAIRS = 4096


def streamed_sums(totals: Totals) -> Moments:
    """The sums behind T7 and T9 from a pass over all rows."""
    codes, cross, residual = (part / totals.rows for part in (totals.codes, totals.cross, totals.residual))
    return Moments(codes, None, cross, residual)


def feature_rows(
    known: tuple[Problem, Moments] | None,
    dictionary: Dictionary,
    norms: np.ndarray,
    totals: Totals,
    near: Neighbours,
) -> list[dict]:
    """A row for every feature: use, its neighbours, how far its decoder row is off (T17), and what problem P says where it is known.

    The last: T1's atoms line on its own codes and on exact ones (by their sums), T9, its own lam; NaN where there is no lam.
    """
    units = np.asarray(dictionary.atoms, np.float64)
    n = float(totals.rows)
    frequency, means = totals.counts / n, totals.codes / n
    live = means > 0
    gains = np.asarray(turning_gains(*map(jnp.asarray, (units, totals.cross / n, totals.squares / n))))
    off = decoder_defects(units, totals)
    columns = {
        "norm": np.asarray(norms, np.float64),
        "frequency": frequency,
        "mean_code": np.where(live, totals.codes / np.maximum(totals.counts, 1), np.nan),
        "max_code": np.where(live, totals.largest, np.nan),
        **_by_lam(known, dictionary, totals),
        "turn_gain": np.where(live, gains, np.nan),
        "decoder_gain": off.gain,
        "decoder_gain_error": off.error,
        "decoder_defect": off.defect,
        "nearest_cosine": near.cosine,
    }
    return [
        {
            "feature": k,
            **{name: float(column[k]) for name, column in columns.items()},
            "nearest": int(near.nearest[k]),
            "dead": bool(not live[k]),
            "dense": bool(frequency[k] > DENSE),
            "decoder_shown": bool(off.shown[k]),
        }
        for k in range(len(units))
    ]


def _by_lam(known: tuple[Problem, Moments] | None, dictionary: Dictionary, totals: Totals) -> dict[str, np.ndarray]:
    """The columns that need lam."""
    if known is None:
        missing = np.full(len(dictionary.atoms), np.nan)
        return dict.fromkeys(("stationarity", "stationarity_exact", "residual", "lam"), missing)
    problem, exact_sums = known
    own = residual_from_sums(problem, dictionary, streamed_sums(totals))
    exact = residual_from_sums(problem, dictionary, exact_sums)
    along, across = np.asarray(own.along), np.asarray(own.norm)
    return {
        "stationarity": atom_defect(along, across),
        "stationarity_exact": atom_defect(np.asarray(exact.along), np.asarray(exact.norm)),
        "residual": across,
        "lam": float(problem.lam) * along,
    }


def atom_defect(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """T1's scale-free atoms line: the tangent part joined by `min(<u, v>, 0)`."""
    return np.hypot(across, np.minimum(along, 0))


def close_pairs(near: Neighbours, table: CodeTable) -> tuple[list[dict], list[dict]]:
    """Near-duplicate atoms, and nearly opposite ones (T14), with how their features share the rows."""
    counts, n = table.counts, table.by_row.shape[0]

    def described(pair):
        i, j, cosine = int(pair[0]), int(pair[1]), float(pair[2])
        both = len(np.intersect1d(table.column(i)[0], table.column(j)[0], assume_unique=True))
        either = int(counts[i] + counts[j] - both)
        return {"i": i, "j": j, "cosine": cosine, "both": both, "either": either}

    duplicates = [
        {"i": p["i"], "j": p["j"], "cosine": p["cosine"], "together": p["both"] / max(p["either"], 1)}
        for p in map(described, zip(*near.close, strict=True))
    ]
    antipodal = [
        {
            **{key: p[key] for key in ("i", "j", "cosine")},
            "coverage": p["either"] / n,
            "overlap": p["both"] / max(p["either"], 1),
            "dense": p["either"] > n / 2,
        }
        for p in map(described, zip(*near.opposite, strict=True))
    ]
    return duplicates, antipodal


def candidate_pairs(
    units: np.ndarray, table: CodeTable, most: int = MOST_CANDIDATES, share: float = SHARE_OF_CHILD
) -> list[dict]:
    """Parents i and children j by the SAE's own codes: i on in at least `share` of what j is on in, beyond chance (C1).

    Chance is bounded as in `conditions.hierarchy`: Hoeffding's `n KL(q || p)`, over all pairs. Ranked by what absorbing could
    gain at most, `q zbar_j (1 - G_ij)` in units of lam; at most `most`.
    """
    counts, n = table.counts.astype(np.float64), table.by_row.shape[0]
    both = table.together()
    i, j, b = both.row, both.col, both.data.astype(np.float64)
    q = b / counts[j]
    keep = (q >= share) & (b >= LEAST_TOGETHER)
    i, j, b, q = i[keep], j[keep], b[keep], q[keep]
    if not len(i):
        return []
    evidence = np.asarray(tail_evidence(*map(jnp.asarray, map(padded, (b, counts[j], counts[i] / n))), more=True))[
        : len(i)
    ]
    keep = evidence >= np.log(max(len(units), 2) ** 2 / SIGNIFICANCE)
    i, j, b, q = i[keep], j[keep], b[keep], q[keep]
    cosine = np.einsum("pd,pd->p", units[i], units[j])
    means = np.asarray(table.by_feature.sum(axis=0)).ravel() / n
    order = np.argsort(-q * means[j] * (1 - cosine), kind="stable")[:most]
    return [
        {"i": int(i[k]), "j": int(j[k]), "both": int(b[k]), "q": float(q[k]), "rho": float(b[k] / counts[i[k]])}
        | {"cosine": float(cosine[k])}
        for k in order
    ]


def pair_rows(problem: Problem, dictionary: Dictionary, table: CodeTable, sample: Sample, *, top: int) -> list[dict]:
    """The candidate pairs with T6 on the SAE's own codes and T16's measured costs, dearest first."""
    units = np.asarray(dictionary.atoms, np.float64)
    found = candidate_pairs(units, table)
    if not found:
        return []
    i, j = (padded(np.array([pair[side] for pair in found])) for side in "ij")
    allowed, place = allowed_cosines(dictionary, table, np.unique(np.concatenate([i, j])))
    at_exact = pair_costs(problem, dictionary, sample.exact_codes, sample.X, i, j)
    at_own = pair_costs(problem, dictionary, sample.own, sample.X, i, j)
    lower, upper, margin = (np.asarray(array) for array in (allowed.lower, allowed.upper, allowed.margin))
    rows = []
    for k, pair in enumerate(found):
        entry = place[pair["i"]], place[pair["j"]]
        rows.append(
            pair
            | {
                "parent": pair["i"],
                "child": pair["j"],
                "kind": "hierarchy" if pair["q"] >= 0.95 else "overlap",
                "lower": float(lower[entry]),
                "upper": float(upper[entry]),
                "margin": float(margin[entry]),
                "rate": float(at_exact.rate[k]),
                "cost": float(at_exact.decrease[k]),
                "guaranteed": float(at_exact.guaranteed[k]),
                "step": float(at_exact.step[k]),
                "cost_own": float(at_own.decrease[k]),
            }
        )
    rows.sort(key=lambda pair: (-pair["cost"], -pair["cost_own"]))
    return rows[:top]


def allowed_cosines(
    dictionary: Dictionary, table: CodeTable, features: np.ndarray
) -> tuple[PairConditions, dict[int, int]]:
    """T6 between some features on the SAE's own codes (`jd.conditions.pairs`), and each feature's place in it."""
    picked = padded(features)
    codes = table.slots(features)
    found = pairs(Dictionary(jnp.asarray(dictionary.atoms)[picked]), SparseCodes(*map(jnp.asarray, codes)))
    return found, {int(feature): k for k, feature in enumerate(features)}


def padded(values: np.ndarray) -> np.ndarray:
    """Values, the first repeated up to a power of two: so that audits of one shape share compiled programs.

    >>> padded(np.array([4, 2, 7])).shape, padded(np.array([4, 2, 7]))[:5].tolist(), padded(np.arange(65)).shape
    ((64,), [4, 2, 7, 4, 4], (128,))
    """
    size = max(LEAST_PADDED, 1 << (len(values) - 1).bit_length())
    return np.concatenate([values, np.full(size - len(values), values[0])])


def barycentre_facts(problem: Problem, dictionary: Dictionary, sums: Moments, top: int = 20) -> dict:
    """How far the residual's slack is from carrying the decoder's cosines (T7), over pairs of live features.

    Of more than `MOST_IN_PAIRS` features the most used ones are looked at.
    """
    used = np.sort(np.argsort(-np.asarray(sums.mean_codes), kind="stable")[:MOST_IN_PAIRS])
    part = Moments(sums.mean_codes[used], None, sums.cross[used], sums.mean_residual)
    defect = np.array(barycentre_from_sums(problem, Dictionary(dictionary.atoms[used], dictionary.offset), part))
    np.fill_diagonal(defect, np.nan)
    sizes = np.abs(defect)
    known = sizes[np.isfinite(sizes)]
    if known.size == 0:
        return {"median": None, "ninetieth": None, "largest": None, "worst": []}
    flat = np.nan_to_num(sizes, nan=-1).ravel()
    worst = np.argpartition(-flat, min(top, flat.size - 1))[:top]
    worst = worst[np.argsort(-flat[worst])]
    pairs = [np.unravel_index(place, defect.shape) for place in worst if flat[place] >= 0]
    return {
        "median": float(np.median(known)),
        "ninetieth": float(np.quantile(known, 0.9)),
        "largest": float(known.max()),
        "worst": [{"i": int(used[a]), "j": int(used[b]), "defect": float(defect[a, b])} for a, b in pairs],
    }
