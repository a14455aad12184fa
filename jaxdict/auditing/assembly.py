"""`audit`: how far a trained SAE is from optimal, and why, as one document (theory.md section 5)."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdict.auditing.documents import Subject, audit_document
from jaxdict.auditing.gaps import Gaps, Sample, take_rows
from jaxdict.auditing.labels import check_groups, check_labels, check_minutes, check_rows
from jaxdict.auditing.measuring import measure
from jaxdict.auditing.thresholds import Failure, failures, parse_threshold
from jaxdict.files import positions
from jaxdict.reporting.audit_page import audit_files
from jaxdict.results import as_plain
from jaxdict.sae.models import SAE, check_activations
from jaxdict.sae.transcoders import paired
from jaxdict.storage import write_text

# Pairs that have a card; four times as many are listed.
TOP = 50


@dataclass(frozen=True)
class Audit:
    """What an audit found: `document` is the whole of it as plain data (schema "jaxdict-audit-1", which is described in
    `auditing/audit.schema.json`: within a version keys are only added, and any other change has a new one).

    `gaps` and `sample` hold the arrays behind it: the exact codes, the point that the descent reached; without lam `gaps` is None.
    """

    document: dict[str, Any]
    gaps: Gaps | None = field(repr=False)
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
        """Write the document as JSON, as `auditing/audit.schema.json` describes it; a reader sees the old file or the whole new one."""
        return write_text(Path(path), _json_text(self.document))

    def to_html(self, path) -> Path:
        """Write one page that opens without a network; examples beyond what it may hold go beside it, `NAME.features.js`."""
        path = Path(path)
        page, beside = audit_files(self.document, path.with_suffix(".features.js").name)
        if beside is not None:
            write_text(path.with_suffix(".features.js"), beside)
        return write_text(path, page)


def audit(
    sae: SAE,
    X: Float[Any, "samples d_in"],
    lam: float | None = None,
    *,
    target: Float[Any, "samples d_out"] | None = None,
    labels=None,
    exact_samples: int = 2048,
    rows=None,
    groups=None,
    minutes: float | None = None,
    descent_steps: int | None = None,
    held_out: bool = True,
    top: int = TOP,
    progress: Callable[[str, int, int], None] | None = None,
    checkpoint=None,
    paths: dict[str, str] | None = None,
) -> Audit:
    """How far a trained SAE is from optimal on activations, and why: what its error is lost to, features, pairs, residuals.

    One pass over all of X with the SAE's own codes, in chunks; then, on a sample of rows, its squared error split in the currency of
    its own architecture, at each row's own number of features (theory.md section 8): what better values on its own features gain,
    what other features gain, what a step of the decoder gains on rows that it was not fitted to, what a dictionary that descended
    over other rows gains there, and what an eighth more atoms gain; each a paired mean with its standard error. Where the training
    loss had an L1 penalty, or lam is given, problem P's view stands beside it: exact codes, a short certified descent and the wide
    bound (section 5), `F(SAE) - F_wide = amortisation + dictionary + width`. Features are in the canonical gauge (unit decoder
    rows); F is `mean 1/2 ||x - x_hat||^2 + lam sum f`, and all errors are measured, where the dictionary lives (the data itself,
    unless the SAE normalises).

    **Arguments:**

    - `X`: (samples, d_in) activations; a numpy array, memory map or `jaxdict.files.Shards` is read chunk by chunk.
    - `lam`: sparsity weight, half of the packages' l1 coefficient. None: from the SAE's metadata, else, for a relu SAE, estimated
      from its own codes (section 5). Other architectures have no lam: what needs one is None.
    - `target`: (samples, d_out), what a transcoder predicts, row by row. Its prediction's error is what is split, and problem P's
      data are the target less the skip connection's part.
    - `labels`: one text a row of X, shown beside examples, among those of the rows around it where documents are known.
    - `exact_samples`: rows of the sample, evenly spread (the error of SAEs with more than 4,096 features, or with fewer of which
      many are on in a row, is split on fewer of them); or `rows`: exactly which ones (integers). Rows that the SAE was not trained
      on say what it is worth beyond its training.
    - `groups`: (samples,) the document of each row of X: rows of one document depend on one another, and standard errors are then
      those of means over documents, which also stay whole where a change is fitted to some of them and measured on others. Where a
      document's rows follow one another it is also the unit of each decoder row's own defect (T17), otherwise a row is.
    - `minutes`: about how long the split of the error may take: it is measured on as many rows as that allows (unless `rows`
      names them), and a better dictionary fitted to as many others. By default both go by the number of features, and above 2,048 of
      them no better dictionary is looked for.
    - `descent_steps`: steps of problem P's descent from the SAE's dictionary, by default 60, or 4 where rows x features of the
      sample exceed two million. 0: no descent at all, the split's neither. What was not measured is None, and a condition on it
      fails: the dictionary's part without a descent, P's dictionary gap also above 8,192 features and without `held_out`.
    - `held_out`: also measure the dictionary gap on as many other rows (fewer for wide SAEs).
    - `top`: how many pairs, cards and neighbours are listed.
    - `progress`: called with (stage, done, total); `checkpoint`: a file in which the pass over the rows is kept, so that a
      stopped audit resumes.

    The sample is computed in jax's default precision: enable x64 for numbers to the last digit. With several processes each
    audits by itself, on its own devices. What is not there (T6 of a dead feature) is NaN within, so `JAX_DEBUG_NANS` stops it.

    **Returns** an `Audit`: `.summary()`, `.document`, `.to_html(path)`, `.to_json(path)`, `.check("l0>50")`.

    **Raises** ValueError for activations the SAE cannot read, NaN or infinity in them, labels or groups of the wrong number, rows
    that are not there, and a lam that is not positive. Host code around jitted pieces: not for jit or vmap.

    >>> import jax.numpy as jnp, numpy as np, jaxdict as jd
    >>> X = np.abs(np.random.default_rng(0).normal(size=(64, 2))).astype(np.float32)
    >>> found = audit(jd.sae.tied_sae(jd.Dictionary(jnp.eye(2), jnp.zeros(2)), 0.1), X, descent_steps=0)
    >>> sorted(found.measures)[:3], round(found.gaps.amortisation, 6)  # orthogonal atoms: one step is exact
    (['active_share', 'amortisation_gap', 'amortisation_share'], 0.0)
    >>> found.document["split"]["sentence"][:33]  # the penalty shrinks its values
    'The largest part shown is the val'
    """
    check_activations(sae, X)
    if np.ndim(X) != 2:
        raise ValueError(
            f"activations have shape {np.shape(X)}; jaxdict wants (samples, d_in): X.reshape(-1, {sae.d_in})"
        )
    where = positions(X) if groups is None else None
    sae, X = paired(sae, X, target)
    labels = None if labels is None else check_labels(labels, X.shape[0])
    groups = None if groups is None else check_groups(groups, X.shape[0])
    tell = progress or (lambda stage, done, total: None)
    taken = take_rows(X.shape[0], exact_samples) if rows is None else check_rows(rows, X.shape[0])
    found = measure(
        sae,
        X,
        lam,
        taken,
        groups=groups,
        named=rows is not None,
        minutes=None if minutes is None else check_minutes(minutes),
        descent_steps=descent_steps,
        held_out=held_out,
        top=top,
        tell=tell,
        checkpoint=None if checkpoint is None else Path(checkpoint),
    )
    shards = getattr(X, "names", ()), getattr(X, "left_out", ())
    documents = groups if where is None else where.documents
    subject = Subject(int(X.shape[0]), str(X.dtype), labels, documents, *shards, paths or {})
    document = as_plain(audit_document(found, subject, top))
    tell("done", 1, 1)
    return Audit(document, None if found.view is None else found.view.gaps, found.sample)


def _json_text(document: dict[str, Any]) -> str:
    """A document as JSON that can be looked at: one line a key, and one a row of a table."""
    told = functools.partial(json.dumps, allow_nan=False)

    def block(value) -> str:
        of_rows = isinstance(value, list) and value and isinstance(value[0], dict)
        return "[\n  " + ",\n  ".join(map(told, value)) + "\n ]" if of_rows else told(value)

    return "{\n " + ",\n ".join(f"{told(key)}: {block(value)}" for key, value in document.items()) + "\n}\n"
