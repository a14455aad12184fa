"""The numbers that an audit can be judged by, each with its title and a sentence."""

from typing import Any

import numpy as np

from jaxdict.auditing.measuring import Measured, View
from jaxdict.auditing.sentences import ratio

# Below this share of F a pair's cost is not worth a sentence.
COSTLY = 1e-4
# What needs lam, so that it is not measured where there is none.
OF_P = {
    "l0_exact": "Active features a row, exact codes",
    "objective": "Loss F of the SAE, all rows",
    "sample_objective": "Loss F of the SAE, sample",
    "amortisation_gap": "Amortisation gap",
    "amortisation_share": "Amortisation gap, share of F",
    "dictionary_gap": "Dictionary gap, held-out rows",
    "dictionary_gap_share": "Dictionary gap, share of F there",
    "width_gap": "Width gap",
    "width_share": "Width gap, share of F",
    "stationarity_codes": "Codes off optimal",
    "stationarity_atoms": "Atoms off stationary",
    "stationarity_offset": "Offset off stationary",
    "share_beyond_lam": "Residuals beyond lam",
    "birth_gain": "Gain of one new atom",
    "costly_pairs": "Pairs that cost loss",
    "pair_cost": "Dearest pair, share of F",
}
# The parts of the split, as the measures' titles name them.
LOST_TO = {
    "values": "values",
    "supports": "the choice of features",
    "decoder": "the decoder",
    "dictionary": "the dictionary",
    "atoms": "the number of features",
}
# The measures that thresholds may speak of.
MEASURES = (
    "l0", "active_share", "explained_variance", "dead_features", "dense_features", "decoder_off", "squared_error", "values_share",
    "supports_share", "decoder_share", "dictionary_share", "atoms_share", *OF_P,
)  # fmt: skip


def measures(found: Measured, facts: dict[str, Any]) -> list[dict]:
    """The numbers that an audit can be judged by, each with a sentence; None where one was not measured."""
    totals, d_sae, split = found.passed.totals, found.sae.d_sae, facts["split"]
    n = float(totals.rows)
    variance = totals.squared_data - np.sum(totals.data**2) / n
    l0 = float(totals.active / n)
    dead, dense = (sum(row[name] for row in found.features) for name in ("dead", "dense"))
    explained = float(1 - totals.squared_error / variance) if variance > 0 else None
    parts = {part["name"]: part for part in split["parts"]}
    rows = [
        ("l0", "Active features a row", l0, "Mean number of features on, over all rows."),
        ("active_share", "Share of features on", l0 / d_sae, "L0 over the number of features."),
        ("explained_variance", "Explained variance", explained,
         "1 - sum ||x - x_hat||^2 / sum ||x - mean||^2, over all rows, in the activations' own units."),
        ("dead_features", "Dead features", dead, f"Features of {d_sae:,} that are on in no row."),
        ("dense_features", "Dense features", dense, "Features that are on in more than a tenth of all rows."),
        ("decoder_off", "Decoder rows shown off", facts["decoder"]["shown"], facts["decoder"]["sentence"]),
        ("squared_error", "Squared error a row", split["own"], f"{split['unit']}, on {split['rows']:,} rows.".capitalize()),
        *((f"{name}_share", f"Lost to {what}, share of the error", parts[name]["share"], parts[name]["sentence"])
          for name, what in LOST_TO.items()),
    ]  # fmt: skip
    missing = [(name, None, "Not measured: it needs lam.") for name in OF_P]
    of_p = missing if found.view is None else _measures_of_p(found, found.view, facts)
    rows += [(name, OF_P[name], value, text) for name, value, text in of_p]
    return [{"name": name, "title": title, "value": value, "sentence": text} for name, title, value, text in rows]


def _measures_of_p(found: Measured, view: View, facts: dict[str, Any]) -> list[tuple]:
    """What problem P says of the SAE: name, value, sentence."""
    beyond = view.held_out
    totals, gaps, own, at_exact = found.passed.totals, view.gaps, view.own, view.gaps.certificate.stationarity
    n = float(totals.rows)
    l0_exact = float(np.mean(np.sum(np.asarray(found.sample.exact_codes.values) != 0, axis=1)))
    own_value = float(0.5 * totals.squared_residual / n + view.lam.value * totals.penalty / n)
    pairs, said = facts["pairs"], facts["gaps"]["sentences"]
    costly = None if pairs is None else len([pair for pair in pairs if (pair["cost_share"] or 0.0) > COSTLY])
    dearest = None if pairs is None else pairs[0]["cost_share"] if pairs else 0.0
    return [
        ("l0_exact", l0_exact,
         "The same for the best codes of this dictionary, on the sample: what the encoder leaves out or adds."),
        ("objective", own_value, "mean 1/2 ||x - x_hat||^2 + lam sum f, unit decoder rows (half of the packages' loss)."),
        ("sample_objective", gaps.sae, "The same on the rows with exact codes."),
        ("amortisation_gap", gaps.amortisation, said["amortisation"]),
        ("amortisation_share", ratio(gaps.amortisation, gaps.sae), "The same as a share of the SAE's loss."),
        ("dictionary_gap", None if beyond is None else beyond.dictionary, said["dictionary"]),
        ("dictionary_gap_share", None if beyond is None else ratio(beyond.dictionary, beyond.exact),
         "The same as a share of the loss with exact codes; of the rows that the descent did not see."),
        ("width_gap", gaps.width, said["width"]),
        ("width_share", ratio(gaps.width, gaps.sae), "The same as a share of the SAE's loss."),
        ("stationarity_codes", float(own.codes),
         "Largest violation of the codes' condition by the SAE's own codes (T1); 0 at an optimum, 1 is lam itself."),
        ("stationarity_atoms", float(at_exact.atoms),
         "Largest defect of an atom under exact codes (T1), in units of the penalty's pull; 0 at an optimum."),
        ("stationarity_offset", float(at_exact.offset), "||mean residual|| / lam under exact codes (T1); 0 at an optimum."),
        ("share_beyond_lam", float(totals.beyond / n),
         "Share of all rows with ||r|| > lam: at zero no wider dictionary could do better (T13)."),
        ("birth_gain", facts["new_atom"]["gain"], facts["new_atom"]["sentence"]),
        ("costly_pairs", costly,
         "Listed pairs whose parent the child should absorb: doing so, measured, lowers the loss by over a ten-thousandth."),
        ("pair_cost", dearest,
         "What the worst single pair costs, measured along its direction (T16), as a share of the loss."),
    ]  # fmt: skip
