"""Whether other seeds grow the same tree: kinship of matched atoms, beside what chance alone would give."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdict.growth.records import Growth
from jaxdict.growth.trees import Match, Tree, match_trees


class Stability(NamedTuple):
    """Runs compared two by two, a number a pair of runs."""

    alike: Float[np.ndarray, " comparisons"]  # share of matched atoms with a cosine of .9 or more
    kinship: Float[np.ndarray, " comparisons"]  # agreement of nearest common ancestors, see `tree_stability`
    chance: Float[np.ndarray, " comparisons"]  # of it, if atoms were matched by lot

    def message(self) -> str:
        """The finding in a sentence: means over pairs of runs, and the lowest and highest."""
        alike, kinship = (
            f"{np.mean(part):.0%} ({np.min(part):.0%} to {np.max(part):.0%})" for part in (self.alike, self.kinship)
        )
        return (
            f"{alike} of matched atoms have a cosine of .9 or more; of pairs of atoms that came of one atom in either run {kinship} "
            f"parted at the same step in both, where chance gives {np.mean(self.chance):.0%}; means and ranges over "
            f"{len(self.alike)} comparisons of runs"
        )


def tree_stability(growths: Sequence[Growth]) -> Stability:
    """How alike the trees are that runs of other seeds (or other rows) grew through the same widths, every two of them compared.

    Atoms of the last step that both runs have are matched one to one (`match_trees`). s_a(i, j) is the last step of run a at which
    atoms i and j came of one atom, that of their nearest common ancestor, and -1 where there was none. Then

        kinship = #{i < j: s_a = s_b >= 0} / #{i < j: max(s_a, s_b) >= 0},

    so that pairs without a common ancestor in either run, which are most, count for nothing; one where no pair has one. By lot, with
    n_a(s) of the P pairs parting at s in run a, `both = sum_s n_a(s) n_b(s) / P` agree in the mean and `A B / P` of the A and B pairs
    that have an ancestor have one in both: `chance = both / (A + B - A B / P)`.

    >>> import numpy as np
    >>> from jaxdict.growth.stability import parted
    >>> tree = Tree(*map(np.array, ([0, 0, 1, 1], [-1, -1, 0, 1], [0, 0, 0.8, 1], [0, 0, 1, 1], [-1] * 4)), ())
    >>> parted(tree._replace(names=(np.arange(2), np.arange(4))), 1)[0].tolist()  # atom 2 split off atom 0 after step 0
    [1, -1, 0, -1]
    """
    if len(growths) < 2:
        raise ValueError(f"growths has {len(growths)} runs and they are compared two by two; give at least two")
    sizes = {growth.dictionary.atoms.shape[1] for growth in growths}
    if len(sizes) > 1:
        raise ValueError(f"growths are of rows of {sorted(sizes)} dimensions; give runs on the same kind of rows")
    compared = [_compared(*pair) for pair in itertools.combinations(growths, 2)]
    return Stability(*map(np.array, zip(*compared, strict=True)))


def parted(tree: Tree, last: int) -> Int[np.ndarray, "width width"]:
    """The last step up to `last` at which two of its atoms came of one, -1 where at none."""
    groups = [tree.groups(step, last) for step in range(last + 1)]
    return sum((of[:, None] == of for of in groups), np.full((len(groups[0]),) * 2, -1))


def _compared(first: Growth, second: Growth) -> tuple[float, float, float]:
    """Share of matched atoms that are alike, their kinship, and chance's."""
    last = min(len(first.steps), len(second.steps)) - 1
    found = _matched(first, second, last)
    above = np.triu_indices(len(found.first), 1)
    mine, theirs = (
        parted(growth.tree, last)[np.ix_(places, places)][above]
        for growth, places in ((first, found.first), (second, found.second))
    )
    return float(np.mean(found.cosines >= 0.9)), _share(mine, theirs), _chance(mine, theirs)


def _matched(first: Growth, second: Growth, last: int) -> Match:
    trees = (growth.tree._replace(names=growth.tree.names[: last + 1]) for growth in (first, second))
    return match_trees(*trees, *(np.asarray(growth.steps[last].dictionary.atoms) for growth in (first, second)))


def _share(mine, theirs) -> float:
    kin = (mine >= 0) | (theirs >= 0)
    return float(np.mean((mine == theirs)[kin])) if kin.any() else 1.0


def _chance(mine, theirs) -> float:
    if not ((mine >= 0) | (theirs >= 0)).any():
        return 1.0
    steps = range(max(mine.max(), theirs.max()) + 1)
    both = sum(np.mean(mine == step) * np.mean(theirs == step) for step in steps)
    one, other = np.mean(mine >= 0), np.mean(theirs >= 0)
    return float(both / (one + other - one * other))
