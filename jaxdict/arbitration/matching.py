"""A common L0: which, how each name reaches it, and with what weights the figures of its SAEs are interpolated there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# L0s within this of one another count as one sparsity: SAEs of several seeds, or ends of ranges that all but meet.
SAME = 0.05


class Node(NamedTuple):
    """SAEs of one sparsity, by their places among those of a name, and their mean L0."""

    members: tuple[int, ...]
    l0: float


class Place(NamedTuple):
    """Where a name stands: a weight for each of its SAEs and the L0 that they make; none where the matched L0 is out of its range."""

    weights: tuple[float, ...] | None
    l0: float | None
    interpolated: bool = False


class Match(NamedTuple):
    """The common L0, None where there is none; where it comes from; and the place of each name."""

    l0: float | None
    how: str  # given, middle (of the overlap), alike (they are all but one), none
    places: tuple[Place, ...]


def nodes_of(l0s: Sequence[float]) -> list[Node]:
    """The sparsities of a name's SAEs, ascending; those within 5% of the lowest of a group are one.

    >>> nodes_of([32.0, 16.0, 16.4])
    [Node(members=(1, 2), l0=16.2), Node(members=(0,), l0=32.0)]
    """
    groups: list[list[int]] = []
    for k in sorted(range(len(l0s)), key=lambda k: l0s[k]):
        if groups and l0s[k] <= (1 + SAME) * l0s[groups[-1][0]]:
            groups[-1].append(k)
        else:
            groups.append([k])
    return [Node(tuple(sorted(group)), float(np.mean([l0s[k] for k in group]))) for group in groups]


def matched(sweeps: Sequence[list[Node]], l0: float | None = None) -> Match:
    """The common L0 as given, else the middle of where all ranges overlap, and each name's place there.

    Without an overlap there is no common L0: each name stands at its own, the one nearest to the middle of the gap. Raises ValueError
    for a given L0 that fewer than two names reach.

    >>> match = matched([nodes_of([16.0, 32.0]), nodes_of([20.0])])
    >>> match.l0, match.places[0].weights
    (20.0, (0.75, 0.25))
    """
    low, high = max(nodes[0].l0 for nodes in sweeps), min(nodes[-1].l0 for nodes in sweeps)
    middle = (low + high) / 2
    if l0 is not None:
        places = tuple(_place(nodes, float(l0)) for nodes in sweeps)
        if sum(place.weights is not None for place in places) < 2:
            ranges = ", ".join(f"{nodes[0].l0:.4g} to {nodes[-1].l0:.4g}" for nodes in sweeps)
            raise ValueError(
                f"l0={l0:g} is reached by fewer than two of the names (their L0s: {ranges}); give one that two reach, or none"
            )
        return Match(float(l0), "given", places)
    if low <= high * (1 + SAME):
        how = "middle" if low <= high else "alike"
        return Match(middle, how, tuple(_place(nodes, middle) for nodes in sweeps))
    nearest = [min(nodes, key=lambda node: abs(node.l0 - middle)) for nodes in sweeps]
    return Match(None, "none", tuple(_at(nodes, {node: 1.0}) for nodes, node in zip(sweeps, nearest, strict=True)))


def check_l0(l0) -> float | None:
    """A positive number, or none; else a ValueError.

    >>> check_l0(-3)
    Traceback (most recent call last):
    ValueError: l0 is -3; give a positive number of features a row, or none for the middle of where the SAEs' ranges overlap
    """
    if l0 is None:
        return None
    if isinstance(l0, bool) or not isinstance(l0, int | float) or not 0 < l0 < float("inf"):
        raise ValueError(
            f"l0 is {l0!r}; give a positive number of features a row, or none for the middle of where the SAEs' ranges overlap"
        )
    return float(l0)


def _place(nodes: list[Node], l0: float) -> Place:
    """Between the nearest two sparsities by their distance in L0; at an end, or all but there, that end as it is; beyond it nowhere.

    >>> _place(nodes_of([16.0, 32.0]), 33.0), _place(nodes_of([16.0, 32.0]), 40.0).weights
    (Place(weights=(0.0, 1.0), l0=32.0, interpolated=False), None)
    """
    for node in nodes:
        if node.l0 == l0:
            return _at(nodes, {node: 1.0})
    if nodes[0].l0 < l0 < nodes[-1].l0:
        after = next(k for k, node in enumerate(nodes) if node.l0 > l0)
        first, second = nodes[after - 1 : after + 1]
        share = (l0 - first.l0) / (second.l0 - first.l0)
        return _at(nodes, {first: 1 - share, second: share})
    end = nodes[0] if l0 < nodes[0].l0 else nodes[-1]
    near = max(l0, end.l0) <= (1 + SAME) * min(l0, end.l0)
    return _at(nodes, {end: 1.0}) if near else Place(None, None)


def _at(nodes: list[Node], shares: dict[Node, float]) -> Place:
    """A weight for each SAE: its sparsity's share, alike for its seeds."""
    weights = np.zeros(sum(len(node.members) for node in nodes))
    for node, share in shares.items():
        weights[list(node.members)] = share / len(node.members)
    return Place(tuple(map(float, weights)), sum(share * node.l0 for node, share in shares.items()), len(shares) > 1)
