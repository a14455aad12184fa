"""Exact codes and their sums by plain JAX: what `engines.JAX_ENGINE` calls, anywhere that XLA compiles for."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxdict.encoding.jax_engine import working_set
from jaxdict.encoding.jax_engine.gradient import accelerated_gradient
from jaxdict.encoding.lasso import Lasso, Solved, within
from jaxdict.encoding.slots import Slots, dense_from_slots, empty_slots, resized, slots_from_codes
from jaxdict.numerics import matmul, pairwise_sum
from jaxdict.objectives import Moments

# Steps of the gradient for samples that overflow their slots; inside solvers, which come back, fewer, and so many rounds.
GRADIENT_STEPS, STEPS_FOR_SUMS, ROUNDS_FOR_SUMS = 10_000, 2000, 200
# Entries of the largest array of a block of samples.
BLOCK_ENTRIES = 2**24


def solve(lasso: Lasso, start, tol, defect_tol=None, *, n_slots: int, dense: bool, max_rounds: int):
    """Exact codes by working sets; dense ones of samples that overflow their slots by the accelerated gradient."""
    slots = _as_slots(lasso, start, n_slots)
    if dense:
        slots, Z, _, done = exact_from_slots(lasso, slots, tol, max_rounds, GRADIENT_STEPS, defect_tol)
        return slots, Z, done
    slots, done = _in_blocks(lasso, slots, tol, max_rounds, defect_tol)
    return slots, None, done


def solve_by_gradient(lasso: Lasso, start, tol, defect_tol=None, *, n_slots: int, dense: bool, max_rounds: int):
    """Codes by the accelerated gradient alone, in at most `max_rounds` steps; `defect_tol` is not looked at."""
    n_atoms = lasso.atoms.shape[0]
    start = empty_slots(lasso.targets, 1) if start is None else start
    Z = dense_from_slots(start, n_atoms) if isinstance(start, Slots) else start
    Z, seen, steps = accelerated_gradient(lasso, Z, tol, max_rounds)
    short = jnp.sum(Z > 0, axis=1) > (n_atoms if dense else n_slots)
    limited = ~within(seen, tol) & (steps >= max_rounds)
    done = Solved(seen.gap, seen.primal, short, limited, steps.astype(jnp.int32))
    return slots_from_codes(Z, n_slots), Z if dense else None, done


def sums(lasso: Lasso, weights, slots: Slots, tol, defect_tol, *, dense: bool):
    """Exact codes from given slots and their weighted sums over samples."""
    slots, Z, seen, _ = exact_from_slots(lasso, slots, tol, ROUNDS_FOR_SUMS, STEPS_FOR_SUMS, defect_tol)
    moments = Moments(
        mean_codes=matmul(weights, Z),
        mean_squares=matmul(weights, Z * Z),
        cross=matmul((weights[:, None] * Z).T, seen.residual),
        mean_residual=matmul(weights, seen.residual),
        codes_defect=jnp.max(jnp.where(weights > 0, seen.defect, 0), initial=0),
        objective=pairwise_sum(weights * seen.primal),
        gap=None,
        gap_max=None,
        residual_max=None,
    )
    return slots, Z if dense else None, moments, jnp.max(seen.gap / jnp.where(seen.primal > 0, seen.primal, 1))


def _as_slots(lasso: Lasso, start, n_slots: int) -> Slots:
    if start is None:
        return empty_slots(lasso.targets, n_slots)
    return resized(start, n_slots) if isinstance(start, Slots) else resized(slots_from_codes(start, n_slots), n_slots)


@partial(jax.jit, static_argnames=("max_rounds", "max_steps"))  # traced once, however many loops it stands in
def exact_from_slots(lasso: Lasso, slots: Slots, tol, max_rounds: int, max_steps: int, defect_tol=None):
    """The working set to start from next time, exact dense codes, the last look at them, and how well they are solved.

    Samples that overflow their slots are left to the accelerated gradient, which takes no step where there are none.
    """
    rounds = working_set.solve(lasso, slots, tol, max_rounds, defect_tol)
    found, solved = working_set.found(rounds), dense_from_slots(rounds.slots, lasso.atoms.shape[0])
    short = rounds.overflow & ~within(rounds.check, tol)
    Z, seen, more = accelerated_gradient(lasso, solved, tol, max_steps, wanted=short)
    Z, seen = (jax.tree.map(partial(_where_rows, short), *pair) for pair in ((Z, solved), (seen, rounds.check)))
    short &= ~within(seen, tol)
    limited = working_set.limited(rounds, tol, max_rounds, defect_tol)
    done = Solved(seen.gap, seen.primal, short, limited, (rounds.steps + more).astype(jnp.int32))
    return found, Z, seen, done


def _where_rows(rows, new, old):
    return jnp.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _in_blocks(lasso: Lasso, slots: Slots, tol, max_rounds, defect_tol) -> tuple[Slots, Solved]:
    """Working sets, block by block of samples, so that (block, atoms) and (block, slots, max(slots, d)) arrays stay small."""
    (n_samples, d), n_slots = lasso.targets.shape, slots.values.shape[1]
    block = max(1, min(n_samples, BLOCK_ENTRIES // max(lasso.atoms.shape[0], n_slots * max(n_slots, d))))
    n_blocks = -(-n_samples // block)

    def blocks(array):  # a padding row is a zero target, solved before the first round
        padded = jnp.pad(array, [(0, n_blocks * block - n_samples), (0, 0)])
        return padded.reshape(n_blocks, block, array.shape[1])

    def one(args):
        part = Lasso(args[0], lasso.atoms, lasso.lam)
        rounds = working_set.solve(part, args[1], tol, max_rounds, defect_tol)
        short = rounds.overflow & ~within(rounds.check, tol)
        limited = working_set.limited(rounds, tol, max_rounds, defect_tol)
        return working_set.found(rounds), Solved(rounds.check.gap, rounds.check.primal, short, limited, rounds.steps)

    if n_blocks == 1:
        return one((lasso.targets, slots))
    parts = jax.lax.map(one, (blocks(lasso.targets), jax.tree.map(blocks, slots)))
    most = jnp.max(parts[1].steps)
    join = lambda part: part.reshape(n_blocks * block, *part.shape[2:])[:n_samples]  # noqa: E731
    found, done = jax.tree.map(join, (parts[0], parts[1]._replace(steps=parts[1].gap)))
    return found, done._replace(steps=most)
