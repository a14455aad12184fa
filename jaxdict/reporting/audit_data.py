"""What the audit page's script draws: tables, cards and examples as JSON. Bounded: many numbers are packed, and examples that are more
than a page may hold go into a file beside it. No numerics but rounding."""

import base64
import bisect
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdict.reporting import vocabulary as words

DIGITS = 4  # of a feature's numbers in the page; audit.json has them all
# Columns of more rows than this are packed: three bytes a float, four a whole number, instead of their digits.
MOST_IN_DIGITS = 4096
# Of the page, the labels of all features take at most so many bytes, and so do the examples.
LABEL_BYTES, EXAMPLE_BYTES = 4_000_000, 4_000_000
LONGEST_LABEL, LONGEST_TOKEN = 400, 60
SHORTER_LABELS = (LONGEST_LABEL, 160, 80, 40, 20, 10)
# Features whose examples stay in a page that cannot hold those of all.
MOST_NAMED = 300


class PageData(NamedTuple):
    """The data of a page as JSON for a script element, and the file beside it, None where the page holds everything."""

    text: str
    beside: str | None
    digest: str | None  # of what is beside it: the page reads no other


def page_data(document: dict, beside: str | None) -> PageData:
    """The tables, cards and examples of an audit's document; `beside` names the file for examples that are too many for the page.

    Without `beside` those are left out, but of the features that the page names.
    """
    cards = document.get("cards") or {}
    cards = {kind: [_cleaned(card) for card in cards.get(kind) or []] for kind in ("pairs", "features")}
    data: dict[str, Any] = {"tables": _tables(document), "cards": cards, "context": words.CONTEXT}
    data["neuronpedia"] = words.feature_pages(document.get("sae") or {})
    rows, runs = [row for row in document.get("features") or [] if row.get("rows")], document.get("passages") or []
    examples = _examples(rows, runs) if rows or runs else None
    text = _json(examples)
    whole = len(text.encode()) <= EXAMPLE_BYTES
    if not whole:
        named = _named(document)
        rows = [row for row in rows if row["feature"] in named]
        examples = _examples(rows, _windows(runs, _rows_of(rows, document)))
    digest = None if whole or beside is None else hashlib.sha256(text.encode()).hexdigest()[:32]
    data |= {"examples": examples, "partly": not whole, "beside": digest and {"file": beside, "digest": digest}}
    script = None if digest is None else f'jaxdictExamples("{digest}", JSON.parse({_json(text)}));\n'
    return PageData(_safe(_json(data)), script, digest)


def _tables(document) -> dict[str, dict]:
    features, pairs = document.get("features") or [], document.get("pairs") or []
    extra = [words.Column(key, "", "number", "") for key in ("i", "j", "upper", "parent", "child", "rate", "cost_own",
                                                             "guaranteed", "step")]  # fmt: skip
    twins = [document.get(name) or [] for name in ("duplicates", "antipodal")]
    return {
        "pairs": _table(words.PAIR_COLUMNS, pairs, "cost", True, DIGITS + 1, extra),
        "features": _table(words.FEATURE_COLUMNS, features, "feature", False),
        "duplicates": _table(words.DUPLICATE_COLUMNS, twins[0], "cosine", True, extra=extra[:2]),
        "antipodal": _table(words.ANTIPODAL_COLUMNS, twins[1], "coverage", True, extra=extra[:2]),
    }


def _table(columns, rows, sort: str, descending: bool, digits: int = DIGITS, extra=()) -> dict:
    """One table column by column, which is a third of its size row by row; columns without any value have no title."""
    values, shown = {}, []
    for column in (*columns, *extra):
        if column.key not in ("pair", "labels"):
            values[column.key] = _column(column, rows, digits)
        known = column.key in ("pair", "labels") or not rows or any(_there(value) for value in values[column.key])
        shown += [column._asdict()] if known and column in columns else []
        if column.key in values:
            values[column.key] = packed(values[column.key]) if len(rows) > MOST_IN_DIGITS else values[column.key]
    values = {key: column for key, column in values.items() if column is not None}
    return {"columns": shown, "values": values, "n": len(rows), "sort": sort, "descending": descending}


def _column(column, rows, digits) -> list:
    if column.kind == "state":
        return [" ".join(name for name in ("dead", "dense") if row.get(name)) for row in rows]
    if column.kind == "label":
        return _labels([row.get(column.key) for row in rows])
    return _values([row.get(column.key) for row in rows], digits)


def _there(value) -> bool:
    return value is not None and value != ""


def _labels(labels: Sequence) -> list[str | None]:
    """Labels as they are shown, all of them cut at the first of some lengths at which they fit the page; none where none does."""
    for longest in SHORTER_LABELS:
        cut = [words.shown_text(label, longest) if label else None for label in labels]
        if len(_safe(_json(cut)).encode()) <= LABEL_BYTES:
            return cut
    return [None] * len(labels)


def packed(values: list) -> list | dict[str, str] | None:
    """A column of numbers as base64, the first byte of each the highest: whole numbers as int32, others the first 24 bits of float32.

    That is 1.5e-5 of each number. Missing ones are NaN; a column without any is left out, and texts stay as they are.

    >>> packed([1.0, None]), packed([1, 258]), packed(["a"]), packed([None])
    ({'kind': 'float', 'bytes': 'P4AAf8AA'}, {'kind': 'int', 'bytes': 'AAAAAQAAAQI='}, ['a'], None)
    """
    if not any(value is not None for value in values):
        return None
    if all(type(value) is int for value in values):
        return _packed(np.array(values, ">i4"), 4, "int")
    if not all(value is None or type(value) in (int, float) for value in values):
        return values
    return packed_floats(np.array([math.nan if value is None else value for value in values], np.float32))


def packed_floats(values: np.ndarray) -> dict[str, str]:
    """Floats as base64, as `packed` does."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) + np.uint32(0x80)  # to the nearest of 24 bits
    return _packed(bits.astype(">u4"), 3, "float")


def _packed(words_of_four: np.ndarray, size: int, kind: str) -> dict[str, str]:
    kept = words_of_four.reshape(-1, 1).view(np.uint8)[:, :size].tobytes()
    return {"kind": kind, "bytes": base64.b64encode(kept).decode()}


def _examples(rows: list[dict], runs: list[dict]) -> dict:
    """The examples of features, and the texts of runs of rows, one list after the other."""
    most, bins = (max((len(found) for found in parts), default=0) for parts in
                  ([row["rows"] for row in rows], [(row.get("histogram") or {}).get("counts") or [] for row in rows]))  # fmt: skip
    at, codes = np.full((len(rows), most), -1, ">i4"), np.zeros((len(rows), most), np.float32)
    start, counts = np.full(len(rows), np.nan, np.float32), np.zeros((len(rows), bins), np.float32)
    for n, row in enumerate(rows):
        at[n, : len(row["rows"])], codes[n, : len(row["rows"])] = row["rows"], row["codes"]
        if row.get("histogram"):
            start[n], counts[n] = row["histogram"]["from"], row["histogram"]["counts"]
    sizes = [len(run["texts"]) for run in runs]
    longest = LONGEST_TOKEN if any(size > 1 for size in sizes) else LONGEST_LABEL
    return {
        "n": len(rows), "features": [row["feature"] for row in rows], "examples": most, "bins": bins,
        "rows": _packed(at, 4, "int"), "codes": packed_floats(codes), "from": packed_floats(start), "counts": packed_floats(counts),
        "starts": _packed(np.array([run["row"] for run in runs], ">i4"), 4, "int"), "sizes": _packed(np.array(sizes, ">i4"), 4, "int"),
        "texts": [words.shown_text(text, longest) for run in runs for text in run["texts"]],
    }  # fmt: skip


def _named(document) -> set[int]:
    """Features that the page itself names, at most `MOST_NAMED`: those of cards, of pairs, and with most to gain."""
    cards = document.get("cards") or {}
    features = [card["feature"] for card in cards.get("features") or []]
    features += [row["feature"] for row in words.most_to_gain(document.get("features") or [], 10)]
    pairs = [pair for name in ("pairs", "duplicates", "antipodal") for pair in (document.get(name) or [])[:50]]
    features += [pair[side] for pair in pairs for side in "ij"]
    return set(list(dict.fromkeys(features))[:MOST_NAMED])


def _rows_of(features: list[dict], document) -> Iterable[int]:
    """The rows of the data that some features and the page's cards show."""
    cards = document.get("cards") or {}
    shown = [
        document.get("new_atom") or {},
        *(card for kind in ("pairs", "features") for card in cards.get(kind) or []),
    ]
    listed = [row["row"] for card in shown for key in ("rows", "residual_rows") for row in card.get(key) or []]
    return {*listed, *(row for feature in features for row in feature["rows"])}


def _windows(runs: list[dict], rows: Iterable[int]) -> list[dict]:
    """The parts of runs of texts that stand about some rows.

    >>> runs = [{"row": 0, "texts": list("abcdefghijklmnopqrstuvwxyz")}, {"row": 90, "texts": ["z"]}]
    >>> [(run["row"], "".join(run["texts"])) for run in _windows(runs, [20, 1, 23, 5000])]
    [(0, 'abcdefg'), (10, 'klmnopqrstuvwxyz')]
    """
    before, after = words.CONTEXT
    starts, found = [run["row"] for run in runs], []
    for row in sorted(rows):
        k = bisect.bisect_right(starts, row) - 1
        if k < 0 or row >= starts[k] + len(runs[k]["texts"]):
            continue
        low, high = max(starts[k], row - before), row + after + 1
        if found and found[-1][0] == k and low <= found[-1][2]:
            found[-1][2] = high
        else:
            found.append([k, low, high])
    return [{"row": low, "texts": runs[k]["texts"][low - starts[k] : high - starts[k]]} for k, low, high in found]


def _values(values: list, digits: int) -> list:
    """Floats to `digits` significant digits, text made visible, null for what is not finite."""
    return [
        _rounded(value, digits) if isinstance(value, float) else
        words.shown_text(value, LONGEST_LABEL) if isinstance(value, str) else value
        for value in values
    ]  # fmt: skip


def _rounded(value: float, digits: int) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _cleaned(value):
    """A card with its numbers rounded and its text made visible."""
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return _values([value], DIGITS)[0]


def _json(value) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _safe(text: str) -> str:
    """JSON that stands in a script element: no character in it can end the element."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
