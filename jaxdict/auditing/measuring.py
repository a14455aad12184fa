"""What an audit measures, all of it before a word is said: one frozen record (theory.md section 5)."""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdict.auditing import findings
from jaxdict.auditing.gaps import (
    Gaps,
    HeldOut,
    Sample,
    estimate_lam,
    exact_sample,
    held_out_gap,
    measure_gaps,
    sample_rows,
    take_rows,
)
from jaxdict.auditing.streaming import Pass, keep_pass, stream
from jaxdict.certificates.stationarity import Stationarity, stationarity
from jaxdict.conditions.barycentres import unit_moments
from jaxdict.objectives import Moments
from jaxdict.problem import Dictionary, Problem
from jaxdict.sae.models import SAE
from jaxdict.storage import digest

# Steps of the short descent, fewer where a step is dear (entries of the sample's codes), and the stationarity at which it may stop.
DESCENT_STEPS, FEW_DESCENT_STEPS, CHEAP_ENTRIES = 60, 4, 2**21
DESCENT_TOL = 1e-4
# Held-out rows are fewer where codes are dear, after a descent that learned its rows by heart above all.
HELD_OUT_LEAST, HELD_OUT_ENTRIES = 256, 2**21

Tell = Callable[[str, int, int], Any]


class Lam(NamedTuple):
    """The sparsity weight, where it comes from, and what the SAE itself says of it."""

    value: float
    source: str  # given, metadata or estimated
    estimate: float
    own: np.ndarray  # of each live feature


class Measured(NamedTuple):
    """All that an audit measured. Features are in the canonical gauge: unit decoder rows."""

    sae: SAE  # canonical, in the working precision
    norms: np.ndarray  # of the decoder's rows as stored, (features,)
    lam: Lam
    problem: Problem
    dictionary: Dictionary
    passed: Pass  # the SAE's own codes on all rows
    sample: Sample  # exact codes on some
    gaps: Gaps
    held_out: HeldOut | None  # None where no descent was made, or no rows were left
    own: Stationarity  # of the SAE's own codes, on the sample
    exact_sums: Moments  # of the exact codes
    features: list[dict]
    pairs: list[dict]
    duplicates: list[dict]
    antipodal: list[dict]
    barycentre: dict[str, Any]
    seconds: float


def measure(
    sae: SAE,
    X: Float[Any, "samples d_in"],
    lam: float | None,
    rows: np.ndarray,
    *,
    descent_steps: int | None,
    held_out: bool,
    top: int,
    tell: Tell,
    checkpoint: Path | None,
) -> Measured:
    """Everything that an audit says something about; arguments as for `audit`, `rows` those of the sample."""
    begin = time.perf_counter()
    tell("sample", 0, 1)
    norms = np.asarray(sae.norms, np.float64)
    sae = in_precision(sae, jnp.result_type(float)).canonical()
    Xs, own = sample_rows(sae, X, rows)
    dictionary = Dictionary(*(jnp.asarray(part, Xs.dtype) for part in sae.dictionary))
    weight = choose_lam(lam, sae, dictionary, own, Xs)
    problem = Problem(lam=weight.value, offset=True, signed=bool(jnp.any(own.values < 0))).astype(Xs.dtype)
    streamed, centre = in_precision(sae, jnp.float32), np.asarray(X[rows]).astype(np.float64).mean(axis=0)
    kept = {"checkpoint": checkpoint, "name": _name(streamed, X, centre, weight.value)}
    passed = stream(streamed, X, centre, weight.value, progress=functools.partial(tell, "pass over all rows"), **kept)
    try:
        tell("exact codes", 0, 1)
        sample = exact_sample(problem, dictionary, rows, Xs, own)
        tell("descent and wide bound", 0, 1)
        steps = _descent_steps(len(rows) * sae.d_sae) if descent_steps is None else descent_steps
        gaps = measure_gaps(problem, dictionary, sample, steps=steps, tol=DESCENT_TOL)
        tell("held-out rows", 0, 1)
        beyond = _held_out(sae, X, problem, dictionary, rows, gaps) if held_out else None
        tell("features and pairs", 0, 1)
        return _with_findings(
            sae, norms, weight, problem, dictionary, passed, sample, gaps, beyond, top=top, begin=begin
        )
    except KeyboardInterrupt:
        keep_pass(X, passed, **kept)  # the dear part: called again the audit goes on from here
        raise


def choose_lam(given: float | None, sae: SAE, dictionary: Dictionary, own, Xs) -> Lam:
    """The lam that was given, else that of the metadata, else the estimate; raises ValueError where none is positive."""
    sums = unit_moments(Problem(lam=1.0), dictionary, own, Xs)
    along = np.sum(np.asarray(sums.cross) * np.asarray(dictionary.atoms), axis=1)
    estimate, spread = estimate_lam(along, np.asarray(sums.mean_codes))  # ratios: sums do as well as means
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise ValueError(f"lam is {given}; give a positive number, half the package's l1 coefficient")
        return Lam(float(given), "given", estimate, spread)
    if sae.lam is not None and math.isfinite(sae.lam) and sae.lam > 0:
        return Lam(float(sae.lam), "metadata", estimate, spread)
    if not estimate > 0:
        raise ValueError(
            f"no lam fits this SAE on these activations (the estimate is {estimate:.3g}, it must be positive); give lam, "
            "half the package's l1 coefficient"
        )
    return Lam(estimate, "estimated", estimate, spread)


def in_precision(sae: SAE, dtype) -> SAE:
    """The SAE with its arrays in another precision, on the device."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), sae)


def _with_findings(sae, norms, weight, problem, dictionary, passed, sample, gaps, beyond, *, top, begin) -> Measured:
    """The record, with what the sums and the sample say of features and pairs."""
    totals, table = passed
    sums = unit_moments(problem, dictionary, sample.exact_codes, sample.X)
    duplicates, antipodal = findings.close_pairs(np.asarray(dictionary.atoms, np.float64), table, top)
    pairs = [] if problem.signed else findings.pair_rows(problem, dictionary, table, sample, top=4 * top)
    return Measured(
        sae=sae,
        norms=norms,
        lam=weight,
        problem=problem,
        dictionary=dictionary,
        passed=passed,
        sample=sample,
        gaps=gaps,
        held_out=beyond,
        own=stationarity(problem, dictionary, sample.own, sample.X),
        exact_sums=sums,
        features=findings.feature_rows(problem, dictionary, norms, totals, sums),
        pairs=pairs,
        duplicates=duplicates,
        antipodal=antipodal,
        barycentre=findings.barycentre_facts(problem, dictionary, sums),
        seconds=time.perf_counter() - begin,
    )


def _descent_steps(entries: int) -> int:
    return DESCENT_STEPS if entries <= CHEAP_ENTRIES else FEW_DESCENT_STEPS


def _held_out(sae: SAE, X, problem: Problem, dictionary: Dictionary, rows, gaps: Gaps) -> HeldOut | None:
    """The dictionary gap on as many rows that are not among `rows`, fewer for wide SAEs; None where there are too few."""
    left = np.setdiff1d(np.arange(X.shape[0]), rows)
    wanted = min(len(rows), max(HELD_OUT_LEAST, HELD_OUT_ENTRIES // sae.d_sae))
    if gaps.reached is None or len(left) < wanted:
        return None
    other, _ = sample_rows(sae, X, left[take_rows(len(left), wanted)])
    return held_out_gap(problem, dictionary, gaps.reached.dictionary, other)


def _name(sae: SAE, X, centre, lam: float) -> str:
    """A name of what a pass over the rows depends on beside the rows, which are compared as far as it has come."""
    static = (
        tuple(X.shape),
        str(X.dtype),
        lam,
        sae.activation,
        sae.normalisation,
        sae.centred,
        jax.local_device_count(),
    )
    return digest(static, centre, jax.tree.leaves(sae))
