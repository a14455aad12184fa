"""What the numbers of an audit mean, in sentences. Nothing is computed here but shares."""

from typing import Any

import numpy as np

from jaxdict.auditing.gaps import Gaps, HeldOut, Sample
from jaxdict.auditing.streaming import Totals
from jaxdict.certificates.stationarity import Stationarity

# Below this share of F a gap is called negligible; beyond the second it is called large.
NEGLIGIBLE, LARGE = 0.005, 0.05
# Below this share of F a pair's cost is not worth a sentence.
COSTLY = 1e-4

# The measures that thresholds may speak of.
MEASURES = (
    "l0", "l0_exact", "active_share", "explained_variance", "dead_features", "dense_features", "objective",
    "sample_objective", "amortisation_gap", "amortisation_share", "dictionary_gap", "dictionary_share", "width_gap",
    "width_share", "stationarity_codes", "stationarity_atoms", "stationarity_offset", "share_beyond_lam", "birth_gain",
    "costly_pairs", "pair_cost",
)  # fmt: skip


def lam_facts(weight) -> dict[str, Any]:
    """lam with its source and what the features themselves say of it."""
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


def gap_facts(gaps: Gaps, beyond: HeldOut | None, sample: Sample) -> dict[str, Any]:
    """The three gaps with what each means."""
    n = len(sample.rows)
    reached = gaps.reached
    if reached is None:
        descent = "No descent was made, so this gap is not measured."
    else:
        descent = (
            f"A descent of {int(reached.steps)} steps from the SAE's own dictionary, with exact codes throughout, lowers the "
            f"loss by {gaps.dictionary:.4g} ({share(gaps.dictionary, gaps.sae)}) on {n:,} rows."
        )
    if beyond is not None:
        change = f"{share(abs(beyond.dictionary), beyond.exact)}) on {beyond.rows:,} rows that it did not see"
        if beyond.dictionary >= 0:
            descent += f" It gains {beyond.dictionary:.4g} ({change}."
        else:
            descent += (
                f" It loses {-beyond.dictionary:.4g} ({change}: it learned its own rows, and says little of the dictionary. "
                "Use more rows with exact codes."
            )
    held_out = None
    if beyond is not None:
        held_out = {
            "rows": beyond.rows,
            "exact": beyond.exact,
            "local": beyond.local,
            "dictionary": beyond.dictionary,
        }
    return {
        "sae": gaps.sae,
        "exact": gaps.exact,
        "local": gaps.local,
        "wide": gaps.wide,
        "amortisation": gaps.amortisation,
        "dictionary": gaps.dictionary,
        "width": gaps.width,
        "rows": n,
        "steps": None if reached is None else int(reached.steps),
        "message": None if reached is None else f"{reached.message()}. {reached.certificate.message(1e-4)}",
        "exact_gap": float(np.max(np.asarray(sample.exact.gap))),
        "exact_message": sample.exact.message(),
        "held_out": held_out,
        "sentences": {
            "amortisation": (
                f"The encoder's codes cost {gaps.amortisation:.4g} ({share(gaps.amortisation, gaps.sae)}) more than the best "
                "codes of the same dictionary."
            ),
            "dictionary": descent,
            "width": (
                f"What is left above a bound that holds for every width: {gaps.width:.4g} ({share(gaps.width, gaps.sae)}). "
                "More atoms, or another local optimum, could at most gain that."
            ),
        },
    }


def new_atom_sentence(new: dict[str, Any]) -> str:
    """What the residual still holds for a new feature (T10)."""
    if not new["gain"] > 0:
        return "No single new atom helps: every residual is within lam."
    return (
        f"One more atom would lower the loss by at least {new['gain']:.3g} ({new['gain_share']:.2%} of it); "
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


def measures(totals: Totals, own: Stationarity, sample: Sample, gaps: Gaps, document: dict[str, Any]) -> list[dict]:
    """The numbers that an audit can be judged by, each with a sentence."""
    n, d_sae = float(totals.rows), document["sae"]["d_sae"]
    variance = totals.squared_data - np.sum(totals.data**2) / n
    l0 = float(totals.active / n)
    l0_exact = float(np.mean(np.sum(np.asarray(sample.exact_codes.values) != 0, axis=1)))
    dead, dense = (sum(row[name] for row in document["features"]) for name in ("dead", "dense"))
    explained = float(1 - totals.squared_error / variance) if variance > 0 else None
    own_value = float(0.5 * totals.squared_residual / n + document["lam"]["value"] * totals.penalty / n)
    at_exact = gaps.certificate.stationarity
    pairs = document["pairs"]
    costly = [pair for pair in pairs if pair["cost_share"] > COSTLY]
    rows = [
        ("l0", "Active features a row", l0, "Mean number of features on, over all rows."),
        ("l0_exact", "Active features a row, exact codes", l0_exact,
         "The same for the best codes of this dictionary, on the sample: what the encoder leaves out or adds."),
        ("active_share", "Share of features on", l0 / d_sae, "L0 over the number of features."),
        ("explained_variance", "Explained variance", explained,
         "1 - sum ||x - x_hat||^2 / sum ||x - mean||^2, over all rows, in the activations' own units."),
        ("dead_features", "Dead features", dead, f"Features of {d_sae:,} that are on in no row."),
        ("dense_features", "Dense features", dense, "Features that are on in more than a tenth of all rows."),
        ("objective", "Loss F of the SAE, all rows", own_value,
         "mean 1/2 ||x - x_hat||^2 + lam sum f, unit decoder rows (half of the packages' loss)."),
        ("sample_objective", "Loss F of the SAE, sample", gaps.sae, "The same on the rows with exact codes."),
        ("amortisation_gap", "Amortisation gap", gaps.amortisation, document["gaps"]["sentences"]["amortisation"]),
        ("amortisation_share", "Amortisation gap, share of F", gaps.amortisation / gaps.sae,
         "The same as a share of the SAE's loss."),
        ("dictionary_gap", "Dictionary gap", gaps.dictionary, document["gaps"]["sentences"]["dictionary"]),
        ("dictionary_share", "Dictionary gap, share of F", gaps.dictionary / gaps.sae, "The same as a share of the SAE's loss."),
        ("width_gap", "Width gap", gaps.width, document["gaps"]["sentences"]["width"]),
        ("width_share", "Width gap, share of F", gaps.width / gaps.sae, "The same as a share of the SAE's loss."),
        ("stationarity_codes", "Codes off optimal", float(own.codes),
         "Largest violation of the codes' condition by the SAE's own codes (T1); 0 at an optimum, 1 is lam itself."),
        ("stationarity_atoms", "Atoms off stationary", float(at_exact.atoms),
         "Largest defect of an atom under exact codes (T1), in units of the penalty's pull; 0 at an optimum."),
        ("stationarity_offset", "Offset off stationary", float(at_exact.offset),
         "||mean residual|| / lam under exact codes (T1); 0 at an optimum."),
        ("share_beyond_lam", "Residuals beyond lam", float(totals.beyond / n),
         "Share of all rows with ||r|| > lam: at zero no wider dictionary could do better (T13)."),
        ("birth_gain", "Gain of one new atom", document["new_atom"]["gain"], document["new_atom"]["sentence"]),
        ("costly_pairs", "Pairs that cost loss", len(costly),
         "Listed pairs whose parent the child should absorb: doing so, measured, lowers the loss by over a ten-thousandth."),
        ("pair_cost", "Dearest pair, share of F", pairs[0]["cost_share"] if pairs else 0.0,
         "What the worst single pair costs, measured along its direction (T16), as a share of the loss."),
    ]  # fmt: skip
    return [{"name": name, "title": title, "value": value, "sentence": text} for name, title, value, text in rows]


def verdict(document: dict[str, Any]) -> list[str]:
    """The audit in a few sentences, the headline first."""
    gaps, pairs = document["gaps"], document["pairs"]
    value = {measure["name"]: measure["value"] for measure in document["measures"]}
    parts = {
        "its encoder": gaps["amortisation"],
        "its dictionary": (gaps["held_out"] or gaps)["dictionary"],
        "its width": gaps["width"],
    }
    largest = max(("its encoder", "its dictionary"), key=lambda name: parts[name])
    size = parts[largest] / gaps["sae"]
    if size <= NEGLIGIBLE:
        headline = "Close to a local optimum: neither its encoder nor its dictionary loses more than half a percent of the loss."
    else:
        degree = "far from" if size > LARGE else "short of"
        headline = f"{degree.capitalize()} optimal, mostly through {largest}: {share(parts[largest], gaps['sae'])} of the loss."
    explained = value["explained_variance"]
    sentences = [
        headline,
        f"On average {value['l0']:.1f} of {document['sae']['d_sae']:,} features are on and "
        + ("explain nothing that varies." if explained is None else f"explain {explained:.1%} of the variance.")
        + f" The best codes of the same dictionary use {value['l0_exact']:.1f}.",
        gaps["sentences"]["amortisation"],
        gaps["sentences"]["dictionary"],
    ]
    if value["dead_features"]:
        sentences.append(f"{value['dead_features']:,} features never fire.")
    costly = int(value["costly_pairs"])
    first = pairs[0] if pairs else None
    if first is None or not first["cost"] > 0:
        sentences.append("No pair of features was found whose parent the child should absorb.")
    elif not costly:
        sentences.append(
            f"Absorbing parents into children gains next to nothing: {share(first['cost'], gaps['exact'])} of the loss for the "
            "dearest pair."
        )
    else:
        plural = "pair of features" if costly == 1 else "pairs of features"
        sentences.append(
            f"{costly} {plural} cannot both stay as they are: the dearest is child {first['child']} under parent "
            f"{first['parent']}, where absorbing the parent would save {share(first['cost'], gaps['exact'])} of the loss."
        )
    return sentences


def share(part: float, whole: float) -> str:
    """A part as a percentage, enough digits to be read.

    >>> share(0.1234, 1.0), share(0.00012, 1.0)
    ('12.3%', '0.012%')
    """
    percent = 100 * part / whole if whole else float("nan")
    return f"{percent:.1f}%" if abs(percent) >= 1 else f"{percent:.2g}%"
