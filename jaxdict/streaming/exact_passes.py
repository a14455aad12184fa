"""Exact passes: slopes of `phi(D, b) = min_Z F` over all training rows, and L-BFGS on them, until rows kept aside gain no more."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxdict.problem import Dictionary
from jaxdict.streaming.checkpoints import restored
from jaxdict.streaming.job import Job, kept_values, noted
from jaxdict.streaming.reservoir import Reservoir, born_from, empty_reservoir, keep_worst
from jaxdict.streaming.search import Search, begin, judge, trial_of
from jaxdict.streaming.sums import Sums, chunk_rows, code_tol, no_sums, plus, solve_chunk, stationarity_of, sums_of

# Passes at the beginning after which dead atoms are given a new life.
BIRTH_PASSES = 3

CONVERGED, LEVEL, PASS_LIMIT, ROUNDING, NOT_FINITE, ALL_ZERO = range(6)
GOING = -1


class PassRun(NamedTuple):
    """The stage's state between passes."""

    atoms: Float[np.ndarray, "atoms d"]  # the accepted point
    offset: Float[np.ndarray, " d"]
    best_atoms: Float[np.ndarray, "atoms d"]  # the one that is best on rows kept aside
    best_offset: Float[np.ndarray, " d"]
    best: Float[np.ndarray, ""]
    search: Search
    begun: Int[np.ndarray, ""]  # 0: the next pass is of the accepted point itself
    passes: Int[np.ndarray, ""]
    reservoir: Reservoir
    stationarity: Float[np.ndarray, ""]
    values: Float[np.ndarray, "looks samples"]
    looks: Float[np.ndarray, "looks 6"]
    status: Int[np.ndarray, ""]

    def point(self) -> Dictionary:
        """The accepted point."""
        return Dictionary(jnp.asarray(self.atoms), jnp.asarray(self.offset))

    def dictionary(self) -> Dictionary:
        """The best point on rows kept aside."""
        return Dictionary(jnp.asarray(self.best_atoms), jnp.asarray(self.best_offset))


class Part(NamedTuple):
    """A process's state in the middle of a pass: of which pass and how many processes; the chunks that are done."""

    passes: Int[np.ndarray, ""]
    processes: Int[np.ndarray, ""]
    done: Int[np.ndarray, ""]  # how many
    sums: Sums  # of these
    reservoir: Reservoir


def first_pass_run(job: Job, dictionary: Dictionary, values, looks) -> PassRun:
    """The stage at its beginning, with the last stage's looks."""
    atoms, offset = (np.array(part) for part in dictionary)
    zero, some = np.zeros((), int), np.zeros((1, job.source.d))
    pairs = np.zeros((0, 1, job.source.d), job.dtype)
    search = Search(some, some, np.ones(1), np.zeros(()), pairs, pairs, some, np.zeros(()), np.ones(()), zero, zero)
    reservoir, unknown = empty_reservoir(job.source.d, job.dtype), np.asarray(np.inf)
    point = (atoms, offset, atoms, offset, unknown)
    status = np.asarray(GOING if job.passes else PASS_LIMIT)
    return PassRun(*point, search, zero, zero, reservoir, unknown, values[-1:], looks, status)


def run_passes(job: Job, run: PassRun) -> PassRun:
    """Passes from where the run stands to the end."""
    while int(run.status) == GOING:
        trial = trial_of(run.search) if run.begun else run.point()
        job.reached.run = run
        part = _passed(job, run, trial)
        sums, _ = job.together(part.sums)
        run = _judged(job, run._replace(reservoir=job.pooled(part.reservoir)), trial, sums)
        job.checkpoints.save("passes", run)
        job.warm.forget(before=int(run.passes) - 2)
    return run


def _passed(job: Job, run: PassRun, trial: Dictionary) -> Part:
    """This process's chunks of a pass: sums over their rows, codes started from those of the pass before."""
    size, n, pass_ = chunk_rows(job.problem, job.n_atoms, job.source.d), job.source.n, int(run.passes)
    first, last = job.processes.share(-(-n // size))
    part = _part_kept(job, run)
    for k, piece in enumerate(job.source.chunks(first + int(part.done), size, last), first + int(part.done)):
        rows = piece.rows.astype(job.dtype)
        warm = job.warm.read(pass_ - 1, k, job.n_atoms)
        chunk = solve_chunk(job.problem, trial, rows, code_tol(job.dtype), warm)
        job.warm.write(pass_, k, chunk.codes)
        part = part._replace(sums=plus(part.sums, sums_of(chunk, piece.weights)), done=np.asarray(k + 1 - first))
        if pass_ < BIRTH_PASSES:
            uniform = job.generator(2, pass_, k).uniform(size=len(rows))
            reservoir = keep_worst(job.problem, part.reservoir, rows, piece.weights, chunk, uniform)
            part = part._replace(reservoir=reservoir)
        done = pass_ * (last - first) + int(part.done)
        taken = pass_ * n + min(n, int(part.done) * size * job.processes.count)
        job.tell("passes", done, job.passes * (last - first), taken, run)
        if job.checkpoints.due() and k + 1 < last:
            job.checkpoints.save_part(job.processes.index, part)
    return part


def _part_kept(job: Job, run: PassRun) -> Part:
    """What this process has done of the pass: what was kept of the same pass among as many processes, or nothing."""
    count, zero = np.asarray(job.processes.count), np.zeros((), int)
    fresh = Part(run.passes, count, zero, no_sums(job.n_atoms, job.source.d), job.own(run.reservoir))
    arrays = job.checkpoints.load_part(job.processes.index)
    if arrays is None:
        return fresh
    kept = restored(fresh, arrays)
    return kept if (kept.passes, kept.processes) == (run.passes, count) else fresh


def _judged(job: Job, run: PassRun, trial: Dictionary, sums: Sums) -> PassRun:
    """What a whole pass says of its dictionary: accepted or not, and whether to go on."""
    run = run._replace(passes=run.passes + 1)
    if run.begun:
        search, accepted = judge(job.problem, run.search, trial, sums)
    elif not np.isfinite(sums.objective):
        return run._replace(status=np.asarray(NOT_FINITE))
    elif not np.any(sums.codes > 0):
        return run._replace(status=np.asarray(ALL_ZERO))
    else:
        search, accepted = begin(job.problem, trial, sums), True
    if accepted:
        run = _accepted(job, run, trial, sums)
    run = _told(job, run, search, accepted)
    return _reborn(job, run, sums) if accepted else run


def _accepted(job: Job, run: PassRun, trial: Dictionary, sums: Sums) -> PassRun:
    """The new point, measured on the rows kept aside."""
    atoms, offset = (np.asarray(part) for part in trial)
    worst, value = stationarity_of(job.problem, trial, sums), float(sums.objective / sums.weight)
    mean, error, values = job.look(trial, value)
    looks = noted(run.looks, 1, int(run.passes), int(run.passes) * job.source.n, mean, error, worst)
    run = run._replace(atoms=atoms, offset=offset, stationarity=np.asarray(worst), looks=looks)
    if mean <= run.best:
        run = run._replace(best_atoms=atoms, best_offset=offset, best=np.asarray(mean))
    return run._replace(values=kept_values(run.values, values))


def _told(job: Job, run: PassRun, search: Search, accepted: bool) -> PassRun:
    """The state with the search's next trial, and whether there is to be one."""
    status = GOING
    if run.stationarity <= job.tol:
        status = CONVERGED
    elif accepted and job.level(run.values):
        status = LEVEL
    elif search.stuck:
        status = ROUNDING
    elif run.passes >= job.passes:
        status = PASS_LIMIT
    first, last = job.processes.share(-(-job.source.n // chunk_rows(job.problem, job.n_atoms, job.source.d)))
    chunks = last - first
    at = int(run.passes) * chunks, job.passes * chunks, int(run.passes) * job.source.n
    job.tell("passes", *at, run, new=accepted)
    return run._replace(search=search, begun=np.ones((), int), status=np.asarray(status))


def _reborn(job: Job, run: PassRun, sums: Sums) -> PassRun:
    """Dead atoms moved by T10 after the first passes: they had no codes, so F can only fall; the next pass is of the new point."""
    dead = np.flatnonzero(sums.codes == 0)
    early = int(run.passes) <= BIRTH_PASSES and run.status in (GOING, CONVERGED) and run.passes < job.passes
    if not (early and len(dead)):
        return run
    atoms, born = born_from(job.problem, run.point(), run.reservoir, dead)
    run = run._replace(reservoir=empty_reservoir(job.source.d, job.dtype))
    return run._replace(atoms=atoms, begun=np.zeros((), int), status=np.asarray(GOING)) if len(born) else run
