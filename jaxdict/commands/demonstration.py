"""`jaxdict demo`: a dictionary for real activations, certified, with what has been proved in plain words."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Column, Table
from rich.text import Text

from jaxdict.commands.console import FAILED_CHECK, emit_json, one_line_errors, set_precision, stdout
from jaxdict.commands.solving import AsJson, print_fit, refuse_interrupted, save_fit, timed_fit
from jaxdict.datasets import load
from jaxdict.files import check_writable
from jaxdict.problem import Problem
from jaxdict.reporting.tables import AtomExample, atoms_table, number
from jaxdict.results import fingerprint
from jaxdict.storage import replace_file
from jaxdict.validation import check_data, check_n_atoms, check_problem

ACTIVATIONS = "activations.npy"
ATOMS_SHOWN, TOKENS_SHOWN, SAMPLES_LOOKED_AT = 8, 6, 25


@one_line_errors
def demo_command(
    atoms: Annotated[int, typer.Option("--atoms", "-k", help="Number of atoms.")] = 128,
    lam: Annotated[float, typer.Option(help="Sparsity weight; the data are scaled to mean squared norm 1.")] = 0.15,
    rows: Annotated[int, typer.Option(help="Activations to use, of 4,096.", min=2, max=4096)] = 4096,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the result.")] = Path("jaxdict-demo"),
    key: Annotated[int, typer.Option(help="Random key: same key, same result.")] = 0,
    tol: Annotated[float, typer.Option(help="Worst stationarity asked for.", min=0)] = 1e-6,
    max_steps: Annotated[int | None, typer.Option(help="Step limit (default: the solver's own).", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a dictionary to real activations of a language model, prove that it is stationary, show its atoms.

    The activations come with the package: the residual stream of MiniLM after layer 3 on the Python language reference.
    """
    check_writable(out)
    set_precision(True)
    data = load("minilm_tokens")
    picked = np.linspace(0, len(data.X) - 1, rows).round().astype(int)
    X = check_data(scaled(data.X[picked]), wide="allow")  # type: ignore
    problem = Problem(lam=lam)
    check_problem(problem, X)
    check_n_atoms(atoms, X)
    console = stdout()
    if not as_json:
        console.print(
            f"[bold]jaxdict demo[/bold]: {rows:,} token activations of MiniLM's layer 3, {X.shape[1]} dimensions,"
        )
        console.print(f"centred and scaled to mean squared norm 1; {atoms} atoms, lam = {lam:g}, float64.\n")
    solution, seconds = timed_fit(problem, X, atoms, key=key, tol=tol, max_steps=max_steps, quiet=as_json)
    facts = {"acts": "datasets.load('minilm_tokens')", "fingerprint": fingerprint(X), "key": key, "tol": tol}
    document = save_fit(out, problem, solution, tol, seconds=seconds, facts=facts, title="MiniLM, layer 3") | {
        "command": "demo"
    }
    replace_file(out / ACTIVATIONS, partial(_save_array, X))
    refuse_interrupted(solution, out)
    examples = token_examples(np.asarray(solution.codes), data.tokens[picked])
    proved, unproved = plain_words(solution.certificate, tol, atoms)
    if as_json:
        emit_json(document | {"atoms_shown": examples, "proved": proved, "not_proved": unproved})
    else:
        console.print(atoms_table(examples, f"{len(examples)} of {atoms} atoms, evenly spaced from most to least used"))
        print_fit(document, solution, tol)
        _print_list(console, "What this proves", proved)
        _print_list(console, "What it does not prove", unproved)
        console.print(f"\nFigure: {out / 'fit.png'}. To check it again, with curvature, from the saved files alone:")
        console.print(f"  jaxdict certify {out} {out / ACTIVATIONS} --curvature", markup=False)
    if not document["stationary"]:
        raise typer.Exit(FAILED_CHECK)


def scaled(X: np.ndarray) -> np.ndarray:
    """Centred, then divided by one number so that the mean squared norm is one: lam then compares across data sets."""
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    return centred / np.sqrt(np.mean(np.sum(centred**2, axis=1)))


def token_examples(codes: np.ndarray, tokens: np.ndarray) -> list[AtomExample]:
    """A few atoms, evenly spaced in order of use, with the tokens of the samples that activate each most."""
    usage = np.mean(codes != 0, axis=0)
    live = np.argsort(-usage)[: int(np.sum(usage > 0))]
    shown = live[np.unique(np.linspace(0, len(live) - 1, min(ATOMS_SHOWN, len(live))).round().astype(int))]
    examples = []
    for k in shown:
        top = np.argsort(-codes[:, k])[:SAMPLES_LOOKED_AT]
        counts = Counter(str(tokens[n]) for n in top if codes[n, k] > 0)
        words = [f"{token} ×{count}" if count > 1 else token for token, count in counts.most_common(TOKENS_SHOWN)]
        strength = float(codes[codes[:, k] > 0, k].mean())
        examples.append(AtomExample(int(k), float(usage[k]), strength, words))
    return examples


def plain_words(certificate, tol: float, n_atoms: int) -> tuple[list[str], list[str]]:
    """What a certificate proves and what it leaves open, for a reader who has not met the theory."""
    blocks = certificate.stationarity
    share = float(certificate.global_gap) / max(float(certificate.wide_bound), 1e-300)
    wide = (
        f"No dictionary of any width, however large, has an objective below {number(certificate.wide_bound, 6)}. "
        f"This one's, {number(certificate.objective, 6)}, is at most {100 * share:.0f}% above the best of any width "
        "(most of that may be the price of few atoms)."
    )
    if not bool(certificate.is_stationary(tol)):
        slope = number(certificate.directional_derivative)
        return [wide], [f"That it is a local optimum: a small change lowers the objective at the rate {slope}."]
    proved = [
        "No small change of atoms, codes and offset, alone or together, lowers the objective to first order. Worst "
        f"defect {number(blocks.worst, 2)}, where 1 would be as strong as the pull of the penalty; slope along the "
        f"steepest feasible direction, by automatic differentiation, {number(certificate.directional_derivative, 2)}. "
        "Both are recomputed from the result alone: it does not matter how the solver got there.",
        "For this dictionary the codes are the best there are, for all samples at once (that problem is convex): the "
        f"mean objective is within {number(certificate.duality_gap.mean, 2)} of the least over codes.",
        wide,
    ]
    unproved = [
        f"That it is the best dictionary of {n_atoms} atoms: another start may end lower (try --key 1).",
        "That it is a minimum and not a saddle: first order does not see that (`jaxdict certify --curvature` does).",
        "Anything about meaning: the tokens above are examples, the mathematics does not read them.",
        "More than floating point shows: the checks run in 64-bit arithmetic (rounding 1e-16), not in exact numbers.",
    ]
    if int(certificate.n_dead):
        unproved.insert(1, f"Anything about the {int(certificate.n_dead)} atoms that no sample uses.")
    gain = float(certificate.birth.gain)
    if gain > 0:
        unproved.insert(
            1, f"That {n_atoms} atoms are enough: one more would lower the objective by {number(gain, 2)} or more."
        )
    return proved, unproved


def _save_array(X, path) -> None:
    with open(path, "wb") as file:  # given a name without .npy, numpy would add it
        np.save(file, np.asarray(X))


def _print_list(console, title: str, lines: list[str]) -> None:
    console.print(f"\n[bold]{title}[/bold]")
    for line in lines:
        bullets = Table.grid(Column(width=2), Column())
        bullets.add_row("-", Text(line))
        console.print(bullets)
