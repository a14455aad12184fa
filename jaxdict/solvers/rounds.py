"""The rounds of a fit: every stage in turn, then the rescue of dead atoms and, if asked for, of saddles, until nothing is left to do.

Each piece is a pure function, compiled once for its shapes. `driven.py` calls them one by one from Python, which can be told of each
step and be stopped; `traced_rounds` composes the same pieces in one program for jit, vmap and `fit_batch`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxdict.compiling import compiled_in_a_hurry
from jaxdict.encoding.engines import on_numba
from jaxdict.meshes import on_any_mesh
from jaxdict.problem import Codes, Dictionary, Problem
from jaxdict.solvers import rescue
from jaxdict.solvers.combined import SLOTS, Stage, stages_of
from jaxdict.solvers.loop import History, Progress, Trace, filled, new_trace, run
from jaxdict.solvers.reduced import Iterate, first_point
from jaxdict.solvers.turns import in_turns, is_proposing
from jaxdict.units import Units

# Times that all stages are gone through: after the first each begins with a re-birth, or on the other side of a saddle.
MAX_ROUNDS = 12
as_piece = partial(compiled_in_a_hurry, light=on_numba)


class Ended(NamedTuple):
    """How the rounds ended: the point in the units that they were run in, the history in the data's."""

    iterate: Iterate
    codes: Codes
    history: History | None
    steps: Int[Array, ""]
    left: Bool[Array, ""]  # a re-birth or an escape was still worth it
    rounds: Int[Array, ""]
    interrupted: Bool[Array, ""]


@partial(as_piece, static_argnames=("length", "sparse"))
def begin(problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, solver, *, length: int, sparse: bool):
    """The first iterate, its codes, and an empty history of that length."""
    slots = stages_of(solver)[0].solver.slots or SLOTS
    iterate, codes = first_point(problem, X, dictionary, slots, sparse=sparse)
    return iterate, codes, new_trace(length, iterate.objective)


@as_piece
def begin_stage(stage: Stage, problem: Problem, X: Float[Array, "samples d"], iterate: Iterate, codes) -> Any:
    return stage.solver.init_at(problem, X, iterate, codes)


@as_piece
def advance(stage: Stage, problem: Problem, X: Float[Array, "samples d"], state, trace: Trace, tol, last):
    """Steps of a stage until it is done, or `last` are taken in all: (state, trace, what to tell)."""
    return run(stage.solver, problem, X, state, trace, jnp.maximum(tol, stage.stop_at), last)


@partial(as_piece, static_argnames="sparse")
def end_stage(stage: Stage, problem: Problem, X: Float[Array, "samples d"], state, *, sparse: bool):
    solver: Any = stage.solver
    return solver.point(problem, X, state, sparse=True) if sparse else solver.point(problem, X, state)


revive = as_piece(rescue.revive)
worthwhile_gain = as_piece(rescue.worthwhile_gain)
escape = as_piece(rescue.escape)


def traced_rounds(
    problem: Problem,
    X: Float[Array, "samples d"],
    dictionary: Dictionary,
    tol,
    solver,
    units: Units,
    *,
    max_steps: int,
    second_order: bool,
    callback: Callable | None,
    sparse: bool = False,
) -> Ended:
    """All rounds as one loop, for programs whose values are not known yet. `callback` is called by `jax.debug.callback`."""
    run = partial(_traced_rounds, max_steps=max_steps, second_order=second_order, callback=callback, sparse=sparse)

    def places(rows):  # codes where their samples are, all else on every device
        specs: dict[str, Any] = {name: P() for name in Ended._fields} | {"codes": P(rows)}
        return Ended(**specs)

    return on_any_mesh(run, places)(problem, X, dictionary, tol, solver, units)


@partial(jax.jit, static_argnames=("max_steps", "second_order", "callback", "sparse"))
def _traced_rounds(
    problem: Problem,
    X: Float[Array, "samples d"],
    dictionary: Dictionary,
    tol,
    solver,
    units: Units,
    *,
    max_steps,
    second_order,
    callback,
    sparse,
) -> Ended:
    options = {"max_steps": max_steps, "second_order": second_order, "sparse": sparse, "most": MAX_ROUNDS}
    stages = stages_of(solver)
    tells = tuple(_tell(callback, max_steps, stage, units) for stage in stages)
    # Kernels are small to compile, and where trials need no dense codes they form none.
    shared = not on_numba() and all(is_proposing(stage.solver) for stage in stages)
    rounds_of = in_turns if shared else one_by_one
    iterate, codes, trace, left, rounds = rounds_of(problem, X, dictionary, tol, stages, tells, **options)
    history = filled(trace, iterate.objective, iterate.stationarity)
    history = history._replace(objective=units.of_objective(history.objective))
    no = jnp.isnan(iterate.objective) & False
    return Ended(iterate, codes, history, trace.step, left, rounds, no)


def one_by_one(problem: Problem, X: Float[Array, "samples d"], dictionary, tol, stages, tells, **options):
    """The rounds of any solvers, each stage a loop of its own."""
    max_steps, sparse = options["max_steps"], options["sparse"]

    def one_round(carry):
        iterate, codes, trace, _, rounds = carry
        iterate, codes = revive(problem, X, iterate, codes)
        for stage, tell in zip(stages, tells, strict=True):
            state = begin_stage(stage, problem, X, iterate, codes)
            last = _last_step(stage, trace.step, max_steps)
            stop = jnp.maximum(tol, stage.stop_at)
            state, trace, _ = run(stage.solver, problem, X, state, trace, stop, last, tell=tell)
            iterate, codes = end_stage(stage, problem, X, state, sparse=sparse)
        left = worthwhile_gain(problem, X, iterate, codes) > 0
        if options["second_order"]:
            stay = lambda p, Z: (p, Z, jnp.zeros_like(left))  # noqa: E731
            try_it = jnp.isfinite(iterate.objective) & (trace.step < max_steps) & ~left
            iterate, codes, escaped = jax.lax.cond(try_it, partial(escape, problem, X), stay, iterate, codes)
            left = left | escaped
        return iterate, codes, trace, left, rounds + 1

    def more(carry):
        iterate, _, trace, left, rounds = carry
        open_ = jnp.isfinite(iterate.objective) & (trace.step < max_steps)
        return (rounds == 0) | (left & open_ & (rounds < options["most"]))

    iterate, codes = first_point(problem, X, dictionary, stages[0].solver.slots or SLOTS, sparse=sparse)
    trace = new_trace(max_steps, iterate.objective)
    no = jnp.isnan(iterate.objective) & False
    carry = (iterate, codes, trace, no, jnp.zeros_like(trace.step))
    return jax.lax.while_loop(more, one_round, carry)


def _last_step(stage: Stage, step, max_steps):
    return max_steps if stage.steps is None else jnp.minimum(step + stage.steps, max_steps)


def _tell(callback: Callable | None, max_steps: int, stage: Stage, units: Units):
    """What a traced step reports with: numbers go to the host by `jax.debug.callback`, in the data's units."""
    if callback is None:
        return None

    def report(step, objective, stationarity):
        callback(Progress(int(step), max_steps, float(objective), float(stationarity), stage.name))

    return lambda step, objective, stationarity: jax.debug.callback(
        report, step, units.of_objective(objective), stationarity
    )
