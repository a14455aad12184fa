"""`sweep`: what is run, in which order, and what each row says."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxdict.fitting import MESSAGES, Solution, fit_batch
from jaxdict.plots import sweep_figure
from jaxdict.problem import Dictionary, Problem
from jaxdict.solvers.combined import Combined, with_slots
from jaxdict.storage import digest
from jaxdict.sweeps.books import Book, Run
from jaxdict.validation import check_data, check_problem

# Status of a run whose data or problem were refused before any compute.
REFUSED = -1


@dataclass(frozen=True)
class Sweep:
    """The rows of a sweep, one a run in the order of the grid: plain numbers by name.

    A row has `data`, `n_atoms`, `lam`, `seed`; `status`, `message`; `objective`, `stationarity`, `l0`, `explained_variance`,
    `dead`, `wide_bound`, `steps` and `seconds` (of its batch, over the runs in it). `unfinished` runs have no row: they are other
    processes', which had not finished them; the same call gathers them later.
    """

    rows: list[dict[str, Any]]
    directory: Path | None = None
    unfinished: int = 0

    def column(self, name: str) -> np.ndarray:
        """One entry of every row; None becomes NaN."""
        values = [row.get(name) for row in self.rows]
        return np.array([np.nan if value is None else value for value in values])

    def failed(self) -> list[dict[str, Any]]:
        """The rows of runs that did not converge."""
        return [row for row in self.rows if row["status"] != 0]

    def plot(self, axes=None):
        """Objective, L0, explained variance and stationarity against lam, a line for each width; see `plots.sweep_figure`."""
        return sweep_figure(self.rows, axes=axes)

    def message(self) -> str:
        """How many runs ended how, in a sentence."""
        counts: dict[str, int] = {}
        for row in self.rows:
            short = str(row["message"]).split(":")[0]
            counts[short] = counts.get(short, 0) + 1
        told = f"{len(self.rows)} runs: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        left = f"; {self.unfinished} more are other processes' and not finished yet: the same call gathers them later"
        return told + left * (self.unfinished > 0)


def sweep(
    X: Float[Any, "samples d"] | Mapping[str, Any],
    *,
    lams: Sequence[float],
    n_atoms: int | Sequence[int],
    seeds: Sequence[int] = (0,),
    problem: Problem | None = None,
    directory=None,
    path: bool = False,
    start: str = "data",
    solver=None,
    tol: float = 1e-6,
    max_steps: int = 3000,
    batch: int | None = None,
    keep_dictionaries: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Fits over a grid of lam x width x seed x data, each certified, a row each.

    Runs of one shape are one vmapped program, `batch` at a time, spread over the local devices (each device stops by itself);
    with several processes (`jax.distributed`) each takes its share of the batches, the same whenever it starts, writes rows of its
    own and returns those that are finished by then. A run with bad data or lam gets a status and leaves the others alone.

    **Arguments:**

    - `X`: (samples, d) data, or a dict of such by name.
    - `lams`, `n_atoms`, `seeds`: the grid; a run's key is `jax.random.key(seed)`.
    - `problem`: offset, signs, gauge, metric and weights of all runs; its own lam is not used.
    - `directory`: rows are appended to `rows.jsonl` there as they finish; called again with the same arguments the sweep goes on
      where it was stopped. Rows go by names that hold every byte of data and settings, so one folder serves many sweeps. None:
      nothing is kept on disk.
    - `path`: a continuation in lam: from the largest down, each lam starts at the dictionary of the one before, for every seed.
    - `start`, `solver`, `tol`, `max_steps`: as for `fit`.
    - `batch`: runs in a program; default all that share a shape on accelerators, a few on CPUs.
    - `keep_dictionaries`: also write each run's dictionary as `<run>.npz`.
    - `progress`: called with (done, total) after every batch.

    **Returns** a `Sweep`: `.rows`, `.column("objective")`, `.plot()`.

    **Raises** ValueError for an empty grid, or a directory that cannot be written. Host code around jitted pieces: not for jit.

    >>> import jax, jaxdict as jd
    >>> X = jax.random.normal(jax.random.key(0), (40, 3))
    >>> done = sweep(X, lams=[0.5, 0.8], n_atoms=4, tol=1e-4)
    >>> [(row["lam"], row["status"]) for row in done.rows]
    [(0.5, 0), (0.8, 0)]
    """
    data = dict(X) if isinstance(X, Mapping) else {"data": X}
    widths = [int(n_atoms)] if isinstance(n_atoms, int | np.integer) else [int(width) for width in n_atoms]
    grid = [
        Run(name, width, float(lam), int(seed)) for name in data for width in widths for lam in lams for seed in seeds
    ]
    if not grid:
        raise ValueError("the grid is empty; give at least one lam, width, seed and data set")
    if keep_dictionaries and directory is None:
        raise ValueError("keep_dictionaries=True needs a directory to write them to")
    template = Problem(lam=1.0) if problem is None else problem
    solver = Combined() if solver is None else solver
    book = Book(directory, _settings(template, solver, start, tol, max_steps, path), data, keep=keep_dictionaries)
    options = {"start": start, "tol": tol, "max_steps": max_steps}
    for group in _groups(grid, path):
        if all(book.has(run) for run in group):
            continue
        refusal, rows = _refusal(data[group[0].data], template)
        if rows is None:
            for run in group:
                book.write(run, {"status": REFUSED, "message": refusal})
        else:
            fitted = _path if path else _independent
            slotted = _with_slots(solver, template, group)
            for _ in fitted(book, template, rows, group, slotted, options, batch, keep_dictionaries):
                if progress is not None:
                    progress(sum(book.has(run) for run in grid), len(grid))
    rows = book.ordered(grid)
    return Sweep(rows, book.directory, len(grid) - len(rows))


def _settings(template: Problem, solver, start, tol, max_steps, path: bool) -> str:
    """A name of all that rows depend on beside data and grid; the precision is one of them."""
    static = (template.offset, template.signed, template.gauge, path, int(max_steps), str(jnp.result_type(float)))
    return digest(static, template.metric, template.weights, float(tol), start, solver)


def _groups(grid: list[Run], path: bool) -> Iterator[list[Run]]:
    """Runs that share a shape: a data set and a width; along a path by lam from the largest down."""
    for _, members in itertools.groupby(grid, key=lambda run: (run.data, run.n_atoms)):
        group = list(members)
        yield sorted(group, key=lambda run: -run.lam) if path else group


def _refusal(X: Float[Any, "samples d"], template: Problem):
    """Why a data set cannot be fitted at all, or None, and the checked data."""
    try:
        rows = check_data(X, wide="allow")
        check_problem(Problem(1.0, metric=template.metric, weights=template.weights), rows, zero_codes="allow")
        return None, rows
    except ValueError as error:
        return f"refused: {error}", None


def _with_slots(solver, template, group):
    """The solver with as many slots as any run may need, so that all runs of a shape are one program."""
    return with_slots(solver, min(group[0].n_atoms * (1 + template.signed), 64))


def _independent(book, template, X: Float[Array, "samples d"], group, solver, options, batch, keep) -> Iterator[None]:
    """Every run from its own start, in batches; a process takes its share of the batches."""
    size = _batch_size(batch, len(group))
    # Shares are cut from the whole grid, finished or not: so they fit together whenever each process starts.
    batches = [group[k : k + size] for k in range(0, len(group), size)]
    for runs in batches[jax.process_index() :: jax.process_count()]:
        book.refresh()
        runs = [run for run in runs if not book.has(run)]
        if not runs:
            continue
        _fit_and_write(book, template, X, runs, solver, options, size, keep)
        yield


def _path(book, template, X: Float[Array, "samples d"], group, solver, options, batch, keep) -> Iterator[None]:
    """From the largest lam down, all seeds together, each lam from the dictionaries of the one before.

    Dictionaries are kept whatever `keep` says: a stopped path goes on from them.
    """
    lams = list(dict.fromkeys(run.lam for run in group))
    seeds = list(dict.fromkeys(run.seed for run in group))[jax.process_index() :: jax.process_count()]
    size = _batch_size(batch, len(seeds))
    for k in range(0, len(seeds), size):
        mine = seeds[k : k + size]
        before = None
        for lam in lams:
            runs = [Run(group[0].data, group[0].n_atoms, lam, seed) for seed in mine]
            kept = book.dictionaries(runs)
            if kept is not None and all(book.has(run) for run in runs):
                before = kept + [kept[-1]] * (size - len(mine))
                continue
            solution = _fit_and_write(book, template, X, runs, solver, options, size, True, before)
            before = [jax.tree.map(lambda leaf, k=k: leaf[k], solution.dictionary) for k in range(size)]
            yield


def _batch_size(batch: int | None, runs: int) -> int:
    """Runs in a program: those asked for, a multiple of the local devices where there are several."""
    devices = jax.local_device_count()
    default = devices if jax.default_backend() == "cpu" else runs
    size = max(1, min(runs, default if batch is None else batch))
    return -(-size // devices) * devices


def _fit_runs(
    template: Problem, X: Float[Array, "samples d"], runs: list[Run], solver, options, before=None
) -> Solution:
    """The runs as one program, on one device or spread over all local ones."""
    lams, keys = jnp.asarray([run.lam for run in runs], X.dtype), jnp.stack([jax.random.key(run.seed) for run in runs])
    begin = None
    if before is not None:
        begin = Dictionary(jnp.stack([d.atoms for d in before]), jnp.stack([d.offset for d in before]))
    settings = {"solver": solver, "n_atoms": runs[0].n_atoms, **options}
    fit_all = partial(_fit_share, **settings) if jax.local_device_count() == 1 else _fit_spread(**settings)
    return fit_all(template, X, lams, keys, begin)


@cache
def _fit_spread(**settings):
    """`_fit_share` with the runs spread over all local devices: one program a setting, however many batches there are."""
    mesh = Mesh(np.array(jax.local_devices()), ("runs",))
    shared, spread = PartitionSpec(), PartitionSpec("runs")
    specs = {"in_specs": (shared, shared, spread, spread, spread), "out_specs": spread}
    return jax.jit(jax.shard_map(partial(_fit_share, **settings), mesh=mesh, check_vma=False, **specs))


def _fit_share(
    template, X: Float[Array, "samples d"], lams, keys, begin, *, solver, n_atoms, start, tol, max_steps
) -> Solution:
    parts = (template.offset, template.signed, template.gauge, template.metric, template.weights)
    return fit_batch(
        Problem(lams, *parts[:3], metric=None if parts[3] is None else jnp.tile(parts[3], (len(lams), 1)),
                weights=None if parts[4] is None else jnp.tile(parts[4], (len(lams), 1))),
        X, None if begin is not None else n_atoms, keys=keys, start=start if begin is None else begin, solver=solver,
        tol=tol, max_steps=max_steps, allow_wide=True,
    )  # fmt: skip


def _fit_and_write(
    book: Book,
    template: Problem,
    X: Float[Array, "samples d"],
    runs,
    solver,
    options,
    size: int,
    keep: bool,
    before=None,
) -> Solution:
    """One batch and its rows. The batch is filled up to its size with its last run, so that every batch is the same program."""
    begin = time.perf_counter()
    solution = _fit_runs(template, X, runs + [runs[-1]] * (size - len(runs)), solver, options, before)
    try:
        jax.block_until_ready(solution)
    finally:  # Ctrl-C while waiting arrives when the batch is done: its rows are kept all the same
        _write(book, runs, solution, time.perf_counter() - begin, keep)
    return solution


def _write(book: Book, runs, solution: Solution, seconds: float, keep: bool) -> None:
    """A row for every run, numbers alone, and its dictionary where asked for."""
    certificate = solution.certificate
    columns = {
        "status": solution.status,
        "objective": solution.objective,
        "stationarity": certificate.stationarity.worst,
        "l0": solution.l0,
        "explained_variance": solution.explained_variance,
        "dead": certificate.n_dead,
        "wide_bound": certificate.wide_bound,
        "steps": solution.steps,
    }
    columns = {name: np.asarray(column) for name, column in columns.items()}
    for k, run in enumerate(runs):
        if book.has(run):
            continue
        if keep:
            book.keep(run, jax.tree.map(lambda leaf, k=k: leaf[k], solution.dictionary))
        row = {name: column[k].item() for name, column in columns.items()}
        book.write(run, row | {"message": MESSAGES[row["status"]], "seconds": seconds / len(runs)})
