"""Rows of a planted tree of three levels: each row is one leaf's direction, which holds its branch's and its root's."""

from typing import NamedTuple

import numpy as np


class PlantedTree(NamedTuple):
    """Rows with the leaf of each, leaves' directions, and the branch and the root that each leaf is of."""

    X: np.ndarray
    leaf: np.ndarray
    atoms: np.ndarray
    branch: np.ndarray
    root: np.ndarray


def planted_tree(seed: int, n: int = 600, roots: int = 2, d: int = 64, noise: float = 0.01) -> PlantedTree:
    """Two branches a root, two leaves a branch: `normalise(root + .7 branch + .5 leaf)` over an orthonormal basis drawn anew.

    In many dimensions, so that to split a leaf by its noise helps the rows of a fit and no others."""
    draw = np.random.default_rng(seed)
    branch = np.repeat(np.arange(2 * roots), 2)
    root, n_leaves = branch // 2, 4 * roots
    basis = np.linalg.qr(draw.normal(size=(d, d)))[0]
    atoms = basis[root] + 0.7 * basis[roots + branch] + 0.5 * basis[3 * roots + np.arange(n_leaves)]
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    leaf = draw.integers(0, n_leaves, n)
    X = draw.uniform(1, 2, (n, 1)) * atoms[leaf] + noise * draw.normal(size=(n, atoms.shape[1]))
    return PlantedTree(X, leaf, atoms, branch, root)


def is_planted(grown, planted: PlantedTree) -> bool:
    """Whether the tree is the planted one: each leaf has one atom of cosine .95 or more at the last width, and at the widths of the
    roots' and of the branches' numbers what the leaves' atoms came of groups them as roots and as branches do."""
    cosines = np.asarray(grown.steps[-1].dictionary.atoms) @ planted.atoms.T
    if cosines.shape[0] != cosines.shape[1] or np.min(np.max(cosines, axis=0)) < 0.95:
        return False
    place = np.argmax(cosines, axis=0)
    if len(set(place.tolist())) < len(place):
        return False
    return all(
        same_partition(grown.tree.groups(step)[place], of_leaf)
        for step, of_leaf in ((0, planted.root), (1, planted.branch))
    )


def same_partition(one, other) -> bool:
    """Whether two labellings put the same things together."""
    return bool(np.all((one[:, None] == one) == (other[:, None] == other)))
