"""`jaxdict train`: a sparse autoencoder from activations on disk. One flat record is the flags, the call and what is kept of it."""

import dataclasses
import functools
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import jax
import numpy as np
import typer
from rich.progress import TextColumn, TimeRemainingColumn

from jaxdict.commands.console import Bar, Interrupted, emit_json, one_line_errors, set_precision, stdout
from jaxdict.commands.solving import Acts, AsJson, DataKey, DIn, Precision
from jaxdict.commands.streaming import opened
from jaxdict.commands.sweeping import parse_integers
from jaxdict.files import check_writable
from jaxdict.reporting.tables import facts_table
from jaxdict.results import as_plain
from jaxdict.sae import SAE, save, train
from jaxdict.sae.trainers.architectures import Architecture
from jaxdict.sae.trainers.asking import ARCHITECTURES, KINDS, STEPS, asked, steps_wanted
from jaxdict.storage import replace_text, shown_path

RECORD = "training.json"
# Rows that the SAE is judged on at the end, spread evenly over the file.
JUDGED_ROWS = 8192
# What belongs to some architectures only.
OF_ARCHITECTURE = ("bandwidth", "threshold", "p_end", "auxiliary", "group_sizes")


@dataclass(frozen=True)
class TrainConfig:
    """A training run: each field is a flag of `jaxdict train` and an entry of its `training.json`."""

    acts: Acts
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the SAE, as SAELens writes it.")]
    d_sae: Annotated[int, typer.Option("--d-sae", help="Number of latents.", min=1)]
    architecture: Annotated[str, typer.Option(help=", ".join(ARCHITECTURES) + ".")] = "standard"
    lam: Annotated[float | None, typer.Option(help="Sparsity weight, in the units of the data; not for a k.")] = None
    k: Annotated[
        float | None, typer.Option("--k", help="Codes a row: topk, batchtopk, matryoshka, matching_pursuit.")
    ] = None
    steps: Annotated[int | None, typer.Option(help=f"Number of batches ({STEPS}).", min=1)] = None
    epochs: Annotated[float | None, typer.Option(help="In place of --steps: times over the rows.")] = None
    batch_size: Annotated[int, typer.Option(help="Rows a step.", min=1)] = 1024
    learning_rate: Annotated[float, typer.Option(help="Of Adam, after its warm-up.")] = 1e-3
    lam_warm_up: Annotated[int, typer.Option(help="Steps over which lam rises from zero.", min=0)] = 0
    dead_steps: Annotated[int, typer.Option(help="Steps without use that make a latent dead.", min=1)] = 1000
    scaled: Annotated[bool, typer.Option(help="Train on rows of mean square one, folded in at the end.")] = True
    key: Annotated[int, typer.Option(help="Random key: same key, same result.")] = 0
    bandwidth: Annotated[float | None, typer.Option(help="jumprelu: within which slopes are estimated.")] = None
    threshold: Annotated[float | None, typer.Option(help="jumprelu: where thresholds start.")] = None
    p_end: Annotated[float | None, typer.Option(help="p_anneal: what p falls to.")] = None
    auxiliary: Annotated[float | None, typer.Option(help="topk and its like: what dead latents' error counts for.")] = (
        None
    )
    group_sizes: Annotated[str | None, typer.Option(help="matryoshka: latents a group, such as 8,8,16,32.")] = None
    checkpoint: Annotated[Path | None, typer.Option(help="Folder for the run's state, to go on from.")] = None
    model: Annotated[str | None, typer.Option(help="The language model, for the SAE's metadata.")] = None
    hook: Annotated[str | None, typer.Option(help="The place in it, such as blocks.8.hook_resid_pre.")] = None
    data_key: DataKey = None
    d_in: DIn = None
    x64: Precision = False
    as_json: AsJson = False

    def kind(self) -> Architecture:
        """The architecture with its own numbers; raises ValueError for a number that it does not have."""
        if self.architecture not in KINDS:
            raise ValueError(f"--architecture {self.architecture} is unknown; use one of {', '.join(ARCHITECTURES)}")
        kind = KINDS[self.architecture]
        fields = {field.name for field in dataclasses.fields(kind)}
        given = {name: value for name in OF_ARCHITECTURE if (value := getattr(self, name)) is not None}
        if strange := [name for name in given if name not in fields]:
            flags = ", ".join("--" + name.replace("_", "-") for name in strange)
            raise ValueError(f"{flags}: a {self.architecture} SAE has no such number; leave it out")
        if "group_sizes" in given:
            given["group_sizes"] = tuple(parse_integers(given["group_sizes"], "--group-sizes"))
        return asked(kind(**given), self.d_sae, self.lam, self.k)

    def record(self) -> dict[str, Any]:
        """Every flag by its name, paths as text."""
        return {name: shown_path(value) if isinstance(value, Path) else value for name, value in vars(self).items()}


def flags_of(config: type) -> Callable:
    """A decorator: a function of a record becomes one of the record's fields, which typer makes flags of.

    >>> @dataclass(frozen=True)
    ... class Two:
    ...     a: int
    ...     b: int = 3
    >>> inspect.signature(flags_of(Two)(lambda two: two.a + two.b))
    <Signature (*, a: int, b: int = 3)>
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def command(**flags):
            return function(config(**flags))

        hints = get_type_hints(config, include_extras=True)
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
                    annotation=hints[field.name],
                )
                for field in dataclasses.fields(config)
            ]
        )
        command.__annotations__ = {}
        return command

    return decorate


@flags_of(TrainConfig)
@one_line_errors
def train_command(config: TrainConfig) -> None:
    """Train a sparse autoencoder on activations that stay on disk, and save it as SAELens does.

    Beside it stands training.json: every flag, and how the SAE does on rows spread over the file. With --checkpoint the same
    command goes on where a stopped one was.
    """
    kind = config.kind()
    steps_wanted(config.steps, config.epochs, None)
    check_writable(config.out)
    dtype = set_precision(config.x64)
    rows = opened(config.acts, config.data_key, dtype, config.d_in)
    begin = time.perf_counter()
    shared = (
        "lam",
        "k",
        "steps",
        "epochs",
        "batch_size",
        "learning_rate",
        "lam_warm_up",
        "dead_steps",
        "scaled",
        "checkpoint",
    )
    options = {name: getattr(config, name) for name in shared}
    with _TrainBar(config.as_json) as bar:
        try:
            sae = train(
                rows,  # type: ignore[arg-type]
                config.d_sae,
                key=jax.random.key(config.key),
                architecture=kind,
                callback=bar,
                **options,
            )
        except KeyboardInterrupt as stopped:
            kept = "nothing is kept; --checkpoint DIR keeps the state"
            if config.checkpoint is not None:
                kept = f"the same command goes on from what {config.checkpoint} holds"
            raise Interrupted(kept) from stopped
    judged = rows[np.linspace(0, len(rows) - 1, min(JUDGED_ROWS, len(rows))).round().astype(int)]
    document = {"command": "train", **config.record(), "rows": len(rows), "d": rows.shape[1]}
    document |= {"seconds": round(time.perf_counter() - begin, 3), **_measured(sae, judged)}
    named = {"model_name": config.model, "hook_name": config.hook}
    save(sae, config.out, metadata={name: value for name, value in named.items() if value is not None})
    replace_text(config.out / RECORD, json.dumps(as_plain(document), indent=2, allow_nan=False) + "\n")
    if config.as_json:
        emit_json(document)
    else:
        shown = (
            "architecture",
            "lam",
            "k",
            "rows",
            "d",
            "d_sae",
            "l0",
            "explained_variance",
            "unused",
            "seconds",
            "out",
        )
        stdout().print(facts_table({name: document[name] for name in shown if document[name] is not None}, "Trained"))


def _measured(sae: SAE, X: Any) -> dict[str, float]:
    """Codes a row, the share of variance explained, and latents that none of the rows uses."""
    f: Any = np.asarray(sae.encode(X))
    r = X - np.asarray(sae.decode(f))
    about = X - np.mean(X, axis=0)
    return {
        "judged_rows": len(X),
        "l0": float(np.mean(np.sum(f != 0, axis=1))),
        "explained_variance": float(1 - np.sum(r * r) / max(np.sum(about * about), np.finfo(X.dtype).tiny)),
        "unused": int(np.sum(~np.any(f != 0, axis=0))),
    }


class _TrainBar(Bar):
    """A bar for running training: steps, and the loss of the last batch."""

    def __init__(self, quiet: bool):
        super().__init__(quiet, "training", TextColumn("left"), TimeRemainingColumn(), total=None)

    def __call__(self, step: int, steps: int, loss: float) -> None:
        """A callback for `jaxdict.sae.train`."""
        self.bar.update(self.task, completed=step, total=steps, numbers=f"step {step:,} of {steps:,}  loss {loss:.5g}")
