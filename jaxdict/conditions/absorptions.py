"""Absorption as people define it: a parent that is silent on rows that hold its direction, because a child is on there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdict.arrays import is_concrete
from jaxdict.conditions.coactivations import column, counted, mean_weights, refuse_negative, values_of
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul
from jaxdict.objectives import residual
from jaxdict.points import check_activations, check_pairs, check_point
from jaxdict.problem import Codes, Dictionary, Problem, canonical


class Absorption(NamedTuple):
    """How often a parent is on where its direction is present, without its child and with it; NaN where there are no such rows."""

    alone: Float[Array, "..."]  # P(parent on | its direction present, child off)
    beside: Float[Array, "..."]  # P(parent on | its direction present, child on)
    rows_alone: Float[Array, "..."]  # rows with the direction and without the child; their weights, scaled to mean one
    rows_beside: Float[Array, "..."]  # with both
    standard_error: Float[Array, "..."]  # of the gap, rows independent

    @property
    def gap(self) -> Float[Array, "..."]:
        """What the child takes: near 1 where it silences its parent, 0 where it does not, below 0 where it comes with it."""
        return self.alone - self.beside


class LabelAbsorption(NamedTuple):
    """Absorption where a row's label says whether a parent's concept is there."""

    found: Absorption
    labels: np.ndarray  # the one that each parent detects
    f1: (
        np.ndarray
    )  # how well it does: the harmonic mean of precision and recall; where low, the parent detects no label


def absorption(
    codes: Codes, present: Bool[Array, "... samples"], i, j, *, n_atoms: int | None = None, weights=None
) -> Absorption:
    """Absorption along edges (parent i, child j): how much rarer the parent is where the child is on, its direction being present.

        P(z_i > 0 | present, z_j = 0) - P(z_i > 0 | present, z_j > 0)

    `present` says on which samples the parent's direction is there: (samples,) for all edges, or (..., samples) for edges of
    shape (...). It is not read off the parent's code, which is what is asked about: `direction_present` reads it off the data,
    `absorption_by_label` off labels. `i`, `j` are integer arrays of one shape; codes (samples, atoms) >= 0, dense or sparse
    (`n_atoms` under jit). The standard error is of the difference of two shares, one hit and one miss added to each, so that
    shares of 0 and 1 have one too. Under jit, vmap. Raises ValueError where shapes do not fit, for `present` that is not boolean
    and for concrete negative codes.

    >>> import jax.numpy as jnp
    >>> codes = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])  # the child silences its parent
    >>> found = absorption(codes, jnp.array([True, True, True, True, False]), 0, 1)
    >>> float(found.alone), float(found.beside), float(found.gap), float(found.rows_beside)
    (1.0, 0.0, 1.0, 2.0)
    """
    refuse_negative(codes, "absorption")
    codes, weights, n_atoms = check_activations(codes, n_atoms, weights)
    i, j = check_pairs(i, j, n_atoms)
    n_samples = values_of(codes).shape[0]
    given = present if isinstance(present, jax.Array) else np.asarray(present)
    if given.dtype != bool or given.shape not in ((n_samples,), (*i.shape, n_samples)):
        raise ValueError(
            f"present has shape {given.shape} and dtype {given.dtype}; give booleans, {(n_samples,)} or one such row for each edge, "
            f"{(*i.shape, n_samples)}"
        )
    return _absorption(codes, jnp.asarray(given), weights, i, j)


@jax.jit
def _absorption_of(codes, present, weights, i, j) -> Absorption:
    codes = counted(codes, weights)
    w = mean_weights(codes, weights) * values_of(codes).shape[0]

    def one(edge):
        a, b, there = edge
        parent, child = (column(codes, k) > 0 for k in (a, b))
        hits, totals, sizes = [], [], []
        for rows in (there & ~child, there & child):
            total, squares = jnp.sum(jnp.where(rows, w, 0)), jnp.sum(jnp.where(rows, w * w, 0))
            hits.append(jnp.sum(jnp.where(rows & parent, w, 0)))
            sizes.append(total * total / jnp.where(squares > 0, squares, 1))  # as many rows of one weight
            totals.append(total)
        return absorption_of_counts(hits, totals, sizes)

    there = jnp.broadcast_to(present, (*i.shape, present.shape[-1])).reshape(-1, present.shape[-1])
    found = jax.lax.map(one, (i.reshape(-1), j.reshape(-1), there))
    return jax.tree.map(lambda leaf: leaf.reshape(i.shape), found)


_absorption = on_any_mesh(_absorption_of)


def absorption_of_counts(hits, totals, sizes) -> Absorption:
    """Absorption from the rows (alone, beside) on which the parent is on, all such rows, and as how many of one weight they count.

    >>> found = absorption_of_counts((jnp.array(4.0), jnp.array(1.0)), (jnp.array(5.0),) * 2, (jnp.array(5.0),) * 2)
    >>> round(float(found.gap), 6), round(float(found.standard_error), 3)  # 5 in 7 against 2 in 7
    (0.6, 0.241)
    """
    shares, spreads = [], []
    for hit, total, size in zip(hits, totals, sizes, strict=True):
        share = hit / jnp.where(total > 0, total, 1)
        nearer = (share * size + 1) / (size + 2)
        shares.append(jnp.where(total > 0, share, jnp.nan))
        spreads.append(nearer * (1 - nearer) / (size + 2))
    error = jnp.where((totals[0] > 0) & (totals[1] > 0), jnp.sqrt(spreads[0] + spreads[1]), jnp.nan)
    return Absorption(*shares, *totals, error)


def direction_present(
    dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], i, j, *, quantile=0.1, weights=None
) -> Bool[Array, "... samples"]:
    """On which samples a parent's direction is present, by the data alone: (..., samples) for edges (i, j) of shape (...).

    What the other features leave of a sample, `x - b - sum_{k != i, j} z_k d_k`, is projected on the parent's direction:

        v = <r, u_i> + z_i + z_j <u_j, u_i>          (unit atoms)

    The direction is present where v is at least what it is on all but a share `quantile` of the samples with the parent on and
    the child off: the parent's own threshold, in the data's units. So a child that carries its parent's direction within its own
    atom is seen to do so, whatever concept it stands for; of concepts only labels know (`absorption_by_label`). A parent that is never
    on alone has no threshold: present nowhere. Samples of weight 0 count for nothing.

    Point as in `jaxdict.objective`, codes >= 0. Under jit, vmap.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> D = jd.Dictionary(jnp.array([[1.0, 0.0], [0.6, 0.8]]))  # the child's atom has its parent's direction in it
    >>> codes = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 0.5]])
    >>> direction_present(D, codes, codes @ D.atoms, 0, 1).tolist()
    [True, True, True, False]
    """
    refuse_negative(codes, "absorption")
    problem, dictionary, codes, X = check_point(Problem(lam=1.0, weights=weights), dictionary, codes, X)
    i, j = check_pairs(i, j, dictionary.atoms.shape[0])
    if is_concrete(quantile) and not 0 <= float(quantile) < 1:
        raise ValueError(
            f"quantile={quantile} is no share of the parent's rows; give one from 0 to below 1, such as 0.1"
        )
    return _direction_present(problem, dictionary, codes, X, i, j, jnp.asarray(quantile, X.dtype))


@jax.jit
def _direction_present_of(problem, dictionary, codes, X: Float[Array, "samples d"], i, j, quantile):
    units, codes = canonical(dictionary, codes)
    left = residual(units, codes, X)
    codes = counted(codes, problem.weights)
    counts = jnp.ones_like(X[:, 0], bool) if problem.weights is None else problem.weights > 0

    def one(edge):
        a, b = edge
        z_i, z_j = column(codes, a), column(codes, b)
        along = matmul(left, units.atoms[a]) + z_i + z_j * matmul(units.atoms[b], units.atoms[a])
        own = (z_i > 0) & (z_j == 0)
        ordered = jnp.sort(jnp.where(own, along, jnp.inf))
        place = jnp.floor(quantile * jnp.sum(own).astype(X.dtype)).astype(int)
        return counts & (along >= ordered[place]) & jnp.any(own)

    found = jax.lax.map(one, (i.reshape(-1), j.reshape(-1)))
    return found.reshape(*i.shape, X.shape[0])


_direction_present = on_any_mesh(_direction_present_of)


def absorption_by_label(codes: Codes, labels, i, j, *, classes=None, n_atoms: int | None = None) -> LabelAbsorption:
    """Absorption where a sample's label says whether the parent's concept is there, such as a token's first letter.

    A parent's direction is present on the samples of its label: of `classes`, one for each edge, or the label that it detects best
    (by F1). Otherwise as `absorption`. Labels may be of any kind, one a sample: host code, not for jit or vmap. Raises ValueError
    where shapes do not fit.

    >>> import jax.numpy as jnp
    >>> codes = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> found = absorption_by_label(codes, ["s", "s", "s", "t"], 0, 1)  # "short" has a feature of its own
    >>> str(found.labels), float(found.f1), float(found.found.gap)
    ('s', 0.8, 1.0)
    """
    codes, _, n_atoms = check_activations(codes, n_atoms)
    i, j = check_pairs(i, j, n_atoms)
    given, n_samples = np.asarray(labels), values_of(codes).shape[0]
    if given.shape != (n_samples,):
        raise ValueError(f"labels have shape {given.shape} but the codes {n_samples} samples; give one label a sample")
    names, at = np.unique(given, return_inverse=True)
    sizes, parents = np.bincount(at), np.unique(np.asarray(i))
    best, f1 = {}, {}
    for parent in parents.tolist():
        on = np.asarray(column(codes, parent)) > 0
        scores = 2 * np.bincount(at[on], minlength=len(names)) / (sizes + max(int(on.sum()), 1))
        best[parent], f1[parent] = int(np.argmax(scores)), scores
    numbers = np.asarray(i)
    if classes is None:
        chosen = np.array([best[k] for k in numbers.ravel().tolist()]).reshape(numbers.shape)
    else:
        chosen = _places(np.asarray(classes), names, numbers.shape)
    known = np.array([f1[k][c] for k, c in zip(numbers.ravel().tolist(), chosen.ravel().tolist(), strict=True)])
    present = at == chosen[..., None]
    found = absorption(codes, jnp.asarray(present), i, j, n_atoms=n_atoms)
    return LabelAbsorption(found, names[chosen], known.reshape(numbers.shape))


def _places(classes: np.ndarray, names: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of given classes among the labels' names."""
    if classes.shape != shape:
        raise ValueError(f"classes has shape {classes.shape} but there are edges {shape}; give one label for each")
    unknown = ~np.isin(classes, names)
    if unknown.any():
        raise ValueError(
            f"classes has {str(classes[unknown].ravel()[0])!r}, which is the label of no sample; give labels that there are"
        )
    return np.searchsorted(names, classes)
