"""What every verb shares: where it prints, how it refuses, how it shows that it is getting on."""

import functools
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import typer
from jaxtyping import Array, Float
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxdict.files import open_activations
from jaxdict.results import as_plain
from jaxdict.storage import one_line, shown_path
from jaxdict.validation import check_data

FAILED_CHECK, BAD_INPUT, INTERRUPTED = 1, 2, 130


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with words on what is kept."""


def one_line_errors(command: Callable) -> Callable:
    """Turn errors about the input into one line on stderr and exit code 2, Ctrl-C into one and 130, warnings into one line each."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"jaxdict: warning: {one_line(message)}")
            try:
                return command(*args, **kwargs)
            except (ValueError, OSError, ModuleNotFoundError) as error:
                say(f"jaxdict: error: {one_line(error)}")
                raise typer.Exit(BAD_INPUT) from error
            except KeyboardInterrupt as stopped:
                say(f"jaxdict: interrupted; {stopped if str(stopped) else 'nothing was finished yet'}")
                raise typer.Exit(INTERRUPTED) from stopped
            except MemoryError as error:
                say("jaxdict: error: not enough memory; take fewer rows (--sample) or --float32")
                raise typer.Exit(BAD_INPUT) from error

    return wrapped


def say(line: str) -> None:
    """One line on stderr, whole however narrow the terminal, whatever bytes file names are made of."""
    typer.echo(shown_path(line), err=True)


def emit_json(document: dict) -> None:
    """The one JSON object of `--json` on stdout; NaN and infinity become null."""
    typer.echo(json.dumps(as_plain(document), allow_nan=False))


def stdout() -> Console:
    """Where tables go. Not a terminal: wide enough that no cell is cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def set_precision(x64: bool) -> type:
    """Switch jax to float64 or float32 for this process; returns the data's type."""
    jax.config.update("jax_enable_x64", x64)
    return np.float64 if x64 else np.float32


def default_tol(x64: bool) -> float:
    """What can be asked of each precision."""
    return 1e-6 if x64 else 1e-4


class Taken(NamedTuple):
    """Activations in memory, the rows that they are of their file's (None for all), and the shards that these came from, in order."""

    X: Float[Array, "samples d"]
    rows: np.ndarray | None
    shards: list[str]


def checked_activations(
    path: Path,
    key: str | None,
    dtype,
    *,
    allow_wide: bool = True,
    rows=None,
    sample: int | None = None,
    **of_file,
) -> Taken:
    """Activations of a file as a checked array in the working precision.

    `sample` takes that many rows spread evenly over the file; `rows` names them; `of_file` is told to `open_activations`.
    """
    stored = open_activations(path, key, **of_file)
    try:
        if sample is not None:
            if not 0 < sample <= len(stored):
                raise ValueError(f"--sample {sample} does not lie between 1 and the {len(stored)} rows there are")
            rows = np.linspace(0, len(stored) - 1, sample).round().astype(np.int64) if sample < len(stored) else None
        elif rows is not None and rows.max(initial=-1) >= len(stored):
            raise ValueError(
                f"has {len(stored)} rows, but the result was fitted on row {rows.max()}: other activations?"
            )
        taken = stored[:] if rows is None else stored[rows]
        with np.errstate(over="ignore"):  # reported by check_data
            taken = np.asarray(taken).astype(dtype)
        X = check_data(taken, wide="allow" if allow_wide else "error")  # type: ignore
        return Taken(X, rows, list(getattr(stored, "names", ())))
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).replace('allow_wide=True', '--allow-wide')}") from error


def read_npy(path: Path, of: str):
    """What a .npy file holds, or a one-line error that names the file and what it should have been a file of."""
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a .npy file of {of}: {error}") from error
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or error}") from error


def read_documents(path: Path, n: int) -> np.ndarray:
    """The document of each of n rows, numbers or names in a .npy file."""
    names = read_npy(path, "numbers or names")
    if np.shape(names) != (n,):
        raise ValueError(f"{path}: shape {np.shape(names)} but there are {n} rows; give the document of each")
    return names


class Bar:
    """A bar on stderr for what takes a while: its stage, how far it is, numbers, time. Hidden when `quiet` or stderr is no terminal."""

    def __init__(self, quiet: bool, stage: str, *more: ProgressColumn, total: float | None = 1.0, **fields):
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.fields[stage]}", style="bold"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            *more,
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, stage=stage, numbers="", **fields)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()


class FitProgress(Bar):
    """A bar for a running fit: objective, stationarity, time left.

    How far along it is: the larger of the share of steps used and the
    share of decades of stationarity gained.
    """

    def __init__(self, tol: float, quiet: bool = False):
        super().__init__(quiet, "compiling", TextColumn("left"), TimeRemainingColumn())
        self.tol = tol
        self.first = None
        self.share = 0.0

    def __call__(self, progress) -> None:
        """A callback for `jaxdict.fit`."""
        distance = float(progress.stationarity)
        if math.isfinite(distance) and distance > 0:
            self.first = max(distance, self.first or distance)
            decades = math.log(self.first / max(self.tol, 1e-300))
            gained = math.log(self.first / max(distance, self.tol)) / decades if decades > 0 else 1.0
            self.share = max(self.share, gained)
        self.share = max(self.share, int(progress.step) / max(1, int(progress.max_steps)))
        self.bar.update(
            self.task,
            completed=min(self.share, 0.999),
            stage="certifying" if distance <= self.tol else str(progress.stage),
            numbers=f"step {progress.step}  objective {progress.objective:.6g}  stationarity {distance:.1e}",
        )
