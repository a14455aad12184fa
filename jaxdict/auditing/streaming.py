"""One pass over activations that need not fit in memory: what an SAE does on all of them, summed in float64.

A chunk of rows at a time: encoder, decoder, residual and the products of features with residuals run on the device in float32,
sharded over the rows where there are several devices; sums over chunks are kept on the host in float64.
"""

import functools
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from jaxdict.auditing.code_tables import CodeTable, sparse_rows
from jaxdict.auditing.strongest import Strongest, never_on, with_entries
from jaxdict.numerics import matmul
from jaxdict.sae.models import SAE, Metadata
from jaxdict.storage import digest, replace_arrays

# Entries of a chunk's (rows, features) array: 64 MiB in float32.
CHUNK_ENTRIES = 2**24
# Rows whose features are kept, evenly spread, for pairs; sums and each feature's strongest rows are of all rows.
TABLE_ROWS = 2**18
# A running pass is saved after so many rows.
ROWS_PER_SAVE = 2**17
# Rows are named in blocks of so many.
ROWS_PER_BLOCK = 2**14


# A float64 number or array.
Sum = Any


class Totals(NamedTuple):
    """Sums over rows, float64; features in the canonical gauge (unit decoder rows), r the residual where the dictionary lives."""

    rows: Sum
    squared_data: Sum  # sum ||x - centre||^2
    data: Sum  # sum (x - centre), (d,)
    squared_error: Sum  # sum ||x - x_hat||^2, in the units of the activations
    squared_residual: Sum  # sum ||r||^2, where the dictionary lives (the same, unless the SAE normalises)
    penalty: Sum  # sum over rows and features of |f|
    active: Sum  # sum over rows of the number of features on
    beyond: Sum  # rows with ||r|| > lam
    largest_residual: Sum  # max ||r||
    counts: Sum  # rows on which each feature is on, (features,)
    codes: Sum  # sum |f|
    squares: Sum  # sum f^2
    largest: Sum  # max |f|
    cross: Sum  # sum f r, (features, d)
    residual: Sum  # sum r, (d,)


# What reading a damaged .npz raises.
DAMAGED = (ValueError, OSError, KeyError, EOFError, RuntimeError, NotImplementedError, BadZipFile, zlib.error)

MAXIMA = ("largest_residual", "largest")


class Pass(NamedTuple):
    """What a whole pass leaves: the sums, the features of a subset of rows, and each feature's strongest rows of all."""

    totals: Totals
    table: CodeTable
    strongest: Strongest


class _Running(NamedTuple):
    """A pass under way: the sums, the features kept so far, the strongest rows so far, and the next row."""

    totals: Totals
    parts: list
    strongest: Strongest
    start: int


def stream(
    sae: SAE,
    X: Float[Any, "samples d_in"],
    centre: np.ndarray,
    lam: float,
    *,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
    name: str = "",
) -> Pass:
    """Run a (canonical) SAE over all rows of X once.

    X is anything with `shape` and row slices: an array, a memory map, `files.Shards`. `centre` (d,) is any point near the
    data's mean (squares are taken about it), `lam` the bound on `||r||` that is counted. `progress(done, rows)` is called
    after every chunk. With `checkpoint` a stopped pass goes on where it was last saved, if `name` (of what else it depends on)
    and the rows so far are the same; the file is removed at the end. Several processes each pass over all rows, on their own
    devices.

    Raises ValueError for rows with NaN or infinity, with the first such row.
    """
    n_rows = X.shape[0]
    size = chunk_rows(n_rows, sae.d_sae)
    every = max(1, -(-n_rows // TABLE_ROWS))
    at = _resumed(checkpoint, name, X) or _Running(_zeros(sae), [], never_on(sae.d_sae), 0)
    sae, place = (
        replace(sae, metadata=Metadata()),
        _placement(size),
    )  # what it was trained with is no part of the program
    saved = at.start
    try:
        while at.start < n_rows:
            rows = np.asarray(X[at.start : at.start + size])
            # In one assignment: Ctrl-C finds the old state or the new one.
            at = add_chunk(sae, at, place, rows, size, centre, lam, every)
            if progress is not None:
                progress(at.start, n_rows)
            if checkpoint is not None and at.start - saved >= ROWS_PER_SAVE and at.start < n_rows:
                _save(checkpoint, name, X, at)
                saved = at.start
    except KeyboardInterrupt:
        if checkpoint is not None and at.start > saved:
            _save(checkpoint, name, X, at)
        raise
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    table = CodeTable(scipy.sparse.vstack(at.parts, format="csr"), np.arange(0, n_rows, every))
    return Pass(at.totals, table, at.strongest)


def keep_pass(X: Float[Any, "samples d_in"], passed: Pass, *, checkpoint: Path | None, name: str) -> None:
    """Save a whole pass, for an audit that is stopped after it."""
    if checkpoint is not None:
        _save(checkpoint, name, X, _Running(passed.totals, [passed.table.by_row], passed.strongest, X.shape[0]))


def chunk_rows(n_rows: int, d_sae: int) -> int:
    """Rows of a chunk: about 64 MiB of features, a multiple of the number of devices, no more than there are rows."""
    devices = jax.local_device_count()
    wanted = min(n_rows, max(16, CHUNK_ENTRIES // d_sae))
    return -(-wanted // devices) * devices


def add_chunk(sae, at: _Running, place, rows, size, centre, lam, every) -> _Running:
    """The pass with one more chunk of rows: sums, strongest rows, and the features of those of its rows that are kept."""
    x = np.zeros((size, rows.shape[1]), np.float32)
    x[: len(rows)] = rows
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        row = at.start + int(np.argmax(bad))
        raise ValueError(f"row {row} of the activations holds NaN or infinity; leave such rows out")
    valid = np.arange(size) < len(rows)
    part = jax.device_get(_chunk(sae, place(x), place(valid), jnp.asarray(centre, jnp.float32)))
    codes, norms = part.codes[: len(rows)], np.sqrt(part.squared_residual[: len(rows)].astype(np.float64))
    listed = sparse_rows(codes)
    values, feature = np.abs(listed.data.astype(np.float64)), listed.indices
    by_feature = functools.partial(np.bincount, feature, minlength=sae.d_sae)
    new = Totals(
        rows=np.float64(len(rows)),
        squared_data=_sum(part.squared_data),
        data=part.data.astype(np.float64),
        squared_error=_sum(part.squared_error),
        squared_residual=_sum(part.squared_residual),
        penalty=values.sum(),
        active=np.float64(values.size),
        beyond=np.float64((norms > lam).sum()),
        largest_residual=norms.max(),
        counts=by_feature().astype(np.float64),
        codes=by_feature(values),
        squares=by_feature(values**2),
        largest=_largest(feature, values, sae.d_sae),
        cross=part.cross.astype(np.float64),
        residual=part.residual.astype(np.float64),
    )
    merged = {
        field: (np.maximum if field in MAXIMA else np.add)(getattr(at.totals, field), getattr(new, field))
        for field in Totals._fields
    }
    kept = np.arange(-at.start % every, len(rows), every)
    row = at.start + np.repeat(np.arange(len(rows)), np.diff(listed.indptr))
    strongest = with_entries(at.strongest, feature, row, listed.data)
    parts = [*at.parts, listed if every == 1 else listed[kept]]
    return _Running(Totals(**merged), parts, strongest, at.start + len(rows))


class _Part(NamedTuple):
    codes: jax.Array
    squared_data: jax.Array
    data: jax.Array
    squared_error: jax.Array
    squared_residual: jax.Array
    cross: jax.Array
    residual: jax.Array


@eqx.filter_jit
def _chunk(sae: SAE, x, valid, centre) -> _Part:
    """A chunk's features and sums; padding rows count for nothing."""
    f = jnp.where(valid[:, None], sae.encode(x), 0)
    keep = valid[:, None]
    r = jnp.where(keep, sae.normalise(x) - (matmul(f, sae.W_dec) + sae.b_dec), 0)
    error = r if sae.normalisation == "none" else jnp.where(keep, sae.target(x) - sae.decode(f, x), 0)
    y = jnp.where(keep, sae.target(x) - centre, 0)
    squared = lambda v: jnp.sum(v * v, axis=1)  # noqa: E731
    return _Part(f, squared(y), jnp.sum(y, axis=0), squared(error), squared(r), matmul(f.T, r), jnp.sum(r, axis=0))


def _placement(size: int):
    """Puts a chunk on this process's devices, its rows spread over all of them."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return jnp.asarray
    mesh = Mesh(np.array(devices), ("rows",))
    return lambda array: jax.device_put(array, NamedSharding(mesh, PartitionSpec("rows")))


def _zeros(sae: SAE) -> Totals:
    of_feature = ("counts", "codes", "squares", "largest")
    shapes = {"data": (sae.d_out,), "residual": (sae.d_out,), "cross": (sae.d_sae, sae.d_out)}
    return Totals(
        **{f: np.zeros(shapes.get(f, (sae.d_sae,) if f in of_feature else ()), np.float64) for f in Totals._fields}
    )


def _sum(values) -> np.float64:
    return np.sum(values, dtype=np.float64)


def _largest(at, values, n_features):
    out = np.zeros(n_features)
    np.maximum.at(out, at, values)
    return out


def _save(path: Path, name: str, X, at: _Running) -> None:
    """Keep a running pass, so that a stopped one resumes."""
    listed: Any = scipy.sparse.vstack(at.parts, format="csr")
    arrays = at.totals._asdict() | {"start": at.start, "name": name, "rows_so_far": _rows_so_far(X, at.start)}
    arrays |= {"part.data": listed.data, "part.indices": listed.indices, "part.indptr": listed.indptr}
    arrays |= {f"strongest.{name}": array for name, array in at.strongest._asdict().items()}
    replace_arrays(path, arrays | {"part.shape": listed.shape})


def _rows_so_far(X, stop: int) -> str:
    """A name of the values of the first rows, a block at a time: they need not fit in memory."""
    return digest([digest(X[k : min(k + ROWS_PER_BLOCK, stop)]) for k in range(0, stop, ROWS_PER_BLOCK)])


def _resumed(path: Path | None, name: str, X) -> _Running | None:
    """Sums, parts and the next row of a pass that was saved under this name over the same rows; None where there is none."""
    if path is None or not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            start = int(saved["start"])
            if str(saved["name"]) != name or str(saved["rows_so_far"]) != _rows_so_far(X, start):
                return None
            totals = Totals(**{field: saved[field] for field in Totals._fields})
            parts = (saved["part.data"], saved["part.indices"], saved["part.indptr"])
            listed = scipy.sparse.csr_matrix(parts, shape=tuple(saved["part.shape"]))
            strongest = Strongest(**{name: saved[f"strongest.{name}"] for name in Strongest._fields})
            return _Running(totals, [listed], strongest, start)
    except DAMAGED:
        warnings.warn(f"{path}: a damaged checkpoint, left aside; the pass over the rows starts afresh", stacklevel=3)
        return None
