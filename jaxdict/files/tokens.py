"""The tokens of rows: in the activations' own files, in a file beside them, or in one that is named."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxdict.files.activations import IDS
from jaxdict.files.readers import READERS, held_arrays
from jaxdict.files.rows import token_ids
from jaxdict.storage import one_line

# Kinds of files that tokens are looked for in where none is named.
SUFFIXES = (*READERS, ".json")


def row_tokens(path, X: Any, tokens=None) -> Shaped[np.ndarray, " samples"] | None:
    """The token (an integer, or a text) of each row of the activations X that were read from `path`; None where they are not known.

    `tokens` names a file: an array of integers or texts, or the one called `token_ids` or `tokens`, or a .json of (nested) lists.
    Without it, those in the activations' own files (such as the column `token_ids` of CacheActivationsRunner), else those of a file
    `tokens.*` or `token_ids.*` in the same folder. Raises ValueError where their number is not that of the rows.
    """
    if tokens is None and (own := token_ids(X)) is not None:
        return own
    path = Path(path)
    at = Path(tokens) if tokens is not None else _beside(path if path.is_dir() else path.parent)
    if at is None:
        return None
    found = read_tokens(at)
    if found.size != X.shape[0]:
        left_out = getattr(X, "left_out", ())
        why = f" (shards left out: {', '.join(left_out)})" if left_out else ""
        raise ValueError(
            f"{at}: {found.size} tokens for {X.shape[0]} rows of {path}{why}; give one a row, or move it away"
        )
    return found.reshape(-1)


def read_tokens(path: Path) -> np.ndarray:
    """Tokens of a file, in whatever shape. Raises OSError or ValueError with its name.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "tokens.json"
    >>> _ = file.write_text("[[3, 1], [4, 1]]")
    >>> read_tokens(file).tolist()
    [[3, 1], [4, 1]]
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; give tokens as {', '.join(SUFFIXES)}")
    try:
        found = _of_json(path) if path.suffix == ".json" else _of_arrays(path)
    except (ValueError, EOFError) as error:
        words = one_line(error)
        raise ValueError(words if words.startswith(str(path)) else f"{path}: {words}") from error
    if found.dtype.kind not in "iuU" or not found.size:
        raise ValueError(f"{path}: holds {found.dtype} of shape {found.shape}, expected integers or texts")
    return found


def _of_json(path):
    return np.array(json.loads(path.read_text(encoding="utf-8")))


def _of_arrays(path):
    held = held_arrays(path)
    name = next((name for name in IDS if name in held), None)
    suited = [name for name, parts in held.items() if parts[0].dtype.kind in "iuU" and math.prod(parts[0].shape)]
    if name is None and len(suited) != 1:
        raise ValueError(f"holds {len(suited)} arrays of integers or texts; call the one of tokens {IDS[0]!r}")
    return np.concatenate([part.read() for part in held[name or suited[0]]])


def _beside(folder: Path) -> Path | None:
    files = (folder / f"{name}{suffix}" for name in IDS for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)
