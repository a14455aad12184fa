"""The stochastic stage: `solvers.Online` over shuffled batches, dead atoms reborn, until rows kept aside gain no more."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxdict.problem import Dictionary
from jaxdict.solvers.online import OnlineState
from jaxdict.streaming.job import Job, kept_values, noted
from jaxdict.streaming.reservoir import Reservoir, born_from, empty_reservoir, keep_worst
from jaxdict.streaming.sources import Piece
from jaxdict.streaming.sums import moments_of, solve_chunk, sums_of

# Looks are at steps that grow by this factor, the first after this many steps.
LOOK_GROWTH, FIRST_LOOK = 1.25, 16
# An atom that this many rows, times the number of atoms, have not used is dead.
DEAD_AFTER = 5


class OnlineRun(NamedTuple):
    """The stage's whole state."""

    online: OnlineState
    reservoir: Reservoir
    values: Float[np.ndarray, "looks samples"]
    looks: Float[np.ndarray, "looks 6"]

    def dictionary(self) -> Dictionary:
        """What the stage is worth so far."""
        return self.online.dictionary()


def first_run(job: Job, dictionary: Dictionary) -> OnlineRun:
    """The stage at its beginning."""
    held = 0 if job.source.held is None else job.source.held.rows.shape[0]
    reservoir = empty_reservoir(job.source.d, job.dtype)
    return OnlineRun(job.solver.init(dictionary), reservoir, np.zeros((0, held)), np.zeros((0, 6)))


def run_online(job: Job, run: OnlineRun) -> OnlineRun:
    """Steps from where the run stands to the stage's end."""
    size = min(job.solver.rows_a_step(job.n_atoms), job.source.n)
    an_epoch = job.source.n // size
    most = math.ceil(job.solver.epochs * an_epoch)
    marks, births = _marks(job, size, most), max(1, math.ceil(DEAD_AFTER * job.n_atoms / size))
    order, part = jax.random.fold_in(job.key, 1), slice(*job.processes.share(size))
    run = run._replace(reservoir=job.own(run.reservoir))
    while int(run.online.step) < most:
        epoch, first = divmod(int(run.online.step), an_epoch)
        for piece in job.source.batches(jax.random.fold_in(order, epoch), first, size, part):
            run, value, due = _step(job, run, piece, size, part)
            job.reached.run = run
            step = int(run.online.step)
            if step % births == 0:
                run = _revived(job, run)
            if step in marks:
                run = _looked(job, run, step * size, value)
            job.tell("online", step, most, step * size, run, new=step in marks)
            if step >= most or (step in marks and job.level(run.values)):
                return run
            if due:
                run = run._replace(reservoir=job.pooled(run.reservoir))
                job.checkpoints.save("online", run)
                run = run._replace(reservoir=job.own(run.reservoir))
    return run


def _step(job: Job, run: OnlineRun, piece: Piece, size: int, part: slice) -> tuple[OnlineRun, float, bool]:
    """One batch: exact codes at the moving point of this process's part, the step on the sums of all, rows for the reservoir;
    the batch's objective, and whether a state is due."""
    rows, tol = piece.rows.astype(job.dtype), max(job.solver.code_tol, float(np.finfo(job.dtype).eps ** 0.75))
    chunk = solve_chunk(job.problem, run.online.moving(), rows, tol)
    sums, due = job.together(sums_of(chunk, piece.weights))
    uniform = job.generator(1, int(run.online.step)).uniform(size=size)[part]
    reservoir = keep_worst(job.problem, run.reservoir, rows, piece.weights, chunk, uniform)
    online = run.online
    if sums.weight > 0:
        online = job.solver.step(job.problem, online, moments_of(sums), size)
    else:
        online = online._replace(step=online.step + 1)
    return run._replace(online=online, reservoir=reservoir), float(sums.objective / (sums.weight or 1)), due


def _revived(job: Job, run: OnlineRun) -> OnlineRun:
    """Dead atoms moved to where the reservoir's rows want one (T10); the reservoir begins anew."""
    dead = np.flatnonzero(run.online.unused >= DEAD_AFTER * job.n_atoms)
    if len(dead):
        atoms, born = born_from(job.problem, run.online.moving(), job.pooled(run.reservoir), dead)
        run = run._replace(online=job.solver.reborn(run.online, atoms, born))
    return run._replace(reservoir=empty_reservoir(job.source.d, job.dtype))


def _looked(job: Job, run: OnlineRun, rows: int, value: float) -> OnlineRun:
    mean, error, values = job.look(run.online.dictionary(), value)
    looks = noted(run.looks, 0, int(run.online.step), rows, mean, error, float("nan"))
    return run._replace(looks=looks, values=kept_values(run.values, values))


def _marks(job: Job, size: int, most: int) -> set[int]:
    """Steps after which the rows kept aside are looked at: ever rarer, so that looks stay cheap beside steps."""
    held = 0 if job.source.held is None else job.source.held.rows.shape[0]
    mark, marks = max(FIRST_LOOK, 2 * held // size), {most}
    while mark < most:
        marks.add(mark)
        mark = math.ceil(LOOK_GROWTH * mark)
    return marks
