"""`jaxdict grow`: dictionaries of growing width, judged on rows kept aside, with the tree of their splits."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich.table import Table

from jaxdict.commands.console import (
    Bar,
    Interrupted,
    checked_activations,
    emit_json,
    one_line_errors,
    read_documents,
    set_precision,
    stdout,
)
from jaxdict.commands.solving import Acts, AsJson, DataKey, DIn, Precision
from jaxdict.commands.streaming import opened
from jaxdict.commands.subjects import Labels, LabelsKey, Tokenizer, Tokens, texts_of
from jaxdict.commands.sweeping import parse_integers
from jaxdict.files import check_writable, open_activations
from jaxdict.growth import Growth, grow, label_atoms, write_tree
from jaxdict.growth.records import INTERRUPTED as STOPPED
from jaxdict.plots import growth_figure
from jaxdict.problem import Problem
from jaxdict.reporting.tables import number
from jaxdict.results import as_plain, save_solution
from jaxdict.storage import replace_file, replace_text, shown_path

DOCUMENT, TREE, PAGE, FIGURE = "growth.json", "tree.txt", "tree.html", "growth.png"
# Rows that atoms are labelled by, evenly spread.
LABEL_ROWS = 2**14


@one_line_errors
def grow_command(
    acts: Acts,
    widths: Annotated[str, typer.Option(help="Numbers of atoms to go through: 64,128,256.")],
    lam: Annotated[
        float, typer.Option(help="Sparsity weight, in the units of the data (an SAE's l1 coefficient / 2).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the dictionaries, the tree and the figure.")],
    key: Annotated[int, typer.Option(help="Random key: same key, same result.")] = 0,
    held_out: Annotated[
        float | None, typer.Option(help="Share of rows kept aside to judge by (default 0.1, with --stream 0.05).")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option(help="The document of each row, .npy: documents are kept aside whole.")
    ] = None,
    tol: Annotated[float, typer.Option(help="Stationarity of the dictionary that is taken.", min=0)] = 1e-3,
    rough: Annotated[float, typer.Option(help="Stationarity of the widths on the way.", min=0)] = 0.05,
    least_gain: Annotated[
        float, typer.Option(help="Share of the objective on rows kept aside that a width must gain.", min=0)
    ] = 0.0,
    offset: Annotated[bool, typer.Option(help="Fit an offset (an SAE's b_dec).")] = True,
    signed: Annotated[bool, typer.Option("--signed", help="Let codes be negative.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Rows stay on disk.")] = False,
    labels: Labels = None,
    labels_key: LabelsKey = None,
    tokens: Tokens = None,
    tokenizer: Tokenizer = None,
    sample: Annotated[int | None, typer.Option(help="Take this many rows, evenly spread.")] = None,
    data_key: DataKey = None,
    d_in: DIn = None,
    x64: Precision = True,
    as_json: AsJson = False,
) -> None:
    """Grow a dictionary through widths as long as rows kept aside gain, and save each width, with the tree of splits.

    Every width is a folder of its own below --out, the one that is taken --out itself; `jaxdict certify` reads each. Ctrl-C keeps the
    widths that were reached.
    """
    if stream and sample is not None:
        raise ValueError("--sample cannot go with --stream; leave one of them out")
    check_writable(out)
    numbers, dtype = parse_integers(widths, "--widths"), set_precision(x64)
    problem = Problem(lam=lam, offset=offset, signed=signed).astype(dtype)
    stored = opened(acts, data_key, dtype, d_in)
    taken = None if stream else checked_activations(acts, data_key, dtype, sample=sample, width=d_in)
    texts = texts_of(acts, open_activations(acts, data_key, width=d_in), labels, labels_key, tokens, tokenizer)
    rows = None if taken is None else taken.rows
    groups = None if documents is None else _documents_of(documents, stored.shape[0], rows)
    by: dict[str, Any] = {"held_out": held_out, "groups": groups, "tol": tol, "rough": rough, "least_gain": least_gain}
    options = by | ({"source": stored} if taken is None else {"X": taken.X})
    grown, seconds = _grown(problem, numbers, key, as_json, options)
    named = _labelled(problem, grown, stored, texts)
    facts = {
        "acts": shown_path(acts),
        "data_key": data_key,
        "key": key,
        "lam": lam,
        "tol": tol,
        "seconds": round(seconds, 3),
    }
    document = {"command": "grow", **facts, "out": shown_path(out), **grown.as_json(named)}
    _save(out, problem, grown, document, rows, named)
    if grown.status == STOPPED:
        raise Interrupted(f"the {len(grown.steps)} widths reached are saved in {out}")
    emit_json(document) if as_json else _tell(grown, out)


def _documents_of(path: Path, n_rows: int, rows):
    """The documents of the rows that are taken, all of them where none are named."""
    groups = read_documents(path, n_rows)
    return groups if rows is None else groups[rows]


def _tell(grown: Growth, out: Path) -> None:
    console = stdout()
    console.print(_table(grown))
    console.print(f"{grown.message()}.")
    console.print(f"Dictionaries, {TREE}, {PAGE} and {FIGURE} are in {shown_path(out)}.")


def _grown(problem: Problem, widths: list[int], key: int, quiet: bool, options) -> tuple[Growth, float]:
    """`jaxdict.grow` under its bar; after Ctrl-C what was reached."""
    begin = time.perf_counter()
    with GrowthBar(quiet) as bar:
        try:
            found = grow(problem, widths=widths, key=jax.random.key(key), callback=bar, **options)
        except KeyboardInterrupt as stopped:
            if not isinstance(getattr(stopped, "solution", None), Growth):
                raise
            found: Growth = stopped.solution  # type: ignore[attr-defined]
    return found, time.perf_counter() - begin


def _labelled(problem: Problem, grown: Growth, stored, texts) -> list[list[str]] | None:
    if texts is None:
        return None
    if len(texts) != stored.shape[0]:
        raise ValueError(f"there are {len(texts)} labels for {stored.shape[0]} rows; give one a row")
    picked = np.unique(np.linspace(0, len(texts) - 1, min(LABEL_ROWS, len(texts))).round().astype(int))
    return label_atoms(problem, grown, jnp.asarray(np.asarray(stored[picked])), np.asarray(texts)[picked])


def _save(out: Path, problem: Problem, grown: Growth, document: dict[str, Any], rows, named) -> None:
    """Every width in a folder of its own, the one taken in `out`, the tree as data, text, page and picture."""
    training = grown.training if rows is None or grown.training is None else rows[grown.training]
    plain = Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric)
    about = {name: document[name] for name in ("command", "acts", "data_key", "key", "lam", "tol")}
    for place, step in enumerate(grown.steps):
        meta = about | document["steps"][place] | {"samples": grown.rows, "message": grown.message()}
        folders = [out / f"width-{step.width}"] + ([out] if place == grown.best else [])
        for folder in folders:
            save_solution(folder, plain, step.dictionary, None, rows=training, meta=meta)
    replace_text(out / DOCUMENT, json.dumps(as_plain(document), allow_nan=False) + "\n")
    replace_text(out / TREE, grown.tree.text(named) + "\n")
    write_tree(grown, out / PAGE, named, title=f"Splits in {Path(document['acts']).name}")
    figure = growth_figure(grown, named)[0].figure
    replace_file(out / FIGURE, partial(figure.savefig, format="png", dpi=150))


def _table(grown: Growth) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("atoms", "training rows", "rows kept aside", "gain there", "active a row", "mean depth"):
        table.add_column(name, justify="right")
    for place, step in enumerate(grown.steps):
        fresh = "-" if np.isnan(step.fresh) else f"{step.fresh:.6g} +- {step.standard_error:.1g}"
        compared = step.comparison
        gain = "-" if compared is None else f"{float(compared.gain):.3g} +- {float(compared.standard_error):.1g}"
        depth = f"{grown.tree.depth(place).mean():.2f}"
        table.add_row(str(step.width), number(step.objective, 6), fresh, gain, f"{step.l0:.2f}", depth)
    return table


class GrowthBar(Bar):
    """A bar for growth: the width at work, the objectives reached."""

    def __init__(self, quiet: bool = False):
        super().__init__(quiet, "looking at the rows")

    def __call__(self, told) -> None:
        """A callback for `jaxdict.grow`."""
        step = told.steps[-1] if told.steps else None
        numbers = "" if step is None else f"{step.width} atoms: {step.objective:.6g}"
        if step is not None and np.isfinite(step.fresh):
            numbers += f", kept aside {step.fresh:.6g} +- {step.standard_error:.1g}"
        if told.fit is not None:
            numbers += f"  step {told.fit.step}"
        share = told.width / max(told.last_width, told.width)
        self.bar.update(self.task, completed=share, stage=f"{told.width} atoms", numbers=numbers)
