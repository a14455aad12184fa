"""`polish`: a better SAE by a better dictionary and an encoder fitted to it, judged on rows that had no part in either."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.auditing.better_sae.finding import Found, found_better
from jaxdict.auditing.better_sae.judging import nearest_atoms
from jaxdict.auditing.better_sae.task import Asked, Task, task_of
from jaxdict.population.comparisons import Comparison
from jaxdict.problem import Dictionary
from jaxdict.sae.models import SAE, Metadata
from jaxdict.sae.saving import save
from jaxdict.streaming.run import StreamSolution

# A feature whose atom turned further than this cosine has changed.
CHANGED = 0.95


class Change(NamedTuple):
    """A feature whose atom turned: plain numbers."""

    feature: int
    cosine: float  # between its atom before and after
    nearest_before: int  # the atom before that is nearest to it now
    nearest_cosine: float
    frequency_before: float
    frequency_after: float


class PolishedRows(NamedTuple):
    """How many rows were fitted to, kept aside to choose by, and kept to judge by; the documents of the last."""

    fitted: int
    aside: int
    judged: int
    documents: int
    words: str  # the same as a sentence


class Polished(eqx.Module):
    """What polishing made of an SAE and whether it is better: every number but the solution's own is of the rows that judge.

    Values are F (problem P) where there is lam, else squared errors, means over rows, where the dictionary lives.
    """

    sae: SAE  # the better one where that is shown; else the one that was given, as it was
    dictionary: Dictionary  # the one that the descent reached
    solution: StreamSolution | None  # of the descent on problem P; None in an architecture's own currency
    lam: float | None = eqx.field(static=True)
    better: bool = eqx.field(static=True)
    rows: PolishedRows = eqx.field(static=True)
    before: Float[Array, ""]  # the dictionary that it began with, best codes
    after: Float[Array, ""]  # the dictionary reached, best codes
    gain: Comparison  # of the dictionary, best codes on both sides
    sae_before: Float[Array, ""] | None  # the SAE that it began with, its own codes; None for a bare dictionary
    sae_after: Float[Array, ""]  # the SAE that was made, its own codes
    sae_gain: Comparison | None
    active_before: Float[Array, ""] | None  # features on, by row, own codes
    active_after: Float[Array, ""]
    cosine: Float[Array, " atoms"]  # of each atom reached with itself before
    nearest: Int[Array, " atoms"]  # the atom before that each is nearest to now
    nearest_cosine: Float[Array, " atoms"]
    frequency_before: Float[Array, " atoms"]  # share of rows on which it is on, best codes
    frequency_after: Float[Array, " atoms"]
    told: str = eqx.field(static=True)

    def changes(self, top: int | None = 20, least: float = CHANGED) -> list[Change]:
        """The features whose atoms turned most (cosine below `least`), most turned first. Host side."""
        cosine = np.asarray(self.cosine)
        order = [int(k) for k in np.argsort(cosine, kind="stable") if cosine[k] < least][:top]
        columns = (self.cosine, self.nearest, self.nearest_cosine, self.frequency_before, self.frequency_after)
        values = [np.asarray(column) for column in columns]
        return [
            Change(k, float(values[0][k]), int(values[1][k]), *(float(column[k]) for column in values[2:]))
            for k in order
        ]

    def message(self) -> str:
        """What was found and of which rows it speaks, in sentences."""
        return self.told

    def save(self, path) -> Path:
        """Write the SAE as a SAELens folder: the better one, or, where none was shown to be, the one given as it was."""
        return save(self.sae, path)


def polish(
    sae_or_dictionary,
    X: Float[Any, "samples d_in"],
    lam: float | None = None,
    *,
    groups=None,
    encoder: str = "fitted",
    tol: float = 1e-4,
    max_steps: int = 300,
    minutes: float | None = None,
    callback=None,
) -> Polished:
    """A better SAE of the same architecture, from its dictionary or any dictionary; or word that nothing better is shown.

    Rows are parted in three, whole documents each. On most of them the dictionary descends: for an L1 SAE, or where lam is given,
    on problem P as `fit_stream` does, codes exact; for other architectures on the squared error at each row's own number of
    features, by steps of the decoder (T20) on the best codes found. Then the encoder is fitted to it by Adam on what the SAE's own
    forward pass is worth (F, or the squared error with as many features on as before), and also to the dictionary as it was.
    An eighth at most is kept aside to say when each of these stops and which is taken, and another eighth judges: paired differences
    on rows that had no part in either, with standard errors over documents (T18). Above three of them the SAE as it runs is shown
    to be better, and is returned; otherwise the one that was given is, as it was.

    **Arguments:**

    - `X`: (samples, d_in) activations: anything with `shape`, `dtype` and row slices (an array, a memory map, `jaxdict.files.Shards`).
      An SAE that normalises its input comes back as one that does; numbers are of the normalised rows then.
    - `lam`: sparsity weight; None: that of the SAE's metadata, where its training had an L1 penalty.
    - `groups`: (samples,) the document of each row; None: what the files say, else blocks of neighbours are taken as documents.
    - `encoder`: "fitted", or "tied" (one proximal step, `W_enc = atoms.T`, `b_enc = -lam`, thresholds set to the features on before).
    - `tol`, `max_steps`: of the descent: T1's slopes over all rows that are fitted to, and the most passes over them; without lam
      the most steps, of 16,384 rows or four an atom each. It ends earlier where rows kept aside gain no more.
    - `minutes`: about how long the search may take, half of it the descent; the rows that judge come on top.
    - `callback`: called with a `jaxdict.streaming.StreamProgress` as it goes on; its stages are those of `fit_stream`, "dictionary",
      "encoder" and "judging".

    **Memory**, beyond the source's own, in bytes: about `K d (42 s + 96) + 2^25 (8 + s) + N (26 + 4 L0)` with s bytes a number, K
    atoms, N rows and L0 codes a row (4 L0 for problem P only). Rows are read in chunks of at most 2^22 entries (rows, atoms);
    no (samples, atoms) array is formed, and none of (atoms, atoms) beyond 2^24 entries. Of a Matryoshka SAE the whole's error is
    lowered, not that of its prefixes.

    **Returns** `Polished`: `.better`, `.sae`, `.message()`, `.changes()`, `.save(path)`, figures with standard errors.

    **Raises** ValueError where lam is not known for a relu SAE or a bare dictionary, where features are negative and there is lam,
    shapes do not fit, rows are too few, or data are bad. Ctrl-C in the descent, or what the callback raised there, goes on to the
    caller with what was made of the dictionary reached as its attribute `polished`.

    >>> import jax, jaxdict as jd
    >>> X = jax.random.normal(jax.random.key(0), (60, 3))
    >>> done = polish(jd.Dictionary(jnp.eye(3)), X, 0.4, encoder="tied")
    >>> done.rows[:3], done.better
    ((45, 7, 8), False)
    """
    task = task_of(sae_or_dictionary, X, lam, groups, Asked(encoder, tol, max_steps, callback, minutes))
    conclude = partial(_polished, task, sae_or_dictionary)
    try:
        found = found_better(task)
    except BaseException as stopped:  # Ctrl-C, or what a callback raised: with what was reached, where that is known
        reached = getattr(stopped, "reached", None)
        if reached is not None:
            stopped.polished = conclude(found_better(task, reached))  # type: ignore[attr-defined]
        raise
    return conclude(found)


def _polished(task: Task, given, found: Found) -> Polished:
    """The outcome as it is handed over: the SAE that was given is the one returned where nothing better is shown."""
    judged, parts, dtype = found.judged, task.parts, task.every.dtype
    kept = isinstance(given, SAE) and not judged.better
    turns = nearest_atoms(found.reached.atoms, task.start.atoms)
    documents = len(np.unique(parts.documents[parts.judged]))
    number = lambda value: jnp.asarray(value, dtype)  # noqa: E731
    own, (before, after) = judged.sae, judged.frequencies
    return Polished(
        sae=given if kept else _dressed(found.sae, given, task.lam),
        dictionary=found.reached,
        solution=found.solution,
        lam=task.lam,
        better=judged.better,
        rows=PolishedRows(found.fitted, len(parts.aside), len(parts.judged), documents, parts.words()),
        before=number(judged.dictionary.before),
        after=number(judged.dictionary.after),
        gain=judged.dictionary.gain,
        sae_before=None if own is None else number(own.before),
        sae_after=number(judged.own_after),
        sae_gain=None if own is None else own.gain,
        active_before=None if own is None else number(judged.active[0]),
        active_after=number(judged.active[1]),
        cosine=jnp.asarray(turns[0]),
        nearest=jnp.asarray(turns[1]),
        nearest_cosine=jnp.asarray(turns[2]),
        frequency_before=number(before),
        frequency_after=number(after),
        told=_told(task, found, int(np.sum(turns[0] < CHANGED))),
    )


def _dressed(sae: SAE, given, lam: float | None) -> SAE:
    """The new SAE with the old one's normalisation and what is known of it."""
    if not isinstance(given, SAE):
        return replace(sae, metadata=Metadata(lam=lam, notes=("a dictionary with an encoder by jaxdict's polish",)))
    known = lam if given.activation.kind == "relu" else given.metadata.lam
    # Pages elsewhere are of the SAE that was given.
    notes = (*given.metadata.notes, "polished by jaxdict: atoms and encoder are no longer those of its training")
    return replace(
        sae,
        normalisation=given.normalisation,
        metadata=replace(given.metadata, lam=known, notes=notes, neuronpedia=None),
    )


def _told(task: Task, found: Found, turned: int) -> str:
    """What `message` says."""
    judged, lam, parts = found.judged, task.lam, task.parts
    what = "squared error" if lam is None else "loss"
    codes = "the best codes found of as many features a row" if lam is None else "exact codes"
    fewer = int(judged.dictionary.gain.rows)
    on = "" if fewer == len(parts.judged) else f" on {fewer:,} of these rows"
    sentences = [] if found.solution is None else [f"{found.solution.message()}."]
    sentences += [
        f"Parts of the rows: {parts.words()}.",
        f"The dictionary with {codes}: the {what}{on} goes {judged.dictionary.words()}; {turned} of {len(task.start.atoms)} features "
        f"turned by more than a cosine of {CHANGED}.",
    ]
    if judged.sae is None:
        end = "it is better" if judged.better else "nothing better is shown, and it is returned as it was"
        return " ".join([*sentences, f"Of the dictionary {end}."])
    part = "" if found.changed else ", of which the encoder alone is new"
    end = f"the new SAE{part} is better" if judged.better else "nothing better is shown: the SAE is returned as it was"
    on = f"features on from {judged.active[0]:.4g} to {judged.active[1]:.4g} a row"
    return " ".join([*sentences, f"The SAE as it runs: the {what} goes {judged.sae.words()}, {on}: {end}."])
