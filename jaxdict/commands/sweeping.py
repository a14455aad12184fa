"""`jaxdict sweep`: many fits over lam, width and key, a row each."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from jaxdict.commands.console import (
    FAILED_CHECK,
    Interrupted,
    checked_activations,
    default_tol,
    emit_json,
    one_line_errors,
    set_precision,
    stdout,
)
from jaxdict.commands.solving import Acts, AsJson, DataKey, Precision, Tol
from jaxdict.files import check_writable
from jaxdict.plots import sweep_figure
from jaxdict.problem import Problem
from jaxdict.reporting.tables import number
from jaxdict.storage import replace_file, shown_path
from jaxdict.sweeps import sweep
from jaxdict.validation import check_n_atoms

FIGURE = "sweep.png"


@one_line_errors
def sweep_command(
    acts: Acts,
    lams: Annotated[str, typer.Option(help="Sparsity weights: 0.05,0.1,0.2, or FIRST:LAST:COUNT on a log scale.")],
    atoms: Annotated[str, typer.Option("--atoms", "-k", help="Widths: 64,128.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for rows.jsonl and the figure.")],
    seeds: Annotated[int, typer.Option(help="Random keys 0 to this, exclusive.", min=1)] = 1,
    path: Annotated[bool, typer.Option("--path", help="Start each lam at the dictionary of the larger one.")] = False,
    tol: Tol = None,
    max_steps: Annotated[int, typer.Option(help="Step limit of a run.", min=1)] = 3000,
    batch: Annotated[int | None, typer.Option(help="Runs in one program.", min=1)] = None,
    sample: Annotated[int | None, typer.Option(help="Take this many rows, evenly spread.")] = None,
    offset: Annotated[bool, typer.Option(help="Fit an offset (an SAE's b_dec).")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Also keep every dictionary, as .npz.")] = False,
    data_key: DataKey = None,
    x64: Precision = True,
    as_json: AsJson = False,
) -> None:
    """Fit a grid of lam x width x key; rows are written as they finish, and the same command resumes a stopped one.

    Exit code 1 if some run did not reach --tol (all rows are kept).
    """
    check_writable(out)
    weights, widths = parse_lams(lams), parse_integers(atoms, "--atoms")
    dtype = set_precision(x64)
    X = checked_activations(acts, data_key, dtype, sample=sample).X
    for width in widths:
        check_n_atoms(width, X)
    options = {"path": path, "max_steps": max_steps, "batch": batch, "keep_dictionaries": keep}
    with _bar(as_json) as bar:
        task = bar.add_task("runs", total=len(weights) * len(widths) * seeds)
        try:
            found = sweep(
                X,
                lams=weights,
                n_atoms=widths,
                seeds=range(seeds),
                problem=Problem(lam=1.0, offset=offset).astype(dtype),
                directory=out,
                tol=default_tol(x64) if tol is None else tol,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
                **options,
            )
        except KeyboardInterrupt as stopped:
            raise Interrupted(f"finished runs are kept in {out}: the same command goes on from there") from stopped
    figure = np.ravel(sweep_figure(found.rows))[0].figure
    replace_file(out / FIGURE, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
    if as_json:
        emit_json({"command": "sweep", "out": shown_path(out), "message": found.message(), "rows": found.rows})
    else:
        console = stdout()
        console.print(_table(found.rows))
        console.print(f"{found.message()}. Rows and figure are in {shown_path(out)}.")
    if found.failed():
        raise typer.Exit(FAILED_CHECK)


def parse_lams(text: str) -> list[float]:
    """Numbers with commas between them, or FIRST:LAST:COUNT on a log scale.

    >>> parse_lams("0.1,0.2"), [round(lam, 3) for lam in parse_lams("0.01:1:3")]
    ([0.1, 0.2], [0.01, 0.1, 1.0])
    """
    try:
        if ":" in text:
            first, last, count = text.split(":")
            lams = np.geomspace(float(first), float(last), int(count)).tolist()
        else:
            lams = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--lams {text!r} is not understood; write 0.05,0.1 or 0.01:1:8") from error
    if not lams or not all(np.isfinite(lam) and lam > 0 for lam in lams):
        raise ValueError(f"--lams {text!r}: every lam must be a positive number")
    return lams


def parse_integers(text: str, option: str) -> list[int]:
    """Integers with commas between them.

    >>> parse_integers("64,128", "--atoms")
    [64, 128]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {text!r} is not understood; write 64 or 64,128") from error


def _table(rows) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = ("atoms", "lam", "seed", "objective", "L0", "explained", "stationarity", "steps", "ended")
    for name in names:
        table.add_column(name, justify="left" if name == "ended" else "right")
    for row in rows:
        numbers = (row.get("objective"), row.get("l0"), row.get("explained_variance"), row.get("stationarity"))
        shown = ["-" if value is None else number(value) for value in numbers]
        ended = str(row["message"]).split(":")[0]
        table.add_row(
            str(row["n_atoms"]), number(row["lam"]), str(row["seed"]), *shown, str(row.get("steps", "-")), ended
        )
    return table


def _bar(quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = quiet or not console.is_terminal
    return Progress(
        *columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True, disable=hidden
    )
