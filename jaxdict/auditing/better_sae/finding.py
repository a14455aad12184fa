"""The search for a better SAE behind `polish`: a descent of the dictionary, encoders for it, and what fresh rows say."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdict.auditing.better_sae.descents import Reached, descended, gains, search_of
from jaxdict.auditing.better_sae.judging import (
    Verdict,
    as_they_run,
    best_of_problem,
    best_of_size,
    searched,
    verdict,
)
from jaxdict.auditing.better_sae.refitting import Rows, Tried, on_dictionary, refitted, tried
from jaxdict.auditing.better_sae.running import own_codes
from jaxdict.auditing.better_sae.task import FIRST_ENCODER, Task
from jaxdict.problem import Dictionary
from jaxdict.sae.encoders import tied_sae
from jaxdict.sae.models import SAE
from jaxdict.streaming.run import StreamSolution


class Judged(NamedTuple):
    """What the rows say that judge."""

    dictionary: Verdict  # best codes on both sides
    sae: Verdict | None  # as it runs; None where no SAE was given
    own_after: float  # what the SAE that was made is worth, its own codes
    active: tuple[float, float]  # features on, before and after
    frequencies: tuple[Float[np.ndarray, " atoms"], Float[np.ndarray, " atoms"]]
    better: bool


class Found(NamedTuple):
    """The outcome: the dictionary reached, the SAE made, and what is said of them."""

    reached: Dictionary
    solution: StreamSolution | None
    fitted: int
    sae: SAE
    changed: bool  # whether the SAE that was made has the dictionary reached
    judged: Judged


def found_better(task: Task, reached: Reached | None = None) -> Found:
    """The whole search; where a descent that was stopped left a dictionary, the rest of it in a hurry."""
    hurry = reached is not None
    task = task._replace(asked=task.asked._replace(callback=None)) if hurry else task
    reached = descended(task) if reached is None else reached
    there = reached.dictionary or task.start
    made = None if task.own is None else _best_sae(task, reached.dictionary, hurry)
    frequencies, said = _judged_dictionary(task, there)
    if made is None:
        return _of_a_dictionary(task, reached, frequencies, said, hurry)
    assert task.own_aside is not None
    assert task.own_judged is not None
    best, changed = made
    found, active = as_they_run(task.parts, task.judged, task.own_judged, best.sae, task.lam)
    aside = task.parts.gain(task.own_aside.values - best.values, task.parts.aside)
    judged = Judged(said, found, found.after, active, frequencies, found.shown and gains(aside))
    return Found(there, reached.solution, reached.fitted, best.sae, changed, judged)


def _of_a_dictionary(task: Task, reached: Reached, frequencies, said: Verdict, hurry: bool) -> Found:
    """A bare dictionary is judged by itself; the encoder is for the better one where that is shown, else for the one given."""
    there = reached.dictionary or task.start
    assert task.lam is not None
    made = _made(task, tied_sae(there if said.shown else task.start, task.lam), hurry, task.until(1.0))
    own = own_codes(made.sae, task.judged, task.lam)
    active = float("nan"), float(np.mean(own.active))
    judged = Judged(said, None, float(np.mean(own.values)), active, frequencies, said.shown)
    return Found(there, reached.solution, reached.fitted, made.sae, said.shown, judged)


def _judged_dictionary(task: Task, there: Dictionary):
    """On which share of rows each atom is on, before and after, and the verdict on the dictionary: best codes on both sides."""
    parts, rows, tell = task.parts, task.judged, task.teller("judging")
    tell(0, 1, 0, float("nan"), float("nan"), there)
    if task.lam is not None:
        numbers = parts.judged
        both = [best_of_problem(task.problem, at, rows) for at in (task.start, there)]
    else:
        assert task.own_judged is not None
        places = searched(parts, there.atoms.shape[0], float(np.mean(task.own_judged.active)))
        numbers, sizes = parts.judged[places], task.own_judged.active[places]
        some = task.every.of(numbers)
        both = [best_of_size(at, some, sizes, search_of(task)) for at in (task.start, there)]
    said = verdict(parts, numbers, both[0].values, both[1].values, rows.dtype)
    tell(1, 1, len(numbers), said.after, float(said.gain.standard_error), there)
    return (both[0].counts / len(numbers), both[1].counts / len(numbers)), said


def _best_sae(task: Task, there: Dictionary | None, hurry: bool) -> tuple[Tried, bool]:
    """The SAE that is best on the rows kept aside, and whether it has the dictionary reached; the old one may have a new encoder."""
    own, tied = task.own, task.asked.encoder == "tied"
    assert own is not None
    found = []
    if there is not None:
        at = on_dictionary(own, there, task.lam, tied=tied)
        found.append((_made(task, at, hurry, task.until(FIRST_ENCODER)), True))
    if not (hurry and found):
        at = on_dictionary(own, task.start, task.lam, tied=tied)
        found.append((_made(task, at, hurry, task.until(1.0)), False))
    return min(found, key=lambda pair: pair[0].mean)


def _made(task: Task, sae: SAE, hurry: bool, until: float) -> Tried:
    """An SAE with its encoder fitted, or as it is where a tied one is asked for."""
    rows, tell = Rows(task.train, task.aside), task.teller("encoder")
    if task.asked.encoder == "tied":
        return tried(sae, rows, task.aim)

    def told(step: int, most: int, n: int, best: Tried) -> None:
        error = float(task.parts.gain(best.values, task.parts.aside).standard_error)
        tell(step, most, n, best.mean, error, best.sae.dictionary)

    return refitted(sae, rows, task.aim, hurry=hurry, until=until, tell=told)
