"""Where a dictionary descends to, on rows that are fitted to: on problem P, or at each row's own number of features."""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdict.auditing.better_sae.judging import batch_rows, best_of_problem
from jaxdict.auditing.better_sae.rows import Seen
from jaxdict.auditing.better_sae.running import own_codes
from jaxdict.auditing.better_sae.task import DESCENT, Task
from jaxdict.auditing.descending import WINDOW, Search, descending
from jaxdict.auditing.parting import Source
from jaxdict.auditing.split_rows import Budget
from jaxdict.population.comparisons import Comparison
from jaxdict.problem import Dictionary
from jaxdict.solvers.online import Online
from jaxdict.solvers.stopping import hand_over
from jaxdict.streaming.run import StreamSolution, fit_stream

# Up to so many rows a descent on problem P is of exact passes alone: from a good start batches only add their noise.
FEW_ROWS = 2**14
# Rows kept aside that a descent at the same sparsity looks at, and entries (rows, atoms) of them; rows of a step, an atom.
MOST_LOOKED_AT, LEAST_LOOKED_AT, LOOK_ENTRIES, ROWS_AN_ATOM = 4096, 256, 2**24, 4
# The slots of searched codes are a multiple of this.
SLOT_STEP = 8


class Reached(NamedTuple):
    """Where a descent ended: the dictionary, None where rows kept aside gained nothing; rows that it was fitted to."""

    dictionary: Dictionary | None
    solution: StreamSolution | None
    fitted: int


class TimeIsUpError(Exception):
    """The descent's share of the minutes is over."""


def gains(found: Comparison) -> bool:
    """Whether rows kept aside gained more than the gain's standard error."""
    return bool(found.gain > found.standard_error)


def descended(task: Task) -> Reached:
    """The descent in the SAE's own currency. What stops it carries what was reached as its attribute `reached`."""
    return _on_problem(task) if task.lam is not None else _at_size(task)


def _on_problem(task: Task) -> Reached:
    """Problem P, codes exact, as `fit_stream` does it."""
    n = len(task.train)
    solver = Online(epochs=0) if n <= FEW_ROWS else Online()
    options: dict[str, Any] = {"solver": solver, "held_out": task.aside, "passes": task.asked.max_steps}
    options |= {"start": task.start, "tol": task.asked.tol, "callback": _timed(task)}
    try:
        found = fit_stream(task.problem, task.train, key=jax.random.key(0), **options)
    except BaseException as stopped:
        found = getattr(stopped, "solution", None)
        if found is None:
            raise
        if not isinstance(stopped, TimeIsUpError):
            hand_over(stopped, reached=Reached(found.dictionary, found, n))
            raise
    before, after = (best_of_problem(task.problem, at, task.aside).values for at in (task.start, found.dictionary))
    better = gains(task.parts.gain(before - after, task.parts.aside))
    return Reached(found.dictionary if better else None, found, n)


def _timed(task: Task):
    """The callback, and the end where the descent's share of the minutes is over."""
    until, callback = task.until(DESCENT), task.asked.callback
    if until == math.inf:
        return callback

    def told(progress) -> None:
        if callback is not None:
            callback(progress)
        if time.perf_counter() > until:
            raise TimeIsUpError

    return told


def _at_size(task: Task) -> Reached:
    """The squared error, codes the best found of as many features a row as the SAE has on."""
    K, tell, most = task.start.atoms.shape[0], task.teller("dictionary"), task.asked.max_steps
    source = _source(task)
    window = max(WINDOW, ROWS_AN_ATOM * K)
    step = source.batch * max(1, min(window, len(source.train)) // source.batch)
    reached = Reached(None, None, 0)
    budget = Budget(float(most * step), task.until(DESCENT))
    steps = descending(task.start, source, search_of(task), budget, beside=task.start, window=window)
    try:
        for k, (descent, errors) in enumerate(steps):
            reached = Reached(descent.dictionary, None, descent.rows)
            error = float(jnp.std(errors)) / math.sqrt(len(errors))
            tell(k + 1, most, (k + 1) * step, float(jnp.mean(errors)), error, descent.dictionary or task.start)
    except BaseException as stopped:
        hand_over(stopped, reached=reached)
        raise
    return reached


def _source(task: Task) -> Source:
    """Rows as a descent at the same sparsity reads them: by their numbers, with the features that the SAE has on in each."""
    own, K = task.own, task.start.atoms.shape[0]
    slots = search_of(task).slots

    def read(numbers: np.ndarray):
        x = task.every[np.sort(numbers)]
        sizes = own_codes(own, in_memory(x), None).active  # type: ignore[arg-type]
        return jnp.asarray(x), np.minimum(sizes, slots).astype(np.int32)

    looked = min(len(task.parts.aside), MOST_LOOKED_AT, max(LEAST_LOOKED_AT, LOOK_ENTRIES // K))
    places = np.linspace(0, len(task.parts.aside) - 1, looked).round().astype(int)
    order = np.random.default_rng(1).permutation(task.parts.train)
    return Source(read, order, task.parts.aside[np.unique(places)], batch_rows(len(order), K))


def search_of(task: Task) -> Search:
    """How codes are searched: with as many slots as the fullest of the rows kept aside needs, signed where the SAE's are."""
    codes = [own for own in (task.own_aside, task.own_judged) if own is not None]
    fullest = max(int(own.active.max(initial=1)) for own in codes)
    slots = min(task.start.atoms.shape[0], SLOT_STEP * max(1, -(-fullest // SLOT_STEP)))
    return Search(any(own.negative for own in codes), slots)


def in_memory(x: Float[np.ndarray, "rows d"]) -> Seen:
    """Rows in memory that are as the dictionary sees them already."""
    return Seen(None, x, np.arange(len(x)), x.dtype)
