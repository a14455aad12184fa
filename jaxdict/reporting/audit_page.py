"""The audit's page: one HTML file that opens from disk, made from the audit's document. No numerics.

Prose and pictures that are always seen are written here through a template; tables and cards are drawn by the page's own
script from data inside the page, so that 65,000 features stay quick. Nothing outside the file is ever asked for.
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from jaxdict.reporting import vocabulary as words

# Labels of all features together take at most about this many characters of the page.
LABEL_CHARACTERS = 5_000_000
LONGEST_LABEL = 400
DIGITS = 4  # of a feature's numbers in the page; audit.json has them all


def audit_html(document: dict) -> str:
    """The audit's document (`schema` "jaxdict-audit-1") as one self-contained HTML page.

    Labels are untrusted: they are escaped wherever they stand, and the page's policy runs no script but its own. Missing
    numbers are null. Raises ValueError for another schema, ModuleNotFoundError without jinja2 (`pip install "jaxdict[cli]"`).

    >>> page = audit_html({"schema": "jaxdict-audit-1", "verdict": ["Nothing is wrong."]})
    >>> page.startswith("<!doctype html>"), "Nothing is wrong." in page
    (True, True)
    """
    words.check_schema(document)
    script = "".join(
        _part(name) for name in ("audit_page.js", "audit_tables.js", "audit_pictures.js", "audit_cards.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment, trusted = _jinja()
    view = _view(document)
    return environment.from_string(_part("audit_page.html.jinja")).render(
        view,
        words=words,
        style=trusted(_part("audit_page.css")),
        script=trusted(script),
        digest=digest,
        payload=trusted(_data(document)),
    )


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
    """Sentences of the verdict that stand beneath it: with the measures, and with the picture of the gaps or in its place."""
    split, gaps, lam = (document.get(name) or {} for name in ("split", "gaps", "lam"))
    of_gaps = (gaps.get("sentences") or {}).values() if gaps_shown else [lam.get("sentence")]
    return {str(sentence) for sentence in (*(part.get("sentence") for part in split.get("parts") or []), *of_gaps)}


def _first_screen(verdict, measures, said: set[str]) -> dict[str, list]:
    """The verdict without what is said beneath it, the key measures that are known, and the others."""
    named = {measure["name"]: measure for measure in measures if measure.get("value") is not None}
    first = [named[name] for name in words.KEY_MEASURES if name in named] or measures[:8]
    return {
        "verdict": [sentence for sentence in verdict if sentence not in said],
        "key_measures": first,
        "other_measures": [measure for measure in measures if measure not in first],
    }


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


def _data(document) -> str:
    """The tables and cards as JSON for a script element: no character in it can end the element."""
    features, pairs = document.get("features") or [], document.get("pairs") or []
    longest = max(40, min(LONGEST_LABEL, LABEL_CHARACTERS // max(1, len(features))))
    extra = [words.Column(key, "", "number", "") for key in ("i", "j", "upper", "parent", "child", "rate", "cost_own",
                                                             "guaranteed", "step")]  # fmt: skip
    tables = {
        "pairs": _table(words.PAIR_COLUMNS, pairs, "cost", True, DIGITS + 1, extra=extra),
        "features": _table(words.FEATURE_COLUMNS, features, "feature", False, DIGITS, longest),
        "duplicates": _table(
            words.DUPLICATE_COLUMNS, document.get("duplicates") or [], "cosine", True, extra=extra[:2]
        ),
        "antipodal": _table(
            words.ANTIPODAL_COLUMNS, document.get("antipodal") or [], "coverage", True, extra=extra[:2]
        ),
    }
    cards = document.get("cards") or {}
    cards = {kind: [_cleaned(card) for card in cards.get(kind) or []] for kind in ("pairs", "features")}
    text = json.dumps({"tables": tables, "cards": cards}, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _table(columns, rows, sort: str, descending: bool, digits=DIGITS, longest=LONGEST_LABEL, extra=()) -> dict:
    """One table column by column, which is a third of its size row by row."""
    values = {}
    for column in (*columns, *extra):
        if column.kind == "state":
            values[column.key] = [_state(row) for row in rows]
        elif column.kind == "label":
            values[column.key] = [
                words.shown_text(row[column.key], longest) if row.get(column.key) else None for row in rows
            ]
        elif column.key not in ("pair", "labels"):
            values[column.key] = _values([row.get(column.key) for row in rows], digits)
    heads = [column._asdict() for column in columns]
    return {"columns": heads, "values": values, "n": len(rows), "sort": sort, "descending": descending}


def _values(values: list, digits: int) -> list:
    """Floats to `digits` significant digits, text made visible, null for what is not finite."""
    return [
        _rounded(value, digits) if isinstance(value, float) else
        words.shown_text(value, LONGEST_LABEL) if isinstance(value, str) else value
        for value in values
    ]  # fmt: skip


def _rounded(value: float, digits: int) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _state(row) -> str:
    return " ".join(name for name in ("dead", "dense") if row.get(name))


def _cleaned(value):
    """A card with its numbers rounded and its text made visible."""
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return _values([value], DIGITS)[0]


def _part(name: str) -> str:
    return (files("jaxdict.reporting") / name).read_text(encoding="utf-8")


def _jinja() -> tuple[Any, Callable[[str], str]]:
    """A template environment that escapes everything, and the mark of what is trusted."""
    try:
        from jinja2 import ChainableUndefined, Environment
    except ImportError as missing:
        raise ModuleNotFoundError('the audit\'s page needs jinja2: pip install "jaxdict[cli]"') from missing
    environment = Environment(autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value, kind="number": words.shown_number(value, kind).replace("-", "−")
    environment.filters["visible"] = words.shown_text
    return environment, environment.filters["safe"]
