"""A run's state on disk: written whole under a temporary name and renamed, the last two kept, a broken one refused in one line.

A few NumPy arrays in plain .npz files, the writing of which takes no time beside a pass. Orbax, which could keep them too, writes
JAX arrays that are spread over devices, in a folder of many files a state; here all is on the host, process 0 holds all of it, and
what it would bring (asynchronous writes, its own format's versions) is not worth a dependency.
"""

import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdict.files import check_writable
from jaxdict.problem import Problem
from jaxdict.storage import one_line, replace_arrays
from jaxdict.streaming.processes import ALONE, Processes

# Seconds between two states where the work itself has no natural end.
SECONDS = 30.0


class Checkpoints:
    """The states of one run in a folder; without a folder none is kept. Of several processes the first one writes the state, and each
    its own part of a pass under way."""

    def __init__(self, folder, identity: str, processes: Processes = ALONE):
        self.folder = None if folder is None else check_writable(folder)
        self.identity, self.processes = identity, processes
        self.last, self.count = time.monotonic(), 0

    def due(self) -> bool:
        """Whether it is time for another one."""
        return self.folder is not None and time.monotonic() - self.last >= SECONDS

    def save(self, stage: str, state) -> None:
        """Keep a state (nested named tuples of arrays) and the one before it."""
        self.last = time.monotonic()
        if self.folder is None or self.processes.index > 0:
            return
        self.count += 1
        arrays = {"stage": np.asarray(stage), "identity": np.asarray(self.identity), **_flat(state)}
        replace_arrays(self.folder / f"state-{self.count:08d}.npz", arrays)
        for path in self._paths()[:-2]:
            path.unlink(missing_ok=True)

    def save_part(self, index: int, part) -> None:
        """Keep what a process has done of a pass under way."""
        assert self.folder is not None
        replace_arrays(self._part(index), {"identity": np.asarray(self.identity), **_flat(part)})
        self.last = time.monotonic()

    def load_part(self, index: int) -> dict[str, np.ndarray] | None:
        """What a process has kept of a pass, by name; None where nothing of this run is there or it is broken: the pass begins anew."""
        if self.folder is None:
            return None
        try:
            with np.load(self._part(index), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return arrays if str(arrays.pop("identity", "")) == self.identity else None

    def load(self) -> tuple[str, dict[str, np.ndarray]] | None:
        """The newest state that is whole: its stage and its arrays by name; None in an empty folder."""
        kept = self._newest()
        counts = [int(count) for count in self.processes.gathered(np.asarray(self.count))]
        if len(set(counts)) > 1:
            raise ValueError(
                f"{self.folder}: processes see different states in it; give a folder that all of them share"
            )
        return kept

    def _newest(self) -> tuple[str, dict[str, np.ndarray]] | None:
        if self.folder is None or not self._paths():
            return None
        for path in self._paths()[::-1]:
            try:
                with np.load(path, allow_pickle=False) as stored:
                    arrays = {name: stored[name] for name in stored.files}
                stage, identity = str(arrays.pop("stage")), str(arrays.pop("identity"))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                warnings.warn(
                    f"{path}: broken, the state before it is used: {one_line(error)}", UserWarning, stacklevel=5
                )
                continue
            if identity != self.identity:
                raise ValueError(
                    f"{path}: kept by another run; give the same problem, source, key and settings, or another folder "
                    f"({identity}, here {self.identity})"
                )
            self.count = int(path.stem.split("-")[1])
            return stage, arrays
        raise ValueError(f"{self.folder}: no state in it is whole; remove its files to start anew")

    def _part(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"part-{index}.npz"

    def _paths(self) -> list[Path]:
        assert self.folder is not None
        return sorted(self.folder.glob("state-*.npz"))


def identity_of(problem: Problem, key, *settings) -> str:
    """A run's name: what must agree for a state to be of use to it."""
    numbers = [float(problem.lam), problem.offset, problem.signed, problem.gauge]
    numbers += [
        None if part is None else float(np.sum(np.asarray(part, float))) for part in (problem.metric, problem.weights)
    ]
    key = jax.random.key_data(key) if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return repr((*numbers, np.asarray(key).tolist(), *settings))


def restored(template, arrays: dict[str, np.ndarray], name: str = "") -> Any:
    """A state in the form of the template, from its arrays by name."""
    if hasattr(template, "_fields"):
        parts = (restored(getattr(template, field), arrays, f"{name}.{field}") for field in template._fields)
        return type(template)(*parts)
    return arrays[name]


def _flat(state, name: str = "") -> dict[str, np.ndarray]:
    if not hasattr(state, "_fields"):
        return {name: np.asarray(state)}
    out = {}
    for field in state._fields:
        out |= _flat(getattr(state, field), f"{name}.{field}")
    return out
