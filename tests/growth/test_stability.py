"""Kinship of two runs' atoms, counted pair by pair, and by lot."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxdict.growth import Growth, Tree, tree_stability
from jaxdict.growth.stability import parted


def grown(parents, widths, atoms) -> Growth:
    """A path of which only the tree and the last dictionary are known."""
    born = np.searchsorted(widths, np.arange(len(parents)), side="right")
    blank = np.zeros(len(parents))
    names = tuple(np.arange(width) for width in widths)
    tree = Tree(born, np.asarray(parents), blank, blank, np.full(len(parents), -1), names)
    steps = tuple(SimpleNamespace(dictionary=SimpleNamespace(atoms=atoms[:width])) for width in widths)
    return Growth(steps, tree, len(widths) - 1, 0, 0.0, 0.0, 0, 0, None)


def drawn(seed, widths=(3, 6, 12)) -> Growth:
    luck = np.random.default_rng(seed)
    parents = [-1] * 3 + [int(luck.integers(-1, 3)) for _ in range(3)] + [int(luck.integers(-1, 6)) for _ in range(6)]
    return grown(parents, widths, np.eye(12))


def by_hand(one, other) -> float:
    """The formula, pair by pair, from the last common ancestor of each."""

    def step_of(tree, i, j):
        at = [step for step in range(3) if tree.ancestor(i, step) == tree.ancestor(j, step) >= 0]
        return max(at, default=-1)

    agree = kin = 0
    for i in range(12):
        for j in range(i):
            both = step_of(one.tree, i, j), step_of(other.tree, i, j)
            kin += max(both) >= 0
            agree += both[0] == both[1] >= 0
    return agree / kin


def test_kinship_is_the_share_of_pairs_that_part_at_the_same_step():
    one, other = drawn(0), drawn(1)
    found = tree_stability((one, other))
    assert found.kinship.tolist() == [pytest.approx(by_hand(one, other))]
    assert found.alike.tolist() == [1.0]
    assert 0 < found.kinship[0] < 1


def test_the_same_tree_in_another_order_is_wholly_kin():
    one = drawn(0)
    turned = np.eye(12)[[1, 0, 2, *range(3, 12)]]
    # Atoms 0 and 1 have changed names, and so have their children's parents.
    parents = np.array([-1 if parent < 0 else [1, 0, *range(2, 12)][parent] for parent in one.tree.parent])
    found = tree_stability((one, grown(parents, (3, 6, 12), turned)))
    assert found.kinship.tolist() == [1.0]
    assert found.chance[0] < 0.5
    assert "100% (100% to 100%) parted at the same step" in found.message()


def test_chance_is_what_matching_by_lot_gives():
    """The ratio of means, against relabellings of the second run's atoms."""
    one, other = drawn(2), drawn(3)
    a, b = parted(one.tree, 2), parted(other.tree, 2)
    above, luck, counts = np.triu_indices(12, 1), np.random.default_rng(0), []
    for _ in range(4000):
        order = luck.permutation(12)
        mine, theirs = a[above], b[np.ix_(order, order)][above]
        counts.append([np.sum((mine == theirs) & (mine >= 0)), np.sum((mine >= 0) | (theirs >= 0))])
    both, kin = np.mean(counts, axis=0)
    assert tree_stability((one, other)).chance[0] == pytest.approx(both / kin, rel=0.05)


def test_all_pairs_of_runs_are_compared_at_the_steps_that_both_have():
    found = tree_stability((drawn(0), drawn(1), drawn(0, (3, 6))))
    assert found.kinship.shape == (3,)
    # The third run is the first one, ended a step before.
    assert found.kinship[1] == 1.0
    assert "3 comparisons" in found.message()


def test_atoms_without_ancestors_agree_that_they_have_none():
    lonely = grown([-1] * 4, (4,), np.eye(4))
    found = tree_stability((lonely, lonely))
    assert found.kinship.tolist() == found.chance.tolist() == [1.0]


@pytest.mark.parametrize(
    ("growths", "told"),
    [([drawn(0)], "has 1 runs"), ([drawn(0), grown([-1], (1,), np.ones((1, 3)))], r"\[3, 12\] dimensions")],
)
def test_runs_that_cannot_be_compared_are_refused(growths, told):
    with pytest.raises(ValueError, match=told):
        tree_stability(growths)
