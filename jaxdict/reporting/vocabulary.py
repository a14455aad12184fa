"""The words of an audit: what each column means, and how a number, a share or a token is written.

The page and the terminal summary both take them from here, so the same thing has the same name in both.
"""

import math
import re
from typing import NamedTuple

from jaxdict.sae.reading import neuronpedia_id

SCHEMA = "jaxdict-audit-1"
MISSING = "–"
# Rows of the same document that are shown before an example and after it.
CONTEXT = 10, 5
NEURONPEDIA = "https://www.neuronpedia.org"


class Column(NamedTuple):
    """One column of a table: `kind` says how its values are written and sorted."""

    key: str
    title: str
    kind: str  # pair, feature, labels, label, text, state, count, number, share, interval
    sentence: str


PAIR_COLUMNS = (
    Column("pair", "Pair", "pair", "Parent and child: the child is on mostly where the parent is. Opens the pair's card."),
    Column("cost", "Cost", "number", "Loss saved by absorbing the parent into the child, measured by line search on "
           "exact codes (what a violation costs, T16). Costs of several pairs do not add."),
    Column("labels", "Most active on", "labels", "Labels of the rows on which each of the two is most active."),
    Column("kind", "Kind", "text", "Hierarchy: the child is on (nearly) only where the parent is, which is never optimal "
           "(C1). Overlap: it is so in much of its rows, beyond chance."),
    Column("cost_share", "Share of loss", "share", "The cost as a share of the loss with exact codes (T16)."),
    Column("cosine", "Cosine", "number", "Cosine of the two decoder rows."),
    Column("lower", "Allowed", "interval", "The cosines that the SAE's codes allow at an optimum: one minus the largest "
           "and the smallest code of the child where the parent is off, in units of its mean (pair condition, T6)."),
    Column("margin", "Margin", "number", "How far inside the allowed interval the cosine lies; negative: outside by as "
           "much (pair condition, T6)."),
    Column("q", "P(parent | child)", "number", "Share of the child's rows on which the parent is on; 1 is a strict "
           "hierarchy (C1)."),
    Column("rho", "P(child | parent)", "number", "Share of the parent's rows on which the child is on (C1)."),
    Column("both", "Rows together", "count", "Rows on which both are on."),
    Column("absorption", "Absorbed", "share", "How much rarer the parent is on where the child is on, its direction being present: "
           "above 0 the child absorbs it, below 0 the two come together."),
)  # fmt: skip

FEATURE_COLUMNS = (
    Column("feature", "Feature", "feature", "The feature's number: its row of the decoder. Opens the feature's card."),
    Column("label", "Most active on", "label", "Labels of the rows on which it is most active."),
    Column("state", "State", "state", "Dead: on in no row. Dense: on in more than a tenth of all rows."),
    Column("frequency", "On in", "share", "Share of rows on which it is on."),
    Column("mean_code", "Mean code", "number", "Mean of its codes where it is on, decoder rows scaled to length one."),
    Column("max_code", "Max code", "number", "Its largest code, decoder rows scaled to length one."),
    Column("norm", "Norm", "number", "Length of the decoder row as stored; every other number is for length one."),
    Column("stationarity", "Off optimal", "number", "How far the atom is from where its SAE codes push it, in units of "
           "lam times the mean code; 0 at an optimum (exact first-order conditions, T1)."),
    Column("stationarity_exact", "Off optimal, exact codes", "number", "The same with the exact codes in place of the SAE's (T1): "
           "the part that is the dictionary's fault and not the encoder's."),
    Column("residual", "Residual predicted", "number", "How much of the residual across its own direction its SAE "
           "codes still predict, in units of lam times the mean code; 0 at an optimum (the residual is uncorrelated with "
           "features, T9)."),
    Column("lam", "Its lam", "number", "The L1 weight that this feature alone asks for; features that disagree cannot "
           "all be optimal for one lam (T1)."),
    Column("decoder_gain", "Decoder off", "number", "Squared error a row that the best move of its decoder row across itself would "
           "save, codes held, the noise of the rows taken out (T17, T20): any architecture; about 0, of either sign, where it is right."),
    Column("decoder_gain_error", "Its error", "number", "Standard error of that gain, at most: three of them above 0 it is shown."),
    Column("decoder_defect", "Decoder off, scale-free", "number", "That move's squared length, the decoder row's being 1: the squared "
           "tangent of the angle that it is off by; noise taken out, so it may be below 0."),
    Column("turn_gain", "Gain of a turn", "number", "Loss saved by turning the atom towards the residual that it "
           "predicts, measured (T9, T16)."),
    Column("nearest", "Nearest", "feature", "The feature whose decoder row has the largest cosine with this one's."),
    Column("nearest_cosine", "Its cosine", "number", "That largest cosine."),
)  # fmt: skip

DUPLICATE_COLUMNS = (
    Column("pair", "Pair", "pair", "Two features with nearly the same decoder direction."),
    Column("labels", "Most active on", "labels", "Labels of the rows on which each of the two is most active."),
    Column("cosine", "Cosine", "number", "Cosine of the two decoder rows; 1 is an exact duplicate."),
    Column("together", "On together", "share", "Of the rows with either on, the share with both on."),
)

ANTIPODAL_COLUMNS = (
    Column("pair", "Pair", "pair", "Two features with nearly opposite decoder directions."),
    Column("labels", "Most active on", "labels", "Labels of the rows on which each of the two is most active."),
    Column("cosine", "Cosine", "number", "Cosine of the two decoder rows; −1 is exactly opposite."),
    Column("coverage", "Either on", "share", "Share of rows on which either is on."),
    Column("overlap", "Both on", "share", "Of the rows with either on, the share with both on; 0 for "
           "exact opposites at an optimum."),
    Column("state", "State", "state", "Dense pairs cover most rows: together they carry one signed direction, and no "
           "wider dictionary splits them (dense antipodal pairs, T14)."),
)  # fmt: skip

# What absorption means, where it stands.
ABSORPTION = (
    "A child absorbs its parent where the parent is silent on rows that hold its direction because the child is on: P(parent on | its "
    "direction present, no child) less the same with the child."
)

# The measures of the first screen, in this order; the page lists the others below them.
KEY_MEASURES = (
    "l0", "explained_variance", "dead_features", "dense_features", "share_beyond_lam", "stationarity_codes", "stationarity_atoms",
    "costly_pairs",
)  # fmt: skip

# The parts of the split of the error, in the order in which they are taken.
SPLIT_PARTS = {
    "values": "Values",
    "supports": "Choice of features",
    "decoder": "Decoder",
    "dictionary": "Dictionary",
    "atoms": "More features",
    "rest": "The rest",
}

GAP_PARTS = (
    ("amortisation", "sae", "exact", "Amortisation", "What the encoder loses: the best codes for the same decoder would "
     "save this much."),
    ("dictionary", "exact", "local", "Dictionary", "What the decoder loses: descending from it to a local optimum of "
     "the same width saves this much."),
    ("width", "local", "wide", "Width", "What any dictionary of this width near this one loses against dictionaries of "
     "unlimited width."),
    ("wide", "wide", None, "Out of reach", "What no dictionary of any width can explain at this lam (certified, T11)."),
)  # fmt: skip

# Where no descent was made.
UNDIVIDED_GAP_PARTS = (
    GAP_PARTS[0],
    ("width", "exact", "wide", "Dictionary and width", "What the decoder and its width lose together; no descent told them "
     "apart."),
    GAP_PARTS[3],
)  # fmt: skip

GAP_DEFINITIONS = (
    ("Loss F", "Half the squared residual plus lam times the sum of codes, decoder rows of length one, mean over rows."),
    ("Amortisation gap", "F of the SAE minus F with exact codes for the same decoder; exact codes come with a "
     "certificate (duality gap of the codes, T2)."),
    ("Dictionary gap", "F with exact codes minus F of the local optimum that descent from this decoder reaches (exact "
     "first-order conditions, T1)."),
    ("Width gap", "F of that local optimum minus F_wide (global gap, T12)."),
    ("Out of reach", "F_wide, the value below which no dictionary of any width goes (the wide problem is convex, T11)."),
    ("Held out", "The same decoders on rows that the descent did not see: a dictionary gap that vanishes there was "
     "overfitting."),
)  # fmt: skip

CARD_DEFINITIONS = (
    ("Picture", "A row stands at one minus its code over the feature's mean code, for both features: 1 where a feature is "
     "off, 0 at its mean. Where the first is off, rows span the cosines that are allowed; the star is the actual cosine, "
     "which at an optimum lies among them (pair condition, T6)."),
    ("Step", "How far along the direction that absorbs the parent the loss was lowest (T16)."),
    ("Slope", "How fast the loss falls where that step begins."),
    ("Guaranteed", "A decrease that follows from the slope and a bound on the curvature alone (T16)."),
)  # fmt: skip

RESIDUAL_DEFINITIONS = (
    ("Gain of a new atom", "Loss saved by the best single atom found, with its best codes and all else fixed (adding an "
     "atom, T10)."),
    ("Largest residual", "The longest residual in units of lam; no single atom helps once it is at most 1 (when "
     "splitting stops, T13)."),
    ("Rows beyond lam", "Share of rows whose residual is longer than lam: each could still use an atom (T13)."),
    ("Barycentre defect", "The cosine that the residual predicts for two decoder rows, minus their cosine; 0 at an "
     "optimum (barycentre identity, T7)."),
)  # fmt: skip

# Control characters, lone surrogates, and the marks that turn the direction of the text around them.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")
_VISIBLE = {"\n": "↵", "\r": "↵", "\t": "⇥", "\u2028": "↵", "\u2029": "↵"}


def shown_number(value, kind: str = "number") -> str:
    """Three significant digits; whole numbers whole; scientific below 1e-3 and from 1e6; a dash for what is missing.

    >>> [shown_number(v) for v in (19.24, 0.3, 4e-5, 12345.6, 512, 0.0, None)]
    ['19.2', '0.300', '4.00e-5', '12,346', '512', '0', '–']
    >>> shown_number(0.0312, "share"), shown_number(-2.5)
    ('3.12%', '-2.50')
    """
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return MISSING
    if kind == "share":
        return shown_number(100.0 * value) + "%"
    size = abs(value)
    if value == 0 or (isinstance(value, int) and size < 1e9):
        return f"{value:,}" if value else "0"
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, 2 - math.floor(math.log10(float(f"{size:.3g}"))))
    return f"{value:,.{decimals}f}"


def shown_text(text, longest: int | None = None) -> str:
    """A token as one visible line: newlines and tabs as signs, no control characters, cut at `longest` characters.

    >>> shown_text("a" + chr(10) + "b" + chr(27) + "[31m"), shown_text("abcdef", 4)
    ('a↵b�[31m', 'abc…')
    """
    text = "" if text is None else str(text)
    text = text if longest is None or len(text) <= longest else text[: longest - 1] + "…"
    return _INVISIBLE.sub(lambda found: _VISIBLE.get(found[0], "\ufffd"), text)


def measure_kind(name: str) -> str:
    """How a measure is written: a share as a percentage.

    >>> measure_kind("dictionary_share"), measure_kind("l0")
    ('share', 'number')
    """
    is_share = name in ("explained_variance", "pair_cost") or name.startswith("share_") or name.endswith("_share")
    return "share" if is_share else "number"


def most_to_gain(features, top: int) -> list[dict]:
    """The features whose residual is worth most: by the gain of a turn, then by what their codes predict of it (T9)."""
    known = [row for row in features if row.get("residual") is not None]
    return sorted(known, key=lambda row: (-(row.get("turn_gain") or 0.0), -row["residual"]))[:top]


def gap_parts(gaps) -> list[dict]:
    """The SAE's loss cut in four: key, title, value, from which F to which, sentence. Empty where a value is missing.

    >>> parts = gap_parts({"sae": 4.0, "exact": 3.0, "local": 2.5, "wide": 2.0})
    >>> [(part["key"], part["value"]) for part in parts]
    [('amortisation', 1.0), ('dictionary', 0.5), ('width', 0.5), ('wide', 2.0)]

    Without a descent (`local` missing) the dictionary's part and the width's are one.
    """
    if not gaps or any(gaps.get(name) is None for name in ("sae", "exact", "wide")):
        return []
    sentences = gaps.get("sentences") or {}
    parts = []
    for key, high, low, title, sentence in GAP_PARTS if gaps.get("local") is not None else UNDIVIDED_GAP_PARTS:
        start, end = gaps[high], 0.0 if low is None else gaps[low]
        value = start - end if gaps.get(key) is None else gaps[key]
        parts.append(
            {
                "key": key,
                "title": title,
                "value": value,
                "start": start,
                "end": end,
                "sentence": sentences.get(key, sentence),
            }
        )
    return parts


def split_parts(split) -> list[dict]:
    """The SAE's squared error cut as the audit does: key, title, value, its standard error, share, whether shown, sentence.

    A part that was not measured has no value. Empty where there is no split.

    >>> parts = split_parts({"parts": [{"name": "values", "mean": 1.0, "standard_error": 0.1}], "rest": {"mean": 3.0}})
    >>> [(part["key"], part["title"], part["value"]) for part in parts]
    [('values', 'Values', 1.0), ('rest', 'The rest', 3.0)]
    """
    if not split or not split.get("parts"):
        return []
    rows = [(row["name"], row) for row in split["parts"]] + [("rest", split["rest"] | {"shown": True})]
    return [
        {
            "key": name,
            "title": SPLIT_PARTS[name],
            "value": row["mean"],
            "error": row.get("standard_error"),
            "share": row.get("share"),
            "shown": bool(row.get("shown")),
            "sentence": row.get("sentence"),
        }
        for name, row in rows
    ]


def feature_pages(sae) -> str | None:
    """What comes before a feature's number in the address of its page on Neuronpedia; None where the SAE's files name none.

    >>> feature_pages({"neuronpedia": "gpt2-small/8-res-jb"}), feature_pages({"neuronpedia": "../evil"})
    ('https://www.neuronpedia.org/gpt2-small/8-res-jb/', None)
    """
    known = neuronpedia_id(sae.get("neuronpedia"))
    return None if known is None else f"{NEURONPEDIA}/{known}/"


def check_schema(document) -> None:
    """Refuse what is not an audit's document."""
    schema = document.get("schema") if isinstance(document, dict) else type(document).__name__
    if schema != SCHEMA:
        raise ValueError(
            f"not an audit's document: schema {schema!r}, expected {SCHEMA!r}; audit again with this version"
        )
