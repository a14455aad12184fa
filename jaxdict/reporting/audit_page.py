"""The audit's page: one HTML file that opens from disk, made from the audit's document. No numerics.

Prose and pictures that are always seen are written here through a template; tables and cards are drawn by the page's own
script from data inside the page, so that 131,072 features stay quick. Nothing is ever asked for but, by a wide SAE's page, the one
file beside it that holds the examples of all features.
"""

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from jaxdict.reporting import vocabulary as words
from jaxdict.reporting.audit_data import page_data

SCRIPTS = "audit_page.js", "audit_examples.js", "audit_tables.js", "audit_pictures.js", "audit_cards.js"
# What the headline says to do follows these words.
REMEDY = " What to do: "


def audit_html(document: dict) -> str:
    """The audit's document (`schema` "jaxdict-audit-1") as one self-contained HTML page.

    Labels are untrusted: they are escaped wherever they stand, and the page's policy runs no script but its own. Missing
    numbers are null. Raises ValueError for another schema, ModuleNotFoundError without jinja2 (`pip install "jaxdict[cli]"`).

    >>> page = audit_html({"schema": "jaxdict-audit-1", "verdict": ["Nothing is wrong."]})
    >>> page.startswith("<!doctype html>"), "Nothing is wrong." in page
    (True, True)
    """
    return audit_files(document, None)[0]


def audit_files(document: dict, beside: str | None) -> tuple[str, str | None]:
    """The page, and the content of the file `beside` it with the examples that are too many for the page; None where it holds all.

    The page takes less than 15 MB at 131,072 features. Raises as `audit_html`.
    """
    words.check_schema(document)
    script = "".join(_part(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment, trusted = template_environment()
    data = page_data(document, beside)
    page = environment.from_string(_part("audit_page.html.jinja")).render(
        _view(document),
        words=words,
        style=trusted(_part("audit_page.css")),
        script=trusted(script),
        digest=digest,
        nonce=data.digest,
        payload=trusted(data.text),
    )
    return page, data.beside


def _view(document) -> dict[str, Any]:
    """What the template reads: every section there, and what only the page needs."""
    names = (
        "sae",
        "data",
        "lam",
        "gaps",
        "new_atom",
        "barycentre",
        "decoder",
        "prefix_pairs",
        "penalty_pairs",
        "absorption",
    )
    sections = {name: document.get(name) or {} for name in names}
    lists = {name: document.get(name) or [] for name in ("verdict", "measures", "pairs", "duplicates", "antipodal")}
    features = document.get("features") or []
    parts = words.gap_parts(sections["gaps"])
    return {
        **sections,
        **lists,
        **_first_screen(lists["verdict"], lists["measures"], _said_below(document, bool(parts))),
        "about": _about(sections["sae"], sections["data"], document.get("split") or {}),
        "undetermined": document.get("undetermined"),
        "pairs_tested": document.get("pairs", []) is not None,
        "made_with": document.get("made_with") or {},
        "seconds": document.get("seconds"),
        "name": _name(sections["sae"]),
        "n_features": len(features),
        "parts": _placed(parts),
        "split": document.get("split") or {},
        "split_parts": _whiskers(_placed(words.split_parts(document.get("split")))),
        "spread": _spread(sections["lam"]),
        "worst_residuals": words.most_to_gain(features, 10),
        "labels": {row["feature"]: row.get("label") for row in features},
    }


def _said_below(document, gaps_shown: bool) -> set[str]:
    """Sentences of the verdict that stand beneath it: with the parts of the split, and with the gaps or in their place."""
    split, gaps, lam = (document.get(name) or {} for name in ("split", "gaps", "lam"))
    of_gaps = (gaps.get("sentences") or {}).values() if gaps_shown else [lam.get("sentence")]
    return {str(sentence) for sentence in (*(part.get("sentence") for part in split.get("parts") or []), *of_gaps)}


def _first_screen(verdict, measures, said: set[str]) -> dict[str, Any]:
    """The headline and what to do about it, the verdict without what is said beneath it, the key measures that are known, the others."""
    named = {measure["name"]: measure for measure in measures if measure.get("value") is not None}
    first = [named[name] for name in words.KEY_MEASURES if name in named] or measures[:8]
    headline, _, remedy = (str(verdict[0]) if verdict else "").partition(REMEDY)
    return {
        "headline": headline,
        "remedy": remedy[:1].upper() + remedy[1:],
        "verdict": [sentence for sentence in verdict[1:] if sentence not in said],
        "key_measures": first,
        "other_measures": [measure for measure in measures if measure not in first],
    }


def _about(sae, data, split) -> str:
    """What the SAE is and what it was audited on, in a sentence each."""
    kind = f"{sae['architecture']} SAE" if sae.get("architecture") else "SAE"
    width = f" of {sae['d_sae']:,} features" if sae.get("d_sae") else ""
    reads = " at ".join(str(sae[key]) for key in ("model", "hook") if sae.get(key))
    told = f"A {kind}{width}" + (f", for {reads}" if reads else "") + "."
    if not data.get("rows"):
        return told
    documents = f" of {split['documents']:,} documents" if split.get("documents") else ""
    part = f"; its error is split on {split['rows']:,} rows{documents} among them" if split.get("rows") else ""
    return f"{told} Audited on {data['rows']:,} rows{part}."


def _name(sae) -> str:
    """What the page calls the SAE: its path's last part, else its model and hook."""
    if sae.get("path"):
        return PurePath(sae["path"]).name or str(sae["path"])
    return " · ".join(sae[key] for key in ("model", "hook") if sae.get(key)) or "a sparse autoencoder"


def _placed(parts: Sequence[dict]) -> list[dict]:
    """The parts with their places in a bar of width 100; one that is below zero has no width."""
    widths = [max(0.0, part["value"] or 0.0) for part in parts]
    total = sum(widths) or 1.0
    return [
        part | {"left": 100 * sum(widths[:k]) / total, "width": 100 * width / total}
        for k, (part, width) in enumerate(zip(parts, widths, strict=True))
    ]


def _whiskers(parts: list[dict]) -> list[dict]:
    """The placed parts with a standard error about each one's end, within the bar."""
    scale = sum(part["width"] for part in parts) / (sum(max(0.0, part["value"] or 0.0) for part in parts) or 1.0)
    return [
        part
        | {
            "low": max(0.0, part["left"] + part["width"] - scale * (part["error"] or 0.0)),
            "high": min(100.0, part["left"] + part["width"] + scale * (part["error"] or 0.0)),
        }
        for part in parts
    ]


def _spread(lam) -> dict[str, float] | None:
    """Places of lam's spread over features on a line of width 100, None where it is not known."""
    known = {key: lam.get(key) for key in ("tenth", "median", "ninetieth", "value", "estimate")}
    known = {key: value for key, value in known.items() if value is not None and math.isfinite(value)}
    if not {"tenth", "median", "ninetieth"} <= set(known):
        return None
    low, high = min(known.values()), max(known.values())
    room = (high - low) or 1.0
    return {key: 6 + 88 * (value - low) / room for key, value in known.items()}


def _part(name: str) -> str:
    return (files("jaxdict.reporting") / name).read_text(encoding="utf-8")


def template_environment() -> tuple[Any, Callable[[str], str]]:
    """A template environment that escapes everything, and the mark of what is trusted."""
    try:
        from jinja2 import ChainableUndefined, Environment
    except ImportError as missing:
        raise ModuleNotFoundError('the page needs jinja2: pip install "jaxdict[cli]"') from missing
    environment = Environment(autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value, kind="number": words.shown_number(value, kind).replace("-", "−")
    environment.filters["visible"] = words.shown_text
    environment.filters["said"] = lambda sentence: words.shown_text(sentence).replace(" +- ", " ± ")
    return environment, environment.filters["safe"]
