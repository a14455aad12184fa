"""The rounds of a traced fit as one loop with one place where codes are solved, which all who want codes take in turns.

A turn solves the codes of one dictionary: a stage's trial, dead atoms re-born, or the point at which a stage ended. What it is for says
its kind. The program then holds the solving of codes once, which is most of what a compiler has to do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdict.encoding.slots import empty_slots
from jaxdict.numerics import select
from jaxdict.problem import Codes, Dictionary, Problem
from jaxdict.solvers import rescue
from jaxdict.solvers.combined import SLOTS, Stage
from jaxdict.solvers.loop import Trace, new_trace, written
from jaxdict.solvers.reduced import Iterate, next_point_and_codes

# Kinds of turns; a stage's own is FIRST_STAGE and its number.
DONE, SETTLE, REVIVE, FIRST_STAGE = range(4)


class Turn(NamedTuple):
    """What stands before a turn."""

    kind: Int[Array, ""]
    stage: Int[Array, ""]  # what begins when the point is settled; before the first, all is decided
    iterate: Iterate  # the point that was settled last, or is to be
    codes: Codes
    states: tuple  # of the stages
    last: Int[Array, ""]  # the step at which the stage under way must end
    trace: Trace
    left: Bool[Array, ""]
    rounds: Int[Array, ""]  # gone through; -1 at the start
    reborn: Float[Array, "atoms d"]  # the atoms with which the next round begins, dead ones re-born


def is_proposing(solver: Any) -> bool:
    """Whether a solver is a `protocol.Proposing`, its `step` not another than what it proposes."""
    own = {name: next((c for c in type(solver).__mro__ if name in vars(c)), None) for name in ("step", "propose")}
    return own["propose"] is not None and own["step"] is own["propose"]


def once(flag: Bool[Array, ""], call: Callable, otherwise: Any) -> Any:
    """`call()` where the flag holds, else `otherwise`: under vmap it is not begun where no run wants it, as `cond` would be.

    >>> once(jnp.array([True, False])[0], lambda: jnp.ones(2), jnp.zeros(2)).tolist()
    [1.0, 1.0]
    """
    return jax.lax.while_loop(lambda carry: carry[0], lambda _: (flag & False, call()), (flag, otherwise))[1]


def in_turns(
    problem: Problem,
    X: Float[Array, "samples d"],
    dictionary: Dictionary,
    tol,
    stages: tuple[Stage, ...],
    tells: tuple[Callable | None, ...],
    *,
    max_steps: int,
    second_order: bool,
    sparse: bool,
    most: int,
):
    """All rounds, at most so many: (iterate, codes, trace, whether more was worth it, rounds)."""

    def one_turn(turn: Turn) -> Turn:
        asked, slots, about = _proposed(problem, X, stages, turn)
        trial, codes = next_point_and_codes(problem, X, asked, slots, sparse=sparse)
        turn, settled = _taken(problem, X, stages, tells, turn, about, trial, codes)
        turn, begins = _decided(problem, X, turn, settled, max_steps, second_order, most)
        return _begun(problem, X, stages, turn, settled, begins, tol, max_steps)

    start = _start(problem, X, dictionary, stages, max_steps, sparse)
    end = jax.lax.while_loop(lambda turn: turn.kind != DONE, one_turn, start)
    return end.iterate, end.codes, end.trace, end.left, end.rounds


def _start(problem: Problem, X: Float[Array, "samples d"], dictionary, stages, max_steps: int, sparse: bool) -> Turn:
    """Nothing is known yet but the dictionary; all is born from the data."""
    zero, blank = jnp.zeros_like(X[0, 0]), partial(_blank, X)
    none = jnp.zeros_like(zero, dtype=int)
    plain = dictionary.atoms.shape[0] * (2 if problem.signed else 1)
    slots = empty_slots(X, min(stages[0].solver.slots or SLOTS, plain))
    solve = lambda *args: next_point_and_codes(problem, X, *args, sparse=sparse)  # noqa: E731
    iterate, codes = blank(solve, dictionary, slots)
    iterate = eqx.tree_at(lambda point: (point.dictionary, point.slots), iterate, (dictionary, slots))
    states = tuple(blank(stage.solver.init_at, problem, X, iterate, codes) for stage in stages)
    trace, atoms = new_trace(max_steps, zero), dictionary.atoms
    return Turn(none + SETTLE, none, iterate, codes, states, none, trace, none < 0, none - 1, atoms)


def _blank(X: Float[Array, "samples d"], call: Callable, *args):
    """Zeros of the form of `call(*args)`."""
    zero, shapes = jnp.zeros_like(X[0, 0]), jax.eval_shape(call, *args)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(zero.astype(leaf.dtype), leaf.shape), shapes)


def _proposed(problem: Problem, X: Float[Array, "samples d"], stages, turn: Turn):
    """Whose codes are solved, from which slots, and what the stages want to know of what they proposed."""
    dictionary, slots, about = turn.iterate.dictionary, turn.iterate.slots, []
    dictionary = dictionary._replace(atoms=jnp.where(turn.kind == REVIVE, turn.reborn, dictionary.atoms))
    for number, (stage, state) in enumerate(zip(stages, turn.states, strict=True)):
        propose, mine = partial(stage.solver.propose, problem, X, state), turn.kind == FIRST_STAGE + number
        found, told = once(mine, propose, _blank(X, propose))
        dictionary, slots = select(mine, (found, state.point.slots), (dictionary, slots))
        about.append(told)
    return dictionary, slots, about


def _taken(problem: Problem, X: Float[Array, "samples d"], stages, tells, turn: Turn, about, trial: Iterate, codes):
    """The turn with what its codes told, and whether they settled a point."""
    settled, trace, states = turn.kind < FIRST_STAGE, turn.trace, []
    for number, (stage, tell, state) in enumerate(zip(stages, tells, turn.states, strict=True)):
        mine = turn.kind == FIRST_STAGE + number
        state = select(mine, stage.solver.take(problem, X, state, about[number], trial, codes), state)
        states.append(state)
        objective, stationarity, _ = stage.solver.progress_of(state)
        trace = written(trace, objective, stationarity, mine)
        if tell is not None:
            once(mine, partial(_said, mine, tell, trace.step, objective, stationarity), mine)
    iterate, codes = select(settled, (trial, codes), (turn.iterate, turn.codes))
    return turn._replace(iterate=iterate, codes=codes, states=tuple(states), trace=trace), settled


def _said(flag, tell: Callable, *told):
    tell(*told)
    return flag


def _decided(problem, X: Float[Array, "samples d"], turn: Turn, settled, max_steps: int, second_order: bool, most: int):
    """What comes after a round: whether another is worth it, and if atoms are dead, whether it begins with them.

    The turn, and whether a stage begins.
    """
    deciding = settled & (turn.kind == SETTLE) & (turn.stage == 0)
    judged = deciding & (turn.rounds >= 0)
    iterate, codes = turn.iterate, turn.codes
    dead, bar = iterate.mean_codes == 0, jnp.where(judged, rescue.worthwhile(iterate), -jnp.inf)
    atoms, gain = rescue.reborn(problem, X, iterate, codes, dead & deciding, bar)
    left = jnp.where(judged, gain > bar, turn.left)
    more = jnp.isfinite(iterate.objective) & (turn.trace.step < max_steps)
    if second_order:
        away = lambda: rescue.escape(problem, X, iterate, codes)  # noqa: E731
        iterate, codes, escaped = once(judged & more & ~left, away, (iterate, codes, left & False))
        left = left | escaped
        more = jnp.isfinite(iterate.objective) & (turn.trace.step < max_steps)
    rounds = turn.rounds + deciding.astype(turn.rounds.dtype)
    goes_on = (rounds == 0) | (left & more & (rounds < most))
    atoms = jnp.where(dead[:, None], atoms, iterate.dictionary.atoms)
    kind = jnp.where(deciding, jnp.where(goes_on, REVIVE, DONE), turn.kind).astype(turn.kind.dtype)
    turn = turn._replace(kind=kind, iterate=iterate, codes=codes, left=left, rounds=rounds, reborn=atoms)
    return turn, settled & jnp.where(deciding, goes_on & ~jnp.any(dead), True)


def _begun(
    problem: Problem, X: Float[Array, "samples d"], stages, turn: Turn, settled, begins, tol, max_steps: int
) -> Turn:
    """The turn with a stage begun where one is to be, and the point at which one ends to be settled next."""
    kind, next_stage, iterate, last, states = turn.kind, turn.stage, turn.iterate, turn.last, []
    for number, (stage, state) in enumerate(zip(stages, turn.states, strict=True)):
        first = begins & (turn.stage == number)
        state = select(first, stage.solver.init_at(problem, X, turn.iterate, turn.codes), state)
        states.append(state)
        limit = max_steps if stage.steps is None else jnp.minimum(turn.trace.step + stage.steps, max_steps)
        last = jnp.where(first, limit, last).astype(last.dtype)
        _, stationarity, stuck = stage.solver.progress_of(state)
        wants = ~(stationarity <= jnp.maximum(tol, stage.stop_at)) & ~stuck & (turn.trace.step < last)
        under_way = first | (~settled & (turn.kind == FIRST_STAGE + number))
        ends = under_way & ~wants
        kind = jnp.where(under_way, jnp.where(wants, FIRST_STAGE + number, SETTLE), kind).astype(kind.dtype)
        iterate = select(ends, state.point, iterate)
        next_stage = jnp.where(ends, (number + 1) % len(stages), next_stage).astype(next_stage.dtype)
    return turn._replace(kind=kind, stage=next_stage, iterate=iterate, states=tuple(states), last=last)
