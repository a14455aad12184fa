"""Badly explained rows, kept to give dead atoms a new life (T10)."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxdict.certificates.births import birth
from jaxdict.encoding.exact import encode
from jaxdict.problem import Dictionary, Problem
from jaxdict.streaming.sums import Chunk

# Rows kept, and the most atoms that are reborn from them at once.
ROWS, MOST_BIRTHS = 256, 32

_birth = birth


class Reservoir(NamedTuple):
    """A sample of rows, drawn with the weight `(||m r_n|| - lam)_+^2` of T10's gain; `luck` is -inf where a place is empty."""

    rows: Float[np.ndarray, "places d"]
    luck: Float[np.ndarray, " places"]


def empty_reservoir(d: int, dtype) -> Reservoir:
    """No rows yet."""
    return Reservoir(np.zeros((ROWS, d), dtype), np.full(ROWS, -np.inf))


def keep_worst(
    problem: Problem, reservoir: Reservoir, rows, weights, chunk: Chunk, uniform: Float[np.ndarray, " samples"]
) -> Reservoir:
    """The reservoir after a chunk: each row's luck is `log(u) / weight`, the largest stay (Efraimidis and Spirakis 2006)."""
    heights = np.sqrt(np.einsum("nd,nd->n", chunk.pulls, chunk.pulls))
    worth = np.maximum(heights - float(problem.lam), 0) ** 2
    worth = worth if weights is None else worth * weights
    luck = np.where(worth > 0, np.log(uniform) / np.where(worth > 0, worth, 1), -np.inf)
    best = np.argsort(-luck, kind="stable")[:ROWS]
    return pooled(reservoir, Reservoir(rows[best], luck[best]))


def pooled(first: Reservoir, second: Reservoir) -> Reservoir:
    """The luckiest rows of both."""
    luck = np.concatenate([first.luck, second.luck])
    keep = np.argsort(-luck, kind="stable")[:ROWS]
    return Reservoir(np.concatenate([first.rows, second.rows])[keep], luck[keep])


def born_from(problem: Problem, dictionary: Dictionary, reservoir: Reservoir, dead) -> tuple[np.ndarray, np.ndarray]:
    """Atoms with dead ones (by number) moved to T10's best atom of the reservoir in turn, and which of them were."""
    atoms, born = np.array(dictionary.atoms), np.zeros(0, int)
    places = np.flatnonzero(np.isfinite(reservoir.luck))
    if not len(places):
        return atoms, born
    # Places that are empty repeat the first ones, so that one shape is compiled.
    rows = jax.numpy.asarray(reservoir.rows[np.resize(places, ROWS)])
    plain = Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric)
    for k in dead[:MOST_BIRTHS]:
        now = Dictionary(jax.numpy.asarray(atoms), jax.numpy.asarray(dictionary.offset))
        codes = encode(plain, now, rows, tol=1e-4, sparse=True).codes
        new = _birth(plain, now, codes, rows)
        if not float(new.gain) > 0:
            break
        atoms[k], born = np.asarray(new.atom), np.append(born, k)
    return atoms, born
