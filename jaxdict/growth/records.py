"""What growth returns: a step a width, the tree of its atoms, and how it ended."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxdict.growth.trees import Tree
from jaxdict.population import Comparison
from jaxdict.problem import Dictionary

WIDTH, GLOBAL, LEVEL, NOTHING, NOT_FINITE, INTERRUPTED = range(6)
MESSAGES = (
    "the last width: raise it to go on",
    "globally optimal: no dictionary of any width is better on these training rows (T13)",
    "level: on the rows kept aside the last width's gain is not above three standard errors, or not by the share asked for, so the one "
    "before it is taken",
    "no atom that was found lowers the objective on the rows looked at, or each that was took the place of another",
    "non-finite values met: look for NaN or inf in the data, the start or lam",
    "interrupted: the widths reached are returned as they are",
)


class Step(NamedTuple):
    """One width: its dictionary of unit atoms and what rows say of it."""

    dictionary: Dictionary
    names: Int[np.ndarray, " width"]  # of its atoms, in `Growth.tree`
    objective: float  # F on the training rows (on streams on those looked at)
    fresh: float  # F on rows kept aside, NaN where there are none
    standard_error: float  # of it
    comparison: Comparison | None  # what it gains over the step before on the rows kept aside, paired (T18)
    birth_gain: float  # F's exact fall when its new atoms were added, each row using one of them (T10), before the fit
    born: int
    l0: float  # active atoms a training row
    own: float  # share of training rows that have an atom of their own, which no other row uses
    stationarity: float  # the worst of T1 on the training rows
    seconds: float  # since growth began

    @property
    def width(self) -> int:
        """Number of atoms."""
        return self.dictionary.atoms.shape[0]


class Growth(NamedTuple):
    """A path of dictionaries, the narrowest first. Numbers of training rows describe these rows; those of rows kept aside owe the
    atoms nothing, but did choose where growth ended (and on streams among the passes of a fit)."""

    steps: tuple[Step, ...]
    tree: Tree
    best: int  # the step that is taken
    status: int
    bound: float  # of these training rows: no dictionary of any width goes below (T11); NaN on streams
    fresh_bound: float  # of these rows kept aside: no dictionary of any width goes below; NaN where there are none
    rows: int  # training rows
    fresh_rows: int  # rows kept aside
    training: Int[np.ndarray, " rows"] | None  # the training rows' numbers in X; None on streams

    @property
    def dictionary(self) -> Dictionary:
        """The one that is taken."""
        return self.steps[self.best].dictionary

    @property
    def widths(self) -> list[int]:
        """Width by step."""
        return [step.width for step in self.steps]

    def message(self) -> str:
        """How growth ended, and which rows its numbers stand on."""
        step = self.steps[self.best]
        parts = [
            f"{step.width} atoms; {MESSAGES[self.status]}",
            f"objective {step.objective:.5g} on {self.rows} training rows",
        ]
        if np.isfinite(self.bound):
            parts.append(f"no dictionary of any width goes below {self.bound:.5g} on these")
        if np.isfinite(step.fresh):
            error, low = f"{step.standard_error:.1g}", f"{self.fresh_bound:.5g}"
            parts.append(
                f"{step.fresh:.5g} +- {error} on {self.fresh_rows} rows kept aside, and below {low} none on these"
            )
        return "; ".join(parts)

    def as_json(self, labels=None) -> dict[str, Any]:
        """The path and its tree as JSON can hold them, without the dictionaries; `labels` by atom, as `label_atoms` gives them."""
        told = ("objective", "fresh", "standard_error", "birth_gain", "born", "l0", "own", "stationarity", "seconds")
        steps = [
            {
                "width": step.width,
                "names": step.names.tolist(),
                **{name: _plain(getattr(step, name)) for name in told},
                "gain": None if step.comparison is None else _plain(step.comparison.gain),
                "gain_error": None if step.comparison is None else _plain(step.comparison.standard_error),
                "depth": float(np.mean(self.tree.depth(place))),
            }
            for place, step in enumerate(self.steps)
        ]
        facts = {"message": self.message(), "status": self.status, "best": self.best, "rows": self.rows}
        facts |= {"fresh_rows": self.fresh_rows, "bound": _plain(self.bound), "fresh_bound": _plain(self.fresh_bound)}
        return facts | {"steps": steps, "tree": self.tree.as_json(labels)}


class GrowthProgress(NamedTuple):
    """What a callback is told: the steps that are done; the width at work and the last one asked for; the fit's own progress
    (`Progress`, on streams `StreamProgress`), None where a step has just been done."""

    steps: tuple[Step, ...]
    width: int
    last_width: int
    fit: Any


def _plain(value) -> float | int | None:
    if isinstance(value, int):
        return value
    number = float(value)
    return number if np.isfinite(number) else None
