"""Everything that an arbitration says something about, measured name by name on the same rows."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdict.arbitration.absorptions import Edges, edges_of_labels, edges_of_truth
from jaxdict.arbitration.comparing import Figure, Rows, interpolated, rows_of
from jaxdict.arbitration.features import cost_facts, flat_facts, stability
from jaxdict.arbitration.matching import Match, Node, Place, matched, nodes_of
from jaxdict.arbitration.rows import Parts, Taken, taken
from jaxdict.arbitration.splits import RowSplit, coded, split_rows, table_of
from jaxdict.arbitration.subjects import Entry
from jaxdict.arbitration.truths import Recovered, Truth, recovered
from jaxdict.auditing.split_rows import rows_by_size
from jaxdict.sae.models import SAE

Tell = Callable[[str, int, int], Any]
# So many rows say about how many features an SAE has on.
PROBED = 64


class Looked(NamedTuple):
    """One SAE that stands at the matched L0, or beside it."""

    split: RowSplit
    flat: dict[str, Any] | None
    recovered: Recovered | None
    edges: Edges | None  # None where neither a truth nor labels name any, or codes have both signs
    cost: dict[str, Any]
    signed: bool


class Standing(NamedTuple):
    """A name: each SAE's L0 and own error, its sparsities, its place, and what was looked at of those that have a weight there."""

    entry: Entry
    l0s: tuple[float, ...]
    own: tuple[Figure, ...]
    nodes: list[Node]
    place: Place
    looked: dict[int, Looked]
    split: RowSplit | None  # interpolated; None where the matched L0 is out of the name's range
    stability: dict[str, Any] | None
    seed_error: float | None  # of the own error, between seeds; None where a sparsity has one seed

    def blended(self, values: Callable[[Looked], Any]) -> Any:
        """A figure of the SAEs with the weights of the interpolation; None where it is missing for one of them."""
        weights = self.place.weights or ()
        found = [(weights[k], values(looked)) for k, looked in self.looked.items()]
        if not found or any(value is None for _, value in found):
            return None
        return sum(weight * value for weight, value in found)


class Measured(NamedTuple):
    """All that was measured."""

    parts: Parts
    rows: Rows
    variance: float  # of the fresh rows, a row
    match: Match
    standings: list[Standing]


def measure(
    entries: Sequence[Entry], parts: Parts, truth: Truth | None, labels: np.ndarray | None, l0: float | None,
    n_rows: int | None, further: Sequence[str], tell: Tell,
) -> Measured:  # fmt: skip
    """The L0 and error of every SAE, a common L0, and all else of the SAEs that stand there; arguments as for `arbitrate`."""
    tell("reading rows", 0, 1)
    parts = parts.thinned(_affordable(entries, parts) if n_rows is None else n_rows)
    read = taken(parts)
    fresh = read.x[read.fresh].astype(np.float64)
    rows = rows_of(parts.groups, read.x[read.fresh])
    variance = float(np.mean(np.sum((fresh - fresh.mean(axis=0)) ** 2, axis=1)))
    known, done, total = [], 0, sum(len(entry.saes) for entry in entries)
    for entry in entries:
        first = []
        for sae in entry.saes:
            tell(f"codes of {entry.name}", done, total)
            found, done = coded(sae, read), done + 1
            first.append((float(found.active(read.fresh).mean()), rows.figure(found.errors(read.fresh))))
        known.append(tuple(zip(*first, strict=True)))
    match = matched([nodes_of(l0s) for l0s, _ in known], l0)
    on = None if truth is None else truth.on(parts.fresh)
    labels = None if labels is None else labels[parts.fresh]
    standings = []
    for entry, (l0s, own), place in zip(entries, known, match.places, strict=True):
        looked = {}
        for k, weight in enumerate(place.weights or ()):
            if weight > 0:
                tell(f"values, supports, decoder of {entry.name}", len(standings), len(entries))
                looked[k] = look(entry.saes[k], read, parts, further, truth, on, labels)
        standings.append(_standing(entry, l0s, own, place, looked))
    return Measured(parts, rows, variance, match, standings)


def look(
    sae: SAE, rows: Taken, parts: Parts, further: Sequence[str], truth: Truth | None, on: Any, labels: np.ndarray | None
) -> Looked:
    """One SAE's split, its nested pairs, what it holds of a truth, absorption and cost."""
    found = coded(sae, rows)
    table = table_of(found.of(rows.fresh)[0], sae.d_sae)
    near = edges = None
    if truth is not None:
        near = recovered(np.asarray(found.dictionary.atoms), table, truth, on)
    if not found.signed and near is not None and truth is not None and truth.edges:
        edges = edges_of_truth(found, rows.fresh, truth, on, near.latents)
    elif not found.signed and labels is not None:
        edges = edges_of_labels(found, table, labels)
    l0 = float(found.active(rows.fresh).mean())
    cost = cost_facts(found.sae, l0, rows.x[rows.fresh])
    return Looked(split_rows(found, rows, further, parts), flat_facts(found, table), near, edges, cost, found.signed)


def _standing(entry: Entry, l0s, own, place: Place, looked: dict[int, Looked]) -> Standing:
    nodes = nodes_of(l0s)
    split = seed_error = None
    if looked:
        weights = place.weights or ()
        split = interpolated([weights[k] for k in looked], [one.split for one in looked.values()])
        seed_error = _seed_error(nodes, weights, own)
    return Standing(entry, l0s, own, nodes, place, looked, split, _stability(entry, nodes, place), seed_error)


def _stability(entry: Entry, nodes: list[Node], place: Place) -> dict[str, Any] | None:
    """Over the seeds of each sparsity that has a weight, and those given beside."""
    found = []
    for node in nodes:
        share = sum(place.weights[k] for k in node.members) if place.weights else 0.0
        if share > 0:
            found.append((share, stability([*(entry.saes[k] for k in node.members), *entry.others])))
    known = [(share, facts) for share, facts in found if facts is not None]
    if not known or len(known) < len(found):
        return None
    return {
        "cosine": sum(share * facts["cosine"] for share, facts in known),
        "saes": sum(facts["saes"] for _, facts in known),
    }


def _seed_error(nodes: list[Node], weights, own: Sequence[Figure]) -> float | None:
    """The standard error of the interpolated error over seeds, each sparsity's seeds being independent."""
    total = 0.0
    for node in nodes:
        share = sum(weights[k] for k in node.members)
        if share > 0:
            if len(node.members) < 2:
                return None
            total += share**2 * np.var([own[k].mean for k in node.members], ddof=1) / len(node.members)
    return math.sqrt(total)


def _affordable(entries: Sequence[Entry], parts: Parts) -> int:
    """Fresh rows by the SAEs' sizes and how many features they have on, as an audit takes them: the fewest of all; as many to fit to."""
    read = taken(parts.thinned(PROBED))
    most = math.inf
    for entry in entries:
        for sae in entry.saes:
            l0 = float(coded(sae, read).active(read.fresh).mean())
            most = min(most, rows_by_size(sae.d_sae, l0))
    return max(1, int(most) // 2)
