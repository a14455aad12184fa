"""What an audit is of, as the command line names it: an SAE, its rows, their target, their documents and tokens."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jaxdict.auditing.labels import read_labels
from jaxdict.auditing.parting import LEAST_GROUPS
from jaxdict.auditing.tokens import decoded
from jaxdict.files import open_activations, positions
from jaxdict.files.tokens import row_tokens
from jaxdict.sae.models import SAE
from jaxdict.sae.transcoders import Transcoder

SaePath = Annotated[
    str,
    typer.Argument(
        metavar="SAE",
        help="A trained SAE: a file or folder of any known format, hf://owner/repo/folder, or a SAELens release/sae_id.",
    ),
]
Lam = Annotated[
    float | None,
    typer.Option(
        help="Sparsity weight, half the package's l1 coefficient (default: the SAE's metadata, or, of a relu SAE, estimated)."
    ),
]
Format = Annotated[str | None, typer.Option("--format", help="Force the SAE's format instead of detecting it.")]
K = Annotated[
    int | None, typer.Option("--k", help="Of a top-k SAE whose files do not say: features kept a row.", min=1)
]
Threshold = Annotated[float | None, typer.Option(help="Read the SAE as a jumprelu SAE with this threshold.")]
Scale = Annotated[
    float | None,
    typer.Option(help="What activations were multiplied by in training, where the weights do not hold it."),
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(help="Exit with 1 where this holds, such as 'explained_variance<0.8'. Repeatable."),
]
Labels = Annotated[Path | None, typer.Option(help="One text a row: .npy, .npz or .json.")]
LabelsKey = Annotated[str | None, typer.Option(help="The array to take from an .npz of labels.")]
Target = Annotated[Path | None, typer.Option(help="Of a transcoder: the activations that it predicts, row by row.")]
TargetKey = Annotated[str | None, typer.Option(help="The array to take from a --target that holds several.")]
Tokens = Annotated[
    Path | None,
    typer.Option(help="The token of each row (default: those with the activations, or tokens.* beside them)."),
]
Tokenizer = Annotated[
    str | None, typer.Option(help="Show tokens as text: a tokenizer.json, its folder, or a model's name on the Hub.")
]


def rows_of(sae: SAE, acts: Path, key: str | None) -> Any:
    """The activations that an SAE reads: rows of its width, of its hook where a file holds several."""
    return open_activations(acts, key, width=sae.d_in, hook=sae.metadata.hook)


def target_of(sae: SAE, target: Path | None, key: str | None) -> Any:
    """What a transcoder predicts, in rows of its width; None where no file is named."""
    if target is None:
        if key is not None:
            raise ValueError("--target-key names an array of --target; give --target too")
        return None
    return open_activations(target, key, width=sae.d_out if isinstance(sae, Transcoder) else None)


def documents_of(X: Any) -> np.ndarray | None:
    """The document of each row where the files say it and there are enough of them to compare; else None, rows being independent."""
    where = positions(X)
    return None if where is None or where.documents[-1] + 1 < LEAST_GROUPS else where.documents


def texts_of(
    acts: Path, X: Any, labels: Path | None, key: str | None, tokens: Path | None, tokenizer: str | None
) -> np.ndarray | None:
    """One text a row: its label, else its token, where they are known."""
    if labels is not None:
        if tokens is not None or tokenizer is not None:
            raise ValueError("--labels are shown as they are; leave out --tokens and --tokenizer, or --labels")
        return read_labels(labels, key)
    found = row_tokens(acts, X, tokens)
    if found is None and tokenizer is not None:
        raise ValueError(
            f"--tokenizer {tokenizer}: {acts} has no tokens with it or beside it; name their file by --tokens"
        )
    return None if found is None else decoded(found, tokenizer)
