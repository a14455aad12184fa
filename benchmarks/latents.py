"""What single latents stand for where each row's token is known: purity, one-latent probing, how many are alive.

A latent's token, and a concept's latent with its level, are chosen on rows for training and judged on fresh ones. Standard errors are
those of documents drawn again (the same draws for all, so that differences are paired; choices held) and of seeds, added in squares.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from scipy.stats import rankdata

# Documents are drawn again so many times.
DRAWS = 400
# Latents and concepts that are on in fewer rows than this, concepts in fewer documents, are not judged.
LEAST, LEAST_DOCUMENTS = 20, 5
# Of each kind the commonest are looked for.
MOST = 40
# A difference is shown from so many of its standard errors on.
SHOWN = 3
CLASSES = {
    "number": str.isdigit, "punctuation": lambda word: not any(map(str.isalnum, word)), "piece": lambda word: word.startswith("##"),
    "letter": lambda word: len(word) == 1 and word.isalpha(), "-ing": lambda word: len(word) > 5 and word.endswith("ing"),
    "-ed": lambda word: len(word) > 4 and word.endswith("ed"), "-ly": lambda word: len(word) > 4 and word.endswith("ly"),
    "-s": lambda word: len(word) > 3 and word.endswith("s"),
}  # fmt: skip
MEASURES = {
    "purity": "Purity", "token": "Tokens", "class": "Classes", "before": "Token before", "topic": "Topics", "alive": "Alive",
}  # fmt: skip


class Words(NamedTuple):
    """The token of each row, the one before it ("" at a window's start) and the topic of its document, as texts."""

    token: np.ndarray
    before: np.ndarray
    topic: np.ndarray

    def of(self, rows) -> "Words":
        return Words(*(texts[rows] for texts in self))


class Part(NamedTuple):
    """Some rows: their words and the document of each."""

    words: Words
    documents: np.ndarray


class Concepts(NamedTuple):
    """What a latent may stand for: its kind and name, and on which rows of both parts it is there."""

    names: list[tuple[str, str]]
    fit: np.ndarray  # (rows, concepts)
    fresh: np.ndarray


def words_of(token, position, documents, topic) -> Words:
    """The words of rows that stand one after the other, from texts and positions.

    >>> words_of(np.array(["a", "b", "c"]), np.array([0, 1, 0]), np.array([0, 0, 1]), np.array(["x", "x", "y"])).before.tolist()
    ['', 'a', '']
    """
    follows = np.r_[False, (documents[1:] == documents[:-1]) & (position[1:] == position[:-1] + 1)]
    return Words(token, np.where(follows, np.roll(token, 1), ""), topic)


def read_words(path) -> Words:
    """From a .npz of token_id, doc, pos (rows,), vocab (tokens,), doc_topic (documents,)."""
    with np.load(path) as kept:
        return words_of(kept["vocab"][kept["token_id"]], kept["pos"], kept["doc"], kept["doc_topic"][kept["doc"]])


def concepts_of(fit: Part, fresh: Part) -> Concepts:
    """The commonest tokens, tokens that stand before, and topics of the rows to fit, and classes of tokens; those with enough rows."""
    found = {}
    for kind in ("token", "before", "topic"):
        there, counts = np.unique(getattr(fit.words, kind), return_counts=True)
        for name in there[np.argsort(-counts, kind="stable")][:MOST]:
            if name:
                found[kind, str(name)] = [getattr(part.words, kind) == name for part in (fit, fresh)]
    for name, holds in CLASSES.items():
        found["class", name] = [_where(holds, part.words.token) for part in (fit, fresh)]
    enough = {
        key: parts
        for key, parts in found.items()
        if all(_enough(on, part.documents) for on, part in zip(parts, (fit, fresh), strict=True))
    }
    return Concepts(list(enough), *(np.stack([parts[k] for parts in enough.values()], axis=1) for k in range(2)))


def _where(holds, words) -> np.ndarray:
    kinds, of_row = np.unique(words, return_inverse=True)
    return np.array([holds(str(word)) for word in kinds])[of_row]


def _enough(on, documents) -> bool:
    return on.sum() >= LEAST and len(np.unique(documents[on])) >= LEAST_DOCUMENTS


def sparse_codes(sae, X, block: int = 4096):
    """An SAE's codes, compressed by latent."""
    parts = [scipy.sparse.csr_matrix(np.asarray(sae.encode(X[at : at + block]))) for at in range(0, len(X), block)]
    return scipy.sparse.vstack(parts).tocsc()


class Judge:
    """Measures of latents by their codes on both parts; each is an array, the plain value first, then one for each draw of documents."""

    def __init__(self, fit: Part, fresh: Part):
        self.fit, self.fresh, self.concepts = fit, fresh, concepts_of(fit, fresh)
        kinds, of_row = np.unique(np.r_[fit.words.token, fresh.words.token], return_inverse=True)
        self.token, self.fresh_token = np.split(of_row, [len(fit.documents)])
        at, ones = np.arange(len(self.token)), np.ones(len(self.token))
        self.by_token: Any = scipy.sparse.csr_matrix((ones, (self.token, at)), (len(kinds), len(at)))
        there, of_row = np.unique(fresh.documents, return_inverse=True)
        n, rows = len(there), len(of_row)
        self.sums: Any = scipy.sparse.csr_matrix((np.ones(rows), (of_row, np.arange(rows))), (n, rows))
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        self.draws = np.concatenate([np.ones((1, n)), drawn])

    def __call__(self, fit, fresh) -> dict[str, np.ndarray]:
        kinds = np.array([kind for kind, _ in self.concepts.names])
        f1 = self.probed(fit, fresh)
        told = {kind: np.nanmean(f1[:, kinds == kind], axis=1) for kind in dict.fromkeys(kinds.tolist())}
        alive = np.mean(np.diff(fit.indptr) >= LEAST)
        return {"purity": self.purity(fit, fresh)} | told | {"alive": np.full(len(self.draws), alive)}

    def purity(self, fit, fresh) -> np.ndarray:
        """The share of a latent's mass on fresh rows that lies on its token, the one with most of its mass on the others; their mean."""
        own = np.asarray((self.by_token @ fit).tocsc().argmax(axis=0)).ravel()
        at = fresh.tocoo()
        mine = scipy.sparse.csr_matrix(
            (at.data * (self.fresh_token[at.row] == own[at.col]), (at.row, at.col)), at.shape
        )
        whole, part = (self.draws @ (self.sums @ codes).toarray() for codes in (fresh, mine))
        known = (np.diff(fit.indptr) >= LEAST) & (whole > 0)
        return np.nanmean(np.where(known, part / np.where(known, whole, 1), np.nan), axis=1)

    def probed(self, fit, fresh) -> np.ndarray:
        """F1 of each concept's latent at its level on fresh rows, (draws, concepts); NaN where a draw has no such row."""
        latents, levels = best_latents(fit, self.concepts.fit)
        on, fires = self.concepts.fresh, fresh[:, latents].toarray() >= levels
        hits, found, there = (self.draws @ (self.sums @ part) for part in (fires & on, fires, on))
        return np.where(there > 0, 2 * hits / np.maximum(found + there, 1), np.nan)


def best_latents(codes, on) -> tuple[np.ndarray, np.ndarray]:
    """For each concept (rows, concepts) the latent and the level of its code whose F1 is the highest on these rows.

    >>> best_latents(scipy.sparse.csc_matrix([[1.0, 0.0], [3.0, 2.0], [4.0, 0.0]]), np.array([[False], [True], [True]]))
    (array([0]), array([3.]))
    """
    on = on.astype(np.int32)
    there = on.sum(axis=0)
    best, latents, levels = np.zeros(len(there)), np.zeros(len(there), int), np.full(len(there), np.inf)
    for latent, (begin, end) in enumerate(itertools.pairwise(codes.indptr)):
        if begin == end:
            continue
        values = codes.data[begin:end]
        order = np.argsort(-values, kind="stable")
        hits = np.cumsum(on[codes.indices[begin:end][order]], axis=0)
        f1 = 2 * hits / (np.arange(1, end - begin + 1)[:, None] + there)
        at = np.argmax(f1, axis=0)
        top = f1[at, np.arange(len(there))]
        better = top > best
        best[better], latents[better], levels[better] = top[better], latent, values[order][at[better]]
    return latents, levels


class Told(NamedTuple):
    """A name's measures: with the weights of the arbitration, and the standard error between seeds, None where there is one seed."""

    draws: dict[str, np.ndarray]
    seeds: dict[str, float | None]

    def figure(self, measure: str) -> tuple[float, float]:
        """The value and its standard error, of documents and of seeds."""
        return float(self.draws[measure][0]), _together(self.draws[measure], self.seeds[measure])


def told_of(found: list[dict[str, np.ndarray]], weights, nodes) -> Told:
    """One name from its SAEs' measures, their weights, and the sparsity that each belongs to."""
    weights, nodes = np.asarray(weights, float), np.asarray(nodes)
    draws = {key: sum(w * one[key] for w, one in zip(weights, found, strict=True)) for key in found[0]}
    seeds = {}
    for key in draws:
        parts = []
        for node in np.unique(nodes):
            values = [one[key][0] for one, at in zip(found, nodes, strict=True) if at == node]
            share = weights[nodes == node].sum()
            parts.append(share**2 * np.var(values, ddof=1) / len(values) if len(values) > 1 else np.nan)
        seeds[key] = None if np.isnan(parts).any() else math.sqrt(sum(parts))
    return Told(draws, seeds)


def difference(first: Told, second: Told, measure: str) -> tuple[float, float]:
    """The first's less the second's, paired over draws, and its standard error."""
    gap = first.draws[measure] - second.draws[measure]
    return float(gap[0]), _together(gap, first.seeds[measure], second.seeds[measure])


def _together(draws, *seeds) -> float:
    return math.sqrt(np.std(draws[1:], ddof=1) ** 2 + sum((error or 0.0) ** 2 for error in seeds))


def agreement(values, others) -> tuple[float, float]:
    """Spearman's rank correlation, and the share of all orders whose correlation is as large in size.

    >>> agreement([1, 2, 3, 4], [10, 20, 30, 40])[0]
    1.0
    """
    ranks, other = (rankdata(one) - (len(one) + 1) / 2 for one in (values, others))
    size = np.sqrt(np.sum(ranks**2) * np.sum(other**2))
    orders = np.array(list(itertools.permutations(other)))
    rho = float(ranks @ other / size)
    return rho, float(np.mean(np.abs(orders @ ranks / size) >= abs(rho) - 1e-9))


def about(judge: Judge) -> str:
    """What the table's columns are."""
    kinds = [kind for kind, _ in judge.concepts.names]
    counted = ", ".join(f"{kinds.count(kind)} ({MEASURES[kind]})" for kind in dict.fromkeys(kinds))
    return (
        f"On {len(judge.fit.documents):,} rows for training it is chosen, on {len(judge.fresh.documents):,} fresh ones judged. Purity: "
        "the share of a latent's mass that lies on its own token, a mean over latents. The others: F1 of the one latent, at the level, "
        f"that told a concept best, means over the commonest of their kind: {counted}. Alive: the share of latents that are on in {LEAST} "
        "rows or more. Standard errors of documents and seeds; bold: the highest, and what is not shown to be below it."
    )


def table(told: dict[str, Told]) -> list[str]:
    """The table: in bold the highest of each measure, and all that are not shown to be below another; a count of latents is not judged."""
    measures = [key for key in MEASURES if key in next(iter(told.values())).draws]
    lines = ["| | " + " | ".join(MEASURES[key] for key in measures) + " |", "| --- " * (len(measures) + 1) + "|"]
    for name, one in told.items():
        cells = []
        for key in measures:
            value, error = one.figure(key)
            gaps = [difference(other, one, key) for other in told.values() if other is not one]
            below = key == "alive" or any(gap > SHOWN * spread and gap > 0 for gap, spread in gaps)
            mark = "" if below else "**"
            cells.append(f"{mark}{value:.3f} +- {error:.3f}{mark}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def agreements(told: dict[str, Told], entries: dict) -> list[str]:
    """Rank correlations of each measure with where the error is lost, over the architectures."""
    share = lambda entry, name: next(part["share"] for part in entry["parts"] if part["name"] == name)  # noqa: E731
    lost = {
        "own error": [entry["own"] for entry in entries.values()],
        "share lost to values": [share(entry, "values") for entry in entries.values()],
        "share lost to choice of features": [share(entry, "supports") for entry in entries.values()],
    }
    measures = [key for key in MEASURES if key in next(iter(told.values())).draws]
    lines = [
        f"Rank correlations over the {len(entries)} architectures (share of all orders that agree as well or as badly):", "",
        "| | " + " | ".join(MEASURES[key] for key in measures) + " |", "| --- " * (len(measures) + 1) + "|",
    ]  # fmt: skip
    for name, values in lost.items():
        cells = (agreement([told[entry].figure(key)[0] for entry in entries], values) for key in measures)
        lines.append(f"| {name} | " + " | ".join(f"{rho:+.2f} ({chance:.2g})" for rho, chance in cells) + " |")
    return lines


def kept_of(told: dict[str, Told], judge: Judge) -> dict:
    """Figures and all differences, as plain data."""
    measures = list(next(iter(told.values())).draws)
    figures = {name: {key: one.figure(key) for key in measures} for name, one in told.items()}
    gaps = {
        f"{first} less {second}": {key: difference(told[first], told[second], key) for key in measures}
        for first in told
        for second in told
        if first < second
    }
    return {"concepts": judge.concepts.names, "figures": figures, "differences": gaps}
