"""Tokens as the texts that they stand for."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxdict.sae.hub import fetch_file
from jaxdict.storage import one_line


def decoded(ids: Shaped[np.ndarray, " samples"], tokenizer: str | None) -> Shaped[np.ndarray, " samples"]:
    """The text of each token: by a tokenizer, else its number; texts stay as they are.

    `tokenizer` is a `tokenizer.json`, a folder that holds one, or a model's name on the Hugging Face Hub. Raises ValueError for
    tokens that it does not have, OSError where there is no such tokenizer.

    >>> decoded(np.array([464, 3290]), None).tolist()
    ['464', '3290']
    """
    if ids.dtype.kind == "U" or tokenizer is None:
        return ids.astype(str)
    words = _tokenizer(tokenizer)
    kinds, of_row = np.unique(ids, return_inverse=True)
    beyond = kinds[(kinds < 0) | (kinds >= words.get_vocab_size())]
    if beyond.size:
        raise ValueError(
            f"tokenizer {tokenizer} has {words.get_vocab_size()} tokens, but the rows have token {beyond[-1]}; is it that of the model?"
        )
    texts = np.array([words.decode([int(kind)], skip_special_tokens=False) for kind in kinds])
    return texts[of_row.reshape(-1)]


def _tokenizer(name: str) -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        words = 'texts of tokens need tokenizers: pip install "jaxdict[files]"'
        raise ModuleNotFoundError(words, name=error.name) from error
    at = Path(name) / "tokenizer.json" if Path(name).is_dir() else Path(name)
    try:
        return tokenizers.Tokenizer.from_file(str(at if at.is_file() else fetch_file(name, "tokenizer.json")))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise OSError(f"tokenizer {name}: {one_line(error)}; or give the path of the model's tokenizer.json") from error
