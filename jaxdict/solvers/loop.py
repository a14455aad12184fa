"""The one loop that every solver runs in: steps, stopping, history and progress live here once.

A solver is four small methods: `init_at(problem, X, point)` makes its state, `step`
advances it, `look` tells (objective, stationarity, stuck) of it, `point` hands the point over.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.problem import Problem


class History(NamedTuple):
    """Objective and worst stationarity by step; NaN beyond the last step."""

    objective: Float[Array, " steps"]
    stationarity: Float[Array, " steps"]


class Trace(NamedTuple):
    """The history under way and the number of steps taken."""

    history: History
    step: Int[Array, ""]


class Progress(NamedTuple):
    """What a callback is told, as Python numbers."""

    step: int
    max_steps: int
    objective: float
    stationarity: float
    stage: str


def new_trace(max_steps: int, like: Float[Array, ""]) -> Trace:
    """An empty history of `max_steps` entries, born from an input so that it shards and batches as the input does."""
    empty = jnp.full_like(like, jnp.nan, shape=(max_steps,))
    return Trace(History(empty, empty), jnp.zeros_like(like, dtype=int))


def run(
    solver,
    problem: Problem,
    X,
    state: Any,
    trace: Trace,
    tol,
    *,
    steps: int | None,
    callback: Callable | None,
    stage: str,
) -> tuple[Any, Trace]:
    """Step until the stationarity is at most `tol`, the solver is stuck, the history is full, or `steps` were taken here."""
    max_steps = trace.history.objective.shape[0]
    last = trace.step + steps if steps is not None else jnp.full_like(trace.step, max_steps)

    def going(carry):
        state, trace = carry
        _, stationarity, stuck = solver.look(state)
        return ~(stationarity <= tol) & ~stuck & (trace.step < jnp.minimum(last, max_steps))

    def body(carry):
        state, trace = carry
        state = solver.step(problem, X, state)
        objective, stationarity, _ = solver.look(state)
        history = History(
            trace.history.objective.at[trace.step].set(objective),
            trace.history.stationarity.at[trace.step].set(stationarity),
        )
        if callback is not None:
            tell = functools.partial(_report, callback, max_steps, stage)
            jax.debug.callback(tell, trace.step + 1, objective, stationarity)
        return state, Trace(history, trace.step + 1)

    return jax.lax.while_loop(going, body, (state, trace))


def _report(callback, max_steps, stage, step, objective, stationarity):
    callback(Progress(int(step), max_steps, float(objective), float(stationarity), stage))
