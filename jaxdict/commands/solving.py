"""`jaxdict fit` and `jaxdict certify`."""

import time
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jaxtyping import Array, Float

from jaxdict.certificates.certificate import certify
from jaxdict.commands.console import (
    FAILED_CHECK,
    FitProgress,
    Interrupted,
    checked_activations,
    default_tol,
    emit_json,
    one_line_errors,
    read_npy,
    say,
    set_precision,
    stdout,
)
from jaxdict.commands.fresh import fresh_facts, fresh_words
from jaxdict.commands.streaming import stream_fit
from jaxdict.encoding.exact import encode
from jaxdict.files import check_writable
from jaxdict.files.folders import KINDS
from jaxdict.fitting import fit
from jaxdict.problem import Codes, Dictionary, Problem, canonical
from jaxdict.reporting.figures import fit_figure
from jaxdict.reporting.tables import certificate_table, facts_table
from jaxdict.results import Saved, fingerprint, load_solution, save_solution
from jaxdict.solvers.solution import INTERRUPTED as STOPPED
from jaxdict.storage import replace_file, shown_path
from jaxdict.validation import check_codes, check_dictionary, check_n_atoms, check_problem

FIGURE = "fit"
STARTS = ("data", "random")

Acts = Annotated[
    Path, typer.Argument(metavar="ACTS", help=f"{KINDS}, or a folder of these: (samples, d) or (batch, position, d).")
]
DataKey = Annotated[str | None, typer.Option(help="The array, or column, to take from a file that holds several.")]
DIn = Annotated[
    int | None,
    typer.Option(
        "--d-in", help="Numbers a row: of (samples, heads, d_head) heads * d_head makes a row of all heads.", min=1
    ),
]
Precision = Annotated[bool, typer.Option("--x64/--float32", help="Precision of all arithmetic.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Tol = Annotated[
    float | None, typer.Option(help="Worst stationarity asked for (default 1e-6, with --float32 1e-4).", min=0)
]


@one_line_errors
def fit_command(
    acts: Acts,
    atoms: Annotated[int, typer.Option("--atoms", "-k", help="Number of atoms.")],
    lam: Annotated[
        float, typer.Option(help="Sparsity weight, in the units of the data (an SAE's l1 coefficient / 2).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the result.")],
    key: Annotated[int, typer.Option(help="Random key: same key, same result.")] = 0,
    tol: Tol = None,
    max_steps: Annotated[int | None, typer.Option(help="Step limit (default: the solver's own).", min=1)] = None,
    start: Annotated[str, typer.Option(help="First dictionary: data or random.")] = "data",
    offset: Annotated[bool, typer.Option(help="Fit an offset (an SAE's b_dec).")] = True,
    signed: Annotated[bool, typer.Option("--signed", help="Let codes be negative.")] = False,
    metric: Annotated[Path | None, typer.Option(help=".npy of (d,) positive weights of the dimensions.")] = None,
    x64: Precision = True,
    sample: Annotated[int | None, typer.Option(help="Take this many rows, evenly spread.")] = None,
    data_key: DataKey = None,
    d_in: DIn = None,
    allow_wide: Annotated[bool, typer.Option("--allow-wide", help="Accept fewer samples than features.")] = False,
    sparse: Annotated[bool, typer.Option("--sparse", help="No (samples, atoms) array: for SAE width.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Rows stay on disk; judged on rows kept aside.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder for the state of a --stream, to go on from.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of rows that a --stream keeps aside (0.05).")] = None,
    passes: Annotated[int | None, typer.Option(help="Most exact passes of a --stream (30).", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a dictionary to activations, certify it, and save both.

    Exit code 1 if the certificate does not reach --tol (the result is saved all the same). With --stream the rows stay on disk; the fit
    ends where passes over them gain no more on the rows kept aside, or at --tol (by default 1e-4), else with exit code 1.
    """
    if start not in STARTS:
        raise ValueError(f"--start {start} is unknown; use one of {', '.join(STARTS)}")
    of_stream = {"checkpoint": checkpoint, "held_out": held_out, "passes": passes}
    of_fit = {"max_steps": max_steps, "sample": sample, "allow_wide": allow_wide or None, "sparse": sparse or None}
    _refuse_given(of_fit if stream else of_stream, "cannot go with --stream" if stream else "needs --stream")
    check_writable(out)
    dtype = set_precision(x64)
    options: dict[str, Any]
    if stream:
        problem = Problem(lam=lam, offset=offset, signed=signed, metric=_read_metric(metric)).astype(dtype)
        options = {name: value for name, value in of_stream.items() if value is not None} | {"start": start}
        asked = {"data_key": data_key, "width": d_in, "dtype": dtype, "key": key, "tol": tol, "quiet": as_json}
        return stream_fit(acts, problem, atoms, out, **asked, **options)
    tol = default_tol(x64) if tol is None else tol
    read = checked_activations(acts, data_key, dtype, allow_wide=allow_wide, sample=sample, width=d_in)
    X = read.X
    problem = Problem(lam=lam, offset=offset, signed=signed, metric=_read_metric(metric)).astype(dtype)
    check_problem(problem, X)
    check_n_atoms(atoms, X)
    options = {"max_steps": max_steps, "start": start, "sparse": sparse}
    solution, seconds = timed_fit(problem, X, atoms, key=key, tol=tol, quiet=as_json, **options)
    facts = {"acts": shown_path(acts), "shards": read.shards, "data_key": data_key}
    facts |= {"fingerprint": fingerprint(X), "key": key, "tol": tol}
    name = shown_path(acts.name)
    document = save_fit(out, problem, solution, tol, rows=read.rows, seconds=seconds, facts=facts, title=name)
    refuse_interrupted(solution, out)
    if as_json:
        emit_json(document)
    else:
        print_fit(document, solution, tol)
    if not document["stationary"]:
        raise typer.Exit(FAILED_CHECK)


@one_line_errors
def certify_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `jaxdict fit` wrote.")],
    acts: Acts,
    curvature: Annotated[bool, typer.Option("--curvature", help="Also the smallest second-order curvature.")] = False,
    fresh: Annotated[Path | None, typer.Option(help="Rows not fitted to: what is shown of rows like them.")] = None,
    documents: Annotated[Path | None, typer.Option(help=".npy: the document of each fresh row.")] = None,
    tol: Tol = None,
    x64: Precision = True,
    data_key: DataKey = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the certificate of a saved result from the result and the activations alone.

    It is proved of these rows; with --fresh, what other rows show of rows like them. Codes that were not kept (--stream) are solved
    anew. Exit code 1 if it is not stationary at --tol.
    """
    if documents is not None and fresh is None:
        raise ValueError("--documents names those of fresh rows; give --fresh too")
    dtype = set_precision(x64)
    tol = default_tol(x64) if tol is None else tol
    saved = load_solution(directory)
    width = saved.dictionary.atoms.shape[1]
    X = checked_activations(acts, data_key or saved.meta.get("data_key"), dtype, rows=saved.rows, width=width).X
    problem = saved.problem.astype(dtype)
    try:
        dictionary = check_dictionary(saved.dictionary, X)
        codes = _codes_of(saved, problem, dictionary, X)
        check_problem(problem, X, zero_codes="allow")
    except ValueError as error:
        raise ValueError(f"{directory} does not fit {acts}: {error}") from error
    if saved.dictionary.atoms.dtype != dictionary.atoms.dtype:
        # Atoms of norm one in float32 lie off the sphere in float64, by 1e-7: fold their norms into the codes.
        dictionary, codes = canonical(dictionary, codes)
    if saved.meta.get("fingerprint") not in (None, fingerprint(X)):
        say("jaxdict: warning: these are not the values that the result was fitted to")
    certificate = certify(problem, dictionary, codes, X, curvature=curvature)
    holds = bool(certificate.is_stationary(tol))
    options = {"data_key": data_key or saved.meta.get("data_key"), "dtype": dtype, "documents": documents}
    seen = None if fresh is None else fresh_facts(fresh, problem, dictionary, **options)
    if as_json:
        facts = {"stationary": holds, "tol": tol, "rows": X.shape[0], "certificate": certificate, "fresh": seen}
        emit_json({"command": "certify", **facts})
    else:
        console = stdout()
        console.print(certificate_table(certificate, tol))
        console.print(f"Proved of the {X.shape[0]} rows of {shown_path(acts)}: {certificate.message(tol)}")
        if seen is not None:
            console.print(fresh_words(seen))
    if not holds:
        raise typer.Exit(FAILED_CHECK)


def _codes_of(saved: Saved, problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"]) -> Codes:
    """The codes that were kept, else exact ones."""
    if saved.codes is not None:
        return check_codes(saved.codes, dictionary, X, signed=problem.signed)
    return encode(problem, dictionary, X, tol=float(jnp.finfo(X.dtype).eps ** 0.9), sparse=True).codes


def _refuse_given(options: dict[str, Any], why: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} {why}; leave one of them out, or add it")


def timed_fit(
    problem,
    X: Float[Array, "samples d"],
    n_atoms: int,
    *,
    key: int,
    tol: float,
    max_steps: int | None,
    start: str = "data",
    sparse: bool = False,
    quiet: bool,
):
    """`jaxdict.fit` under a progress bar; returns the solution, after Ctrl-C what was reached, and the seconds it took."""
    limit: dict[str, Any] = {} if max_steps is None else {"max_steps": max_steps}
    begin = time.perf_counter()
    with FitProgress(tol, quiet) as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*transposed")  # was asked, and allowed, before
        asked = {
            "key": jax.random.key(key),
            "start": start,
            "tol": tol,
            "callback": progress,
            "allow_wide": True,
            "sparse": sparse,
            **limit,
        }
        try:
            solution = fit(problem, X, n_atoms, **asked)
        except KeyboardInterrupt as stopped:
            if getattr(stopped, "solution", None) is None:
                raise
            solution = stopped.solution  # type: ignore[attr-defined]
        jax.block_until_ready(solution.codes)
    return solution, time.perf_counter() - begin


def refuse_interrupted(solution, out: Path) -> None:
    """End as after Ctrl-C where a fit was stopped; what it reached is saved by then."""
    if int(solution.status) == STOPPED:
        raise Interrupted(f"the point reached after {int(solution.steps)} steps is certified and saved in {out}")


def save_fit(out: Path, problem, solution, tol, *, rows=None, seconds=0.0, facts=None, title="") -> dict[str, Any]:
    """Save a solution with its figure; returns the facts that `--json` prints."""
    certificate = solution.certificate
    n_samples, n_atoms = jax.tree.leaves(solution.codes)[0].shape[0], len(solution.usage)
    shape = f"{n_samples:,} samples, {n_atoms:,} atoms, lam = {float(problem.lam):.4g}"
    document = {
        "command": "fit",
        "status": int(solution.status),
        "message": solution.message(),
        "stationary": bool(certificate.is_stationary(tol)),
        "objective": float(solution.objective),
        "steps": int(solution.steps),
        "seconds": round(seconds, 3),
        "samples": n_samples,
        "atoms": n_atoms,
        "lam": float(problem.lam),
        "active_atoms_a_sample": float(solution.l0),
        "explained_variance": float(solution.explained_variance),
        "certificate": certificate,
        "out": shown_path(out),
        **(facts or {}),
    }
    history = {name: np.asarray(getattr(solution.history, name)) for name in ("objective", "stationarity")}
    save_solution(out, problem, solution.dictionary, solution.codes, history=history, rows=rows, meta=document)
    figure = fit_figure(
        history, certificate, np.asarray(solution.usage), tol=tol, title=f"{title}: {shape}" if title else shape
    )
    for kind in ("png", "svg"):
        replace_file(out / f"{FIGURE}.{kind}", partial(figure.savefig, format=kind, dpi=150))
    return document


def print_fit(document, solution, tol) -> None:
    """The closing tables of a fit, and its certificate in words."""
    console = stdout()
    console.print(certificate_table(solution.certificate, tol))
    console.print(
        facts_table(
            {
                "ended": document["message"],
                "seconds": document["seconds"],
                "active atoms a sample": document["active_atoms_a_sample"],
                "saved in": document["out"],
            }
        )
    )
    console.print(solution.certificate.message(tol))


def _read_metric(path: Path | None):
    if path is None:
        return None
    metric = read_npy(path, "numbers")
    if not isinstance(metric, np.ndarray):
        raise ValueError(f"{path}: holds several arrays; give a .npy file with one of shape (d,)")
    return metric
