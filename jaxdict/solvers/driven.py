"""A fit under way, driven from Python: it can be told of each step and be stopped, and compiles only the pieces that it meets."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxdict.problem import Dictionary, Problem
from jaxdict.solvers import rounds as pieces
from jaxdict.solvers.combined import Stage, stages_of
from jaxdict.solvers.loop import History, Progress, Told, Trace
from jaxdict.solvers.rounds import Ended
from jaxdict.units import Units

# Steps are run in chunks of about this long, so that a fit can be stopped between them.
CHUNK_SECONDS = 0.25
# A chunk is at most this many times as long as the last.
CHUNK_GROWTH = 4
# Histories have room for a power of two of steps, at least so many: other limits on steps need no other program.
LEAST_ROOM = 1024


class DrivenRounds:
    """`rounds.traced_rounds`, step by step: iterate over it, and ask `ended` where it stands, at any time."""

    def __init__(
        self,
        problem: Problem,
        X: Float[Array, "samples d"],
        dictionary: Dictionary,
        tol,
        solver,
        units: Units,
        *,
        max_steps: int,
        second_order: bool,
        sparse: bool = False,
    ):
        self.sparse = sparse
        self.task = problem, X
        self.tol, self.solver, self.max_steps, self.second_order = tol, solver, max_steps, second_order
        self.units = jax.tree.map(float, units)  # Python numbers, which hold what the data's dtype may not
        room = max(LEAST_ROOM, 1 << (max_steps - 1).bit_length()) if max_steps > 1 else LEAST_ROOM
        *self.settled, trace = pieces.begin(problem, X, dictionary, solver, length=room, sparse=sparse)
        # The stage under way, its state, and the trace, in one assignment: an interrupt finds the old ones or the new ones.
        self.under_way: tuple[Stage | None, Any, Trace] = None, None, trace
        self.left, self.rounds = False, 0

    def chunks(self, *, one_by_one: bool) -> Iterator[Progress]:
        """Runs to the end, pausing after each step or after each chunk of steps."""
        while self.rounds == 0 or (self.left and self._open() and self.rounds < pieces.MAX_ROUNDS):
            if self._any_dead():
                self.settled = pieces.revive(*self.task, *self.settled)
            for stage in stages_of(self.solver):
                yield from self._stage(stage, one_by_one)
            self.left = self._rescue()
            self.rounds += 1

    def ended(self, interrupted: bool = False) -> Ended:
        """The point that the rounds have reached, its history and what was left to do."""
        stage, state, trace = self.under_way
        iterate, codes = (
            self.settled if stage is None else pieces.end_stage(stage, *self.task, state, sparse=self.sparse)
        )
        objective, stationarity = (np.asarray(values)[: int(trace.step)] for values in trace.history)
        in_data_units: Any = self.units.of_objective
        with np.errstate(over="ignore"):  # infinite where the data's dtype cannot show it
            objective = in_data_units(objective.astype(float)).astype(objective.dtype)
        # By `device_put`, which compiles nothing for a new length.
        history: Any = History(*jax.device_put((objective, stationarity)))
        flags = jax.device_put([np.asarray(flag) for flag in (self.left, self.rounds, interrupted)])
        return Ended(iterate, codes, history, trace.step, *flags)

    def _stage(self, stage: Stage, one_by_one: bool) -> Iterator[Progress]:
        state, (_, _, trace) = pieces.begin_stage(stage, *self.task, *self.settled), self.under_way
        self.under_way = stage, state, trace
        step = int(trace.step)
        end = self.max_steps if stage.steps is None else min(step + stage.steps, self.max_steps)
        size, going = 1, True
        while going:
            last = end if jax.process_count() > 1 and not one_by_one else min(step + size, end)
            began = time.perf_counter()
            told: Any = self._advance(last)  # numbers by now
            seconds, taken = time.perf_counter() - began, int(told.step) - step
            step, going = int(told.step), bool(told.going) and int(told.step) < end
            if taken:
                objective = self.units.of_objective(float(told.objective))
                yield Progress(step, self.max_steps, objective, float(told.stationarity), stage.name)
            if not one_by_one:  # processes that run together must take the same chunks, whatever their clocks say
                size = int(np.clip(CHUNK_SECONDS * taken / max(seconds, 1e-9), 1, CHUNK_GROWTH * size))
        self.settled = pieces.end_stage(stage, *self.task, self.under_way[1], sparse=self.sparse)
        self.under_way = None, None, self.under_way[2]

    def _advance(self, last: int) -> Told:
        stage, state, trace = self.under_way
        limit = np.asarray(last, trace.step.dtype)
        state, trace, told = pieces.advance(stage, *self.task, state, trace, self.tol, limit)
        told = jax.device_get(told)
        self.under_way = stage, state, trace
        return told

    def _rescue(self) -> bool:
        """Whether a re-birth is worth another round, or a saddle was left."""
        if self._any_dead() and float(pieces.worthwhile_gain(*self.task, *self.settled)) > 0:
            return True
        if not (self.second_order and self._open()):
            return False
        *self.settled, escaped = pieces.escape(*self.task, *self.settled)
        return bool(escaped)

    def _any_dead(self) -> bool:
        return bool(np.any(np.asarray(self.settled[0].mean_codes) == 0))

    def _open(self) -> bool:
        return bool(np.isfinite(float(self.settled[0].objective))) and int(self.under_way[2].step) < self.max_steps
