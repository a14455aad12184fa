"""Steps of a decoder with its codes held (theory.md, T20), each as long as its noise allows (T17) and as other rows say."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.meshes import on_any_mesh
from jaxdict.objectives import residual
from jaxdict.population.unbiased import population_sums
from jaxdict.problem import Dictionary, Problem, SparseCodes, offset_of

# Shares of a step to choose from; with none of them better, none is taken.
SHARES = (1.0, 0.5, 0.25, 0.1)


class Step(NamedTuple):
    """A change of a decoder."""

    atoms: Float[Array, "atoms d"]
    offset: Float[Array, " d"]


@on_any_mesh
@jax.jit
def squared_errors(
    dictionary: Dictionary, codes: SparseCodes, X: Float[Array, "samples d"]
) -> Float[Array, " samples"]:
    """`||x - b - z D||^2` of each row."""
    r = residual(dictionary, codes, X)
    return jnp.sum(r * r, axis=1)


def decoder_step(dictionary: Dictionary, codes: SparseCodes, X: Float[Array, "rows d"]) -> Step:
    """`d_k += E[z_k r] / E[z_k^2]` across d_k (T20), and `b += E[r]`, each shrunk by the share of its square that is noise (T17).

    That share is `sum_n ||t_n||^2 / ||sum_n t_n||^2`, t_n = z_nk r_n across d_k: an atom of few rows, or without a pull, stays.
    """
    return step_over(dictionary, [(codes, X)])


def step_over(dictionary: Dictionary, batches: Iterable[tuple[SparseCodes, Float[Array, "rows d"]]]) -> Step:
    """`decoder_step` of rows that come in batches: its sums add, so that no more than one batch is held."""
    total = None
    for codes, X in batches:
        sums = population_sums(Problem(lam=1.0, signed=True), dictionary, X, codes)
        both = sums, jnp.zeros_like(sums.codes).at[codes.indices].add(codes.values**2)
        total = both if total is None else jax.tree.map(jnp.add, total, both)
    assert total is not None
    sums, squares = total
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


def best_share(dictionary: Dictionary, step: Step, codes: SparseCodes, X: Float[Array, "rows d"]) -> Dictionary:
    """The dictionary after the share of the step that is best for some rows with their codes held; as it is where none is."""
    there = [dictionary, *(moved(dictionary, step, share) for share in SHARES)]
    return there[int(np.argmin([float(jnp.mean(squared_errors(other, codes, X))) for other in there]))]
