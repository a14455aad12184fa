"""Sparse codes of a whole source on disk, a chunk a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdict.files import check_writable
from jaxdict.problem import Dictionary, Problem, SparseCodes, offset_of
from jaxdict.storage import replace_arrays
from jaxdict.streaming.sums import checked, chunk_rows, code_tol, padded, solve_chunk


def write_codes(
    problem: Problem, dictionary: Dictionary, X: Float[Any, "samples d"], directory, *, tol: float | None = None
) -> Path:
    """Exact codes of all rows to a folder: `codes-00000.npz` and so on, a chunk each in order, with `indices` and `values` (rows, slots).

    X is (samples, d), an array or anything with `shape` and row slices. One chunk is in memory at a time; a killed call leaves whole
    files only. `tol` is the duality gap of `jaxdict.encode`, by default rounding with some room.

    >>> import tempfile, jax.numpy as jnp, jaxdict as jd
    >>> folder = write_codes(jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(2)), np.array([[3.0, 0.25]]), tempfile.mkdtemp())
    >>> [codes.values.tolist() for codes in read_codes(folder)]
    [[[2.5]]]
    """
    directory = check_writable(directory)
    atoms = jnp.asarray(dictionary.atoms)
    dictionary, size = Dictionary(atoms, offset_of(dictionary)), chunk_rows(problem, *atoms.shape)
    for k, at in enumerate(range(0, X.shape[0], size)):
        rows = checked(X[at : at + size], at)
        found = solve_chunk(problem, dictionary, rows, code_tol(rows.dtype) if tol is None else tol)
        counts, values = np.diff(found.codes.indptr), found.codes.data.astype(rows.dtype)
        codes = padded(counts, found.codes.indices, values, max(1, int(np.max(counts))))
        replace_arrays(directory / f"codes-{k:05d}.npz", codes._asdict())
    return directory


def read_codes(directory) -> Iterator[SparseCodes]:
    """The codes that `write_codes` wrote, chunk by chunk; OSError where the folder holds none."""
    paths = sorted(Path(directory).glob("codes-*.npz"))
    if not paths:
        raise FileNotFoundError(f"{directory}: no codes in it; give a folder that write_codes wrote")
    for path in paths:
        with np.load(path, allow_pickle=False) as stored:
            yield SparseCodes(jnp.asarray(stored["indices"]), jnp.asarray(stored["values"]))
