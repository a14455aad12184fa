"""`arbitrate`: several SAEs on the same fresh rows at a common L0: who is ahead, and where each loses its error."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float

from jaxdict.arbitration.documents import arbitration_document
from jaxdict.arbitration.matching import check_l0
from jaxdict.arbitration.measuring import measure
from jaxdict.arbitration.rows import parts_of
from jaxdict.arbitration.subjects import check_further, entries_of
from jaxdict.arbitration.truths import truth_of
from jaxdict.auditing.labels import check_labels
from jaxdict.reporting.arbitration_page import arbitration_html
from jaxdict.reporting.arbitration_table import arbitration_table
from jaxdict.results import as_plain
from jaxdict.storage import write_text


@dataclass(frozen=True)
class Arbitration:
    """What was found: `document` is the whole of it as plain data (schema "jaxdict-arbitration-1", which is described in
    `arbitration/arbitration.schema.json`: within a version keys are only added, and any other change has a new one).
    """

    document: dict[str, Any]

    def message(self) -> str:
        """The verdict, and what it does not say, in sentences."""
        return " ".join([*self.document["verdict"], *self.document["limits"]])

    def table(self) -> str:
        """A line for each name, figures in columns."""
        return arbitration_table(self.document)

    def to_json(self, path) -> Path:
        """Write the document as JSON; a reader sees the old file or the whole new one."""
        return write_text(Path(path), json.dumps(self.document, allow_nan=False, indent=1) + "\n")

    def to_html(self, path) -> Path:
        """Write one page that opens without a network."""
        return write_text(Path(path), arbitration_html(self.document))


def arbitrate(
    saes: Mapping[str, Any],
    X: Float[Any, "samples d_in"],
    *,
    held_out=None,
    truth=None,
    l0: float | None = None,
    groups=None,
    labels=None,
    seeds: Mapping[str, Any] | None = None,
    n_rows: int | None = None,
    parts: Sequence[str] = (),
    progress: Callable[[str, int, int], Any] | None = None,
    paths: dict[str, str] | None = None,
) -> Arbitration:
    """Several SAEs on the same fresh rows at a common L0: who is ahead, where each loses its error, and what that does not say.

    Of each the squared error of the fresh rows is split as an audit splits it (theory.md section 8): what better values on its own
    features gain, what other features gain, as many in each row, what a step of the decoder gains that was fitted to other rows, and
    what is left. All SAEs see the same rows, so that differences are paired, with standard errors; one is ahead of another where its
    error is lower by three of them at the common L0. Beside it stand pairs of features that its loss leaves open (T21), absorption,
    nearness to a truth, stability over seeds and cost.

    **Arguments:**

    - `saes`: SAEs by name; a list holds several sparsities, or seeds, of one architecture (L0s within 5% are one sparsity, whose
      seeds are averaged). Between the two sparsities that are nearest to the common L0 all figures are interpolated linearly in L0,
      row by row, so that standard errors are those of the interpolated rows.
    - `X`: (samples, d_in), rows that the decoders' steps are fitted to.
    - `held_out`: fresh rows: rows of their own (rows, d_in), or numbers of rows of X, or a boolean for each. By default half of X is
      kept aside, whole documents where they are known.
    - `truth`: true directions (features, d_in), a `Dictionary`, planted data, a model of SynthSAEBench (`synthetic.BenchModel`), or
      `{"atoms": ..., "codes": ..., "parents": ...}`, codes of the rows that the fresh ones are taken from, parents -1 for none: MCC,
      uniqueness, F1 with codes (as in `recovery.bench_metrics`), absorption by edge with parents.
    - `l0`: the common L0; by default the middle of where the names' ranges overlap. Where they do not overlap each name stands at an L0
      of its own, and only one that is better with fewer features on is ahead.
    - `groups`: the document of each row of X, or of `held_out` where that is rows of its own: standard errors are then over documents.
    - `labels`: one text a row, as `groups`: without a truth's edges, absorption is that of parents that detect a label.
    - `seeds`: by name, further SAEs of other seeds, which stability alone is measured with.
    - `n_rows`: fresh rows at most, evenly spread, and as many to fit to; by default by the SAEs' sizes, as an audit takes them.
    - `parts`: further parts of the error, which a short descent over many rows of X measures and which cost several times as much as
      all else: "dictionary", what other features of the same number gain, codes found anew, and "atoms", what an eighth more of them gain.
    - `progress`: called with (stage, done, total). `paths`: where "data" came from, for the page.

    Runs in jax's default precision: enable x64 for numbers to the last digit. Rows that are taken are held in memory.

    **Returns** an `Arbitration`: `.message()`, `.table()`, `.document`, `.to_html(path)`, `.to_json(path)`.

    **Raises** ValueError for fewer than two names, SAEs of different widths, transcoders, rows that do not fit or are too few, NaN or
    infinity anywhere, a truth, groups or labels of another size, an L0 that fewer than two names reach, and parts that are unknown, or of
    an SAE so wide that a short descent says nothing of it. Host code around jitted pieces: not for jit or vmap.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> sae = jd.sae.tied_sae(jd.Dictionary(jnp.eye(2)), 0.1)
    >>> jd.arbitrate({"alone": sae}, jnp.ones((9, 2)))
    Traceback (most recent call last):
    ValueError: saes holds 1 name; arbitration is between two or more: {"topk": sae, "jumprelu": other}
    """
    begin = time.perf_counter()
    entries, l0 = entries_of(saes, seeds), check_l0(l0)
    check_further(parts, entries)
    rows = parts_of(entries[0].saes[0], X, held_out, groups)
    known = truth_of(truth, entries[0].saes[0].d_in, rows.source.shape[0])
    texts = None if labels is None else check_labels(labels, rows.source.shape[0])
    tell = progress or (lambda stage, done, total: None)
    found = measure(entries, rows, known, texts, l0, _count(n_rows), tuple(parts), tell)
    seconds = time.perf_counter() - begin
    document = as_plain(arbitration_document(found, known, texts is not None, paths or {}, seconds))
    tell("done", 1, 1)
    return Arbitration(document)


def _count(n_rows) -> int | None:
    if n_rows is not None and (isinstance(n_rows, bool) or not isinstance(n_rows, int) or n_rows < 8):
        raise ValueError(f"n_rows is {n_rows!r}; give a whole number of fresh rows, 8 or more")
    return n_rows
