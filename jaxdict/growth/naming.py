"""Names of atoms along growth: numbers in the order of birth, and the tree that they make."""

import numpy as np
from jaxtyping import Bool, Int

from jaxdict.growth.parents import Parents, parents, reborn
from jaxdict.growth.trees import Tree
from jaxdict.streaming.sums import as_matrix


class Names:
    """The atoms met so far, those of the last step by place, and their codes there on the rows looked at."""

    def __init__(self, weights):
        self.weights, self.steps, self.codes = weights, [], None
        self.born, self.parent, self.share, self.rows, self.ended = ([] for _ in range(5))

    def add(self, wider, kept: Bool[np.ndarray, " wider"], atoms, codes) -> Int[np.ndarray, " width"]:
        """Names of a step's atoms: `wider` (old ones first, then new) became `atoms`, those of `kept` in their order, with these codes.

        Atoms that the fit turned round or took away end here; new ones get a name, and a parent read off both steps' codes.
        """
        here, before = len(self.steps), self.steps[-1] if self.steps else np.zeros(0, int)
        n_old, place = len(before), np.where(kept, np.cumsum(kept) - 1, -1)
        old, is_new = np.arange(len(kept)) < n_old, np.arange(len(kept)) >= n_old
        moved = kept & old & reborn(np.asarray(wider, float), np.asarray(atoms, float)[place])
        new = place[kept & (is_new | moved)]
        for j in np.flatnonzero(old & (~kept | moved)):
            self.ended[before[j]] = here
        names = np.full(len(atoms), -1)
        names[new] = len(self.born) + np.arange(len(new))
        stays = np.flatnonzero(old & kept & ~moved)
        names[place[stays]] = before[stays]
        after = as_matrix(codes, len(atoms))
        found = self._parents(after, np.where(moved, -1, place)[:n_old], new)
        self.parent += [int(before[j]) if j >= 0 else -1 for j in found.parent]
        self.born += [here] * len(new)
        self.ended += [-1] * len(new)
        self.share += found.share.tolist()
        self.rows += found.rows.tolist()
        self.steps.append(names)
        self.codes = after
        return names

    def tree(self) -> Tree:
        """The tree of all atoms so far."""
        facts = (self.born, int), (self.parent, int), (self.share, float), (self.rows, float), (self.ended, int)
        return Tree(*(np.array(values, kind) for values, kind in facts), tuple(self.steps))

    def _parents(self, after, place, new) -> Parents:
        if self.codes is None or not len(new):
            return Parents(np.full(len(new), -1), np.zeros(len(new)), np.zeros(len(new)))
        return parents(self.codes, after, place, new, self.weights)
