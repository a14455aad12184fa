"""`audit`: how far a trained SAE is from optimal, and why, as one document (theory.md section 5)."""

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdict.auditing import cards, findings, wording
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
from jaxdict.auditing.labels import check_labels
from jaxdict.auditing.streaming import Pass, stream
from jaxdict.auditing.thresholds import Failure, failures, parse_threshold
from jaxdict.certificates.stationarity import stationarity
from jaxdict.conditions.barycentres import unit_moments
from jaxdict.conditions.residuals import residual_from_sums
from jaxdict.objectives import residual
from jaxdict.problem import Dictionary, Problem
from jaxdict.reporting.audit_page import audit_html
from jaxdict.results import as_plain, replace_file
from jaxdict.sae.models import SAE, check_activations

SCHEMA = "jaxdict-audit-1"
# Steps of the short descent, fewer where a step is dear (entries of the sample's codes), and the stationarity at which it may stop.
DESCENT_STEPS, FEW_DESCENT_STEPS, CHEAP_ENTRIES = 60, 4, 2**21
DESCENT_TOL = 1e-4
# Held-out rows are fewer where codes are dear, after a descent that learned its rows by heart above all.
HELD_OUT_LEAST, HELD_OUT_ENTRIES = 256, 2**21
# Pairs that have a card; four times as many are listed.
TOP = 50


class Lam(NamedTuple):
    """The sparsity weight, where it comes from, and what the SAE itself says of it."""

    value: float
    source: str  # given, metadata or estimated
    estimate: float
    own: np.ndarray  # of each live feature


@dataclass(frozen=True)
class Audit:
    """What an audit found: `document` is the whole of it as plain data (schema "jaxdict-audit-1").

    `gaps` and `sample` hold the arrays behind it: the exact codes, the point that the descent reached.
    """

    document: dict[str, Any]
    gaps: Gaps = field(repr=False)
    sample: Sample = field(repr=False)

    @property
    def measures(self) -> dict[str, float | None]:
        """The numbers that thresholds may speak of, by name."""
        return {measure["name"]: measure["value"] for measure in self.document["measures"]}

    def check(self, *conditions: str) -> list[Failure]:
        """The conditions that are met, such as "explained_variance<0.8"; none: the audit passes.

        Raises ValueError for a condition that is not understood.
        """
        return failures([parse_threshold(text, self.measures) for text in conditions], self.measures)

    def summary(self) -> str:
        """The verdict in sentences."""
        return " ".join(self.document["verdict"])

    def to_json(self, path) -> Path:
        """Write the document as JSON; a reader sees the old file or the whole new one."""
        text = json.dumps(self.document, allow_nan=False, indent=1) + "\n"
        return _written(Path(path), text)

    def to_html(self, path) -> Path:
        """Write one self-contained page that opens without a network."""
        return _written(Path(path), audit_html(self.document))


def audit(
    sae: SAE,
    X,
    lam: float | None = None,
    *,
    labels=None,
    exact_samples: int = 2048,
    rows=None,
    descent_steps: int | None = None,
    held_out: bool = True,
    top: int = TOP,
    progress: Callable[[str, int, int], None] | None = None,
    checkpoint=None,
    paths: dict[str, str] | None = None,
) -> Audit:
    """How far a trained SAE is from optimal on activations, and why: gaps, features, pairs, residuals.

    One pass over all of X with the SAE's own codes, in chunks; then exact codes, a short certified descent and the wide
    bound on a sample of rows (theory.md section 5): `F(SAE) - F_wide = amortisation + dictionary + width`. Features are in
    the canonical gauge (unit decoder rows); F is `mean 1/2 ||x - x_hat||^2 + lam sum f` where the dictionary lives (the data
    itself, unless the SAE normalises).

    **Arguments:**

    - `X`: (samples, d_in) activations; a numpy array, memory map or `jaxdict.files.Shards` is read chunk by chunk.
    - `lam`: sparsity weight, half of the packages' l1 coefficient. None: from the SAE's metadata, else estimated from the
      SAE's own codes (section 5).
    - `labels`: one text a row of X, shown beside examples.
    - `exact_samples`: rows with exact codes, evenly spread; or `rows`: which ones (integers).
    - `descent_steps`: steps of the descent from the SAE's dictionary, by default 60, or 4 where rows x features of the sample
      exceed two million; 0 for none (the dictionary gap is then 0).
    - `held_out`: also measure the dictionary gap on as many other rows (fewer for wide SAEs).
    - `top`: how many pairs, cards and neighbours are listed.
    - `progress`: called with (stage, done, total); `checkpoint`: a file in which the pass over the rows is kept, so that a
      stopped audit resumes.

    The sample is computed in jax's default precision: enable x64 for numbers to the last digit.

    **Returns** an `Audit`: `.summary()`, `.document`, `.to_html(path)`, `.to_json(path)`, `.check("l0>50")`.

    **Raises** ValueError for activations the SAE cannot read, NaN or infinity in them, labels of the wrong number, and
    where no positive lam fits. Host code around jitted pieces: not for jit or vmap.

    >>> import numpy as np, jaxdict as jd
    >>> X = np.abs(np.random.default_rng(0).normal(size=(64, 2))).astype(np.float32)
    >>> found = audit(jd.sae.tied_sae(jd.Dictionary(jnp.eye(2), jnp.zeros(2)), 0.1), X, descent_steps=0)
    >>> sorted(found.measures)[:3], round(found.gaps.amortisation, 6)  # orthogonal atoms: one step is exact
    (['active_share', 'amortisation_gap', 'amortisation_share'], 0.0)
    """
    begin = time.perf_counter()
    tell = progress or (lambda stage, done, total: None)
    check_activations(sae, X)
    if np.ndim(X) != 2:
        raise ValueError(f"activations have shape {np.shape(X)}; jaxdict wants (samples, d_in)")
    labels = None if labels is None else check_labels(labels, X.shape[0])
    rows = take_rows(X.shape[0], exact_samples) if rows is None else np.asarray(rows)
    tell("sample", 0, 1)
    norms = np.asarray(sae.norms, np.float64)
    sae = in_precision(sae, jnp.result_type(float)).canonical()
    Xs, own = sample_rows(sae, X, rows)
    dictionary = Dictionary(*(jnp.asarray(part, Xs.dtype) for part in sae.dictionary))
    weight = choose_lam(lam, sae, dictionary, own, Xs)
    problem = Problem(lam=weight.value, offset=True, signed=bool(jnp.any(own.values < 0))).astype(Xs.dtype)
    passed = stream(
        in_precision(sae, jnp.float32),
        X,
        np.asarray(X[rows]).astype(np.float64).mean(axis=0),
        weight.value,
        progress=functools.partial(tell, "pass over all rows"),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        name=_name(sae, X, weight.value),
    )
    tell("exact codes", 0, 1)
    sample = exact_sample(problem, dictionary, rows, Xs, own)
    tell("descent and wide bound", 0, 1)
    if descent_steps is None:
        descent_steps = DESCENT_STEPS if len(rows) * sae.d_sae <= CHEAP_ENTRIES else FEW_DESCENT_STEPS
    gaps = measure_gaps(problem, dictionary, sample, steps=descent_steps, tol=DESCENT_TOL)
    tell("held-out rows", 0, 1)
    beyond = None
    if held_out and gaps.reached is not None:
        other = _other_rows(sae, X, rows, max(HELD_OUT_LEAST, HELD_OUT_ENTRIES // sae.d_sae))
        beyond = None if other is None else held_out_gap(problem, dictionary, gaps.reached.dictionary, other)
    tell("features and pairs", 0, 1)
    document = describe(sae, norms, X, labels, problem, dictionary, weight, passed, sample, gaps, beyond, top)
    document["seconds"] = round(time.perf_counter() - begin, 2)
    document["sae"]["path"], document["data"]["path"] = ((paths or {}).get(name) for name in ("sae", "data"))
    tell("done", 1, 1)
    return Audit(as_plain(document), gaps, sample)


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


def describe(
    sae: SAE,
    norms: np.ndarray,
    X,
    labels,
    problem: Problem,
    dictionary: Dictionary,
    weight: Lam,
    passed: Pass,
    sample: Sample,
    gaps: Gaps,
    beyond: HeldOut | None,
    top: int,
) -> dict[str, Any]:
    """The document, from what was measured."""
    totals, table = passed
    exact_sums = unit_moments(problem, dictionary, sample.exact_codes, sample.X)
    features = findings.feature_rows(problem, dictionary, norms, totals, exact_sums)
    for row in features:
        row["label"] = cards.top_labels(table, row["feature"], labels)
    pairs: list[dict] = []
    if not problem.signed:
        pairs = findings.pair_rows(problem, dictionary, table, sample.X, sample.own, sample.exact_codes, top=top * 4)
    for pair in pairs:
        pair["cost_share"] = pair["cost"] / gaps.exact
    duplicates, antipodal = findings.close_pairs(np.asarray(dictionary.atoms, np.float64), table, top)
    own_point = stationarity(problem, dictionary, sample.own, sample.X)
    new_atom = _new_atom(dictionary, sample, gaps, weight.value, labels)
    barycentre = findings.barycentre_facts(problem, dictionary, exact_sums)
    directions = residual_from_sums(problem, dictionary, exact_sums).direction
    worst = sorted(
        (row for row in features if not row["dead"] and np.isfinite(row["stationarity_exact"])),
        key=lambda row: -row["turn_gain"],
    )[: min(top, cards.FEATURE_CARDS)]
    document = {
        "schema": SCHEMA,
        "made_with": {"jax": jax.__version__, "numpy": np.__version__},
        "sae": _sae_facts(sae),
        "data": {
            "rows": int(X.shape[0]),
            "dtype": str(X.dtype),
            "exact_rows": len(sample.rows),
            "held_out_rows": beyond.rows if beyond else None,
            "labelled": labels is not None,
        },
        "lam": wording.lam_facts(weight),
        "gaps": wording.gap_facts(gaps, beyond, sample),
        "features": features,
        "pairs": pairs,
        "duplicates": duplicates,
        "antipodal": antipodal,
        "new_atom": new_atom | {"sentence": wording.new_atom_sentence(new_atom)},
        "barycentre": barycentre | {"sentence": wording.barycentre_sentence(barycentre)},
        "cards": {
            "pairs": [cards.pair_card(table, pair, labels) for pair in pairs[:top]],
            "features": [
                cards.feature_card(
                    problem, dictionary, sample, table, row["feature"], directions[row["feature"]], labels
                )
                for row in worst
            ],
        },
    }
    document["measures"] = wording.measures(totals, own_point, sample, gaps, document)
    document["verdict"] = wording.verdict(document)
    return document


def _sae_facts(sae: SAE) -> dict[str, Any]:
    """What the SAE is."""
    about = sae.metadata
    return {
        "format": about.format,
        "architecture": about.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "model": about.model,
        "hook": about.hook,
        "notes": list(about.notes),
    }


def _new_atom(dictionary: Dictionary, sample: Sample, gaps: Gaps, lam: float, labels) -> dict[str, Any]:
    """The best new atom for the residual of exact codes, and the rows that would use it (T10)."""
    left, birth = np.asarray(residual(dictionary, sample.exact_codes, sample.X)), gaps.certificate.birth
    return {
        "gain": float(birth.gain),
        "gain_share": float(birth.gain) / gaps.exact,
        "max_ratio": float(gaps.certificate.max_residual_ratio),
        "share_beyond_lam": float(np.mean(np.linalg.norm(left, axis=1) > lam)),
        "rows": cards.atom_rows(sample, birth.atom, left, lam, labels),
    }


def in_precision(sae: SAE, dtype) -> SAE:
    """The SAE with its arrays in another precision, on the device."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), sae)


def _other_rows(sae: SAE, X, rows, most: int):
    """As many rows that are not among `rows`, at most `most`, as the dictionary sees them; None where there are too few."""
    left, wanted = np.setdiff1d(np.arange(X.shape[0]), rows), min(len(rows), most)
    if len(left) < wanted:
        return None
    return sample_rows(sae, X, left[take_rows(len(left), wanted)])[0]


def _name(sae: SAE, X, lam: float) -> str:
    """A fingerprint of what a pass over the rows depends on."""
    digest = hashlib.sha256(repr((X.shape, str(X.dtype), lam, sae.activation, sae.normalisation, sae.centred)).encode())
    for leaf in jax.tree.leaves(sae):
        digest.update(np.asarray(leaf).tobytes())
    ends = np.unique(np.linspace(0, X.shape[0] - 1, 8).astype(np.int64))
    digest.update(np.ascontiguousarray(np.asarray(X[ends]).astype(np.float32)).tobytes())
    return digest.hexdigest()[:16]


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
    return path
