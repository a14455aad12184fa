"""Names of rows, so that examples can be read: one text a row, from a .npy, .npz or .json file."""

import json
import zipfile
from pathlib import Path

import numpy as np

from jaxdict.storage import one_line


def read_labels(path, key: str | None = None) -> np.ndarray:
    """One text a row from a file: a .json list, a .npy array of texts or numbers, or an array of an .npz by its key.

    Nothing is unpickled. Raises OSError for a file that cannot be opened and ValueError, with its name, for one that does
    not hold one label a row.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "tokens.json"
    >>> _ = file.write_text('["the", "dog"]')
    >>> read_labels(file).tolist()
    ['the', 'dog']
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        labels = _READERS[path.suffix](path, key)
    except KeyError as error:
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; give .npy, .npz or .json") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        hint = "; texts must be a plain numpy array of strings, not Python objects" if "pickle" in str(error) else ""
        raise ValueError(f"{path}: {one_line(error)}{hint}") from error
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"{path}: holds an array of shape {labels.shape}; labels are one text a row")
    return labels.astype(str)


def check_labels(labels, n_rows: int) -> np.ndarray:
    """Labels as texts, or a ValueError where their number is not that of the rows."""
    labels = np.asarray(labels).astype(str)
    if labels.shape != (n_rows,):
        raise ValueError(f"labels have shape {labels.shape} but the activations {n_rows} rows; give one label a row")
    return labels


def _read_npy(path, key):
    return np.load(path, allow_pickle=False)


def _read_npz(path, key):
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays)
        if key is None and len(names) != 1:
            raise ValueError(f"holds several arrays: name one by its key; it holds {', '.join(names)}")
        if key is not None and key not in names:
            raise ValueError(f"has no array {key!r}; it holds {', '.join(names)}")
        return arrays[names[0] if key is None else key]


def _read_json(path, key):
    values = json.loads(path.read_text(encoding="utf-8"))
    values = values[key] if isinstance(values, dict) and key in values else values
    if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values):
        raise ValueError("is not a JSON list of texts")
    return np.array([str(value) for value in values])


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".json": _read_json}


def check_groups(groups, n_rows: int) -> np.ndarray:
    """The document of each row, or a ValueError where their number is not that of the rows.

    >>> check_groups(["a", "b"], 3)
    Traceback (most recent call last):
    ValueError: groups has shape (2,) but the data 3 rows; give one document a row
    """
    groups = np.asarray(groups)
    if groups.shape != (n_rows,):
        raise ValueError(f"groups has shape {groups.shape} but the data {n_rows} rows; give one document a row")
    return groups


def check_rows(rows, n_rows: int) -> np.ndarray:
    """Which rows are taken, as integers, or a ValueError where they are no numbers of rows, twice the same, or none.

    >>> check_rows([0, 7], 5)
    Traceback (most recent call last):
    ValueError: rows names row 7, but the data have 5; rows are numbered from 0
    """
    given = np.asarray(rows)
    if given.ndim != 1 or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(
            f"rows has shape {given.shape} and dtype {given.dtype}; give the numbers of rows, one axis of integers"
        )
    wrong = given[(given < 0) | (given >= n_rows)]
    if wrong.size:
        raise ValueError(f"rows names row {wrong[0]}, but the data have {n_rows}; rows are numbered from 0")
    if len(np.unique(given)) < given.size:
        raise ValueError("rows names a row twice; give each row once, so that means are over different rows")
    return given


def check_minutes(minutes) -> float:
    """A positive number of minutes, or a ValueError.

    >>> check_minutes(0)
    Traceback (most recent call last):
    ValueError: minutes is 0; give a positive number of minutes, or none for rows by the number of features
    """
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes > 0:
        raise ValueError(
            f"minutes is {minutes!r}; give a positive number of minutes, or none for rows by the number of features"
        )
    return float(minutes)
