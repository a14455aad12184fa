"""What the stages of a stream's fit share: the task, what is told of its progress, looks at the rows kept aside."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxdict.problem import Dictionary, Problem
from jaxdict.solvers.online import Online
from jaxdict.streaming.checkpoints import Checkpoints
from jaxdict.streaming.held_out import held_values, mean_and_error
from jaxdict.streaming.processes import ALONE, Processes
from jaxdict.streaming.reservoir import Reservoir, empty_reservoir, pooled
from jaxdict.streaming.sources import Batches, Blocks
from jaxdict.streaming.sums import Sums, plus
from jaxdict.streaming.warm import WarmCodes

# Looks back over which a gain on the rows kept aside must exceed its standard error.
PATIENCE = 5
# Seconds between two calls of the callback while no figure is new.
TELL_SECONDS = 1.0

STAGES = ("online", "passes")


class StreamProgress(NamedTuple):
    """What a callback is told: stage; step (a batch, or a chunk of a pass) and most steps; rows coded so far in the stage; the last
    objective on rows kept aside with its standard error; the seconds that the stage takes at most if it goes on as it went; the
    dictionary so far: the batches' average, or that of the passes which is best on the rows kept aside."""

    stage: str
    step: int
    max_steps: int
    rows: int
    objective: float
    standard_error: float
    seconds_left: float
    dictionary: Dictionary


@dataclass(frozen=True)
class Job:
    """The task."""

    problem: Problem  # constrained gauge, no weights, in the data's dtype
    given: Problem
    source: Blocks | Batches
    n_atoms: int
    dtype: np.dtype
    key: jax.Array
    solver: Online
    passes: int
    tol: float
    checkpoints: Checkpoints
    warm: WarmCodes
    callback: Callable | None
    processes: Processes = ALONE
    clock: "Clock" = field(default_factory=lambda: Clock())
    reached: "Reached" = field(default_factory=lambda: Reached())

    def generator(self, *numbers: int) -> np.random.Generator:
        """Luck that depends on the key and the numbers only."""
        key = self.key
        key = jax.random.key_data(key) if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) else key
        return np.random.default_rng([*np.asarray(key).ravel().tolist(), *numbers])

    def together(self, sums: Sums) -> tuple[Sums, bool]:
        """Sums over the rows of all processes, and whether it is time for a state by the first one's clock."""
        add = lambda first, second: (plus(first[0], second[0]), first[1])  # noqa: E731
        total, due = self.processes.total((sums, np.asarray(self.checkpoints.due())), add)
        return total, bool(due)

    def pooled(self, reservoir: Reservoir) -> Reservoir:
        """The luckiest of all processes' rows."""
        return self.processes.total(reservoir, pooled)

    def own(self, reservoir: Reservoir) -> Reservoir:
        """A pooled reservoir with the first process, empty ones with the others, so that no row is pooled twice."""
        return reservoir if self.processes.index == 0 else empty_reservoir(self.source.d, self.dtype)

    def look(self, dictionary: Dictionary, otherwise: float):
        """The objective on the rows kept aside with its standard error, and by row; without such rows what is given instead."""
        held = self.source.held
        if held is None:
            return otherwise, float("nan"), np.zeros(0)
        values = held_values(self.problem, dictionary, held, self.processes)
        return *mean_and_error(values, held), values

    def level(self, values: Float[np.ndarray, "looks samples"]) -> bool:
        """Whether the last looks gained less than the gain's standard error, rows kept aside being paired."""
        held = self.source.held
        if held is None or len(values) <= PATIENCE:
            return False
        gain, error = mean_and_error(values[0] - values[-1], held)
        return not gain > error

    def tell(self, stage: str, step: int, most: int, rows: int, run, *, new: bool = False) -> None:
        """Tell the callback, where there is something new or a while has passed."""
        now = time.monotonic()
        if self.clock.stage != stage:
            self.clock.stage, self.clock.began, self.clock.first = stage, now, step - 1
        if self.callback is None or not (new or now - self.clock.told >= TELL_SECONDS):
            return
        self.clock.told = now
        left = (now - self.clock.began) / max(step - self.clock.first, 1) * max(most - step, 0)
        objective, error = run.looks[-1, 3:5] if len(run.looks) else (float("nan"), float("nan"))
        self.reached.told = True
        self.callback(StreamProgress(stage, step, most, rows, float(objective), float(error), left, run.dictionary()))
        self.reached.told = False


@dataclass
class Reached:
    """Where the run stands, for whoever stops it; `told` while the callback is called."""

    run: Any = None
    told: bool = False


@dataclass
class Clock:
    """When a stage began and the callback was last called."""

    stage: str = ""
    began: float = 0.0
    first: int = 0
    told: float = 0.0


def noted(looks, stage: int, step: int, rows: int, objective: float, error: float, stationarity: float):
    """The history with one look more: stage, step, rows, objective, standard error, stationarity."""
    return np.concatenate([looks, [[stage, step, rows, objective, error, stationarity]]])


def kept_values(values, new):
    """Values by row of the last looks, as many as `level` needs."""
    return np.concatenate([values, new[None]])[-(PATIENCE + 1) :]
