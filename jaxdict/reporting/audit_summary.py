"""The audit in a terminal: verdict, measures, gaps, the costliest pairs, the worst features. No numerics."""

from typing import Any

from jaxdict.reporting import vocabulary as words

BAR = 56  # cells of the bar of gaps
FILLS = {
    "amortisation": "█", "dictionary": "▓", "width": "▒", "wide": "░",
    "values": "█", "supports": "▓", "decoder": "▒", "atoms": "▒", "rest": "░",
}  # fmt: skip
STYLES = {
    "amortisation": "blue", "dictionary": "cyan", "width": "bright_blue", "wide": "bright_black",
    "values": "blue", "supports": "bright_blue", "decoder": "magenta", "atoms": "green", "rest": "bright_black",
}  # fmt: skip


def audit_summary(document: dict, top: int = 8) -> Any:
    """The audit's document as something rich prints: `rich.console.Console().print(audit_summary(document))`.

    `top` pairs and features are listed. Labels are untrusted: control characters are replaced, markup is not read. Raises
    ValueError for another schema, ModuleNotFoundError without rich (`pip install "jaxdict[cli]"`).

    >>> from rich.console import Console
    >>> Console(width=40).print(audit_summary({"schema": "jaxdict-audit-1", "verdict": ["Nothing is wrong."]}))
    Nothing is wrong.
    """
    words.check_schema(document)
    try:
        from rich.console import Group
    except ImportError as missing:
        raise ModuleNotFoundError('the audit\'s summary needs rich: pip install "jaxdict[cli]"') from missing
    labels = {row["feature"]: row.get("label") for row in document.get("features") or []}
    parts = (
        _verdict(document.get("verdict") or []),
        _split(document.get("split") or {}),
        _measures(document.get("measures") or []),
        _gaps(words.gap_parts(document.get("gaps"))),
        _pairs((document.get("pairs") or [])[:top], len(document.get("pairs") or []), labels),
        _features(document.get("features") or [], top),
    )
    return Group(*(part for part in parts if part is not None))


def _verdict(sentences):
    from rich.text import Text

    lines = [Text(words.shown_text(sentence), style="bold" if k == 0 else "") for k, sentence in enumerate(sentences)]
    return Text("\n").join(lines)


def _measures(measures):
    if not measures:
        return None
    table = _table("Measures", ("", "left", 1), ("", "right", 1), ("", "left", 3), header=False)
    for measure in measures:
        value = words.shown_number(measure.get("value"), words.measure_kind(measure["name"]))
        table.add_row(_text(measure["title"]), value, _text(measure.get("sentence"), style="dim"))
    return table


def _split(split):
    """The squared error as one bar, each part with its standard error; what each means is said in the verdict."""
    parts = words.split_parts(split)
    if not parts:
        return None
    from rich.console import Group

    table = _table("", *(("", side, 1) for side in ("left", "left", "right", "right", "right")), header=False)
    for part in parts:
        error = "" if part["error"] is None else f"± {words.shown_number(part['error'])}"
        told = words.shown_number(part["value"]), error, words.shown_number(part["share"], "share")
        table.add_row(_text(FILLS[part["key"]] * 2, style=STYLES[part["key"]]), part["title"], *told)
    title = _text(f"Where the squared error goes, {words.shown_number(split['own'])} a row", style="bold")
    return Group("", title, _bar(parts), table)


def _gaps(parts):
    """The loss as one bar, each part with a fill of its own, and a line for each part."""
    if not parts:
        return None
    from rich.console import Group

    total = sum(max(0.0, part["value"]) for part in parts) or 1.0
    table = _table("", *(("", side, 1) for side in ("left", "left", "right", "right")), ("", "left", 4), header=False)
    for part in parts:
        share = words.shown_number(max(0.0, part["value"]) / total, "share")
        told = part["title"], words.shown_number(part["value"]), share, _text(part["sentence"], style="dim")
        table.add_row(_text(FILLS[part["key"]] * 2, style=STYLES[part["key"]]), *told)
    title = _text(f"Where the loss goes, F = {words.shown_number(parts[0]['start'])}", style="bold")
    return Group("", title, _bar(parts), table)


def _bar(parts):
    """Parts side by side, each at least a cell where there is any of it."""
    from rich.text import Text

    values = [max(0.0, part["value"] or 0.0) for part in parts]
    total = sum(values) or 1.0
    bar, done = Text(), 0
    for k, part in enumerate(parts):
        end = round(BAR * sum(values[: k + 1]) / total)
        end = max(end, done + (values[k] > 0))
        bar.append(FILLS[part["key"]] * (end - done), style=STYLES[part["key"]])
        done = end
    return bar


def _pairs(pairs, n_pairs, labels):
    if not pairs:
        return None
    title = f"Pairs that cannot both be features as they are: {n_pairs:,}, the costliest first"
    heads = ("pair", "left", 1), ("kind", "left", 1), ("cost", "right", 1), ("of loss", "right", 1)
    heads += ("cosine", "right", 1), ("margin", "right", 1), ("most active on", "left", "rest")
    table = _table(title, *heads)
    for pair in pairs:
        parent = pair.get("parent") is not None
        first, second = (pair["parent"], pair["child"]) if parent else (pair["i"], pair["j"])
        both = " | ".join(_label(labels.get(k), 24) for k in (first, second))
        numbers = [words.shown_number(pair.get("cost")), words.shown_number(pair.get("cost_share"), "share")]
        numbers += [words.shown_number(pair.get(name)) for name in ("cosine", "margin")]
        table.add_row(f"{first} {'→' if parent else '·'} {second}", _text(pair.get("kind")), *numbers, _text(both))
    return table


def _features(features, top):
    """Those with most to gain from a turn towards the residual that their codes predict (T9)."""
    found = words.most_to_gain(features, top)
    if not found:
        return None
    heads = ("feature", "right", 1), ("gain", "right", 1), ("predicts", "right", 1), ("on in", "right", 1)
    table = _table("Features with most to gain from a turn", *heads, ("most active on", "left", "rest"))
    for row in found:
        numbers = [words.shown_number(row.get(name)) for name in ("turn_gain", "residual")]
        share = words.shown_number(row.get("frequency"), "share")
        table.add_row(str(row["feature"]), *numbers, share, _text(_label(row.get("label"), 60)))
    return table


def _label(text, longest):
    return " ".join(words.shown_text(text, longest).split()) or words.MISSING


def _text(value, style=""):
    from rich.text import Text

    return Text(words.shown_text(value), style=style)


def _table(title, *columns, header=True):
    from rich import box
    from rich.table import Table
    from rich.text import Text

    flexible = any(lines == "rest" for _, _, lines in columns)
    table = Table(
        title=Text(f"\n{title}") if title else None, title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD if header else None, show_header=header, pad_edge=False,
        padding=(0, 1 if header else 2, 0, 0), expand=flexible,
    )  # fmt: skip
    for name, side, lines in columns:
        ratio = 1 if lines == "rest" else None  # what the others leave, on one line
        table.add_column(name, justify=side, no_wrap=lines in (1, "rest"), overflow="ellipsis", ratio=ratio)
    return table
