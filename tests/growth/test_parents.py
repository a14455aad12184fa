"""Parents by the mass that new atoms took, names along growth, trees as data, text and page."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

from jaxdict.growth import Tree, match_trees
from jaxdict.growth.naming import Names
from jaxdict.growth.parents import parents
from jaxdict.problem import SparseCodes


def test_mass_that_moved_names_the_parent():
    draw = np.random.default_rng(0)
    before = draw.uniform(1, 2, (40, 3)) * (draw.uniform(size=(40, 3)) < 0.6)
    after = np.concatenate([before, np.zeros((40, 2))], axis=1)
    split = np.arange(40) % 2 == 0
    after[split, 3], after[split, 0] = (
        0.9 * before[split, 0],
        0.0,
    )  # the first new atom takes atom 0's mass on even rows
    after[:, 4] = 5.0 * (np.arange(40) == 1)  # the second one comes of nothing
    found = parents(sp.csr_matrix(before), sp.csr_matrix(after), np.arange(3), np.array([3, 4]), np.ones(40))
    assert found.parent.tolist() == [0, -1]
    assert found.share[0] == pytest.approx(1 / 0.9)
    assert found.rows.tolist() == [1.0, 0.0]


def test_shares_are_those_of_the_formula():
    draw = np.random.default_rng(1)
    before, after = (draw.uniform(0, 2, (30, k)) * (draw.uniform(size=(30, k)) < 0.5) for k in (3, 4))
    w = draw.uniform(0.1, 2, 30)
    place, new = np.array([1, -1, 0]), np.array([2, 3])
    found = parents(sp.csr_matrix(before), sp.csr_matrix(after), place, new, w)
    for k, column in enumerate(new):
        shares = []
        for j in range(3):
            now = after[:, place[j]] if place[j] >= 0 else 0
            total = after[:, new].sum(axis=1)
            part = np.divide(after[:, column], total, out=np.zeros(30), where=total > 0)
            shares.append(max(0, np.sum(w * part * (before[:, j] - now)) / np.sum(w * after[:, column])))
        assert found.share[k] == pytest.approx(max(shares))
        if max(shares) >= 0.1:
            best = int(np.argmax(shares))
            assert found.parent[k] == best
            on = after[:, column] > 0
            assert found.rows[k] == pytest.approx(np.sum(w * on * (before[:, best] > 0)) / np.sum(w * on))


def coded(dense) -> SparseCodes:
    return SparseCodes(np.tile(np.arange(dense.shape[1]), (len(dense), 1)), np.asarray(dense, float))


def test_names_follow_atoms_that_move_end_and_are_reborn():
    names, eye = Names(np.ones(4)), np.eye(4)
    first = names.add(eye[:3], np.ones(3, bool), eye[:3], coded(np.eye(4)[:, :3]))
    assert first.tolist() == [0, 1, 2]
    # Atom 1 is taken away, atom 2 turned round by the fit; one atom is new.
    wider, kept = eye, np.array([True, False, True, True])
    now = np.array([eye[0], -eye[2], eye[3]])
    second = names.add(wider, kept, now, coded(np.array([[1.0, 0, 0], [0, 0, 0.9], [0, 0, 0], [0, 1.0, 0]])))
    assert second.tolist() == [0, 3, 4]
    tree = names.tree()
    assert tree.ended.tolist() == [-1, 1, 1, -1, -1]
    assert tree.born.tolist() == [0, 0, 0, 1, 1]
    assert tree.parent.tolist() == [-1, -1, -1, -1, 1]
    assert tree.groups(0).tolist() == [0, -4, 1]


TREE = Tree(
    np.array([0, 0, 1, 2, 2]),
    np.array([-1, -1, 0, 2, 0]),
    np.array([0, 0, 0.8, 0.7, 0.6]),
    np.array([0, 0, 1, 1, 0.5]),
    np.array([-1, 1, -1, -1, -1]),
    (np.array([0, 1]), np.array([0, 2]), np.array([4, 0, 3, 2])),
)


def test_a_tree_is_read_as_it_is():
    assert TREE.roots() == [0, 1]
    assert TREE.children(0) == [2, 4]
    assert list(TREE.walk()) == [(0, 0), (2, 1), (3, 2), (4, 1), (1, 0)]
    assert TREE.depth().tolist() == [1, 0, 2, 1]
    assert TREE.groups(0).tolist() == [0, 0, 0, 0]
    assert TREE.groups(1).tolist() == [0, 0, 2, 2]
    assert TREE.ancestor(3, 1) == 2
    lines = TREE.text([["a"], [], ["c", "d"], ["e"], ["f"]]).splitlines()
    assert lines[1] == "  2 (width 2, 80% from 0): c, d"
    assert lines[4] == "1 (width 2, taken away at width 2)"
    document = json.loads(json.dumps(TREE.as_json([["a"]] * 5), allow_nan=False))
    assert document["widths"] == [2, 2, 4]
    assert document["atoms"][3] == {
        "atom": 3,
        "born": 2,
        "parent": 2,
        "share": 0.7,
        "rows": 1.0,
        "ended": None,
        "labels": ["a"],
    }


def test_trees_that_split_otherwise_agree_less():
    other = TREE._replace(parent=np.array([-1, -1, -1, 0, 2]))
    atoms = np.eye(4)
    same, found = (match_trees(TREE, tree, atoms, atoms[[1, 0, 2, 3]]) for tree in (TREE, other))
    assert same.second.tolist() == [1, 0, 2, 3]
    assert same.agreement[2] == 1.0
    assert found.agreement[0] < same.agreement[0]
