"""An audit's document as a real audit makes it, for tests of what shows it: plausible numbers, awkward labels."""

import numpy as np

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "quote \" and ' and & and `",
    "مرحبا بالعالم",
    "\u202eevil\u202c",
    "line one\nline two\ttabbed",
    "long " + "unbroken" * 80,
    "{{ 7 * 7 }} {% raw %}",
    "\x1b[31mred\x07",
]
# fmt: off
WORDS = [
    "the", "river", "bank", "dog", "labrador", "Paris", "France", "January", "Monday", "said", "because",
    "protein", "gene", "court", "judge", "0.5", "%", "import", "def", "return", "error", "music", "violin",
    "sea", "ship", "winter", "snow", "price", "market", "goal", "league", "bishop", "church",
]
# fmt: on


N_ROWS, A_DOCUMENT = 20000, 128


def passages(rows, seed=0):
    """Texts about the rows of a document's examples, cut at documents of 128 rows; some texts are hostile."""
    rng, shown = np.random.default_rng(seed), {}
    for row in rows:
        first = row - row % A_DOCUMENT
        shown |= dict.fromkeys(range(max(first, row - 10), min(first + A_DOCUMENT, row + 6)))
    runs = []
    for row in sorted(shown):
        word = HOSTILE[row % len(HOSTILE)] if row % 97 == 0 else f" {WORDS[rng.integers(len(WORDS))]}"
        if runs and row % A_DOCUMENT and runs[-1]["row"] + len(runs[-1]["texts"]) == row:
            runs[-1]["texts"].append(word)
        else:
            runs.append({"row": row, "texts": [word]})
    return runs


def words(rng, count):
    return " · ".join(f" {word}" for word in rng.choice(WORDS, count))


def feature_row(rng, k, n, labelled=True):
    dead = bool(k % 37 == 36)
    frequency = 0.0 if dead else float(np.exp(rng.normal(-4, 1.2)).clip(1e-4, 0.9))
    live = lambda value: None if dead else float(value)  # noqa: E731
    label = None if dead or not labelled else HOSTILE[k] if k < len(HOSTILE) else words(rng, 4)
    own = np.random.default_rng(k)
    top = float(2 ** np.ceil(own.uniform(2, 7)))
    counts = np.floor(own.uniform(50, 900) * np.exp(-0.5 * ((np.arange(16) - 5) / 3) ** 2)).astype(int)
    strongest = {
        "rows": [] if dead else own.choice(N_ROWS, 8, replace=False).tolist(),
        "codes": [] if dead else np.sort(own.uniform(0.6 * top, 0.99 * top, 8))[::-1].tolist(),
        "histogram": None if dead else {"from": top, "counts": [1, *counts[1:].tolist()]},
    }
    return {
        "feature": k, "norm": float(rng.uniform(0.7, 1.4)), "frequency": frequency, "mean_code": live(rng.uniform(0.4, 3)),
        "max_code": live(rng.uniform(4, 12)), "dead": dead, "dense": bool(k % 53 == 11),
        "stationarity": live(rng.lognormal(-1.5, 0.7)), "stationarity_exact": live(rng.lognormal(-2.3, 0.7)),
        "residual": live(rng.lognormal(-3, 1)), "lam": live(rng.normal(0.5, 0.06)), "turn_gain": live(rng.lognormal(-8, 1.5)),
        "decoder_gain": live(rng.normal(0, 1e-4)), "decoder_gain_error": live(1e-4), "decoder_defect": live(rng.normal(0, 1e-3)),
        "decoder_shown": False,
        "nearest": int((k + 1 + rng.integers(n - 1)) % n), "nearest_cosine": float(rng.uniform(0.2, 0.95)), "label": label,
        **strongest,
    }  # fmt: skip


def pair_row(rng, i, j):
    hierarchy = bool(rng.random() < 0.6)
    cosine, cost = float(rng.uniform(0.05, 0.7)), float(rng.lognormal(-7, 1.2))
    lower = 1.0 if hierarchy else float(rng.uniform(cosine + 0.02, 0.99))
    q, rho = (1.0 if hierarchy else float(rng.uniform(0.5, 0.9))), float(rng.uniform(0.05, 0.6))
    return {
        "i": i, "j": j, "kind": "hierarchy" if hierarchy else "overlap", "parent": i,
        "child": j, "q": q, "rho": rho, "both": int(rng.integers(20, 900)), "cosine": cosine, "lower": lower,
        "upper": 1.0, "margin": cosine - lower, "rate": float(rng.uniform(0.002, 0.03)), "cost": cost, "cost_share": cost / 19.2,
        "cost_own": cost * 1.4, "guaranteed": cost / 2.5, "step": float(rng.uniform(0.05, 0.6)),
        "absorption": float(rng.uniform(-0.2, 0.4)), "absorption_error": 0.1,
    }  # fmt: skip


def split_part(name, mean, error, sentence, shown=True):
    share = None if mean is None else mean / 24.0
    rows, fitted = (None, None) if mean is None else (1024, 4608)
    measured = {"rows": rows, "fitted_rows": fitted, "added": None}
    return measured | {
        "name": name,
        "mean": mean,
        "standard_error": error,
        "share": share,
        "shown": shown,
        "sentence": sentence,
    }


def pair_card(rng, pair):
    """Rows with neither, the parent alone, both: as the codes of a child that fires only with its parent look."""
    n = 400
    state = rng.choice(3, n, p=(0.35, 0.45, 0.2))
    z_i = np.where(state > 0, rng.gamma(3, 1.3, n), 0) * (1 if pair["kind"] == "hierarchy" else rng.random(n) > 0.05)
    z_j = np.where(state > 1, rng.gamma(3, 1.8, n), 0)
    if pair["kind"] == "overlap":
        z_j = np.where(z_i == 0, np.minimum(z_j, z_j.mean() * (1 - pair["lower"])), z_j)
    points = np.stack([z_i / z_i.mean(), z_j / z_j.mean()], axis=1).round(4)
    top = np.argsort(-z_j)[:8]
    rows = [{"row": int(n), "label": str(rng.choice(WORDS)), "z_i": float(z_i[n]), "z_j": float(z_j[n])} for n in top]
    rows[1]["label"], rows[2]["label"] = HOSTILE[1], None
    return {"i": pair["i"], "j": pair["j"], "points": points.tolist(), "rows": rows}


def feature_card(rng, k):
    codes, shares = np.sort(rng.gamma(3, 1.5, 10))[::-1], np.sort(rng.random(6) * 0.02)[::-1]
    return {
        "feature": k,
        "rows": [{"row": int(rng.integers(20000)), "label": words(rng, 1), "code": float(z)} for z in codes],
        "residual_rows": [{"row": int(rng.integers(20000)), "label": words(rng, 1), "share": float(s)} for s in shares],
    }


MEASURES = [
    ("l0", "Active features a row", 15.53, "Features on in a row, on average."),
    ("explained_variance", "Variance explained", 0.8412, "Share of the data's variance that the reconstruction has."),
    ("dead_features", "Dead features", 13, "Of 512, never on in these 20,000 rows."),
    ("dense_features", "Dense features", 9, "On in more than a tenth of the rows."),
    ("share_beyond_lam", "Rows that could use an atom", 0.993, "Residual longer than lam: splitting has not stopped."),
    ("stationarity_codes", "Codes off optimal", 0.412, "Median distance of the codes from stationarity; 0 is optimal."),
    ("stationarity_atoms", "Atoms off optimal", 0.213, "Median distance of the atoms from stationarity; 0 is optimal."),
    ("costly_pairs", "Pairs that cost loss", 36, "Absorbing the parent, measured, lowers the loss."),
    ("pair_cost", "Dearest pair, share of F", 0.000413, "What the worst single pair costs (T16)."),
    ("stationarity_offset", "Offset off optimal", 4.1e-4, "Mean residual in units of lam; 0 is optimal."),
]


def audit_document(n_features=512, n_pairs=60, n_cards=24, labelled=True, seed=0):
    rng = np.random.default_rng(seed)
    features = [feature_row(rng, k, n_features, labelled) for k in range(n_features)]
    chosen = [rng.choice(n_features, 2, replace=False) for _ in range(n_pairs)]
    pairs = sorted((pair_row(rng, int(i), int(j)) for i, j in chosen), key=lambda pair: -pair["cost"])
    pairs[0] |= {
        "i": 3,
        "j": 7,
        "parent": 3,
        "child": 7,
        "kind": "hierarchy",
        "q": 1.0,
        "lower": 1.0,
        "cosine": 0.31,
        "margin": -0.69,
    }
    shown = {pair["i"] for pair in pairs[:n_cards]} | {pair["j"] for pair in pairs[:n_cards]}
    return {
        "schema": "jaxdict-audit-1",
        "made_with": {"jax": "0.10.2", "numpy": "2.4.0", "jaxdict": "0.1.0"},
        "seconds": 41.2,
        "sae": {
            "path": "saes/minilm-l5-512", "format": "saelens", "architecture": "standard", "d_in": 384, "d_out": 384, "d_sae": n_features,
            "neuronpedia": None, "caveat": None,
            "model": "all-MiniLM-L6-v2", "hook": "encoder.layer.5.output",
            "notes": ["Decoder rows were scaled to length one; encoder and codes with them.", "No b_dec subtraction."],
        },
        "data": {"path": "acts/minilm_tokens.npy", "rows": 20000, "dtype": "float16", "exact_rows": 2048, "held_out_rows": 2048,
                     "labelled": labelled, "shards": [], "left_out": []},
        "lam": {"value": 0.5, "source": "estimated", "estimate": 0.493, "tenth": 0.41, "median": 0.48, "ninetieth": 0.61,
                    "sentence": "lam is not in the file; 0.5 is the value that fits the atoms best, and half of the "
                    "features ask for less than 0.48."},
        "verdict": [
            "This SAE is not at an optimum: 60 pairs of features cannot both be features as they are.",
            "Its encoder loses 1.6% of the loss and its decoder 4.2%; a wider dictionary could save up to 32%.",
            "36 of the pairs are hierarchies: a child that fires only with its parent, which is never optimal.",
            "On rows that the descent did not see, the better decoder keeps an eighth of its gain.",
        ],
        "measures": [{"name": n, "title": t, "value": v, "sentence": s} for n, t, v, s in MEASURES],
        "split": {
            "unit": "mean squared error a row", "own": 24.0, "own_standard_error": 0.31, "rows": 2048, "documents": 112, "pursuit": 21.0,
            "sentence": "The largest part shown is its choice of features: 12.5% of its squared error on 2,048 rows.",
            "parts": [
                split_part("values", 0.72, 0.03, "Better values on its own features would save this."),
                split_part("supports", 3.0, 0.06, "Other features, as many in each row, would save this."),
                split_part("decoder", 0.24, 0.12, "A step of the decoder would save this. Nothing shown.", shown=False),
                split_part("dictionary", 1.8, 0.2, "Other features of the same number would save this."),
                split_part("atoms", None, None, "More features were not measured.", shown=False),
            ],
            "rest": {"mean": 18.24, "standard_error": 0.25, "share": 0.76, "sentence": "What is left: 18.2."},
        },
        "gaps": {
            "sae": 19.2, "exact": 18.9, "local": 18.1, "wide": 12.0, "amortisation": 0.3, "dictionary": 0.8, "width": 6.1, "rows": 2048,
            "steps": 40, "exact_gap": 2e-7, "exact_message": "Exact on every row.",
            "message": "Stopped at 40 steps: codes 3e-7, atoms 4e-3, offset 2e-9 from stationarity. The local optimum's "
            "value is an upper bound, so the dictionary gap is at least this large.",
            "held_out": {"rows": 2048, "exact": 19.0, "local": 18.9, "dictionary": 0.1},
            "sentences": {
                "amortisation": "Better codes for the same decoder would save this: the encoder's share.",
                "dictionary": "A better decoder of the same width would save this: features are not where they belong.",
                "width": "Only more features could save this.",
            },
        },
        "features": features,
        "passages": passages([row for feature in features for row in feature["rows"]]) if labelled else None,
        "pairs": pairs,
        "duplicates": [{"i": 1, "j": 2, "cosine": 0.97, "together": 0.8}, {"i": 40, "j": 90, "cosine": 0.953, "together": 0.12}],
        "antipodal": [{"i": 5, "j": 6, "cosine": -0.98, "coverage": 0.9, "overlap": 0.0, "dense": True},
                      {"i": 60, "j": 70, "cosine": -0.91, "coverage": 0.02, "overlap": 0.001, "dense": False}],
        "undetermined": [{"parent": 4, "child": 9, "both": 37, "rho": 0.2, "cosine": 0.02, "opposite": -1.0, "absorbed": 0.24,
                          "lowest": -0.2, "sentence": "Feature 9 is on only where feature 4 is " + HOSTILE[0]}],
        "decoder": {"unit": "squared error a row", "rows": 20000, "documents": None, "cut": 0, "live": 499, "shown": 0,
                    "sentence": "Of 499 live features none is shown to have a decoder row that is off."},
        "prefix_pairs": {"prefixes": [64, 512], "loss": 20.0, "sentence": "This SAE is a Matryoshka: its first 64 and 512 features.",
                         "pairs": [{"parent": 4, "child": 90, "sentence": "Feature 90 lies inside feature 4 " + HOSTILE[0]}]},
        "penalty_pairs": {"power": None, "penalty": None, "pairs": [], "sentence": "Its files do not say the power p."},
        "absorption": {"criterion": "Present where it reaches nine tenths.", "rows": 2048, "sentence": "Of 900 edges one shows absorption.",
                       "edges": [{"parent": 4, "child": 9, "sentence": "Where the direction of feature 4 is present " + HOSTILE[0]}]},
        "new_atom": {"gain": 0.0104, "gain_share": 0.00054, "max_ratio": 8.12, "share_beyond_lam": 0.993,
                         "rows": [{"row": 12 + n, "label": HOSTILE[n], "code": 3.1 - 0.3 * n} for n in range(6)],
                         "sentence": "One more atom would save 0.0104, most of it on rows about rivers."},
        "barycentre": {"median": 0.011, "ninetieth": 0.052, "largest": 0.71, "worst": [{"i": 3, "j": 7, "defect": 0.71},
                           {"i": 9, "j": 1, "defect": -0.44}], "sentence": "The residual predicts most cosines to 0.05."},
        "cards": {"pairs": [pair_card(rng, pair) for pair in pairs[:n_cards]],
                      "features": [feature_card(rng, k) for k in sorted(shown)]},
    }  # fmt: skip


def many_features(document, n=131072):
    """The document's features over and over, each with a number, a norm, a label and numbers of its own."""
    rows, rng = document["features"], np.random.default_rng(1)
    copies = (dict(rows[k % len(rows)], feature=k, norm=1 + k / n, nearest=(k + 1) % n) for k in range(n))
    changed = ((row, float(factor)) for row, factor in zip(copies, rng.uniform(0.5, 2, n), strict=True))
    numbers = ("frequency", "mean_code", "residual", "turn_gain", "stationarity")
    return [
        row
        | {"label": row["label"] and f"{row['label']} {row['feature']}"}
        | {name: row[name] and row[name] * factor for name in numbers}
        for row, factor in changed
    ]


def empty_document():
    """An audit that could say next to nothing: no lam, no labels, no pairs, nothing held out."""
    document = audit_document(n_features=3, n_pairs=1, n_cards=0, labelled=False)
    document["sae"] |= {"path": None, "model": None, "hook": None, "notes": []}
    document["data"] |= {"path": None, "held_out_rows": None, "exact_rows": None}
    document["lam"] = {"value": None, "source": "none", "estimate": None, "tenth": None, "median": None, "ninetieth": None,
                           "sentence": "No lam fits: the atoms push outwards."}  # fmt: skip
    document["verdict"] = ["Nothing can be said without a lam."]
    document["split"] = None
    document["gaps"] = dict.fromkeys(document["gaps"]) | {"sentences": {}}
    document["measures"] = [
        {"name": "l0", "title": "Active features a row", "value": None, "sentence": "Not measured."}
    ]
    document["new_atom"] = dict.fromkeys(document["new_atom"]) | {"rows": []}
    document["barycentre"] = dict.fromkeys(document["barycentre"]) | {"worst": []}
    return document | {
        "pairs": [],
        "duplicates": [],
        "antipodal": [],
        "undetermined": None,
        "decoder": None,
        "prefix_pairs": None,
        "penalty_pairs": None,
        "absorption": None,
        "passages": None,
        "features": [],
        "cards": {"pairs": [], "features": []},
    }
