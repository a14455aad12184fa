"""Labels of atoms, so that a tree can be read: those of the rows on which each is strongest."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.encoding.exact import encode
from jaxdict.growth.records import Growth
from jaxdict.problem import Problem, sparse_codes
from jaxdict.streaming.sums import as_matrix
from jaxdict.validation import check_data


def label_atoms(
    problem: Problem, growth: Growth, X: Float[Array, "samples d"], labels, *, top: int = 3, when: str = "birth"
) -> list[list[str]]:
    """The different labels of the rows on which each atom of the tree is strongest, strongest first, at most `top`.

    Codes are exact, at the step at which the atom was added (`when="birth"`) or the last one that had it ("end"). X (samples, d) in
    memory, `labels` one text a row. Atoms that none of these rows use have no label.
    """
    X = check_data(X, wide="allow")
    labels = np.asarray(labels).astype(str)
    if labels.shape != X.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape} but the data {X.shape[0]} rows; give one label a row")
    if when not in ("birth", "end"):
        raise ValueError(f'when={when!r} is unknown; use "birth" or "end"')
    tree, found = growth.tree, [[] for _ in growth.tree.born]
    last = np.where(tree.ended < 0, len(growth.steps), tree.ended) - 1
    at = tree.born if when == "birth" else last
    plain = Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric)
    for place in np.unique(at):
        dictionary = growth.steps[place].dictionary
        tol = 1e-10 if X.dtype == jnp.float64 else 1e-5
        coded = sparse_codes(encode(plain, dictionary, X, tol=tol, sparse=True).codes)
        codes = abs(as_matrix(coded, dictionary.atoms.shape[0])).tocsc()
        for column, atom in enumerate(growth.steps[place].names):
            if at[atom] == place:
                found[atom] = _strongest(codes[:, column], labels, top)
    return found


def _strongest(column, labels, top: int) -> list[str]:
    """Different labels of a sparse column's rows, largest values first."""
    rows = column.indices[np.argsort(-column.data, kind="stable")]
    return list(dict.fromkeys(labels[rows].tolist()))[:top]
