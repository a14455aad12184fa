"""The texts around rows: an example in its context, where it is known which rows belong to one document."""

from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdict.reporting.vocabulary import CONTEXT


def passages(rows: Int[np.ndarray, " rows"], labels, documents) -> list[dict[str, Any]] | None:
    """Runs of consecutive rows that hold every one of `rows` with its neighbours in the same document, each with its texts.

    `labels` is one text a row of the data, `documents` the document of each, by which consecutive rows are neighbours; without it
    no row has any. Runs that touch are one, so that a row's text is held once. None where there are no labels.

    >>> labels = np.array(["the", "dog", "barks", "A", "cat"])
    >>> passages(np.array([2, 4]), labels, np.array([0, 0, 0, 1, 1]))
    [{'row': 0, 'texts': ['the', 'dog', 'barks']}, {'row': 3, 'texts': ['A', 'cat']}]
    >>> passages(np.array([4, 4]), labels, None)
    [{'row': 4, 'texts': ['cat']}]
    """
    if labels is None:
        return None
    rows = np.unique(rows)
    if not rows.size:
        return []
    begin, end = rows, rows + 1
    fresh = np.ones(len(rows), bool)
    if documents is not None:
        turns = np.flatnonzero(documents[1:] != documents[:-1]) + 1
        starts, stops = np.concatenate([[0], turns]), np.concatenate([turns, [len(documents)]])
        before, after = CONTEXT
        run = np.searchsorted(starts, rows, side="right") - 1
        begin, end = np.maximum(rows - before, starts[run]), np.minimum(rows + after + 1, stops[run])
        fresh[1:] = (run[1:] != run[:-1]) | (begin[1:] > end[:-1])
    first = np.flatnonzero(fresh)
    last = np.concatenate([first[1:], [len(rows)]]) - 1
    return [
        {"row": int(start), "texts": [str(text) for text in labels[start:stop]]}
        for start, stop in zip(begin[first], end[last], strict=True)
    ]
