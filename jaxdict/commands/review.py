"""`jaxdict audit`: how far a trained SAE is from optimal, and why."""

from pathlib import Path
from typing import Annotated, Any

import typer
from jaxtyping import Float

from jaxdict.auditing.assembly import Audit, audit
from jaxdict.auditing.labels import check_minutes
from jaxdict.auditing.measures import MEASURES
from jaxdict.auditing.thresholds import parse_threshold
from jaxdict.commands.console import (
    FAILED_CHECK,
    Bar,
    Interrupted,
    emit_json,
    one_line_errors,
    read_documents,
    say,
    set_precision,
    stdout,
)
from jaxdict.commands.solving import Acts, AsJson, DataKey, Precision
from jaxdict.commands.subjects import (
    FailOn,
    Format,
    K,
    Labels,
    LabelsKey,
    Lam,
    SaePath,
    Scale,
    Target,
    TargetKey,
    Threshold,
    Tokenizer,
    Tokens,
    documents_of,
    rows_of,
    target_of,
    texts_of,
)
from jaxdict.files import check_writable
from jaxdict.reporting.audit_summary import audit_summary
from jaxdict.reporting.tables import facts_table
from jaxdict.sae.formats import load
from jaxdict.sae.models import SAE
from jaxdict.storage import shown_path

PAGE, DOCUMENT, CHECKPOINT = "audit.html", "audit.json", ".audit-pass.npz"


@one_line_errors
def audit_command(
    sae: SaePath,
    acts: Acts,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for audit.html and audit.json.")],
    lam: Lam = None,
    target: Target = None,
    target_key: TargetKey = None,
    labels: Labels = None,
    labels_key: LabelsKey = None,
    tokens: Tokens = None,
    tokenizer: Tokenizer = None,
    exact_samples: Annotated[int, typer.Option(help="Rows with exact codes.", min=1)] = 2048,
    documents: Annotated[
        Path | None,
        typer.Option(
            help="The document of each row, .npy (default: as the files say): errors are of means over documents."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Time to split the error: as many rows as it allows (default: by the number of features)."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Steps of the descent from the SAE's dictionary (default 60 or 4, by size); 0: none.", min=0),
    ] = None,
    fail_on: FailOn = None,
    format: Format = None,
    k: K = None,
    threshold: Threshold = None,
    scale: Scale = None,
    data_key: DataKey = None,
    x64: Precision = True,
    as_json: AsJson = False,
) -> None:
    """Audit a trained SAE on activations: gaps, features, pairs and residuals, as a page and as JSON.

    A stopped audit goes on where it was when it is started again with the same --out. Exit code 1 where a --fail-on holds.
    """
    if minutes is not None:
        check_minutes(minutes)
    for condition in fail_on or ():
        parse_threshold(condition, MEASURES)
    check_writable(out)
    set_precision(x64)
    trained = load(sae, format, k=k, threshold=threshold, scale=scale)
    X = rows_of(trained, acts, data_key)
    groups = documents_of(X) if documents is None else read_documents(documents, X.shape[0])
    options = {"target": target_of(trained, target, target_key), "groups": groups, "minutes": minutes}
    options |= {"labels": texts_of(acts, X, labels, labels_key, tokens, tokenizer)}
    options |= {"exact_samples": exact_samples, "descent_steps": steps, "checkpoint": out / CHECKPOINT}
    paths = {"sae": shown_path(sae), "data": shown_path(acts)}
    found = _audited(trained, X, lam, as_json, paths=paths, **options)
    page, document = found.to_html(out / PAGE), found.to_json(out / DOCUMENT)
    failed = found.check(*(fail_on or ()))
    _tell_audit(found, failed, page, document, as_json)
    if failed:
        raise typer.Exit(FAILED_CHECK)


def _audited(trained: SAE, X: Float[Any, "samples d_in"], lam: float | None, quiet: bool, **options) -> Audit:
    """The audit under its bar; what is wrong with the rows is told with their file's name, Ctrl-C with what is kept."""
    with _AuditProgress(quiet) as progress:
        try:
            return audit(trained, X, lam, progress=progress, **options)
        except ValueError as error:
            about = f"{options['paths']['data']}: " if "activations" in str(error) else ""
            raise ValueError(f"{about}{error}") from error
        except KeyboardInterrupt as stopped:
            checkpoint = options["checkpoint"]
            kept = f"the pass over the rows is kept in {checkpoint}: the same command goes on from there"
            raise Interrupted(kept if checkpoint.exists() else "") from stopped


def _tell_audit(found, failed, page: Path, document: Path, as_json: bool) -> None:
    """An audit on stdout, and the conditions that it fails on."""
    if as_json:
        told = {"out": shown_path(page.parent), "failed": [failure.message() for failure in failed]}
        emit_json(
            {
                "command": "audit",
                "schema": found.document["schema"],
                **told,
                "verdict": found.document["verdict"],
                "measures": found.measures,
            }
        )
        return
    console = stdout()
    console.print(audit_summary(found.document))
    files = {"page": shown_path(page), "data": shown_path(document)}
    console.print(facts_table({**files, "seconds": found.document["seconds"]}))
    for failure in failed:
        say(f"jaxdict: failed: {failure.message()}")


class _AuditProgress(Bar):
    """A bar for a running audit: which stage, how many rows."""

    def __init__(self, quiet: bool):
        super().__init__(quiet, "reading", total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        rows = f"{done:,} of {total:,} rows" if total > 1 else ""
        self.bar.update(self.task, stage=stage, completed=done, total=total if total > 1 else None, numbers=rows)
