"""An audit's document: what was measured, with its sentences, as plain data (schema "jaxdict-audit-1")."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdict.auditing import cards, sentences
from jaxdict.auditing.absorbing import absorption_report, with_absorption
from jaxdict.auditing.decoder_rows import defect_facts
from jaxdict.auditing.kinds import has_l1_penalty
from jaxdict.auditing.measures import measures
from jaxdict.auditing.measuring import Measured, View
from jaxdict.auditing.passages import passages
from jaxdict.auditing.split_sentences import split_facts
from jaxdict.conditions.residuals import residual_from_sums
from jaxdict.objectives import residual
from jaxdict.sae.models import SAE
from jaxdict.sae.transcoders import NOTE, Transcoder

SCHEMA = "jaxdict-audit-1"


class Subject(NamedTuple):
    """What was audited, beside the numbers."""

    rows: int  # of the data
    dtype: str
    labels: np.ndarray | None  # one text a row
    documents: np.ndarray | None  # the document of each row, where consecutive rows of one are neighbours
    shards: tuple[str, ...]  # the files that the rows come from, in order, where they are a folder's
    left_out: tuple[str, ...]  # those of the folder's files that could not be read
    paths: dict[str, str]  # of "sae" and "data", where they are known


def audit_document(found: Measured, subject: Subject, top: int) -> dict[str, Any]:
    """The whole of an audit: the facts, then the measures and the verdict that follow from them; what needs lam is None without."""
    view = found.view
    facts = {
        "schema": SCHEMA,
        "made_with": {"jax": jax.__version__, "numpy": np.__version__},
        "sae": _sae_facts(found.sae) | {"path": subject.paths.get("sae")},
        "data": _data_facts(found, subject),
        "lam": sentences.lam_facts(found.lam),
        "split": split_facts(found.split, found.sae.normalisation != "none", has_l1_penalty(found.sae)),
        "gaps": sentences.gap_facts(found),
        "features": [_labelled(found, row, subject.labels) for row in found.features],
        "decoder": _decoder(found),
        "pairs": None if view is None or view.pairs is None else with_absorption(_costed(view), found.absorption),
        "duplicates": found.duplicates,
        "antipodal": found.antipodal,
        "undetermined": _listed(found, found.nested.undetermined),
        "prefix_pairs": _nested(found, found.nested.prefixes),
        "penalty_pairs": _nested(found, found.nested.penalty),
        "absorption": absorption_report(found.absorption, found.passed.table, subject.labels, top),
        "new_atom": None if view is None else _new_atom(found, view, subject.labels),
        "barycentre": None if view is None else _barycentre(view),
        "cards": {"pairs": [], "features": []} if view is None else _cards(found, view, subject.labels, top),
        "seconds": round(found.seconds, 2),
    }
    facts["passages"] = passages(_rows_shown(facts), subject.labels, subject.documents)
    measured = measures(found, facts)
    return facts | {"measures": measured, "verdict": [*sentences.verdict(facts, measured), *_of_its_kind(found.sae)]}


def _of_its_kind(sae: SAE) -> list[str]:
    """What the verdict of a transcoder cannot say."""
    return [f"This is {NOTE}."] if isinstance(sae, Transcoder) else []


def _costed(view: View) -> list[dict]:
    return [pair | {"cost_share": sentences.ratio(pair["cost"], view.gaps.exact)} for pair in view.pairs or []]


def _decoder(found: Measured) -> dict[str, Any]:
    """How many decoder rows are off, and what the rows were taken for (T17, T20)."""
    normalised = found.sae.normalisation != "none"
    return defect_facts(
        found.features, found.passed.totals, found.documents, named=found.grouped, normalised=normalised
    )


def _listed(found: Measured, pairs: list[dict] | None) -> list[dict] | None:
    return None if pairs is None else with_absorption(pairs, found.absorption)


def _nested(found: Measured, facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a Matryoshka's loss (T22) or another penalty (T23) says of nested pairs, each with its absorption."""
    return None if facts is None else facts | {"pairs": with_absorption(facts["pairs"], found.absorption)}


def _barycentre(view: View) -> dict[str, Any]:
    return view.barycentre | {"sentence": sentences.barycentre_sentence(view.barycentre)}


def _sae_facts(sae: SAE) -> dict[str, Any]:
    about = sae.metadata
    return {
        "format": about.format,
        "architecture": about.architecture,
        "trained_as": about.trained_as,
        "prefixes": list(about.prefixes),
        "d_in": sae.input_width,
        "d_out": sae.d_out,
        "d_sae": sae.d_sae,
        "model": about.model,
        "hook": about.hook,
        "neuronpedia": about.neuronpedia,
        "caveat": about.caveat,
        "notes": list(about.notes),
    }


def _data_facts(found: Measured, subject: Subject) -> dict[str, Any]:
    return {
        "rows": subject.rows,
        "dtype": subject.dtype,
        "exact_rows": len(found.sample.rows) if found.view else None,
        "held_out_rows": found.view.held_out.rows if found.view and found.view.held_out else None,
        "labelled": subject.labels is not None,
        "shards": list(subject.shards),
        "left_out": list(subject.left_out),
        "path": subject.paths.get("data"),
    }


def _labelled(found: Measured, row: dict, labels) -> dict[str, Any]:
    """A feature's row with what it is strongest on: the labels, the rows and their codes, the histogram of its codes."""
    held, feature = found.passed.strongest, row["feature"]
    return row | {"label": cards.top_labels(held, feature, labels), **cards.examples(held, feature)}


def _rows_shown(facts: dict[str, Any]) -> np.ndarray:
    """Every row of the data that the document names as an example."""
    listed = [facts["new_atom"] or {}, *facts["cards"]["pairs"], *facts["cards"]["features"]]
    named = [row["row"] for card in listed for key in ("rows", "residual_rows") for row in card.get(key) or ()]
    return np.array([*named, *(row for feature in facts["features"] for row in feature["rows"])], np.int64)


def _new_atom(found: Measured, view: View, labels) -> dict[str, Any]:
    """The best new atom for the residual of exact codes, and the rows that would use it (T10)."""
    sample, gaps = found.sample, view.gaps
    left, birth = np.asarray(residual(found.dictionary, sample.exact_codes, sample.X)), gaps.certificate.birth
    new = {
        "gain": float(birth.gain),
        "gain_share": sentences.ratio(float(birth.gain), gaps.exact),
        "max_ratio": float(gaps.certificate.max_residual_ratio),
        "share_beyond_lam": float(np.mean(np.linalg.norm(left, axis=1) > view.lam.value)),
        "rows": cards.atom_rows(sample, birth.atom, left, view.lam.value, labels),
    }
    return new | {"sentence": sentences.new_atom_sentence(new)}


def _cards(found: Measured, view: View, labels, top: int) -> dict[str, list]:
    """Examples behind the dearest pairs, and behind the features with most to gain from a turn."""
    problem, dictionary, sample, (_, table, held) = view.problem, found.dictionary, found.sample, found.passed
    directions = residual_from_sums(problem, dictionary, view.exact_sums).direction
    known = [row for row in found.features if not row["dead"] and np.isfinite(row["stationarity_exact"])]
    worst = sorted(known, key=lambda row: -row["turn_gain"])[: min(top, cards.FEATURE_CARDS)]
    return {
        "pairs": [cards.pair_card(table, pair, labels) for pair in (view.pairs or [])[:top]],
        "features": [
            cards.feature_card(problem, dictionary, sample, held, row["feature"], directions[row["feature"]], labels)
            for row in worst
        ],
    }
