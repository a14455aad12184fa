"""Which atoms a new one took its rows and its mass from."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

# An atom that took a smaller share of its mass from any other has no parent.
LEAST_SHARE = 0.1
# An old atom that a fit turned beyond this cosine was given another life: it is a new one.
REBORN = 0.5


class Parents(NamedTuple):
    """Of each new atom: the atom that it took most mass from (-1 for none), the share of its own mass that was taken there, and the
    share of its rows on which that one had been on."""

    parent: Int[np.ndarray, " births"]
    share: Float[np.ndarray, " births"]
    rows: Float[np.ndarray, " births"]


def parents(
    before: sp.csr_matrix,
    after: sp.csr_matrix,
    place: Int[np.ndarray, " old"],
    new: Int[np.ndarray, " births"],
    weights,
) -> Parents:
    """Whose mass became that of the new atoms, from codes of the same rows before and after growth.

        share_jk = ( E[ s_k (z_j - z'_j) ] )_+ / E[ z'_k ],     s_k = z'_k / sum over new atoms l of z'_l

    z are codes of unit atoms before, z' after: on each row what an old atom j lost goes to the new atoms by their part of the row's
    new mass. The parent of k is the j of the largest share; none where that is below a tenth.

    `before` (rows, old), `after` (rows, width): exact codes; `place` is where each old atom stands in `after` (-1: taken away), `new`
    where the new ones stand; `weights` (rows,).

    >>> import numpy as np, scipy.sparse as sp
    >>> before, after = sp.csr_matrix([[2.0, 0.0], [2.0, 1.0]]), sp.csr_matrix([[2.0, 0, 0], [0.5, 1.0, 2.0]])
    >>> found = parents(before, after, np.array([0, 1]), np.array([2]), np.ones(2))
    >>> found.parent.tolist(), found.share.tolist(), found.rows.tolist()
    ([0], [0.75], [1.0])
    """
    w = np.asarray(weights, float) / np.sum(weights)
    gone = place < 0
    still = after[:, np.where(gone, 0, place)] @ sp.diags(np.where(gone, 0.0, 1.0))
    lost = abs(before) - abs(still)
    mine = abs(after[:, new]).tocsr()
    total = np.asarray(mine.sum(axis=1)).ravel()
    parts = sp.diags(w / np.where(total > 0, total, 1)) @ mine
    mass = mine.T @ w
    moved = np.asarray((lost.T @ parts).todense())
    shares = np.maximum(moved, 0) / np.where(mass > 0, mass, 1)
    parent, births = np.argmax(shares, axis=0), np.arange(len(new))
    share = shares[parent, births]
    on = _where_on(mine)
    together = (_where_on(before).T @ sp.diags(w) @ on).todense()
    held = np.asarray(on.T @ w)
    rows = np.asarray(together)[parent, births] / np.where(held > 0, held, 1)
    none = share < LEAST_SHARE
    return Parents(np.where(none, -1, parent), share, np.where(none, 0.0, rows))


def _where_on(codes) -> sp.csr_matrix:
    """One where a code is on."""
    on = sp.csr_matrix(codes, copy=True)
    on.eliminate_zeros()
    on.data = np.ones_like(on.data)
    return on


def reborn(atoms: Float[np.ndarray, "old d"], moved: Float[np.ndarray, "old d"]) -> np.ndarray:
    """Which old atoms a fit moved elsewhere, as it does with those that die (T10): they are new ones."""
    return np.sum(atoms * moved, axis=1) < REBORN
