"""What is to be bettered and on which rows, all checks done before any compute."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdict.auditing.better_sae.refitting import Aim
from jaxdict.auditing.better_sae.rows import Parts, Seen, documents_in, parts_of, working_dtype
from jaxdict.auditing.better_sae.running import Own, own_codes
from jaxdict.auditing.kinds import has_l1_penalty
from jaxdict.auditing.labels import check_groups, check_minutes
from jaxdict.auditing.measuring import in_precision
from jaxdict.numerics import unit_rows
from jaxdict.problem import Dictionary, Problem, offset_of
from jaxdict.sae.models import SAE, Metadata, check_activations
from jaxdict.sae.transcoders import Transcoder
from jaxdict.streaming.job import StreamProgress

ENCODERS = ("fitted", "tied")


# Shares of the minutes after which the descent is to end, and the first encoder.
DESCENT, FIRST_ENCODER = 0.5, 0.75


class Asked(NamedTuple):
    """How the search is to go; arguments of `polish`."""

    encoder: str
    tol: float
    max_steps: int
    callback: Callable | None
    minutes: float | None = None


class Task(NamedTuple):
    """What is to be bettered and on which rows; SAEs are canonical and without their normalisation, as the rows are normalised."""

    own: SAE | None
    start: Dictionary
    lam: float | None
    parts: Parts
    every: Seen  # all rows, by their numbers
    own_aside: Own | None
    own_judged: Own | None
    asked: Asked
    begun: float

    @property
    def problem(self) -> Problem:
        """Problem P, where there is lam."""
        assert self.lam is not None
        return Problem(lam=self.lam).astype(self.every.dtype)

    @property
    def aim(self) -> Aim:
        """What the SAE's own codes are to lower."""
        return Aim(self.lam, 0.0 if self.own_aside is None else float(np.mean(self.own_aside.active)))

    @property
    def train(self) -> Seen:
        """Rows to fit to."""
        return self.every.of(self.parts.train)

    @property
    def aside(self) -> Seen:
        """Rows to choose by."""
        return self.every.of(self.parts.aside)

    @property
    def judged(self) -> Seen:
        """Rows to judge by."""
        return self.every.of(self.parts.judged)

    def until(self, share: float) -> float:
        """The moment (`time.perf_counter()`) at which a share of the minutes is over."""
        return math.inf if self.asked.minutes is None else self.begun + 60 * share * self.asked.minutes

    def teller(self, stage: str) -> Callable[..., None]:
        """Tells the callback of a stage: step, most steps, rows, objective and its standard error on rows kept aside, dictionary."""
        began = time.monotonic()

        def tell(step: int, most: int, rows: int, objective: float, error: float, dictionary: Dictionary) -> None:
            if self.asked.callback is not None:
                left = (time.monotonic() - began) / max(step, 1) * (most - step)
                self.asked.callback(StreamProgress(stage, step, most, rows, objective, error, left, dictionary))

        return tell


def task_of(given, X: Float[Any, "samples d_in"], lam, groups, asked: Asked) -> Task:
    """The task; the SAE's own codes of the rows kept aside are taken at once. ValueError for what cannot be polished."""
    if asked.encoder not in ENCODERS:
        raise ValueError(f"encoder={asked.encoder!r} is unknown; use one of {ENCODERS}")
    if not isinstance(given, SAE | Dictionary):
        raise ValueError(f"{type(given).__name__} cannot be polished; give an SAE or a Dictionary")
    if isinstance(given, Transcoder):
        raise ValueError(
            "a transcoder cannot be polished: its codes are for what it predicts, and P's are of its own input"
        )
    if asked.minutes is not None:
        check_minutes(asked.minutes)
    X = X if hasattr(X, "shape") and hasattr(X, "dtype") else np.asarray(X)
    lam = lam_of(given, lam)
    if isinstance(given, SAE):
        check_activations(given, X)
    if len(X.shape) != 2 or not jnp.issubdtype(X.dtype, jnp.floating):
        raise ValueError(
            f"X has shape {tuple(X.shape)} and dtype {X.dtype}; jaxdict wants floating point (samples, features)"
        )
    dtype = working_dtype(X)
    own, start = _canonical(given, dtype, X)
    parts = parts_of(X.shape[0], documents_in(X) if groups is None else check_groups(groups, X.shape[0]))
    reading = replace(in_precision(given, dtype), metadata=Metadata()) if isinstance(given, SAE) else None
    task = Task(
        own, start, lam, parts, Seen(reading, X, np.arange(X.shape[0]), dtype), None, None, asked, time.perf_counter()
    )
    if own is None:
        return task
    codes = own_codes(own, task.aside, lam), own_codes(own, task.judged, lam)
    if lam is not None:
        _refuse_signed(*codes)
    return task._replace(own_aside=codes[0], own_judged=codes[1])


def _canonical(given, dtype, X: Float[Any, "samples d_in"]) -> tuple[SAE | None, Dictionary]:
    """The SAE in the rows' precision, unit rows, for rows that are normalised already; and its dictionary."""
    if isinstance(given, Dictionary):
        like: Any = jax.ShapeDtypeStruct(X.shape, dtype)
        given = given.like(like)
        return None, Dictionary(unit_rows(given.atoms), offset_of(given))
    own = replace(in_precision(given, dtype).canonical(), normalisation="none", metadata=Metadata())
    return own, own.dictionary


def lam_of(given, lam: float | None) -> float | None:
    """The sparsity weight of problem P; None in the currency of an architecture without an L1 penalty.

    >>> lam_of(Dictionary(jnp.eye(2)), None)
    Traceback (most recent call last):
    ValueError: lam is not given and the SAE does not say: give lam, half the package's l1 coefficient
    """
    if lam is None and isinstance(given, SAE):
        if not has_l1_penalty(given):
            return None
        lam = given.lam
    if lam is None:
        raise ValueError("lam is not given and the SAE does not say: give lam, half the package's l1 coefficient")
    if not (math.isfinite(lam) and lam > 0):
        raise ValueError(f"lam is {lam}; give a positive number, half the package's l1 coefficient")
    return float(lam)


def _refuse_signed(*codes: Own) -> None:
    """Problem P's codes are non-negative: a signed SAE would come back another model."""
    rows, n = sum(own.negative for own in codes), sum(len(own.values) for own in codes)
    if rows:
        raise ValueError(
            f"this SAE's features are negative in {rows} of {n} rows, and with lam codes and encoder are made that are not: for signed "
            "codes use jd.fit(jd.Problem(lam=..., signed=True), X, start=sae.dictionary), or no lam, where the SAE has none of its own"
        )
