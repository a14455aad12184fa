"""`sweep`: many fits over lam, width, key and data; rows on disk as they finish, resumable, spread over devices and processes."""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxdict.files import check_writable
from jaxdict.fitting import MESSAGES, Solution, fit_batch
from jaxdict.objectives import residual
from jaxdict.plots import sweep_figure
from jaxdict.problem import Dictionary, Problem
from jaxdict.results import as_plain, fingerprint, replace_arrays
from jaxdict.solvers.combined import Combined, with_slots
from jaxdict.validation import check_data, check_problem

ROWS = "rows"
# Status of a run whose data or problem were refused before any compute.
REFUSED = -1


class Run(NamedTuple):
    """One point of the grid."""

    data: str
    n_atoms: int
    lam: float
    seed: int


@dataclass(frozen=True)
class Sweep:
    """The rows of a sweep, one a run in the order of the grid: plain numbers by name.

    A row has `data`, `n_atoms`, `lam`, `seed`; `status`, `message`; `objective`, `stationarity`, `l0`, `explained_variance`,
    `dead`, `wide_bound`, `steps` and `seconds` (of its batch, over the runs in it).
    """

    rows: list[dict[str, Any]]
    directory: Path | None = None

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
        return f"{len(self.rows)} runs: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def sweep(
    X,
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
    with several processes (`jax.distributed`) each takes its share of the batches and writes rows of its own. A run with bad
    data or lam gets a status and leaves the others alone.

    **Arguments:**

    - `X`: (samples, d) data, or a dict of such by name.
    - `lams`, `n_atoms`, `seeds`: the grid; a run's key is `jax.random.key(seed)`.
    - `problem`: offset, signs, gauge, metric and weights of all runs; its own lam is not used.
    - `directory`: rows are appended to `rows.jsonl` there as they finish; called again with the same arguments the sweep goes on
      where it was stopped (rows of other data or settings are not mistaken for it). None: nothing is kept on disk.
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
    settings = {"start": start, "tol": tol, "max_steps": max_steps, "path": path, "solver": repr(solver)}
    settings |= {"problem": [template.offset, template.signed, template.gauge]}
    settings |= {name: as_plain(getattr(template, name)) for name in ("metric", "weights")}
    book = _Book(directory, settings, {name: fingerprint(rows) for name, rows in data.items()})
    options = {"start": start, "tol": tol, "max_steps": max_steps}
    for group in _groups(grid, path):
        if all(book.has(run) for run in group):
            continue
        refusal, rows = _refusal(data[group[0].data], template)
        if refusal is not None:
            for run in group:
                book.write(run, {"status": REFUSED, "message": refusal})
        else:
            fitted = _path if path else _independent
            slotted = _with_slots(solver, template, group)
            for _ in fitted(book, template, rows, group, slotted, options, batch, keep_dictionaries):
                if progress is not None:
                    progress(sum(book.has(run) for run in grid), len(grid))
    return Sweep(book.ordered(grid), book.directory)


def _groups(grid: list[Run], path: bool) -> Iterator[list[Run]]:
    """Runs that share a shape: a data set and a width; along a path by lam from the largest down."""
    for _, members in itertools.groupby(grid, key=lambda run: (run.data, run.n_atoms)):
        group = list(members)
        yield sorted(group, key=lambda run: -run.lam) if path else group


def _refusal(X, template: Problem):
    """Why a data set cannot be fitted at all, or None, and the checked data."""
    try:
        rows = check_data(X, wide="allow")
        check_problem(Problem(1.0, metric=template.metric, weights=template.weights), rows, zero_codes="allow")
        return None, rows
    except ValueError as error:
        return f"refused: {error}", None


def _with_slots(solver, template, group):
    """The solver with as many slots as any run may need, so that all runs of a shape are one program."""
    return with_slots(Combined() if solver is None else solver, min(group[0].n_atoms * (1 + template.signed), 64))


def _independent(book, template, X, group, solver, options, batch, keep) -> Iterator[None]:
    """Every run from its own start, in batches; a process takes its share of the batches."""
    open_ = [run for run in group if not book.has(run)]
    size = _batch_size(batch, len(group))
    batches = [open_[k : k + size] for k in range(0, len(open_), size)]
    for runs in batches[jax.process_index() :: jax.process_count()]:
        begin = time.perf_counter()
        padded = runs + [runs[-1]] * (size - len(runs))  # so that every batch is the same program
        solution = _fit_runs(template, X, padded, solver, options)
        _write(book, X, runs, solution, time.perf_counter() - begin, keep)
        yield


def _path(book, template, X, group, solver, options, batch, keep) -> Iterator[None]:
    """From the largest lam down, all seeds together, each lam from the dictionaries of the one before.

    Dictionaries are kept whatever `keep` says: a stopped path goes on from them.
    """
    lams = list(dict.fromkeys(run.lam for run in group))
    seeds = list(dict.fromkeys(run.seed for run in group))[jax.process_index() :: jax.process_count()]
    size = _batch_size(batch, len(seeds))
    for k in range(0, len(seeds), size):
        mine = seeds[k : k + size]
        padded = mine + [mine[-1]] * (size - len(mine))
        before = None
        for lam in lams:
            runs = [Run(group[0].data, group[0].n_atoms, lam, seed) for seed in padded]
            begin = time.perf_counter()
            kept = book.dictionaries(runs[: len(mine)])
            if kept is not None and all(book.has(run) for run in runs):
                before = kept + [kept[-1]] * (size - len(mine))
                continue
            solution = _fit_runs(template, X, runs, solver, options, before)
            _write(book, X, runs[: len(mine)], solution, time.perf_counter() - begin, keep=True)
            before = [jax.tree.map(lambda leaf, k=k: leaf[k], solution.dictionary) for k in range(size)]
            yield


def _batch_size(batch: int | None, runs: int) -> int:
    """Runs in a program: those asked for, a multiple of the local devices where there are several."""
    devices = jax.local_device_count()
    default = devices if jax.default_backend() == "cpu" else runs
    size = max(1, min(runs, default if batch is None else batch))
    return -(-size // devices) * devices


def _fit_runs(template: Problem, X, runs: list[Run], solver, options, before=None) -> Solution:
    """The runs as one program, on one device or spread over all local ones."""
    lams, seeds = jnp.asarray([run.lam for run in runs], X.dtype), np.array([run.seed for run in runs], np.uint32)
    keys = jax.vmap(jax.random.key)(seeds)
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


def _fit_share(template, X, lams, keys, begin, *, solver, n_atoms, start, tol, max_steps) -> Solution:
    parts = (template.offset, template.signed, template.gauge, template.metric, template.weights)
    return fit_batch(
        Problem(lams, *parts[:3], metric=None if parts[3] is None else jnp.tile(parts[3], (len(lams), 1)),
                weights=None if parts[4] is None else jnp.tile(parts[4], (len(lams), 1))),
        X, None if begin is not None else n_atoms, keys=keys, start=start if begin is None else begin, solver=solver,
        tol=tol, max_steps=max_steps, allow_wide=True,
    )  # fmt: skip


def _write(book, X, runs, solution: Solution, seconds: float, keep: bool) -> None:
    centred = X - jnp.mean(X, axis=0)
    variance = jnp.sum(centred * centred)
    for k, run in enumerate(runs):
        if book.has(run):
            continue
        one = jax.tree.map(lambda leaf, k=k: leaf[k], solution)
        left = residual(one.dictionary, one.codes, X)
        row = {
            "status": int(one.status),
            "message": MESSAGES[int(one.status)],
            "objective": float(one.objective),
            "stationarity": float(one.certificate.stationarity.worst),
            "l0": float(jnp.mean(jnp.sum(one.codes != 0, axis=1))),
            "explained_variance": float(1 - jnp.sum(left * left) / variance),
            "dead": int(one.certificate.n_dead),
            "wide_bound": float(one.certificate.wide_bound),
            "steps": int(one.steps),
            "seconds": seconds / len(runs),
        }
        if keep:
            book.keep(run, one.dictionary)
        book.write(run, row)


class _Book:
    """Rows on disk: one JSON object a line, appended whole; a line cut short by a kill is not there."""

    def __init__(self, directory, settings: dict, prints: dict[str, str]):
        self.directory = None if directory is None else check_writable(directory)
        self.prints = prints
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.rows: dict[str, dict] = {}
        if self.directory is not None:
            for file in sorted(self.directory.glob(f"{ROWS}*.jsonl")):
                self._read(file)

    def name(self, run: Run) -> str:
        """A run's name: its data's values, its settings and its place in the grid."""
        place = repr((self.prints[run.data], self.settings, run.n_atoms, run.lam, run.seed))
        return hashlib.sha256(place.encode()).hexdigest()[:16]

    def has(self, run: Run) -> bool:
        return self.name(run) in self.rows

    def write(self, run: Run, row: dict) -> None:
        """Keep a row, in memory and at the end of this process's file."""
        name = self.name(run)
        row = as_plain({"run": name, **run._asdict(), **row})
        self.rows[name] = row
        if self.directory is None:
            return
        end = "" if jax.process_count() == 1 else f"-{jax.process_index()}"
        with open(self.directory / f"{ROWS}{end}.jsonl", "a+b") as file:
            if file.tell() and not _ends_line(file):
                file.write(b"\n")  # what a kill left behind
            file.write((json.dumps(row, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def keep(self, run: Run, dictionary: Dictionary) -> None:
        """Write a dictionary beside the rows, where there is a directory."""
        if self.directory is not None:
            replace_arrays(self.directory / f"{self.name(run)}.npz", dictionary._asdict())

    def dictionaries(self, runs) -> list[Dictionary] | None:
        """The dictionaries of runs, where all of them were kept."""
        files = [None if self.directory is None else self.directory / f"{self.name(run)}.npz" for run in runs]
        if any(file is None or not file.exists() for file in files):
            return None
        loaded = [np.load(file, allow_pickle=False) for file in files if file is not None]
        return [Dictionary(jnp.asarray(one["atoms"]), jnp.asarray(one["offset"])) for one in loaded]

    def ordered(self, grid) -> list[dict]:
        """The rows of a grid, in its order; runs of other processes that have not finished are left out."""
        return [self.rows[self.name(run)] for run in grid if self.has(run)]

    def _read(self, file: Path) -> None:
        for line in file.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
                self.rows[row["run"]] = row
            except (ValueError, KeyError, TypeError):
                continue


def _ends_line(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
