"""The arbitration's page: one HTML file that opens from disk, without script, made from the arbitration's document. No numerics."""

from importlib.resources import files
from typing import Any

from jaxdict.reporting.arbitration_table import check_schema, columns, tidy
from jaxdict.reporting.audit_page import template_environment
from jaxdict.reporting.vocabulary import MISSING, SPLIT_PARTS

# More pairs than this are folded away: four names have six.
OPEN_PAIRS = 6
# More SAEs than this likewise.
OPEN_SAES = 20


def arbitration_html(document: dict[str, Any]) -> str:
    """The document (`schema` "jaxdict-arbitration-1") as one self-contained page: the verdict, a picture a row, the table, the limits.

    Names are untrusted: they are escaped wherever they stand, and the page's policy runs no script at all. Raises ValueError for
    another schema, ModuleNotFoundError without jinja2.
    """
    check_schema(document)
    environment, trusted = template_environment()
    saes = sum(len(entry["saes"]) for entry in document["entries"])
    style = "".join(
        (files("jaxdict.reporting") / name).read_text("utf-8") for name in ("audit_page.css", "arbitration_page.css")
    )
    template = (files("jaxdict.reporting") / "arbitration_page.html.jinja").read_text("utf-8")
    return environment.from_string(template).render(
        document,
        style=trusted(style),
        names=[entry["name"] for entry in document["entries"]],
        bars=_bars(document["entries"]),
        columns=columns(document),
        differences=_differences(document),
        legend=[name for name in SPLIT_PARTS if name == "rest" or name in _measured(document)],
        absorbed=_absorbed(document),
        open_pairs=OPEN_PAIRS,
        folded_saes=saes if saes > OPEN_SAES else 0,
        sweeps=[entry for entry in document["entries"] if len(entry["saes"]) > 1],
        titles=SPLIT_PARTS,
        missing=MISSING,
    )


def _measured(document) -> set[str]:
    """The parts of the error that any name has."""
    return {part["name"] for entry in document["entries"] for part in entry["parts"] or ()}


def _bars(entries) -> list[dict[str, Any]]:
    """A bar for each name, the lowest error first, all on one scale: the parts with their places and their whiskers in hundredths."""
    reached = [entry for entry in entries if entry["reached"]]
    longest = max((entry["own"] for entry in reached), default=0.0) or 1.0
    bars = []
    for entry in sorted(reached, key=lambda entry: entry["own"]):
        bars.append(entry | {"segments": _segments(entry, 100 / longest), "end": 100 * entry["own"] / longest})
    return bars + [entry | {"segments": [], "end": 0.0} for entry in entries if not entry["reached"]]


def _segments(entry, scale: float) -> list[dict[str, Any]]:
    """The parts of a bar that ends at the name's own error; one below zero has no width, and the rest gives way to it."""
    listed = [*entry["parts"], entry["rest"] | {"name": "rest"}]
    widths = [max(0.0, tidy(part["mean"] * scale / 100) or 0.0) * 100 for part in listed[:-1]]
    widths.append(max(0.0, entry["own"] * scale - sum(widths)))
    segments, left = [], 0.0
    for part, width in zip(listed, widths, strict=True):
        end, error = left + width, (part["standard_error"] or 0.0) * scale
        place = {"left": left, "width": width, "low": max(0.0, end - error), "high": end + error}
        segments.append(part | place | {"title": SPLIT_PARTS[part["name"]]})
        left = end
    return segments


def _differences(document) -> list[dict[str, Any]]:
    """Every two names, rounding written as zero on the scale of the larger error."""
    own = {entry["name"]: entry["own"] for entry in document["entries"]}
    rows = []
    for pair in document["pairs"]:
        scale = own[pair["second"]] or 1.0
        figures = [{"name": "own", **{key: pair[key] for key in ("mean", "standard_error", "shown")}}, *pair["parts"]]
        tidied = [
            one | {key: (tidy((one[key] or 0.0) / scale) or 0.0) * scale for key in ("mean", "standard_error")}
            for one in figures
        ]
        rows.append({"first": pair["first"], "second": pair["second"], "figures": tidied})
    return rows


def _absorbed(document) -> list[dict[str, Any]]:
    """The truth's edges with a gap for each name, where any is known."""
    truth = document["truth"] or {}
    return [
        row for row in truth.get("absorbed") or [] if any(one["gap"] is not None for one in row["by_name"].values())
    ]
