"""Small real data sets that come with the package, each with its licence note beside it."""

from importlib import resources
from typing import NamedTuple

import numpy as np

_ABOUT = {
    "minilm_tokens": (
        "Residual stream after layer 3 of all-MiniLM-L6-v2 for 4,096 tokens of the Python language reference "
        "(float16 values cast to float32; mean norm 12.4; rank 383 of 384 when centred).",
        "Weights Apache-2.0, text PSF-2.0: see LICENSE-minilm_tokens.md",
    ),
}


class Dataset(NamedTuple):
    """Activations and what each row is."""

    X: np.ndarray  # (samples, d) float32
    tokens: np.ndarray  # (samples,) the token of each row
    topic: np.ndarray  # (samples,) the chapter that it stands in
    pos: np.ndarray  # (samples,) its position in the chapter
    description: str
    licence: str


def load(name: str = "minilm_tokens") -> Dataset:
    """Load a data set by name; only `"minilm_tokens"` so far: X (4096, 384) with token, topic and position of each row.

    Raises ValueError for an unknown name.

    >>> data = load("minilm_tokens")
    >>> data.X.shape, str(data.X.dtype), str(data.tokens[1])
    ((4096, 384), 'float32', 'statement')
    """
    if name not in _ABOUT:
        raise ValueError(f"name={name!r} is unknown; use one of {sorted(_ABOUT)}")
    description, licence = _ABOUT[name]
    with (
        resources.files(__name__).joinpath(f"{name}.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        return Dataset(
            stored["X"].astype(np.float32), stored["token"], stored["topic"], stored["pos"], description, licence
        )
