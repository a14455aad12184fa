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
from jaxdict.auditing.absorbing import absorption_facts, edges_of
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
from jaxdict.auditing.kinds import has_l1_penalty
from jaxdict.auditing.neighbours import neighbours
from jaxdict.auditing.nested import Nested, nested_facts
from jaxdict.auditing.parting import parted, source_of
from jaxdict.auditing.split_rows import budgets, rows_by_size, rows_by_time, worth_a_descent
from jaxdict.auditing.splitting import Others, Split, split_error
from jaxdict.auditing.streaming import Pass, keep_pass, stream
from jaxdict.auditing.units import ends_of
from jaxdict.certificates.stationarity import Stationarity, stationarity
from jaxdict.conditions.barycentres import unit_moments
from jaxdict.objectives import Moments
from jaxdict.problem import Dictionary, Problem, SparseCodes
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


class View(NamedTuple):
    """Problem P's view of an SAE: what needs lam."""

    lam: Lam
    problem: Problem
    gaps: Gaps
    held_out: HeldOut | None  # None where no descent was made, or no rows were left
    own: Stationarity  # of the SAE's own codes, on the sample
    exact_sums: Moments  # of the exact codes
    pairs: list[dict] | None  # None where codes have both signs: not looked for
    barycentre: dict[str, Any]


class Measured(NamedTuple):
    """All that an audit measured. Features are in the canonical gauge: unit decoder rows."""

    sae: SAE  # canonical, in the working precision
    norms: np.ndarray  # of the decoder's rows as stored, (features,)
    dictionary: Dictionary
    lam: Lam | str  # or why there is none
    passed: Pass  # the SAE's own codes on all rows
    sample: Sample  # some rows, with exact codes where there is a lam
    split: Split
    view: View | None  # None where there is no lam
    features: list[dict]
    duplicates: list[dict]
    antipodal: list[dict]
    nested: Nested  # T21 to T23
    absorption: dict[str, Any] | None  # of edges, by (parent, child); None where codes have both signs
    documents: int | None  # the units of T17 in the pass; None where rows are
    grouped: bool  # whether documents were given
    seconds: float


def measure(
    sae: SAE,
    X: Float[Any, "samples d_in"],
    lam: float | None,
    rows: np.ndarray,
    *,
    groups: np.ndarray | None,
    named: bool,
    minutes: float | None,
    descent_steps: int | None,
    held_out: bool,
    top: int,
    tell: Tell,
    checkpoint: Path | None,
) -> Measured:
    """Everything that an audit says something about; arguments as for `audit`, `rows` those of the sample, `named` by it."""
    begin = time.perf_counter()
    tell("sample", 0, 1)
    norms = np.asarray(sae.norms, np.float64)
    sae = in_precision(sae, jnp.result_type(float)).canonical()
    Xs, own = sample_rows(sae, X, rows)
    dictionary = Dictionary(*(jnp.asarray(part, Xs.dtype) for part in sae.dictionary))
    signed = bool(jnp.any(own.values < 0))
    weight = choose_lam(lam, sae, dictionary, own, Xs)
    bound = weight.value if isinstance(weight, Lam) else math.inf
    streamed, centre = in_precision(sae, jnp.float32), np.asarray(sae.target(X[rows])).astype(np.float64).mean(axis=0)
    ends = ends_of(groups)
    kept = {"checkpoint": checkpoint, "name": _name(streamed, X, centre, bound, ends)}
    passed = stream(
        streamed, X, centre, bound, ends=ends, progress=functools.partial(tell, "pass over all rows"), **kept
    )
    try:
        sample, view = Sample(rows, Xs, own, None), None
        dead = None if descent_steps == 0 else np.flatnonzero(passed.totals.counts == 0)
        split = _split(sae, X, dictionary, sample, dead, signed, groups, named, minutes, tell)
        if isinstance(weight, Lam):
            problem = Problem(lam=weight.value, offset=True, signed=signed).astype(Xs.dtype)
            steps = _descent_steps(len(rows) * sae.d_sae) if descent_steps is None else descent_steps
            sample, view = _view(sae, X, weight, problem, dictionary, passed, sample, steps, held_out, 4 * top, tell)
        tell("features and pairs", 0, 1)
        known = None if view is None else (view.problem, view.exact_sums)
        near = neighbours(np.asarray(dictionary.atoms), top)
        close = findings.close_pairs(near, passed.table)
        features = findings.feature_rows(known, dictionary, norms, passed.totals, near)
        nested = nested_facts(sae, dictionary, passed.table, sample, signed, top)
        listed = [*((view.pairs if view else None) or []), *nested.listed]
        absorbed = None if signed else absorption_facts(dictionary, sample, edges_of(listed, features))
        units = None if ends is None else len(ends), groups is not None
        seconds = time.perf_counter() - begin
        return Measured(
            sae, norms, dictionary, weight, passed, sample, split, view, features, *close, nested, absorbed, *units, seconds
        )  # fmt: skip
    except KeyboardInterrupt:
        keep_pass(X, passed, **kept)  # the dear part: called again the audit goes on from here
        raise


def _split(
    sae: SAE, X, dictionary: Dictionary, sample: Sample, dead: np.ndarray | None, signed: bool, groups, named: bool,
    minutes: float | None, tell: Tell,
) -> Split:  # fmt: skip
    """The split of the error, on the sample or as many rows as fit the minutes; without `dead` no dictionary is descended from."""
    tell("values, supports, decoder", 0, 1)
    until = math.inf if minutes is None else time.perf_counter() + 60 * minutes
    rows, Xs, own = sample.rows, sample.X, sample.own
    l0 = float(jnp.mean(jnp.sum(own.values != 0, axis=1)))
    if minutes is not None and not named:
        rows = take_rows(X.shape[0], rows_by_time(60 * minutes, dictionary, Xs, own, signed, X.shape[0]))
        Xs, own = sample_rows(sae, X, rows)
    elif not named:
        at = take_rows(len(rows), rows_by_size(sae.d_sae, l0))
        rows, Xs, own = rows[at], Xs[at], SparseCodes(own.indices[at], own.values[at])
    names = None if groups is None else groups[rows]
    parting, others = parted(len(rows), names), None
    if dead is not None and parting is not None and worth_a_descent(sae.d_sae, minutes):
        source = source_of(sae, X, rows[parting.fresh], groups, own.values.shape[1])
        told = lambda stage: tell(stage, 0, 1)  # noqa: E731
        others = None if source is None else Others(source, budgets(sae.d_sae, l0, until), dead, told)
    return split_error(dictionary, Xs, own, signed=signed, groups=names, others=others)


def _view(
    sae: SAE, X, weight: Lam, problem: Problem, dictionary: Dictionary, passed: Pass, sample: Sample,
    steps: int, held_out: bool, pairs: int, tell: Tell,
) -> tuple[Sample, View]:  # fmt: skip
    """The sample with exact codes, and problem P's view: exact codes, a descent, the wide bound, pairs."""
    tell("exact codes", 0, 1)
    sample = exact_sample(problem, dictionary, sample.rows, sample.X, sample.own)
    tell("descent and wide bound", 0, 1)
    gaps = measure_gaps(problem, dictionary, sample, steps=steps, tol=DESCENT_TOL)
    tell("held-out rows", 0, 1)
    sums = unit_moments(problem, dictionary, sample.exact_codes, sample.X)
    return sample, View(
        lam=weight,
        problem=problem,
        gaps=gaps,
        held_out=_held_out(sae, X, problem, dictionary, sample.rows, gaps) if held_out else None,
        own=stationarity(problem, dictionary, sample.own, sample.X),
        exact_sums=sums,
        pairs=None if problem.signed else findings.pair_rows(problem, dictionary, passed.table, sample, top=pairs),
        barycentre=findings.barycentre_facts(problem, dictionary, sums),
    )


def choose_lam(given: float | None, sae: SAE, dictionary: Dictionary, own, Xs) -> Lam | str:
    """The lam that was given, else that of the metadata, else, where the penalty is L1, the estimate; or why there is none.

    Raises ValueError for a lam that is not positive.
    """
    if given is not None and not (math.isfinite(given) and given > 0):
        raise ValueError(f"lam is {given}; give a positive number, half the package's l1 coefficient")
    if given is None and not has_l1_penalty(sae):
        return (
            f"lam has no part in this SAE's training loss ({sae.metadata.architecture}), so problem P does not judge it: "
            "its error is split in its own currency. Give lam to see P's view all the same."
        )
    sums = unit_moments(Problem(lam=1.0), dictionary, own, Xs)
    along = np.sum(np.asarray(sums.cross) * np.asarray(dictionary.atoms), axis=1)
    estimate, spread = estimate_lam(along, np.asarray(sums.mean_codes))  # ratios: sums do as well as means
    if given is not None:
        return Lam(float(given), "given", estimate, spread)
    if sae.lam is not None and math.isfinite(sae.lam) and sae.lam > 0:
        return Lam(float(sae.lam), "metadata", estimate, spread)
    if not estimate > 0:
        return (
            f"No lam fits this SAE on these activations: the estimate is {estimate:.3g}, it must be positive. Give lam, half the "
            "package's l1 coefficient, to see problem P's view."
        )
    return Lam(estimate, "estimated", estimate, spread)


def in_precision(sae: SAE, dtype) -> SAE:
    """The SAE with its arrays in another precision, on the device."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), sae)


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


def _name(sae: SAE, X, centre, lam: float, ends) -> str:
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
    return digest(static, centre, ends, jax.tree.leaves(sae))
