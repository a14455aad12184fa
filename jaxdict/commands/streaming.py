"""`jaxdict fit --stream`: activations that stay on disk, judged on rows kept aside."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich.progress import TextColumn

from jaxdict.commands.console import FAILED_CHECK, Bar, Interrupted, emit_json, stdout
from jaxdict.files import Shards, open_activations
from jaxdict.problem import Problem
from jaxdict.reporting.figures import stream_figure
from jaxdict.reporting.tables import facts_table
from jaxdict.results import save_solution
from jaxdict.storage import replace_file, shown_path
from jaxdict.streaming.exact_passes import CONVERGED, LEVEL
from jaxdict.streaming.run import INTERRUPTED as STOPPED
from jaxdict.streaming.run import StreamSolution, fit_stream

FIGURE = "fit"
# What a stream's fit is asked where nothing is said: T1's slopes over all training rows.
TOL = 1e-4


def opened(path: Path, data_key: str | None, dtype, width: int | None = None, hook: str | None = None) -> Shards:
    """Activations on disk, read in the working precision where they are looked at."""
    stored = open_activations(path, data_key, width=width, hook=hook)
    whole = stored if isinstance(stored, Shards) else Shards([stored])
    return Shards(whole.arrays, whole.names, dtype, whole.left_out)


def stream_fit(
    acts: Path, problem: Problem, n_atoms: int, out: Path, *, data_key, width, dtype, key, tol, quiet: bool, **options
) -> None:
    """Fit from disk, save, print; exit code 1 where neither `tol` nor the end of what rows kept aside gain was reached."""
    rows, tol = opened(acts, data_key, dtype, width), TOL if tol is None else tol
    begin = time.perf_counter()
    with StreamBar(quiet) as bar:
        try:
            found = fit_stream(problem, rows, n_atoms, key=jax.random.key(key), tol=tol, callback=bar, **options)
        except KeyboardInterrupt as stopped:
            if getattr(stopped, "solution", None) is None:
                raise
            found: StreamSolution = stopped.solution  # type: ignore[attr-defined]
    facts = {"acts": shown_path(acts), "shards": list(rows.names), "data_key": data_key, "key": key, "tol": tol}
    document = _document(problem, found, time.perf_counter() - begin, out) | facts
    _save(out, problem, found, document, tol)
    if int(found.status) == STOPPED:
        kept = options.get("checkpoint")
        resumed = "" if kept is None else f", and the same command goes on from what {kept} holds"
        raise Interrupted(f"the point reached is saved in {out}{resumed}")
    if quiet:
        emit_json(document)
    else:
        stdout().print(facts_table(_shown(document), "Fit of a stream"))
    if not document["ended_well"]:
        raise typer.Exit(FAILED_CHECK)


def _document(problem: Problem, found: StreamSolution, seconds: float, out: Path) -> dict[str, Any]:
    """The facts that `--json` prints; `speaks_of` says which rows each number is about."""
    seen, n_atoms = found.population, found.dictionary.atoms.shape[0]
    training = f"the {int(found.rows)} training rows"
    aside = training if seen is None else f"{int(seen.rows)} rows kept aside"
    return {
        "command": "fit",
        "stream": True,
        "status": int(found.status),
        "message": found.message(),
        "ended_well": int(found.status) in (CONVERGED, LEVEL),
        "objective": float(found.objective),
        "standard_error": float(found.standard_error),
        "population": None if seen is None else {"rms": seen.rms, "rows": seen.rows, "message": seen.message()},
        "stationarity": float(found.stationarity),
        "passes": int(found.passes),
        "seconds": round(seconds, 3),
        "samples": int(found.rows),
        "atoms": n_atoms,
        "lam": float(problem.lam),
        "speaks_of": {"objective": aside, "standard_error": aside, "population": aside, "stationarity": training},
        "out": shown_path(out),
    }


def _save(out: Path, problem: Problem, found: StreamSolution, document: dict[str, Any], tol: float) -> None:
    history = {name: np.asarray(values) for name, values in found.history._asdict().items()}
    save_solution(out, problem, found.dictionary, None, history=history, meta=document)
    shape = f"{document['samples']:,} training rows, {document['atoms']:,} atoms, lam = {document['lam']:.4g}"
    figure = stream_figure(history, tol=tol, title=f"{Path(document['acts']).name}: {shape}")
    for kind in ("png", "svg"):
        replace_file(
            out / f"{FIGURE}.{kind}", lambda temporary, kind=kind: figure.savefig(temporary, format=kind, dpi=150)
        )


def _shown(document: dict[str, Any]) -> dict[str, object]:
    about, fresh = document["speaks_of"], document["population"]
    error = document["standard_error"]
    spread = "" if jnp.isnan(error) else f" +- {error:.1g}"
    shown: dict[str, object] = {"ended": document["message"].partition(" (")[0], "seconds": document["seconds"]}
    shown["objective"] = f"{document['objective']:.6g}{spread}, on {about['objective']}"
    shown["stationarity"] = f"{document['stationarity']:.1e}, over {about['stationarity']}, where the last pass stood"
    if fresh is not None:
        shown["rows like these"] = fresh["message"]
    return shown | {"exact passes": document["passes"], "saved in": document["out"]}


class StreamBar(Bar):
    """A bar on stderr for a stream's fit: the stage, the objective on rows kept aside, time left at most. Hidden as `FitProgress`."""

    def __init__(self, quiet: bool = False):
        super().__init__(quiet, "looking at the rows", TextColumn("{task.fields[left]}"), left="")

    def __call__(self, told) -> None:
        """A callback for `jaxdict.fit_stream`."""
        numbers = f"{told.rows:,} rows"
        if np.isfinite(told.objective):
            spread = "" if np.isnan(told.standard_error) else f" +- {told.standard_error:.1g}"
            numbers += f"  objective {told.objective:.6g}{spread}"
        minutes, seconds = divmod(round(told.seconds_left), 60)
        fields = {"stage": told.stage, "numbers": numbers, "left": f"{minutes}:{seconds:02d} left at most"}
        self.bar.update(self.task, completed=told.step / max(told.max_steps, 1), **fields)
