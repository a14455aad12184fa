"""A run's state on disk: written whole under a temporary name and renamed, the last two kept, a broken one refused in one line."""

import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdict.files import check_writable, one_line
from jaxdict.problem import Problem
from jaxdict.storage import replace_arrays

# Seconds between two states where the work itself has no natural end.
SECONDS = 30.0


class Checkpoints:
    """The states of one run in a folder; without a folder none is kept."""

    def __init__(self, folder, identity: str):
        self.folder = None if folder is None else check_writable(folder)
        self.identity, self.last, self.count = identity, time.monotonic(), 0

    def due(self) -> bool:
        """Whether it is time for another one."""
        return self.folder is not None and time.monotonic() - self.last >= SECONDS

    def save(self, stage: str, state) -> None:
        """Keep a state (nested named tuples of arrays) and the one before it."""
        if self.folder is None:
            return
        self.count += 1
        arrays = {"stage": np.asarray(stage), "identity": np.asarray(self.identity), **_flat(state)}
        replace_arrays(self.folder / f"state-{self.count:08d}.npz", arrays)
        for path in self._paths()[:-2]:
            path.unlink(missing_ok=True)
        self.last = time.monotonic()

    def load(self) -> tuple[str, dict[str, np.ndarray]] | None:
        """The newest state that is whole: its stage and its arrays by name; None in an empty folder."""
        if self.folder is None or not self._paths():
            return None
        for path in self._paths()[::-1]:
            try:
                with np.load(path, allow_pickle=False) as stored:
                    arrays = {name: stored[name] for name in stored.files}
                stage, identity = str(arrays.pop("stage")), str(arrays.pop("identity"))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                warnings.warn(
                    f"{path}: broken, the state before it is used: {one_line(error)}", UserWarning, stacklevel=4
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
