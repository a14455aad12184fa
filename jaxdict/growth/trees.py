"""Splitting trees: which atom came of which, as data, as text, and matched between runs."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment


class Tree(NamedTuple):
    """Every atom that growth met, by name: numbers in the order of birth. An atom that splits goes on as one of its parts."""

    born: Int[np.ndarray, " atoms"]  # the step at which it was added
    parent: Int[np.ndarray, " atoms"]  # the atom that it took most mass from, -1 for none
    share: Float[np.ndarray, " atoms"]  # of its mass taken there
    rows: Float[np.ndarray, " atoms"]  # share of its rows on which the parent had been on
    ended: Int[np.ndarray, " atoms"]  # the step at which it was taken away, -1 where it was not
    names: tuple[Int[np.ndarray, " width"], ...]  # of each step's atoms, in the order of its dictionary

    def ancestor(self, atom: int, step: int) -> int:
        """The atom that was there at a step, of which this one came: itself, its parent, and so on; -1 where none was."""
        while atom >= 0 and self.born[atom] > step:
            atom = int(self.parent[atom])
        return atom

    def groups(self, step: int, last: int = -1) -> Int[np.ndarray, " width"]:
        """What each atom of a later step (the last one) came of at this step; those of no atom there are groups of their own, below 0.

        >>> tree = Tree(*map(np.array, ([0, 0, 1, 1], [-1, -1, 0, -1], [0, 0, 0.8, 0], [0, 0, 1, 0], [-1] * 4)), ())
        >>> tree._replace(names=(np.arange(2), np.arange(4))).groups(0).tolist()
        [0, 1, 0, -4]
        """
        found = np.array([self.ancestor(int(atom), step) for atom in self.names[last]], int)
        return np.where(found < 0, -1 - self.names[last], found)

    def depth(self, step: int = -1) -> Int[np.ndarray, " width"]:
        """How many splits each atom of a step came of."""
        depths = np.zeros(len(self.parent), int)
        for atom, parent in enumerate(self.parent):  # parents have smaller names
            depths[atom] = depths[parent] + 1 if parent >= 0 else 0
        return depths[self.names[step]]

    def roots(self) -> list[int]:
        """Atoms without a parent."""
        return [int(atom) for atom in np.flatnonzero(self.parent < 0)]

    def children(self, atom: int) -> list[int]:
        """The atoms that split off an atom, in the order of birth."""
        return [int(child) for child in np.flatnonzero(self.parent == atom)]

    def walk(self) -> Iterator[tuple[int, int]]:
        """(atom, depth) of all atoms, each behind its parent and before its next sibling."""
        waiting = [(root, 0) for root in reversed(self.roots())]
        while waiting:
            atom, depth = waiting.pop()
            yield atom, depth
            waiting += [(child, depth + 1) for child in reversed(self.children(atom))]

    def as_json(self, labels: Sequence[Sequence[str]] | None = None) -> dict[str, Any]:
        """The tree as JSON can hold it: the steps' widths, and an entry an atom; `labels` by atom, as `label_atoms` gives them."""
        atoms = []
        for atom in range(len(self.born)):
            parent, ended = int(self.parent[atom]), int(self.ended[atom])
            entry: dict[str, Any] = {
                "atom": atom,
                "born": int(self.born[atom]),
                "parent": None if parent < 0 else parent,
            }
            entry |= {"share": round(float(self.share[atom]), 6), "rows": round(float(self.rows[atom]), 6)}
            entry |= {"ended": None if ended < 0 else ended}
            atoms.append(entry if labels is None else entry | {"labels": list(labels[atom])})
        return {"widths": [len(names) for names in self.names], "atoms": atoms}

    def text(self, labels: Sequence[Sequence[str]] | None = None) -> str:
        """The tree to read: an atom a line, indented below what it split off, with the width at its birth and its labels.

        >>> tree = Tree(*map(np.array, ([0, 1], [-1, 0], [0, 0.75], [0, 1.0], [-1, -1])), (np.arange(1), np.arange(2)))
        >>> print(tree.text([["dog", "cat"], ["cat"]]))
        0 (width 1): dog, cat
          1 (width 2, 75% from 0): cat
        """
        lines = []
        for atom, depth in self.walk():
            came = f", {self.share[atom]:.0%} from {self.parent[atom]}" if self.parent[atom] >= 0 else ""
            gone = f", taken away at width {len(self.names[self.ended[atom]])}" if self.ended[atom] >= 0 else ""
            label = f": {', '.join(labels[atom])}" if labels is not None and len(labels[atom]) else ""
            lines.append(f"{'  ' * depth}{atom} (width {len(self.names[self.born[atom]])}{came}{gone}){label}")
        return "\n".join(lines)


class Match(NamedTuple):
    """The last dictionaries of two runs matched one to one, and whether matched atoms came together of the same splits."""

    cosines: Float[np.ndarray, " pairs"]
    first: Int[np.ndarray, " pairs"]  # places in the first run's dictionary
    second: Int[np.ndarray, " pairs"]
    agreement: Float[
        np.ndarray, " steps"
    ]  # of pairs of matched atoms, how many are grouped alike (together or apart) by a step

    def message(self) -> str:
        """The finding in a sentence."""
        near, grouped = np.mean(self.cosines >= 0.9), ", ".join(f"{share:.0%}" for share in self.agreement)
        return (
            f"{near:.0%} of {len(self.cosines)} matched atoms have a cosine of .9 or more (mean {np.mean(self.cosines):.2f}); "
            f"pairs of them are grouped alike at {grouped} by step"
        )


def match_trees(first: Tree, second: Tree, atoms, others) -> Match:
    """How alike two runs' trees are: their last atoms, (width, d) and (width', d), matched at the largest sum of cosines.

    Then the Rand index of what matched atoms came of, at each step that both have: the share of pairs of atoms that are in one group in
    both or in neither. It is one where both trees group the same features, whatever their numbers.

    >>> tree = Tree(*map(np.array, ([0, 1], [-1, 0], [0, 0.75], [0, 1.0], [-1, -1])), (np.arange(1), np.arange(2)))
    >>> match_trees(tree, tree, np.eye(2), np.eye(2)[::-1]).agreement.tolist()
    [1.0, 1.0]
    """
    units = [np.asarray(rows, float) / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (atoms, others)]
    cosines = units[0] @ units[1].T
    mine, theirs = linear_sum_assignment(-cosines)
    steps = min(len(first.names), len(second.names))
    agreement = [_rand(first.groups(step)[mine], second.groups(step)[theirs]) for step in range(steps)]
    return Match(cosines[mine, theirs], mine, theirs, np.array(agreement))


def _rand(one, other) -> float:
    """The share of pairs that two partitions treat alike."""
    above = np.triu_indices(len(one), 1)
    alike = (one[:, None] == one)[above] == (other[:, None] == other)[above]
    return float(np.mean(alike)) if alike.size else 1.0
