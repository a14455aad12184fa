"""The one loop that every solver runs in: steps, stopping, history and progress live here once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.problem import Problem
from jaxdict.solvers.protocol import Solver


class History(NamedTuple):
    """Objective (the data's squared units) and worst stationarity (T1, scale-free) after each step.

    As long as the run had steps; `max_steps` long where a fit is traced (jit, vmap, `fit_batch`), whose shapes are fixed before it
    runs: there the last step's values are repeated to the end.
    """

    objective: Float[Array, " steps"]
    stationarity: Float[Array, " steps"]


class Trace(NamedTuple):
    """The history under way and the number of steps taken; entries beyond them mean nothing yet."""

    history: History
    step: Int[Array, ""]


class Progress(NamedTuple):
    """What a callback is told, as Python numbers: objective in the data's squared units, stationarity scale-free (T1)."""

    step: int
    max_steps: int
    objective: float
    stationarity: float
    stage: str


class Told(NamedTuple):
    """Where a run of steps ended, and whether more of them would be taken if they were allowed."""

    step: Int[Array, ""]
    objective: Float[Array, ""]
    stationarity: Float[Array, ""]
    going: Bool[Array, ""]


def new_trace(length: int, like: Float[Array, ""]) -> Trace:
    """An empty history with room for `length` steps, born from an input so that it shards and batches as the input does."""
    empty = jnp.broadcast_to(jnp.zeros_like(like), (length,))
    return Trace(History(empty, empty), jnp.zeros_like(like, dtype=int))


def written(trace: Trace, objective: Float[Array, ""], stationarity: Float[Array, ""], taken: Any = True) -> Trace:
    """The trace with one more step, where it is taken; a history without room holds none."""
    here = (jnp.arange(trace.history.objective.shape[0], dtype=trace.step.dtype) == trace.step) & taken
    told = History(objective, stationarity)
    history = jax.tree.map(lambda now, values: jnp.where(here, now, values), told, trace.history)
    return Trace(history, trace.step + jnp.asarray(taken, trace.step.dtype))


def filled(trace: Trace, objective: Float[Array, ""], stationarity: Float[Array, ""]) -> History:
    """The whole history of a traced run, entries beyond the last step holding what it ended with."""
    length = trace.history.objective.shape[0]
    taken = jnp.arange(length, dtype=trace.step.dtype) < trace.step
    ends = History(objective, stationarity)
    return jax.tree.map(lambda values, last: jnp.where(taken, values, last), trace.history, ends)


def run(
    solver: Solver,
    problem: Problem,
    X: Float[Array, "samples d"],
    state: Any,
    trace: Trace,
    tol,
    last,
    *,
    tell: Callable | None = None,
) -> tuple[Any, Trace, Told]:
    """Step until the stationarity is at most `tol`, the solver is stuck, or the trace holds `last` steps (a traced number).

    `tell(step, objective, stationarity)` is traced into each step, for a program that reports from within.
    """

    def wants_more(state):
        _, stationarity, stuck = solver.progress_of(state)
        return ~(stationarity <= tol) & ~stuck

    def going(carry):
        state, trace = carry
        return wants_more(state) & (trace.step < last)

    def body(carry):
        state, trace = carry
        state = solver.step(problem, X, state)
        objective, stationarity, _ = solver.progress_of(state)
        if tell is not None:
            tell(trace.step + 1, objective, stationarity)
        return state, written(trace, objective, stationarity)

    state, trace = jax.lax.while_loop(going, body, (state, trace))
    objective, stationarity, _ = solver.progress_of(state)
    return state, trace, Told(trace.step, objective, stationarity, wants_more(state))
