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
from jaxdict.auditing.totals import MAXIMA, Running, Totals, no_rows
from jaxdict.auditing.units import chunk_end, cuts_of, spread_of
from jaxdict.numerics import matmul
from jaxdict.sae.models import SAE, Metadata
from jaxdict.storage import digest, replace_arrays

# Entries of a chunk's (rows, features) array: 64 MiB in float32.
CHUNK_ENTRIES = 2**24
# Rows whose features are kept, evenly spread, for pairs; sums and each feature's strongest rows are of all rows.
TABLE_ROWS = 2**18
# A running pass is saved after so many rows.
ROWS_PER_SAVE = 2**17
# With so many features `<u_k, r>` is formed row by row for those that are on: a product for all of them is dearer.
SPREAD_BY_ROW = 2048
# Rows are named in blocks of so many.
ROWS_PER_BLOCK = 2**14


# What reading a damaged .npz raises.
DAMAGED = (ValueError, OSError, KeyError, EOFError, RuntimeError, NotImplementedError, BadZipFile, zlib.error)


class Pass(NamedTuple):
    """What a whole pass leaves: the sums, the features of a subset of rows, and each feature's strongest rows of all."""

    totals: Totals
    table: CodeTable
    strongest: Strongest


def stream(
    sae: SAE,
    X: Float[Any, "samples d_in"],
    centre: np.ndarray,
    lam: float,
    *,
    ends: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
    name: str = "",
) -> Pass:
    """Run a (canonical) SAE over all rows of X once.

    X is anything with `shape` and row slices: an array, a memory map, `files.Shards`. `centre` (d,) is any point near the
    data's mean (squares are taken about it), `lam` the bound on `||r||` that is counted. `ends` says where documents end, as
    `ends_of` does: chunks then end with one, where that does not leave half of them empty. `progress(done, rows)` is called
    after every chunk. With `checkpoint` a stopped pass goes on where it was last saved, if `name` (of what else it depends on)
    and the rows so far are the same; the file is removed at the end. Several processes each pass over all rows, on their own
    devices.

    Raises ValueError for rows with NaN or infinity, with the first such row.
    """
    n_rows = X.shape[0]
    size = chunk_rows(n_rows, sae.d_sae)
    every = max(1, -(-n_rows // TABLE_ROWS))
    at = _resumed(checkpoint, name, X) or Running(no_rows(sae.d_sae, sae.d_out), [], never_on(sae.d_sae), 0)
    sae = replace(sae, metadata=Metadata())  # what it was trained with is no part of the program
    plan = _Plan(sae, _placement(size), size, jnp.asarray(centre, jnp.float32), lam, every, np.asarray(sae.W_dec))
    saved = at.start
    try:
        while at.start < n_rows:
            stop = chunk_end(at.start, size, n_rows, ends)
            rows, cuts = np.asarray(X[at.start : stop]), cuts_of(at.start, stop, ends)
            # In one assignment: Ctrl-C finds the old state or the new one, whose sums are in another array.
            at = add_chunk(plan, at, rows, cuts)
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
        _save(checkpoint, name, X, Running(passed.totals, [passed.table.by_row], passed.strongest, X.shape[0]))


def chunk_rows(n_rows: int, d_sae: int) -> int:
    """Rows of a chunk: about 64 MiB of features, a multiple of the number of devices, no more than there are rows."""
    devices = jax.local_device_count()
    wanted = min(n_rows, max(16, CHUNK_ENTRIES // d_sae))
    return -(-wanted // devices) * devices


class _Plan(NamedTuple):
    """What all chunks of a pass share."""

    sae: SAE
    place: Callable
    size: int
    centre: jax.Array
    lam: float
    every: int  # one row of so many is kept
    units: np.ndarray  # decoder rows, of length one, on the host


def add_chunk(plan: _Plan, at: Running, rows: np.ndarray, cuts: np.ndarray | None) -> Running:
    """The pass with one more chunk of rows: sums, strongest rows, and the features of those of its rows that are kept."""
    x = np.zeros((plan.size, rows.shape[1]), np.float32)
    x[: len(rows)] = rows
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        row = at.start + int(np.argmax(bad))
        raise ValueError(f"row {row} of the activations holds NaN or infinity; leave such rows out")
    valid, dense = np.arange(plan.size) < len(rows), cuts is None and plan.sae.d_sae < SPREAD_BY_ROW
    part = jax.device_get(_chunk(plan.sae, plan.place(x), plan.place(valid), plan.centre, dense))
    listed = sparse_rows(part.codes[: len(rows)])
    new = _sums(listed, part, len(rows), plan, cuts)
    merged = {
        field: (np.maximum if field in MAXIMA else np.add)(getattr(at.totals, field), getattr(new, field))
        for field in Totals._fields
        if field != "cross"
    }
    # Not in place, so that Ctrl-C finds it whole, nor in a new array, which costs as much again as the chunk's products.
    spare = np.empty_like(at.totals.cross) if at.spare is None else at.spare
    merged["cross"] = np.add(at.totals.cross, new.cross, out=spare)
    row = at.start + np.repeat(np.arange(len(rows)), np.diff(listed.indptr))
    strongest = with_entries(at.strongest, listed.indices, row, listed.data)
    kept = np.arange(-at.start % plan.every, len(rows), plan.every)
    parts = [*at.parts, listed if plan.every == 1 else listed[kept]]
    return Running(Totals(**merged), parts, strongest, at.start + len(rows), at.totals.cross)


def _sums(listed, part: "_Part", n_rows: int, plan: _Plan, cuts: np.ndarray | None) -> Totals:
    """A chunk's own sums."""
    norms = np.sqrt(part.squared_residual[:n_rows].astype(np.float64))
    values, at = np.abs(listed.data.astype(np.float64)), listed.indices
    by_feature = functools.partial(np.bincount, at, minlength=listed.shape[1])
    spread = part.spread if part.left is None else spread_of(listed, part.left[:n_rows], plan.units, cuts)
    sizes = np.ones(n_rows) if cuts is None else np.diff(cuts)
    return Totals(
        rows=np.float64(n_rows),
        squared_data=_sum(part.squared_data),
        data=part.data.astype(np.float64),
        squared_error=_sum(part.squared_error),
        squared_residual=_sum(part.squared_residual),
        penalty=values.sum(),
        active=np.float64(values.size),
        beyond=np.float64((norms > plan.lam).sum()),
        largest_residual=norms.max(),
        counts=by_feature().astype(np.float64),
        codes=by_feature(values),
        squares=by_feature(values**2),
        largest=_largest(at, values, listed.shape[1]),
        cross=part.cross,
        spread=spread.astype(np.float64),
        units=np.float64(len(sizes)),
        unit_squares=np.float64(np.sum(sizes**2)),
        residual=part.residual.astype(np.float64),
    )


class _Part(NamedTuple):
    codes: jax.Array
    squared_data: jax.Array
    data: jax.Array
    squared_error: jax.Array
    squared_residual: jax.Array
    cross: jax.Array
    residual: jax.Array
    spread: Any  # over rows; None where it is added up on the host, from what is left of the rows
    left: Any


@eqx.filter_jit
def _chunk(sae: SAE, x, valid, centre, dense: bool) -> _Part:
    """A chunk's features and sums; padding rows count for nothing. `dense`: `<u_k, r>` of all features is cheap enough."""
    f = jnp.where(valid[:, None], sae.encode(x), 0)
    keep = valid[:, None]
    r = jnp.where(keep, sae.normalise(x) - (matmul(f, sae.W_dec) + sae.b_dec), 0)
    error = r if sae.normalisation == "none" else jnp.where(keep, sae.target(x) - sae.decode(f, x), 0)
    y = jnp.where(keep, sae.target(x) - centre, 0)
    squared = lambda v: jnp.sum(v * v, axis=1)  # noqa: E731
    across = squared(r)[:, None] - matmul(r, sae.W_dec.T) ** 2 if dense else None
    spread = None if across is None else jnp.sum(f * f * jnp.maximum(across, 0), axis=0)
    sums = squared(y), jnp.sum(y, axis=0), squared(error), squared(r), matmul(f.T, r), jnp.sum(r, axis=0)
    return _Part(f, *sums, spread, None if dense else r)


def _placement(size: int):
    """Puts a chunk on this process's devices, its rows spread over all of them."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return jnp.asarray
    mesh = Mesh(np.array(devices), ("rows",))
    return lambda array: jax.device_put(array, NamedSharding(mesh, PartitionSpec("rows")))


def _sum(values) -> np.float64:
    return np.sum(values, dtype=np.float64)


def _largest(at, values, n_features):
    out = np.zeros(n_features)
    np.maximum.at(out, at, values)
    return out


def _save(path: Path, name: str, X, at: Running) -> None:
    """Keep a running pass, so that a stopped one resumes."""
    listed: Any = scipy.sparse.vstack(at.parts, format="csr")
    arrays = at.totals._asdict() | {"start": at.start, "name": name, "rows_so_far": _rows_so_far(X, at.start)}
    arrays |= {"part.data": listed.data, "part.indices": listed.indices, "part.indptr": listed.indptr}
    arrays |= {f"strongest.{name}": array for name, array in at.strongest._asdict().items()}
    replace_arrays(path, arrays | {"part.shape": listed.shape})


def _rows_so_far(X, stop: int) -> str:
    """A name of the values of the first rows, a block at a time: they need not fit in memory."""
    return digest([digest(X[k : min(k + ROWS_PER_BLOCK, stop)]) for k in range(0, stop, ROWS_PER_BLOCK)])


def _resumed(path: Path | None, name: str, X) -> Running | None:
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
            return Running(totals, [listed], strongest, start)
    except DAMAGED:
        warnings.warn(f"{path}: a damaged checkpoint, left aside; the pass over the rows starts afresh", stacklevel=3)
        return None
