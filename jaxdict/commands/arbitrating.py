"""`jaxdict arbitrate`: several trained SAEs on the same fresh rows at a common L0."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdict.arbitration.assembly import Arbitration, arbitrate
from jaxdict.arbitration.truth_files import read_truth
from jaxdict.auditing.labels import read_labels
from jaxdict.commands.console import Bar, emit_json, one_line_errors, read_documents, set_precision, stdout
from jaxdict.commands.solving import DataKey, Precision
from jaxdict.commands.subjects import Labels, LabelsKey, rows_of
from jaxdict.files import check_writable
from jaxdict.reporting.tables import facts_table
from jaxdict.sae.formats import load
from jaxdict.sae.models import SAE
from jaxdict.storage import shown_path

# What stands for stdout in place of a file's name.
STDOUT = "-"
TruthFolder = Annotated[
    Path | None,
    typer.Option(
        help="The truth where it is known: a folder of atoms.npy, codes.npy, parents.npy, one that fit wrote, or a saved model of "
        "SynthSAEBench."
    ),
]
FurtherParts = Annotated[
    list[str] | None,
    typer.Option(
        help="A further part of the error, dear: dictionary (what a short descent gains), atoms (what more features gain after it)."
    ),
]


@one_line_errors
def arbitrate_command(
    subjects: Annotated[
        list[str],
        typer.Argument(
            metavar="SAE SAE... ACTS",
            help="Trained SAEs, each NAME=PATH or a path whose last part is its name, and the activations last. SAEs of one name are "
            "sparsities or seeds of one architecture.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page, one HTML file.")] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="The document, as JSON; - prints it.")
    ] = None,
    truth: TruthFolder = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Fresh rows to compare on (default: half of ACTS, whole documents).")
    ] = None,
    l0: Annotated[
        float | None,
        typer.Option("--l0", help="The L0 to compare at (default: the middle of where all ranges overlap)."),
    ] = None,
    documents: Annotated[
        Path | None,
        typer.Option(
            help="The document of each fresh row's file, .npy (default: as the files say): errors are over them."
        ),
    ] = None,
    labels: Labels = None,
    labels_key: LabelsKey = None,
    sample: Annotated[
        int | None, typer.Option(help="Fresh rows at most, evenly spread (default: by the SAEs' sizes).", min=8)
    ] = None,
    part: FurtherParts = None,
    data_key: DataKey = None,
    x64: Precision = True,
) -> None:
    """Say which of several SAEs is ahead on fresh rows at a common L0, and where each loses its error: a table, a page, a document."""
    saes, acts = _named(subjects)
    for path in (out, None if json in (None, STDOUT) else Path(json)):
        if path is not None:
            check_writable(path.parent)
    set_precision(x64)
    loaded = {name: [load(path) for path in paths] for name, paths in saes.items()}
    first = next(iter(loaded.values()))[0]
    X = rows_of(first, acts, data_key)
    fresh = None if held_out is None else rows_of(first, held_out, data_key)
    options: dict[str, Any] = {"held_out": fresh, "l0": l0, "n_rows": sample, "paths": {"data": shown_path(acts)}}
    options |= {"parts": tuple(part or ()), "truth": None if truth is None else read_truth(truth)}
    options |= {"labels": None if labels is None else read_labels(labels, labels_key)}
    if documents is not None:
        options["groups"] = read_documents(documents, (X if fresh is None else fresh).shape[0])
    found = _arbitrated(loaded, X, acts, json == STDOUT, options)
    written = {"page": None if out is None else found.to_html(out)}
    written |= {"data": None if json in (None, STDOUT) else found.to_json(json)}
    _tell(found, {name: shown_path(path) for name, path in written.items() if path is not None}, json == STDOUT)


def _named(subjects: list[str]) -> tuple[dict[str, list[str]], Path]:
    """The SAEs' paths by name, and the activations; ValueError for fewer than two SAEs.

    >>> _named(["topk=runs/a", "topk=runs/b", "runs/jumprelu", "acts.npy"])
    ({'topk': ['runs/a', 'runs/b'], 'jumprelu': ['runs/jumprelu']}, PosixPath('acts.npy'))
    """
    *given, acts = subjects
    if len(given) < 2:
        raise ValueError(
            f"{len(given)} SAE before the activations ({acts}); arbitration is between two or more: SAE SAE... ACTS"
        )
    found: dict[str, list[str]] = {}
    for word in given:
        name, mark, path = word.partition("=")
        if not mark or "/" in name or Path(word).exists():
            name, path = Path(word).name or word, word
        found.setdefault(name, []).append(path)
    if len(found) < 2:
        raise ValueError(
            f"all SAEs have the name {next(iter(found))!r}; name them, NAME=PATH, so that there are two or more"
        )
    return found, Path(acts)


def _arbitrated(saes: dict[str, list[SAE]], X, acts: Path, quiet: bool, options: dict[str, Any]) -> Arbitration:
    """The arbitration under its bar; what is wrong with the rows is told with their file's name."""
    with _Stages(quiet) as progress:
        try:
            return arbitrate(saes, X, progress=progress, **options)
        except ValueError as error:
            about = f"{acts}: " if " of X " in str(error) or "activations" in str(error) else ""
            raise ValueError(f"{about}{error}") from error


def _tell(found: Arbitration, written: dict[str, str], as_json: bool) -> None:
    if as_json:
        emit_json({"command": "arbitrate"} | found.document)
        return
    console = stdout()
    for sentence in found.document["verdict"]:
        console.print(sentence, markup=False)
    console.print()
    console.print(found.table(), soft_wrap=True, markup=False)
    console.print()
    for sentence in found.document["limits"]:
        console.print(sentence, markup=False)
    console.print(facts_table({**written, "seconds": found.document["seconds"]}))


class _Stages(Bar):
    """A bar for a running arbitration: which stage, of which SAE."""

    def __init__(self, quiet: bool):
        super().__init__(quiet, "reading", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        count = f"{done:,} of {total:,}" if total > 1 else ""
        self.bar.update(self.task, stage=stage, completed=done, total=total if total > 1 else None, numbers=count)
