"""The rows of a sweep on disk, under names that hold every byte of what they depend on."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdict.files import check_writable
from jaxdict.problem import Dictionary
from jaxdict.results import as_plain
from jaxdict.storage import digest, replace_arrays

ROWS = "rows"


class Run(NamedTuple):
    """One point of the grid."""

    data: str
    n_atoms: int
    lam: float
    seed: int


class Book:
    """Rows on disk: one JSON object a line, appended whole; a line cut short by a kill is not there.

    A run's name is made of all that its row depends on: the values of its data, the settings (metric and weights whole), its
    place in the grid. Rows of anything else in the folder are other rows. Every process appends to a file of its own.
    """

    def __init__(self, directory, settings: str, data: dict[str, Any], *, keep: bool):
        self.directory = None if directory is None else check_writable(directory)
        self.settings, self.keep_dictionaries = settings, keep
        self.values = {name: digest(X) for name, X in data.items()}
        self.rows: dict[str, dict] = {}
        self.refresh()

    def name(self, run: Run) -> str:
        """A run's name: its data's values, its settings and its place in the grid."""
        return digest(self.values[run.data], self.settings, run.n_atoms, run.lam, run.seed)

    def has(self, run: Run) -> bool:
        """Whether nothing is left to do for a run."""
        name = self.name(run)
        if name not in self.rows or not self.keep_dictionaries or "objective" not in self.rows[name]:
            return name in self.rows
        file = self._file(run)
        return file is None or file.exists()

    def refresh(self) -> None:
        """Take in what other processes have finished."""
        if self.directory is not None:
            for file in sorted(self.directory.glob(f"{ROWS}*.jsonl")):
                for line in file.read_bytes().split(b"\n"):
                    try:
                        row = json.loads(line)
                        self.rows[row["run"]] = row
                    except (ValueError, KeyError, TypeError):
                        continue

    def write(self, run: Run, row: dict) -> None:
        """Keep a row, in memory and at the end of this process's file."""
        name = self.name(run)
        row = as_plain({"run": name, **run._asdict(), **row})
        self.rows[name] = row
        if self.directory is None:
            return
        end = "" if jax.process_count() == 1 else f"-{jax.process_index()}"
        with open(self.directory / f"{ROWS}{end}.jsonl", "a+b") as file:
            cut_short = file.tell() > 0 and not _ends_line(file)  # what a kill left behind
            file.write(b"\n" * cut_short + (json.dumps(row, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def keep(self, run: Run, dictionary: Dictionary) -> None:
        """Write a dictionary beside the rows, where there is a directory."""
        file = self._file(run)
        if file is not None:
            replace_arrays(file, dictionary._asdict())

    def dictionaries(self, runs) -> list[Dictionary] | None:
        """The dictionaries of runs, where all of them were kept."""
        files = [self._file(run) for run in runs]
        if any(file is None or not file.exists() for file in files):
            return None
        loaded = [np.load(file, allow_pickle=False) for file in files if file is not None]
        return [Dictionary(jnp.asarray(one["atoms"]), jnp.asarray(one["offset"])) for one in loaded]

    def ordered(self, grid) -> list[dict]:
        """The rows of a grid, in its order; runs of other processes that have not finished are left out."""
        self.refresh()
        # Data sets of equal values share rows; each keeps its own name.
        return [self.rows[self.name(run)] | {"data": run.data} for run in grid if self.name(run) in self.rows]

    def _file(self, run: Run) -> Path | None:
        return None if self.directory is None else self.directory / f"{self.name(run)}.npz"


def _ends_line(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
