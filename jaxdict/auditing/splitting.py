"""An SAE's error in its architecture's own currency (theory.md section 8): what its values, its supports and its decoder cost.

Squared errors of rows, codes of as many features as the SAE itself uses on each: lam has no part in it, so it is the same question for
every architecture. Each step is a paired mean over rows with its standard error (T18).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.encoding.subsets.search import best_subset
from jaxdict.encoding.subsets.values import refit_values
from jaxdict.meshes import on_any_mesh
from jaxdict.objectives import residual
from jaxdict.population.comparisons import numbered, paired
from jaxdict.population.unbiased import population_sums
from jaxdict.problem import Dictionary, Problem, SparseCodes, offset_of, sparse_codes

# Shares of the decoder's step to choose from; with none of them better, none is taken.
SHARES = (1.0, 0.5, 0.25, 0.1)
# A mean is shown above so many standard errors.
SHOWN = 3.0
# Fewer rows, or documents, cannot be parted in three and compared.
LEAST_GROUPS = 8


class Part(NamedTuple):
    """What one part costs: the paired mean of the fall of the squared error, its standard error, and of how many rows."""

    name: str
    mean: float
    standard_error: float
    rows: int
    shown: bool


class Split(NamedTuple):
    """The mean squared error a row and what of it each part costs; None where one could not be measured."""

    own: float
    rows: int
    groups: int | None  # documents that the rows come from, where they were named
    pursuit: float  # the error of the supports that greedy pursuit alone finds
    parts: tuple[Part, ...]


class Step(NamedTuple):
    """A change of a decoder."""

    atoms: Float[Array, "atoms d"]
    offset: Float[Array, " d"]


def split_error(
    dictionary: Dictionary, X: Float[Array, "samples d"], own: SparseCodes, *, signed: bool, groups=None
) -> Split:
    """What the SAE's own codes lose to their values, to their supports, and then to the decoder, on these rows.

    Values: the best ones on the SAE's own supports. Supports: the best found of the same size, row by row. Decoder: with these
    codes held, T20's step, fitted on half of the rows (documents, where `groups` names them) and measured on the other half.
    """
    sizes = np.count_nonzero(np.asarray(own.values), axis=1)
    options = {"signed": signed, "slots": own.values.shape[1]}
    values = refit_values(dictionary, own, X, signed=signed)
    best = sparse_codes(best_subset(dictionary, X, sizes, start=own, **options).codes)
    pursued = best_subset(dictionary, X, sizes, max_steps=0, **options).codes
    at_own, at_values, at_best = (squared_errors(dictionary, codes, X) for codes in (own, values, best))
    # What sums of squares of this size are rounded by.
    floor = 64 * float(jnp.finfo(X.dtype).eps) * float(jnp.mean(jnp.sum((X - offset_of(dictionary)) ** 2, axis=1)))
    parts = [
        _part("values", at_own - at_values, groups, floor),
        _part("supports", at_values - at_best, groups, floor),
        decoder_part(dictionary, X, best, groups, floor),
    ]
    return Split(
        float(jnp.mean(at_own)),
        X.shape[0],
        None if groups is None else len(np.unique(groups)),
        float(jnp.mean(squared_errors(dictionary, pursued, X))),
        tuple(part for part in parts if part is not None),
    )


@on_any_mesh
@jax.jit
def squared_errors(
    dictionary: Dictionary, codes: SparseCodes, X: Float[Array, "samples d"]
) -> Float[Array, " samples"]:
    """`||x - b - z D||^2` of each row."""
    r = residual(dictionary, codes, X)
    return jnp.sum(r * r, axis=1)


def _part(name: str, falls: Float[Array, " rows"], groups, floor: float) -> Part:
    found = paired(falls, jnp.ones_like(falls), None if groups is None else numbered(groups))
    mean, error = float(found.gain), float(found.standard_error)
    return Part(name, mean, error, int(found.rows), mean > max(SHOWN * error, floor))


def decoder_part(
    dictionary: Dictionary, X: Float[Array, "samples d"], codes: SparseCodes, groups, floor: float
) -> Part | None:
    """T20's step for the codes as they are: fitted on three eighths of the rows, its length chosen on one eighth, paired on the others.

    None where there are too few rows, or documents, to be parted so.
    """
    _, of_row = np.unique(np.arange(X.shape[0]) if groups is None else np.asarray(groups), return_inverse=True)
    n = int(of_row.max()) + 1
    if n < LEAST_GROUPS:
        return None
    turn = np.random.default_rng(0).permutation(n)[of_row]  # each row's document's place in a random order
    aim, reach, test = turn < 3 * n // 8, (turn >= 3 * n // 8) & (turn < n // 2), turn >= n // 2

    def at(rows) -> tuple[SparseCodes, Float[Array, "rows d"]]:
        return SparseCodes(codes.indices[rows], codes.values[rows]), X[rows]

    step = decoder_step(dictionary, *at(aim))
    there = [moved(dictionary, step, share) for share in SHARES]
    values = [float(jnp.mean(squared_errors(other, *at(reach)))) for other in (dictionary, *there)]
    chosen = (dictionary, *there)[int(np.argmin(values))]
    falls = squared_errors(dictionary, *at(test)) - squared_errors(chosen, *at(test))
    return _part("decoder", falls, None if groups is None else np.asarray(groups)[test], floor)


def decoder_step(dictionary: Dictionary, codes: SparseCodes, X: Float[Array, "rows d"]) -> Step:
    """`d_k += E[z_k r] / E[z_k^2]` across d_k (T20), and `b += E[r]`, each shrunk by the share of its square that is noise (T17).

    That share is `sum_n ||t_n||^2 / ||sum_n t_n||^2`, t_n = z_nk r_n across d_k: an atom of few rows, or without a pull, stays.
    """
    sums = population_sums(Problem(lam=1.0, signed=True), dictionary, X, codes)
    squares = jnp.zeros_like(sums.codes).at[codes.indices].add(codes.values**2)
    atoms = kept(sums.pulls, sums.pull_squares) * sums.pulls / jnp.where(squares > 0, squares, 1)[:, None]
    offset = kept(sums.residual[None], sums.residual_squares[None])[0] * sums.residual / sums.weight
    return Step(atoms, offset)


def kept(pulls: Float[Array, "atoms d"], squares: Float[Array, " atoms"]) -> Float[Array, "atoms 1"]:
    """`(1 - sum ||t||^2 / ||sum t||^2)_+`: how much of a sum is more than noise.

    >>> import jax.numpy as jnp
    >>> kept(jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([1.0, 5.0])).tolist()
    [[0.75], [0.0]]
    """
    size = jnp.sum(pulls * pulls, axis=1)
    return jnp.maximum(1 - squares / jnp.where(size > 0, size, 1), 0)[:, None]


def moved(dictionary: Dictionary, step: Step, share: float) -> Dictionary:
    """The dictionary after a share of a step; atoms are not brought back to length one, since their codes are held."""
    return Dictionary(dictionary.atoms + share * step.atoms, offset_of(dictionary) + share * step.offset)
