"""Codes by moves of one code at a time, each row its own best one: cheap, because a move needs no matmul."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.encoding.lasso import codes_of, lasso_of
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul
from jaxdict.problem import Dictionary, Problem
from jaxdict.sae.amortised.beginnings import check_count, check_encoded, first_codes, regauged
from jaxdict.sae.amortised.gradient import encoder_like
from jaxdict.sae.models import SAE


class CoordinateEncoder(eqx.Module):
    """T moves of greedy coordinate descent for the codes of a fixed dictionary, from zero or from an SAE's codes; nothing is learned.

        k = the code whose own best value lowers F most;   z_k <- relu(z_k + (<a_k, r> - lam) / ||a_k||^2)

    each row its own k (as Li and Osher 2009). Correlations `<a_j, r>` are kept up to date by row k of the atoms' Gram matrix `gram`
    (atoms, atoms), so a move costs about 3 K multiply-adds a row where a gradient step costs 2 d K, and no move raises F. From zero
    one matmul is needed before the first move, from an SAE two beside its own. The matrix is held: for some thousands of atoms.

    Made by `unroll_moves`; `encode` as an `UnrolledEncoder`'s.

    >>> encoder = unroll_moves(Problem(lam=0.5), Dictionary(jnp.eye(3)), 2)
    >>> encoder.encode(jnp.array([[3.0, 1.0, 2.0]])).tolist()  # two moves, two codes
    [[2.5, 0.0, 1.5]]
    """

    problem: Problem
    dictionary: Dictionary
    gram: Float[Array, "atoms atoms"]
    moves: int = eqx.field(static=True)
    start: SAE | None = None

    def encode(self, X: Float[Array, "samples d"]) -> Float[Array, "samples atoms"]:
        """Codes of rows, in their dtype. Raises ValueError for rows of another width."""
        X = data_array(X)
        return _encode(encoder_like(self, X), X)


def unroll_moves(
    problem: Problem, dictionary: Dictionary, moves: int, *, start: SAE | None = None
) -> CoordinateEncoder:
    """`moves` moves of greedy coordinate descent as an encoder; `start` as in `unroll`.

    **Raises** ValueError as `unroll` does, and for a negative number of moves.

    >>> import jaxdict as jd
    >>> problem, dictionary, X = Problem(lam=0.1), Dictionary(jnp.array([[1.0, 0.0], [0.8, 0.6]])), jnp.array([[1.0, 1.0]])
    >>> [round(float(jd.objective(problem, dictionary, unroll_moves(problem, dictionary, T).encode(X), X)), 4) for T in (0, 1, 2)]
    [1.0, 0.155, 0.155]
    """
    moves = check_count("moves", moves, 0)
    problem, dictionary, start = check_encoded(problem, dictionary, start)
    return _coordinates(problem, dictionary, start, moves)


@on_any_mesh
@partial(jax.jit, static_argnames="moves")
def _coordinates(problem: Problem, dictionary: Dictionary, start: SAE | None, moves: int):
    atoms = lasso_of(problem, dictionary, dictionary.atoms[:1]).atoms
    begin = None if start is None else regauged(start, dictionary)
    return CoordinateEncoder(problem, dictionary, matmul(atoms, atoms.T), moves, begin)


def _codes_by_moves(encoder: CoordinateEncoder, X: Float[Array, "samples d"]) -> Float[Array, "samples atoms"]:
    problem, dictionary, gram = encoder.problem, encoder.dictionary, encoder.gram
    lasso = lasso_of(problem, dictionary, X)
    z = first_codes(problem, dictionary, encoder.start, X)
    left = lasso.targets if encoder.start is None else lasso.targets - matmul(z, lasso.atoms)
    bend = jnp.diagonal(gram)
    bend, rows = jnp.where(bend > 0, bend, 1), jnp.arange(X.shape[0])

    def move(carry, _):
        z, pulls = carry
        change = jnp.maximum(z + (pulls - lasso.lam) / bend, 0) - z
        best = jnp.argmax(change * (pulls - lasso.lam - 0.5 * bend * change), axis=1)
        taken = change[rows, best]
        return (z.at[rows, best].add(taken), pulls - taken[:, None] * gram[best]), None

    (z, _), _ = jax.lax.scan(move, (z, matmul(left, lasso.atoms.T)), length=encoder.moves)
    # What a move takes to zero may be left at its rounding.
    return codes_of(problem, dictionary, jnp.maximum(z, 0))


_encode = on_any_mesh(jax.jit(_codes_by_moves), lambda rows: P(rows))
