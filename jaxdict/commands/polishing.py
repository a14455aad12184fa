"""`jaxdict polish`: a better SAE of the same architecture, saved where fresh rows show that it is."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jaxdict.auditing.polishing import Polished, polish
from jaxdict.commands.console import (
    FAILED_CHECK,
    Interrupted,
    emit_json,
    one_line_errors,
    read_documents,
    set_precision,
    stdout,
)
from jaxdict.commands.solving import Acts, AsJson, DataKey, Precision
from jaxdict.commands.streaming import TOL, StreamBar, opened
from jaxdict.commands.subjects import Format, K, Lam, SaePath, Scale, Threshold, documents_of
from jaxdict.files import check_writable
from jaxdict.reporting.tables import facts_table
from jaxdict.sae.formats import load
from jaxdict.sae.saving import check_savable
from jaxdict.storage import shown_path
from jaxdict.streaming.aside import View


@one_line_errors
def polish_command(
    sae: SaePath,
    acts: Acts,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new SAE, in SAELens' format.")],
    lam: Lam = None,
    encoder: Annotated[str, typer.Option(help="Of the new SAE: fitted or tied.")] = "fitted",
    documents: Annotated[
        Path | None,
        typer.Option(
            help="The document of each row, .npy (default: as the files say): kept whole, and errors are over them."
        ),
    ] = None,
    sample: Annotated[int | None, typer.Option(help="Take this many rows, evenly spread.", min=1)] = None,
    steps: Annotated[
        int, typer.Option(help="Most passes over the rows, or steps without lam, of the descent.", min=1)
    ] = 300,
    tol: Annotated[float, typer.Option(help="Slopes over all rows at which a descent with lam may end.", min=0)] = TOL,
    minutes: Annotated[
        float | None,
        typer.Option(help="About how long the search may take (default: until rows kept aside gain no more)."),
    ] = None,
    format: Format = None,
    k: K = None,
    threshold: Threshold = None,
    scale: Scale = None,
    data_key: DataKey = None,
    x64: Precision = True,
    as_json: AsJson = False,
) -> None:
    """Look for a better SAE: its dictionary descends, its encoder is fitted anew; saved where fresh rows show that it is better.

    Rows stay on disk. Exit code 1 where nothing better is shown: nothing is saved then.
    """
    check_writable(out.parent)
    dtype = set_precision(x64)
    trained = load(sae, format, k=k, threshold=threshold, scale=scale)
    check_savable(trained)
    rows = opened(acts, data_key, dtype, trained.d_in, trained.metadata.hook)
    groups = documents_of(rows) if documents is None else read_documents(documents, rows.shape[0])
    X, groups = _sampled(acts, rows, groups, sample)
    with StreamBar(as_json) as bar:
        try:
            options: dict[str, Any] = {"groups": groups, "encoder": encoder, "tol": tol, "max_steps": steps}
            options |= {"minutes": minutes}
            done = polish(trained, X, lam, callback=bar, **options)
        except ValueError as error:
            about = f"{acts}: " if " of X " in str(error) or "activations" in str(error) else ""
            raise ValueError(f"{about}{error}") from error
        except KeyboardInterrupt as stopped:
            reached = getattr(stopped, "polished", None)
            if reached is None:
                raise
            raise Interrupted(_kept(reached, out)) from stopped
    folder = done.save(out) if done.better else None
    _tell(done, folder, as_json)
    if folder is None:
        raise typer.Exit(FAILED_CHECK)


def _sampled(acts: Path, rows, groups, sample: int | None):
    """Some of the rows, evenly spread, and their documents."""
    n = rows.shape[0]
    if sample is None or sample == n:
        return rows, groups
    if sample > n:
        raise ValueError(f"{acts}: --sample {sample} does not lie between 1 and the {n} rows there are")
    numbers = np.linspace(0, n - 1, sample).round().astype(np.int64)
    return View(rows, numbers), None if groups is None else groups[numbers]


def _kept(reached: Polished, out: Path) -> str:
    """What a polish that was stopped leaves, in words."""
    if not reached.better:
        return "nothing better than the SAE is shown so far, and nothing is saved"
    return f"a better SAE, of the point reached, is saved in {reached.save(out)}"


def _tell(done: Polished, folder: Path | None, as_json: bool) -> None:
    """The outcome on stdout."""
    where = None if folder is None else shown_path(folder)
    if as_json:
        figures = ("before", "after", "gain", "sae_before", "sae_after", "sae_gain", "active_before", "active_after")
        about = {"command": "polish", "out": where, "message": done.message(), "better": done.better, "lam": done.lam}
        told = {name: getattr(done, name) for name in (*figures, "rows")}
        emit_json(about | told | {"changes": done.changes()})
        return
    console = stdout()
    console.print(done.message())
    turned = done.changes()[:10]
    if turned:
        console.print(facts_table({f"feature {c.feature}": _turned(c) for c in turned}, "Turned most"))
    console.print(facts_table({"saved in": where or "nothing is saved: no better SAE is shown"}))


def _turned(change) -> str:
    return (
        f"cosine {change.cosine:.3f} with itself before; on in {change.frequency_before:.2%} of rows before, "
        f"{change.frequency_after:.2%} after"
    )
