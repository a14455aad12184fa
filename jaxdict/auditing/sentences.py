"""What the numbers of an audit mean, in sentences. Nothing is computed here but shares."""

from typing import Any

import numpy as np

from jaxdict.auditing.gaps import DESCENT_ATOMS, Gaps, HeldOut
from jaxdict.auditing.measuring import Lam, Measured, View

# Below this share of F a gap is called negligible; beyond the second it is called large.
NEGLIGIBLE, LARGE = 0.005, 0.05

# Why pairs were not looked for where there is a lam.
NO_SIGNED_PAIRS = (
    "Pairs of features were not looked for: these features have both signs, and the pair conditions are of codes that are "
    "not negative."
)


def lam_facts(weight: Lam | str) -> dict[str, Any]:
    """lam with its source and what the features themselves say of it; where there is none, why."""
    if isinstance(weight, str):
        missing = dict.fromkeys(("value", "estimate", "tenth", "median", "ninetieth"))
        return missing | {"source": "none", "sentence": weight}
    tenth, median, ninetieth = np.quantile(weight.own, [0.1, 0.5, 0.9]) if len(weight.own) else [np.nan] * 3
    sources = {
        "given": "as given",
        "metadata": "from the SAE's own metadata (half its l1 coefficient)",
        "estimated": "estimated: the value that best makes the decoder stationary under its own codes",
    }
    sentence = (
        f"lam = {weight.value:.4g}, {sources[weight.source]}. Feature by feature the SAE's own codes say "
        f"{median:.3g} (middle eight tenths {tenth:.3g} to {ninetieth:.3g}); the best single value is {weight.estimate:.3g}."
    )
    if not weight.estimate > 0:
        sentence += " No positive lam fits the SAE's own codes: its residuals do not point along its features."
    return {
        "value": weight.value,
        "source": weight.source,
        "estimate": weight.estimate,
        "tenth": tenth,
        "median": median,
        "ninetieth": ninetieth,
        "sentence": sentence,
    }


def gap_facts(found: Measured) -> dict[str, Any] | None:
    """The three gaps with what each means; what was not measured is None, and said so. None where there is no lam."""
    view, exact = found.view, found.sample.exact
    if view is None or exact is None:
        return None
    gaps, beyond = view.gaps, view.held_out
    reached = gaps.reached
    return {
        "sae": gaps.sae,
        "exact": gaps.exact,
        "local": gaps.local,
        "wide": gaps.wide,
        "amortisation": gaps.amortisation,
        "dictionary": gaps.dictionary,
        "width": gaps.width,
        "rows": len(found.sample.rows),
        "steps": None if reached is None else int(reached.steps),
        "message": None if reached is None else f"{reached.message()}. {reached.certificate.message(1e-4)}",
        "exact_gap": float(np.max(np.asarray(exact.gap))),
        "exact_message": exact.message(),
        "held_out": None if beyond is None else beyond._asdict() | {"dictionary": beyond.dictionary},
        "sentences": {
            "amortisation": (
                f"The encoder's codes cost {gaps.amortisation:.4g} ({share(gaps.amortisation, gaps.sae)}) more than the best "
                "codes of the same dictionary."
            ),
            "dictionary": _dictionary_sentence(found, view),
            "width": _width_sentence(gaps),
        },
    }


def _dictionary_sentence(found: Measured, view: View) -> str:
    gaps, beyond = view.gaps, view.held_out
    if gaps.reached is None or gaps.dictionary is None:
        wide = found.sae.d_sae > DESCENT_ATOMS
        why = f": dense codes of more than {DESCENT_ATOMS:,} features are too large" if wide else ""
        return f"No descent was made{why}, so the dictionary gap is not measured."
    told = (
        f"A descent of {int(gaps.reached.steps)} steps from the SAE's own dictionary, with exact codes throughout, lowers the "
        f"loss by {gaps.dictionary:.4g} ({share(gaps.dictionary, gaps.sae)}) on {len(found.sample.rows):,} rows."
    )
    return told if beyond is None else told + _held_out_sentence(beyond)


def _held_out_sentence(beyond: HeldOut) -> str:
    change = f"{share(abs(beyond.dictionary), beyond.exact)}) on {beyond.rows:,} rows that it did not see"
    if beyond.dictionary >= 0:
        return f" It gains {beyond.dictionary:.4g} ({change}."
    return (
        f" It loses {-beyond.dictionary:.4g} ({change}: it learned its own rows, and says little of the dictionary. "
        "Use more rows with exact codes."
    )


def _width_sentence(gaps: Gaps) -> str:
    if gaps.width is None:
        rest = gaps.exact - gaps.wide
        return (
            f"What is left above a bound that holds for every width: {rest:.4g} ({share(rest, gaps.sae)}), the dictionary's part "
            "and the width's together. Without a descent they are not told apart."
        )
    return (
        f"What is left above a bound that holds for every width: {gaps.width:.4g} ({share(gaps.width, gaps.sae)}). "
        "More atoms, or another local optimum, could at most gain that."
    )


def new_atom_sentence(new: dict[str, Any]) -> str:
    """What the residual still holds for a new feature (T10)."""
    if not new["gain"] > 0:
        return "No single new atom helps: every residual is within lam."
    return (
        f"One more atom would lower the loss by at least {new['gain']:.3g} ({_percent(new['gain_share'])} of it); "
        f"{new['share_beyond_lam']:.0%} of residuals exceed lam, the largest is {new['max_ratio']:.3g} lam."
    )


def barycentre_sentence(found: dict[str, Any]) -> str:
    """How far the residual carries the decoder's cosines (T7)."""
    if found["median"] is None:
        return "Fewer than two live features: nothing to compare."
    return (
        "At an optimum the residual predicts every cosine between features exactly. Here, with exact codes, it is off by "
        f"{found['median']:.2g} in the middle, {found['ninetieth']:.2g} for one pair in ten, {found['largest']:.2g} at worst."
    )


def verdict(facts: dict[str, Any], measured: list[dict]) -> list[str]:
    """The audit in a few sentences, the headline first; problem P's view after the split where there is a lam."""
    gaps, value = facts["gaps"], {measure["name"]: measure["value"] for measure in measured}
    explained = value["explained_variance"]
    told = f"On average {value['l0']:.1f} of {facts['sae']['d_sae']:,} features are on and " + (
        "explain nothing that varies." if explained is None else f"explain {explained:.1%} of the variance."
    )
    sentences = [facts["split"]["sentence"], told, *(part["sentence"] for part in facts["split"]["parts"])]
    if value["dead_features"]:
        sentences.append(f"{value['dead_features']:,} features never fire.")
    if gaps is None:
        return [*sentences, facts["lam"]["sentence"]]
    best = f"The best codes of the same dictionary use {value['l0_exact']:.1f} features."
    return [
        *sentences,
        f"As problem P sees it, with lam = {facts['lam']['value']:.3g}: {_view_sentence(gaps)} {best}",
        gaps["sentences"]["amortisation"],
        gaps["sentences"]["dictionary"],
        _pairs_sentence(facts["pairs"], value["costly_pairs"], gaps["exact"]),
    ]


def _view_sentence(gaps: dict[str, Any]) -> str:
    """Which of the encoder and the dictionary loses more of the penalised loss, and whether that is much."""
    parts = {"its encoder": gaps["amortisation"], "its dictionary": (gaps["held_out"] or gaps)["dictionary"]}
    known = {name: part for name, part in parts.items() if part is not None}
    largest = max(known, key=lambda name: known[name])
    size = ratio(known[largest], gaps["sae"]) or 0.0
    if size > NEGLIGIBLE:
        degree = "far from" if size > LARGE else "short of"
        return (
            f"{degree} optimal, mostly through {largest}: {share(known[largest], gaps['sae'])} of the penalised loss."
        )
    if len(known) < len(parts):
        return "its encoder loses no more than half a percent of the loss; what its dictionary loses was not measured."
    return (
        "close to a local optimum: neither its encoder nor its dictionary loses more than half a percent of the loss."
    )


def _pairs_sentence(pairs: list[dict] | None, costly: int | None, loss: float) -> str:
    if pairs is None:
        return NO_SIGNED_PAIRS
    first = pairs[0] if pairs else None
    if first is None or not first["cost"] > 0:
        return "No pair of features was found whose parent the child should absorb."
    if not costly:
        return f"Absorbing parents into children gains next to nothing: {share(first['cost'], loss)} of the loss for the dearest pair."
    plural = "pair of features" if costly == 1 else "pairs of features"
    return (
        f"{costly} {plural} cannot both stay as they are: the dearest is child {first['child']} under parent "
        f"{first['parent']}, where absorbing the parent would save {share(first['cost'], loss)} of the loss."
    )


def ratio(part: float | None, whole: float) -> float | None:
    """A part as a share of a whole; None where either is missing, and nothing of nothing is none of it.

    >>> ratio(1.0, 4.0), ratio(0.0, 0.0), ratio(1.0, 0.0), ratio(None, 1.0)
    (0.25, 0.0, None, None)
    """
    if part is None or (whole == 0 and part != 0):
        return None
    return part / whole if whole else 0.0


def share(part: float, whole: float) -> str:
    """A part as a percentage, enough digits to be read; words where the whole is nothing.

    >>> share(0.1234, 1.0), share(0.00012, 1.0), share(0.0, 0.0), share(0.1, 0.0)
    ('12.3%', '0.012%', '0%', 'from a loss of zero')
    """
    known = ratio(part, whole)
    if known is None:
        return "from a loss of zero"
    percent = 100 * known
    return f"{percent:.1f}%" if abs(percent) >= 1 else f"{percent:.2g}%"


def _percent(known: float | None) -> str:
    return "an unknown share" if known is None else f"{known:.2%}"
