"""The one table of an arbitration: which columns, what each means, and its text for a terminal. Nothing is computed here."""

from typing import Any, NamedTuple

from jaxdict.reporting.vocabulary import MISSING, SPLIT_PARTS, shown_number

SCHEMA = "jaxdict-arbitration-1"
# Shares of an error below this are written as zero.
ROUNDING = 1e-9


class Cell(NamedTuple):
    """A figure as it is written, and its standard error, empty where there is none."""

    value: str
    error: str = ""
    shown: bool = True


class Column(NamedTuple):
    """A column: its title, what it means, and a cell for each name."""

    title: str
    sentence: str
    cells: list[Cell]


MEANING = {
    "L0": "Features on in a row, a mean over the fresh rows.",
    "Error": "Squared error a row in the units of the activations, with its standard error.",
    "Of variance": "That error as a share of the fresh rows' variance: what is left unexplained.",
    "Values": "Share of the error that better values on the SAE's own features take off.",
    "Choice of features": "Share that other features take off, as many in each row: the best that a search finds.",
    "Decoder": "Share that a step of the decoder takes off, codes held, fitted to other rows (T20).",
    "Dictionary": "Share that other features of the same number take off: a short descent over rows of X, codes found anew.",
    "More features": "Share that an eighth more features take off after that.",
    "The rest": "Share that none of these accounts for.",
    "Nested pairs": "Pairs with the child on only where the parent is, beyond chance. A loss of supports and reconstructions alone leaves "
    "their cosine open (T21): those are marked open.",
    "In one": "Share of live features that are in such a pair.",
    "Open cosines": "Length of the range of cosines that T21 leaves such a pair, a median: from −1 to where the parent is absorbed, "
    "2 at most.",
    "Absorbed": "How much rarer a parent is on where its child is, its concept being there, a mean over edges; above 0 the child absorbs "
    "it.",
    "MCC": "Mean |cosine| of latents and true features, matched one to one.",
    "Unique": "Different true features that latents are nearest to, over the number of latents.",
    "F1": "Of a latent's being on for its nearest true feature's, a mean over all latents.",
    "Stability": "Mean cosine of decoder rows between seeds, matched one to one.",
    "Encoder": "Multiply-adds of the encoder for a row.",
    "Parameters": "Numbers that it holds.",
    "ms / 1,000 rows": "Measured time of the encoder for a thousand rows.",
}


def columns(document: dict[str, Any]) -> list[Column]:
    """The columns in which any name has a figure."""
    entries = document["entries"]
    parts = {title: name for name, title in SPLIT_PARTS.items()}
    made = {
        "L0": [_plain(entry["l0"]) for entry in entries],
        "Error": [_plain(entry["own"], entry["own_standard_error"]) for entry in entries],
        "Of variance": [_plain(entry["share_of_variance"], kind="share") for entry in entries],
        **{
            title: [_part(entry, parts[title]) for entry in entries]
            for title in ("Values", "Choice of features", "Decoder", "Dictionary", "More features", "The rest")
        },
        "Nested pairs": [_nested(entry) for entry in entries],
        "In one": [_of(entry, "flat", "features_share", "share") for entry in entries],
        "Open cosines": [_of(entry, "flat", "interval") for entry in entries],
        "Absorbed": [_of(entry, "absorption", "mean", "share", "standard_error") for entry in entries],
        "MCC": [_of(entry, "recovery", "mcc") for entry in entries],
        "Unique": [_of(entry, "recovery", "uniqueness") for entry in entries],
        "F1": [_of(entry, "recovery", "f1") for entry in entries],
        "Stability": [_of(entry, "stability", "cosine") for entry in entries],
        "Encoder": [_of(entry, "cost", "encoder", "count") for entry in entries],
        "Parameters": [_of(entry, "cost", "parameters", "count") for entry in entries],
        "ms / 1,000 rows": [_of(entry, "cost", "milliseconds") for entry in entries],
    }
    return [
        Column(title, MEANING[title], cells)
        for title, cells in made.items()
        if any(cell.value != MISSING for cell in cells)
    ]


def arbitration_table(document: dict[str, Any]) -> str:
    """A line for each name, figures in columns; a part that is not shown stands in brackets."""
    check_schema(document)
    found = columns(document)
    lines = [["", *(column.title for column in found)]]
    for k, entry in enumerate(document["entries"]):
        lines.append([entry["name"], *(_text(column.cells[k]) for column in found)])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )


def check_schema(document) -> None:
    """Refuse what is not an arbitration's document."""
    schema = document.get("schema") if isinstance(document, dict) else type(document).__name__
    if schema != SCHEMA:
        raise ValueError(f"not an arbitration's document: schema {schema!r}, expected {SCHEMA!r}; arbitrate again")


def _text(cell: Cell) -> str:
    told = f"{cell.value} ± {cell.error}" if cell.error else cell.value
    return told if cell.shown else f"({told})"


def _plain(value, error=None, kind: str = "number", shown: bool = True) -> Cell:
    if value is None:
        return Cell(MISSING)
    if kind == "count":
        value, kind = round(value), "number"
    return Cell(shown_number(value, kind), "" if error is None else shown_number(error, kind), shown)


def _of(entry, group: str, key: str, kind: str = "number", error: str | None = None) -> Cell:
    facts = entry[group] or {}
    return _plain(facts.get(key), None if error is None else facts.get(error), kind)


def _part(entry, name: str) -> Cell:
    """A part as a share of the error, its standard error likewise."""
    if not entry["reached"]:
        return Cell(MISSING)
    part = entry["rest"] if name == "rest" else next((part for part in entry["parts"] if part["name"] == name), None)
    if part is None:
        return Cell(MISSING)
    own = entry["own"]
    error = part["standard_error"] / own if own and part["standard_error"] is not None else None
    return _plain(tidy(part["share"]), tidy(error), "share", part["shown"])


def tidy(share: float | None) -> float | None:
    """A share of an error, zero where it is no more than rounding.

    >>> tidy(0.25), tidy(-1e-16), tidy(None)
    (0.25, 0.0, None)
    """
    return 0.0 if share is not None and abs(share) < ROUNDING else share


def _nested(entry) -> Cell:
    facts = entry["flat"]
    if facts is None:
        return Cell(MISSING)
    pairs = float(facts["pairs"])
    number = shown_number(int(pairs) if pairs.is_integer() else pairs)
    return Cell(f"{number}{'+' if facts['cut'] else ''}{' open' if facts['open'] and facts['pairs'] else ''}")
