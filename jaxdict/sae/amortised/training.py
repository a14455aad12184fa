"""Training of unrolled encoders: Adam on the objective of problem P itself, the dictionary held."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdict.arrays import is_concrete, look
from jaxdict.encoding.lasso import lasso_of
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import pairwise_sum, select, sum_in_blocks
from jaxdict.objectives import BLOCK_ENTRIES, sample_objectives
from jaxdict.problem import Dictionary, Problem, sample_weights
from jaxdict.sae.amortised.beginnings import check_count
from jaxdict.sae.amortised.gradient import UnrolledEncoder, codes_by_steps, unroll
from jaxdict.sae.models import SAE
from jaxdict.validation import check_data, check_dictionary, check_problem

# How often on the way F of all rows is looked at, to keep the best encoder so far.
LOOKS = 5


class Learned(NamedTuple):
    """What is trained, in coordinates where a step of Adam changes each number by a share of itself."""

    log_step_sizes: Float[Array, "depth atoms"]
    log_levels: Float[Array, "depth atoms"]


def train_unrolled(
    problem: Problem,
    dictionary: Dictionary,
    X: Float[Array, "samples d"],
    depth: int,
    *,
    key,
    start: SAE | None = None,
    steps: int = 300,
    batch_size: int = 256,
    learning_rate: float = 0.1,
) -> UnrolledEncoder:
    """An encoder of `depth` steps whose step sizes and levels are trained so that F at its codes is least on rows like X.

    Minimises `F(D, encoder(X), b)`, problem P's objective with its metric and sample weights, over the 2 atoms depth numbers of an
    `UnrolledEncoder` without momentum; the dictionary and `start` (as in `unroll`) are held. Adam begins at ISTA, with batches of
    `batch_size` rows drawn with replacement by `key`, its rate falling from `learning_rate` to zero. F of all rows is looked at five
    times on the way, and the best encoder is given, ISTA's own if none was better: on these rows F is never above it. X is in memory.

    Problem, dictionary, X, start, `key` and `learning_rate` may be traced; none of their values, nor the number of steps, is part of
    the compiled program. What is left to the optimum is `jaxdict.sae.amortisation_gap`.

    **Raises** ValueError as `unroll` does, for data that do not fit, for a lam that is not positive, and for numbers that make no sense.

    >>> import jax, jaxdict as jd
    >>> D, X = jax.random.normal(jax.random.key(0), (6, 4)), jax.random.normal(jax.random.key(1), (50, 4))
    >>> problem, dictionary = jd.Problem(lam=0.3), jd.canonical(jd.Dictionary(D), jnp.zeros((50, 6)))[0]
    >>> encoder = train_unrolled(problem, dictionary, X, 2, key=jax.random.key(2), steps=30, batch_size=16)
    >>> gaps = [jd.sae.amortisation_gap(problem, dictionary, one.encode(X), X).mean() for one in (encoder, unroll(problem, dictionary, 2))]
    >>> bool(gaps[0] < gaps[1])
    True
    """
    steps, batch_size = check_count("steps", steps, 1), check_count("batch_size", batch_size, 1)
    if is_concrete(learning_rate) and not look(lambda xp, rate: bool(xp.all(rate > 0)), learning_rate):
        raise ValueError(f"learning_rate is {learning_rate}; give a positive number")
    X = check_data(X, wide="allow")
    dictionary = check_dictionary(dictionary, X)
    check_problem(problem, X, zero_codes="allow")
    encoder = replace(unroll(problem, dictionary, depth, start=start), momentum=None)
    rate = jnp.asarray(learning_rate, X.dtype)
    return _trained(encoder, problem.like(X), X, key, rate, jnp.asarray(steps), size=min(batch_size, X.shape[0]))


@on_any_mesh
@partial(jax.jit, static_argnames="size")
def _trained(encoder: UnrolledEncoder, problem: Problem, X: Float[Array, "samples d"], key, rate, steps, size: int):
    weights, zero = sample_weights(problem, X), jnp.zeros_like(X[0, 0])  # carries are born from the rows
    targets = lasso_of(encoder.problem, encoder.dictionary, X).targets
    unit = 0.5 * pairwise_sum(weights * jnp.sum(targets * targets, axis=1)) / X.shape[0]
    unit = jnp.where(unit > 0, unit, 1)  # F of zero codes, so that slopes have a size that Adam can see
    adam = optax.scale_by_adam()
    first = jax.tree.map(lambda leaf: leaf + zero, _learned(encoder))
    moments = jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), adam.init(first))

    def one_step(at, carry):
        learned, moments = carry
        rows = jax.random.randint(jax.random.fold_in(key, at), (size,), 0, X.shape[0])
        slopes = jax.grad(lambda new: _mean_objective(_with(encoder, new), X[rows], weights[rows]) / unit)(learned)
        directions, moments = adam.update(slopes, moments)
        pace = rate * (1 - at.astype(rate.dtype) / steps.astype(rate.dtype))
        return jax.tree.map(lambda leaf, direction: leaf - pace * direction, learned, directions), moments

    def look(number, carry):
        state, best, least = carry
        state = jax.lax.fori_loop(number * steps // LOOKS, (number + 1) * steps // LOOKS, one_step, state)
        value = _mean_objective(_with(encoder, state[0]), X, weights)
        best = select(value < least, state[0], best)
        return state, best, jnp.minimum(value, least)

    carry = (first, moments), first, _mean_objective(_with(encoder, first), X, weights)
    return _with(encoder, jax.lax.fori_loop(0, LOOKS, look, carry)[1])


def _learned(encoder: UnrolledEncoder) -> Learned:
    return Learned(jnp.log(encoder.step_sizes), jnp.log(encoder.levels))


def _with(encoder: UnrolledEncoder, learned: Learned) -> UnrolledEncoder:
    return replace(encoder, step_sizes=jnp.exp(learned.log_step_sizes), levels=jnp.exp(learned.log_levels))


def _mean_objective(encoder: UnrolledEncoder, X: Float[Array, "samples d"], weights) -> Float[Array, ""]:
    """F at the encoder's codes, block by block."""

    def total(block):
        rows, w = block
        codes = codes_by_steps(encoder, rows)
        return pairwise_sum(w * sample_objectives(encoder.problem, encoder.dictionary, codes, rows))

    n_atoms = encoder.dictionary.atoms.shape[0]
    return sum_in_blocks(total, (X, weights), max(1, BLOCK_ENTRIES // n_atoms)) / X.shape[0]
