"""Exact codes and their sums by plain JAX: what `engines.JAX_ENGINE` calls, anywhere that XLA compiles for."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxdict.encoding.jax_engine import working_set
from jaxdict.encoding.jax_engine.gradient import accelerated_gradient
from jaxdict.encoding.jax_engine.spread import TracedCall
from jaxdict.encoding.lasso import Check, Lasso, Solved, check, within, zero_codes
from jaxdict.encoding.slots import Slots, dense_from_slots, empty_slots, resized, slots_from_codes
from jaxdict.encoding.split_calls import Result, over_shards
from jaxdict.numerics import cut_in_blocks, join_blocks, matmul, pairwise_sum, safe_divide, select, sum_over_blocks
from jaxdict.objectives import Moments

# Steps of the gradient for samples that overflow their slots; inside solvers, which come back, fewer, and so many rounds.
GRADIENT_STEPS, STEPS_FOR_SUMS, ROUNDS_FOR_SUMS = 10_000, 2000, 200
# Entries of the largest array of all samples, (samples, atoms), where only their sums are asked for.
SUM_ENTRIES = 2**28


def solve(lasso: Lasso, start, tol, defect_tol=None, *, n_slots: int, dense: bool, max_rounds: int):
    """Exact codes by working sets; dense ones of samples that overflow their slots by the accelerated gradient."""
    return _spread(_solve, lasso, start, (tol, defect_tol), n_slots=n_slots, dense=dense, max_rounds=max_rounds)


def solve_by_gradient(lasso: Lasso, start, tol, defect_tol=None, *, n_slots: int, dense: bool, max_rounds: int):
    """Codes by the accelerated gradient alone, in at most `max_rounds` steps; `defect_tol` is not looked at."""
    return _spread(_solve_by_gradient, lasso, start, (tol, None), n_slots=n_slots, dense=dense, max_rounds=max_rounds)


def _spread(method, lasso: Lasso, start, limits, *, dense: bool, **options):
    """A method's codes of each device's samples: slots, dense codes (None unless `dense`), how well they are solved."""
    first = () if start is None else tuple(start) if isinstance(start, Slots) else (start,)
    limits = tuple(jnp.asarray(limit, lasso.targets.dtype) for limit in limits if limit is not None)
    operands = ("n d", "k d", *[""] * (1 + len(limits)), *["n start" if len(first) == 2 else "n k"] * len(first))
    codes = (Result("n slots"), Result("n slots"), *[Result("n k")] * dense)
    figures = (*[Result("n")] * (len(Solved._fields) - 1), Result("", joined="max"))
    options = (("method", method), ("n_limits", len(limits)), ("dense", dense), *options.items())
    call = TracedCall(_solved, operands, (*codes, *figures), options)
    indices, values, *rest = over_shards(call, *lasso, *limits, *first)
    Z, figures = (rest[0], rest[1:]) if dense else (None, rest)
    return Slots(indices, values), Z, Solved(*figures)


def _solved(axes, targets, atoms, lam, *rest, method, n_limits: int, **options) -> list:
    """`_spread`'s function: its operands and results in a row."""
    limits, first = rest[:n_limits], rest[n_limits:]
    start = Slots(*first) if len(first) == 2 else first[0] if first else None
    slots, Z, done = method(Lasso(targets, atoms, lam), start, *limits, **options)
    return [*slots, *([] if Z is None else [Z]), *done]


def _solve(lasso: Lasso, start, tol, defect_tol=None, *, n_slots: int, dense: bool, max_rounds: int):
    slots = _as_slots(lasso, start, n_slots)
    if dense:
        slots, Z, _, done = exact_from_slots(lasso, slots, tol, max_rounds, GRADIENT_STEPS, defect_tol)
        return slots, Z, done
    rows, steps = working_set.solve(lasso, slots, tol, max_rounds, defect_tol)
    return working_set.found(rows.slots), None, _done(rows, rows.check, tol, steps)


def _solve_by_gradient(lasso: Lasso, start, tol, *, n_slots: int, dense: bool, max_rounds: int):
    n_atoms = lasso.atoms.shape[0]
    start = zero_codes(lasso.targets, n_atoms) if start is None else start
    Z = dense_from_slots(start, n_atoms) if isinstance(start, Slots) else start
    Z, seen, steps = accelerated_gradient(lasso, Z, tol, max_rounds)
    slots, ready, short = slots_from_codes(Z, n_slots), within(seen, tol), jnp.zeros_like(seen.gap, dtype=bool)
    if not dense:  # what is cut off is missed
        seen, short = check(lasso, dense_from_slots(slots, n_atoms)), jnp.sum(Z > 0, axis=1) > n_slots
    solved = within(seen, tol)
    done = Solved(seen.gap, seen.primal, solved, short & ~solved, ~ready & (steps >= max_rounds), steps)
    return slots, Z if dense else None, done


def sums(lasso: Lasso, weights, slots: Slots, tol, defect_tol, *, dense: bool):
    """Exact codes from given slots and their weighted sums over samples; in blocks of samples where the arrays would be too large."""
    limits = [jnp.asarray(limit, lasso.targets.dtype) for limit in (tol, defect_tol)]
    operands = ("n d", "k d", "", "n", "", "", "n slots", "n slots")
    codes = (Result("n slots"), Result("n slots"), *[Result("n k")] * dense)
    total, largest = partial(Result, joined="sum"), partial(Result, joined="max")
    moments = total("k"), total("k"), total("k d"), total("d"), largest(""), total(""), largest("")
    call = TracedCall(_summed, operands, (*codes, *moments), (("dense", dense),))
    indices, values, *rest = over_shards(call, *lasso, weights, *limits, *slots)
    Z, rest = (rest[0], rest[1:]) if dense else (None, rest)
    return Slots(indices, values), Z, Moments(*rest[:6]), rest[6]


def _summed(axes, targets, atoms, lam, weights, tol, defect_tol, indices, values, *, dense: bool) -> list:
    """`sums`' function: its operands and results in a row."""

    def one(block):
        targets, weights, slots = block
        here, slots = Lasso(targets, atoms, lam), resized(slots, slots.values.shape[1])
        slots, Z, seen, _ = exact_from_slots(here, slots, tol, ROUNDS_FOR_SUMS, STEPS_FOR_SUMS, defect_tol)
        moments = Moments(
            mean_codes=matmul(weights, Z),
            mean_squares=matmul(weights, Z * Z),
            cross=matmul((weights[:, None] * Z).T, seen.residual),
            mean_residual=matmul(weights, seen.residual),
            codes_defect=jnp.max(jnp.where(weights > 0, seen.defect, 0), initial=0),
            objective=pairwise_sum(weights * seen.primal),
            gap=None,
            gap_max=jnp.max(safe_divide(seen.gap, seen.primal)),
            residual_max=None,
        )
        return (slots, Z if dense else None), moments

    n, size = targets.shape[0], max(1, SUM_ENTRIES // atoms.shape[0])
    arrays = targets, weights, Slots(indices, values)
    if dense or n <= size:
        (slots, Z), moments = one(arrays)
    else:
        (slots, Z), moments = sum_over_blocks(one, cut_in_blocks(arrays, size), ("codes_defect", "gap_max"))
        slots = join_blocks(slots, n, size)
    return [*slots, *([Z] if dense else []), *jax.tree.leaves(moments._replace(gap_max=None)), moments.gap_max]


def _as_slots(lasso: Lasso, start, n_slots: int) -> Slots:
    if start is None:
        return empty_slots(lasso.targets, n_slots)
    return resized(start if isinstance(start, Slots) else slots_from_codes(start, n_slots), n_slots)


@partial(jax.jit, static_argnames=("max_rounds", "max_steps"))  # traced once, however many loops it stands in
def exact_from_slots(lasso: Lasso, slots: Slots, tol, max_rounds: int, max_steps: int, defect_tol=None):
    """The working set to start from next time, exact dense codes, the last look at them, and how well they are solved.

    Samples that overflow their slots are left to the accelerated gradient, which takes no step where there are none.
    """
    rows, steps = working_set.solve(lasso, slots, tol, max_rounds, defect_tol)
    short = rows.overflow & ~within(rows.check, tol)

    def by_gradient(Z, seen, steps):
        other, check, more = accelerated_gradient(lasso, Z, tol, max_steps, wanted=short)
        Z, seen = select(short, (other, check._replace(correlations=None)), (Z, seen))
        return Z, seen, steps + more

    Z = dense_from_slots(rows.slots, lasso.atoms.shape[0])
    Z, seen, steps = jax.lax.cond(jnp.any(short), by_gradient, lambda *found: found, Z, rows.check, steps)
    return working_set.found(rows.slots), Z, seen, _done(rows, seen, tol, steps)


def _done(rows: working_set.Rows, seen: Check, tol, steps) -> Solved:
    solved = within(seen, tol)
    return Solved(seen.gap, seen.primal, solved, rows.overflow & ~solved, rows.limited, steps)
