"""`fit_stream`: a stochastic stage over shuffled batches, then exact passes, judged on rows kept aside."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.numerics import unit_rows
from jaxdict.population import PopulationDefects
from jaxdict.problem import Dictionary, Problem
from jaxdict.solvers.online import Online
from jaxdict.solvers.starts import initial_offset, start_dictionary
from jaxdict.solvers.stopping import hand_over
from jaxdict.streaming.checkpoints import Checkpoints, identity_of, restored
from jaxdict.streaming.exact_passes import PassRun, first_pass_run, run_passes
from jaxdict.streaming.held_out import population_of
from jaxdict.streaming.job import Job
from jaxdict.streaming.processes import Processes, these_processes
from jaxdict.streaming.sources import Batches, Blocks, Piece, open_source
from jaxdict.streaming.stochastic import OnlineRun, first_run, run_online
from jaxdict.streaming.warm import WarmCodes
from jaxdict.validation import check_dictionary, check_n_atoms, check_problem

# Rows looked at to start from: this many an atom, and so many at least.
START_ROWS, LEAST_START_ROWS = 2, 4096

MESSAGES = (
    "converged: slopes over all training rows are within tol",
    "level: the last passes gained less on the rows kept aside than the gain's standard error",
    "pass limit: raise passes, or start again from this dictionary",
    "stalled: no step along the slopes lowers the objective in this precision; use float64",
    "non-finite values met: look for NaN or inf in the data, the start or lam",
    "all codes are zero: lam is too large for these rows; choose a smaller one",
    "interrupted: the point reached is returned as it is",
)
INTERRUPTED = len(MESSAGES) - 1


class StreamHistory(NamedTuple):
    """What was seen on the way, a look each: 0 in the stochastic stage and 1 in exact passes, batches or passes and rows taken in the
    stage, the objective on rows kept aside with its standard error, the slopes over all training rows (NaN in the stochastic stage)."""

    stage: Int[np.ndarray, " looks"]
    step: Int[np.ndarray, " looks"]
    rows: Int[np.ndarray, " looks"]
    objective: Float[np.ndarray, " looks"]
    standard_error: Float[np.ndarray, " looks"]
    stationarity: Float[np.ndarray, " looks"]


class StreamSolution(eqx.Module):
    """A dictionary fitted to a stream and what rows kept aside say of it."""

    dictionary: Dictionary
    objective: Float[Array, ""]  # on rows kept aside; on the training rows where there are none
    standard_error: Float[Array, ""]  # NaN where no rows are kept aside
    population: PopulationDefects | None  # T17 on rows kept aside
    stationarity: Float[
        Array, ""
    ]  # worst of T1's atoms and offset lines over all training rows, at the last point; inf before a pass
    status: Int[Array, ""]
    passes: Int[Array, ""]
    rows: Int[Array, ""]  # training rows
    history: StreamHistory

    def message(self) -> str:
        """How the run ended, and on which rows its objective stands."""
        end = MESSAGES[int(self.status)]
        seen = f"{int(self.passes)} exact passes over {int(self.rows)} rows"
        if self.population is None:
            return f"{end} ({seen}; objective {float(self.objective):.5g} on these rows, none kept aside)"
        fresh = f"{float(self.objective):.5g} +- {float(self.standard_error):.1g} on {int(self.population.rows)} rows kept aside"
        return f"{end} ({seen}; objective {fresh})"


def fit_stream(
    problem: Problem,
    source,
    n_atoms: int | None = None,
    *,
    key,
    start: str | Dictionary = "data",
    solver: Online | None = None,
    held_out=None,
    passes: int = 30,
    tol: float = 1e-4,
    checkpoint=None,
    callback: Callable | None = None,
) -> StreamSolution:
    """A dictionary for rows that need not fit in memory, judged on rows that it was not fitted to.

    First `solvers.Online`: steps along the slopes of `phi(D, b) = min_Z F` (T3) from exact codes of shuffled batches, dead atoms
    reborn by T10 from a reservoir of badly explained rows. Then exact passes: the slopes over all training rows and L-BFGS
    on them, codes started from the last pass's. Each stage ends where its last gain on the rows kept aside is below the
    gain's standard error, the passes also at `tol`; the dictionary returned is the one that was best on those rows.

    **Arguments:**

    - `source`: anything (samples, d) with `shape` and row slices (an array, a memory map, `jaxdict.files.Shards`), shuffled by blocks
      of 64 rows; or batches of rows: a list, an object that can be iterated anew, or a function that returns a new iterator of
      arrays at each call, taken in the order in which they come. float16 and bfloat16 rows become float32.
    - `n_atoms`, `key`, `start` as in `jaxdict.fit`; `problem.weights` (samples,) need a source with row slices.
    - `held_out`: a share of the rows (by default 0.05, at most 32,768 rows), drawn in blocks of 256 rows at most, whole shards where
      there are 20 or more, or whole batches; or rows by number or by a mask; or fresh rows (rows, d); 0 for none. Standard errors
      take rows of one block, and neighbours among rows that are named, as dependent.
    - `passes`: most exact passes, each over all training rows; `tol`: bound on T1's atoms and offset lines over them.
    - `checkpoint`: a folder for the run's state, written at least every half minute of steps and after each pass. The same call takes a
      killed run up where it was and ends in the same digits on the same machine (but for a first process ever, which compiles numba's
      kernels and rounds otherwise than those that load them). Codes between passes are then kept there too.
    - `callback`: called with a `StreamProgress` at each look at the rows kept aside and every second or so. An exception that it
      raises, or Ctrl-C, goes on to the caller with the point reached as its attribute `solution` (status "interrupted").

    **Processes**: under `jax.distributed` every process makes the same call, source and checkpoint folder being the same files for all.
    Each reads and codes its share: a run of chunks of each pass, a part of each batch and of the rows kept aside (all read the rows that
    the start is made of, and iterables whole); sums are added in one order, so all hold one state, and return one solution. Where a
    process is killed the others end with a RuntimeError that says so, at their next sum (JAX's own coordination ends them where that is
    quicker, and holds up their exit for `heartbeat_timeout_seconds` of `jax.distributed.initialize`); the same calls go on from the
    checkpoint to the same digits.

    **Memory**, beyond the source's own, in bytes: about `K d (34 s + 96) + c (16 K + 40 d) + N (2 + 4 L0)` with s bytes a number,
    chunks of `c = min(8192, 2^24 / max(K, 8 d))` rows, L0 codes a row (6 bytes each beyond K = 65,536; on disk where a checkpoint is
    given). No (samples, atoms) array is formed, and none of (atoms, atoms) beyond K = 2,048.

    **Returns** `StreamSolution(dictionary, objective, standard_error, population, stationarity, status, passes, rows, history)`, unit
    atoms; `.message()` says how it ended. `jaxdict.streaming.write_codes` writes sparse codes of any rows to disk.

    **Raises** ValueError before any compute for settings, sizes and a problem that make no sense, for rows that are not finite
    as soon as they are met, and for a checkpoint of another run. Not under jit: rows are read on the host.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> X = jax.random.normal(jax.random.key(0), (400, 3))
    >>> found = jd.fit_stream(jd.Problem(lam=0.5), X, 4, key=jax.random.key(1), passes=2)
    >>> found.dictionary.atoms.shape, int(found.population.rows)
    ((4, 3), 20)
    """
    solver = Online() if solver is None else solver
    _check_settings(solver, passes, tol)
    draw, order = jax.random.split(key)
    rows = rows_of(problem, source, held_out, key)
    sample, dictionary = _start(problem, rows, n_atoms, draw, start)
    settings = {name: getattr(solver, name) for name in solver.__dataclass_fields__}
    width, first = dictionary.atoms.shape[0], start if isinstance(start, str) else "dictionary"
    held = 0 if rows.held is None else rows.held.rows.shape[0]
    processes = these_processes()
    _check_shares(processes, min(solver.rows_a_step(width), rows.n), rows.held)
    sizes = (rows.n, rows.d, held, width, float(jnp.sum(jnp.abs(dictionary.atoms))))
    identity = identity_of(problem, key, *sizes, first, settings, passes, tol)
    checkpoints = Checkpoints(checkpoint, identity, processes)
    plain = Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric).astype(sample.dtype)
    warm = WarmCodes(checkpoints.folder, sample.dtype)
    job = Job(
        plain, problem, rows, width, sample.dtype, order, solver, passes, tol, checkpoints, warm, callback, processes
    )
    try:
        return _solution(job, _run(job, dictionary))
    except BaseException as stopped:
        reached = _reached(job) if isinstance(stopped, KeyboardInterrupt) or job.reached.told else None
        if reached is not None:
            hand_over(stopped, solution=reached)
        raise


def rows_of(problem: Problem, source, held_out, key) -> Blocks | Batches:
    """The rows as `fit_stream` has them with this key: those that it fits, and those that it keeps aside."""
    return open_source(source, problem.weights, held_out, jax.random.fold_in(jax.random.split(key)[0], 0))


def _run(job: Job, dictionary: Dictionary) -> PassRun:
    """Both stages, from the beginning or from the state kept."""
    begin = first_run(job, dictionary)
    run = first_pass_run(job, dictionary, begin.values, begin.looks)
    kept = job.checkpoints.load()
    if kept is None or kept[0] == "online":
        online = run_online(job, begin if kept is None else restored(begin, kept[1]))
        run = first_pass_run(job, online.online.dictionary(), online.values, online.looks)
        job.checkpoints.save("passes", run)
    else:
        run = restored(run, kept[1])
    return run_passes(job, run)


def _reached(job: Job) -> StreamSolution | None:
    """Where a run that was stopped stood after its last step or pass; nothing where it shares its rows with other processes."""
    run = job.reached.run
    if job.processes.count > 1 or run is None:
        return None
    if isinstance(run, OnlineRun):
        last = run.looks[-1, 3] if len(run.looks) else np.nan
        run = first_pass_run(job, run.online.dictionary(), run.values, run.looks)._replace(best=np.asarray(last))
    return _solution(job, run._replace(status=np.asarray(INTERRUPTED)))


def _solution(job: Job, run: PassRun) -> StreamSolution:
    dtype, found = job.dtype, run.dictionary()
    mean, error, _ = job.look(found, float(run.best))
    held = job.source.held
    looks = run.looks.T
    return StreamSolution(
        found,
        jnp.asarray(mean, dtype),
        jnp.asarray(error, dtype),
        None if held is None else population_of(job.given, found, held, job.processes),
        jnp.asarray(run.stationarity, dtype),
        jnp.asarray(run.status),
        jnp.asarray(run.passes),
        jnp.asarray(job.source.n),
        StreamHistory(*looks[:3].astype(int), *looks[3:]),
    )


def _start(problem: Problem, rows, n_atoms, key, start) -> tuple[Array, Dictionary]:
    """Rows to start from and the dictionary there, all checks done."""
    if not isinstance(start, Dictionary) and n_atoms is None:
        raise ValueError("n_atoms is not given; give the number of atoms, or a Dictionary as start")
    wanted = max(
        LEAST_START_ROWS, START_ROWS * (np.shape(start.atoms)[0] if isinstance(start, Dictionary) else n_atoms)
    )
    drawn: Piece = rows.sample(wanted, jax.random.fold_in(key, 1))
    X, weights = jnp.asarray(drawn.rows), drawn.weights
    here = Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric, weights).astype(X.dtype)
    check_problem(here, X)
    if not isinstance(start, Dictionary):
        return X, start_dictionary(here, X, check_n_atoms(n_atoms, X), jax.random.fold_in(key, 2), start)
    given = check_dictionary(start, X)
    if n_atoms is not None and n_atoms != given.atoms.shape[0]:
        raise ValueError(f"n_atoms={n_atoms} but start has {given.atoms.shape[0]} atoms; leave n_atoms out")
    offset = initial_offset(here, X) if given.offset is None or not problem.offset else given.offset
    return X, Dictionary(unit_rows(given.atoms), offset)


def _check_shares(processes: Processes, batch: int, held) -> None:
    fewest = batch if held is None else min(batch, held.rows.shape[0])
    if fewest < processes.count:
        raise ValueError(
            f"{processes.count} processes share batches of {batch} rows and the rows kept aside, of which there are too few: the "
            f"fewest are {fewest}; give a larger batch_size, more rows, or fewer processes"
        )


def _check_settings(solver: Any, passes, tol) -> None:
    if not isinstance(solver, Online):
        raise ValueError(f"solver is a {type(solver).__name__}; streams are fitted by jaxdict.solvers.Online(...)")
    if isinstance(passes, bool) or not hasattr(passes, "__index__") or passes < 0:
        raise ValueError(f"passes={passes!r} makes no sense; give the most exact passes, a whole number from 0")
    if not tol >= 0:
        raise ValueError(f"tol={tol!r} makes no sense; give a number from 0")
