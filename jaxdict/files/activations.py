"""Reading activations from a file or a folder of shards; nothing is ever unpickled."""

import math
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdict.containers.tensors import Entry
from jaxdict.files.folders import KINDS, shard_files
from jaxdict.files.readers import READERS, Held, as_bfloat16, held_arrays
from jaxdict.files.rows import Rows, Shards, leading_axes
from jaxdict.storage import one_line, shown_path

# What tokens go by where they lie in one file with their activations.
IDS = ("token_ids", "tokens", "input_ids")
# What reading a damaged file raises, beside OSError.
DAMAGE = (ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class DamagedFileError(ValueError):
    """A file that cannot be read as what it is named: truncated, or something else."""


class Wanted(NamedTuple):
    """Which array of a file, and how many numbers make a row of it."""

    key: str | None = None
    width: int | None = None
    hook: str | None = None


def read_activations(path, key: str | None = None, *, width: int | None = None) -> Float[np.ndarray, "samples d"]:
    """Activations (samples, d) from a file or from a folder of shards, in the type that they are stored in; see `open_activations`.

    >>> import tempfile, pathlib, numpy as np
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "acts.npy"
    >>> np.save(file, np.ones((3, 2), np.float16))
    >>> read_activations(file).shape
    (3, 2)
    """
    stored = open_activations(path, key, width=width)
    return stored[:] if isinstance(stored, Shards) else stored


def open_activations(
    path, key: str | None = None, *, width: int | None = None, hook: str | None = None
) -> "np.ndarray | Shards":
    """Activations (samples, d) that stay on disk until rows of them are asked for.

    - `.npy`, `.safetensors`, torch's `.pt` and `.pth` (a tensor, a list of tensors, a dictionary of either; read without torch) and
      `.arrow` are memory-mapped, `.npz` is read whole, `.parquet` by groups of rows: where rows are taken in a random order, as a
      stream's fit does, groups are read again and again, and another kind is quicker.
    - Of a file with several arrays `key` names the one wanted (a column of an Arrow file by its hook); without it `hook`, that of the
      SAE, is taken where it is there.
    - float16, bfloat16 (which numpy stores as two raw bytes), float32, float64.
    - (batch, position, d) is flattened to rows; `jaxdict.files.positions` has the document and the position of each. With `width`,
      an SAE's d_in, the last axes whose sizes multiply to it make a row: (samples, heads, d_head) for an SAE of all heads.
    - A folder's shards are taken in natural order of their names (part-2 before part-10), or in that which Hugging Face's datasets
      wrote down. One that is truncated or damaged is left out with a warning that names it (`.left_out`), the others are read: where
      labels or tokens belong to all rows, their number no longer fits, and is refused.

    Raises OSError for a file that cannot be opened, ValueError for one that cannot be understood, with its name, in one line.

    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in "ab":
    ...     np.save(folder / f"{name}.npy", np.ones((2, 3), np.float16))
    >>> open_activations(folder).shape
    (4, 3)
    """
    path, wanted = Path(path), Wanted(key, width, hook)
    if path.is_dir():
        return _open_shards(path, wanted)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix not in READERS:
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; give {KINDS} or a folder of these")
    return _open_file(path, wanted)


def _open_shards(folder: Path, wanted: Wanted) -> Shards:
    whole, names, left_out, damage = [], [], [], []
    for file in shard_files(folder):
        name = shown_path(file.relative_to(folder))
        try:
            if not file.exists():
                raise DamagedFileError(f"{file}: missing, though the folder's state.json names it")
            shard = _open_file(file, wanted)
        except DamagedFileError as error:
            left_out.append(name)
            damage.append(error)
            continue
        if whole and shard.shape[1] != whole[0].shape[1]:
            raise ValueError(f"{file}: {shard.shape[1]} features where {names[0]} has {whole[0].shape[1]}")
        whole.append(shard)
        names.append(name)
    if not whole:
        raise damage[0]
    for error in damage:
        warnings.warn(f"{error}: left out, the other {len(whole)} shards are read", stacklevel=3)
    return Shards(whole, names, left_out=left_out)


def _open_file(path: Path, wanted: Wanted) -> "np.ndarray | Shards":
    """One file's rows: as numpy has them where they are a plain array, else as `Shards` of one or more pieces."""
    held = _read(path, lambda: held_arrays(path))
    try:
        name = _choose(held, wanted)
        parts = held[name]
        width = _width(name, parts, wanted)
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}") from error
    rows = [_rows(path, part, width) for part in parts]
    _attach_ids(held, rows)
    plain = len(rows) == 1 and len(parts[0].shape) == 2 and rows[0].ids is None
    return rows[0][:] if plain else Shards(rows)


def _rows(path: Path, part: Entry, width: int) -> Rows:
    dtype = as_bfloat16(np.empty(0, part.dtype)).dtype
    return Rows(lambda: as_bfloat16(_read(path, part.read)), part.shape, dtype, width=width)


def _read(path: Path, read):
    """What reading gives; damage is told with the file's name."""
    try:
        return read()
    except DAMAGE as error:
        words = one_line(error)
        raise DamagedFileError(words if words.startswith(str(path)) else f"{path}: {words}") from error
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or one_line(error)}") from error


def _choose(held: Held, wanted: Wanted) -> str:
    """The array asked for, or the only floating one of two axes or more."""
    described = ", ".join(f"{name} {_described(held[name])}" for name in sorted(held)) or "nothing"
    if list(held) == [""]:
        return ""  # one array without a name
    if wanted.key is not None:
        if wanted.key not in held:
            raise ValueError(f"has no array {wanted.key!r}; it holds {described}")
        return wanted.key
    suited = [name for name, parts in held.items() if len(parts[0].shape) >= 2 and _is_floating(parts[0].dtype)]
    if wanted.hook in suited:
        return wanted.hook
    if len(suited) == 1:
        _warn_of_another_hook(suited[0], wanted.hook)
        return suited[0]
    if not suited and len(held) == 1:
        return next(iter(held))  # what is wrong with it is said when its shape and type are looked at
    how_many = f"{len(suited)} floating arrays of two axes or more" if suited else "no floating array of two axes"
    raise ValueError(f"holds {how_many}: name one by its key; it holds {described}")


def _warn_of_another_hook(name: str, hook: str | None) -> None:
    if hook is not None and name != hook and "hook_" in name and "hook_" in hook:
        warnings.warn(
            f"the activations are of {name}, the SAE reads {hook}: are they from another place?", stacklevel=5
        )


def _described(parts: list[Entry]) -> str:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if parts[0].shape else ()
    return f"{shape} {parts[0].dtype}"


def _is_floating(dtype) -> bool:
    return dtype == np.dtype("V2") or jnp.issubdtype(dtype, jnp.floating)


def _width(name: str, parts: list[Entry], wanted: Wanted) -> int:
    """How many numbers make a row. Raises ValueError for what are no activations."""
    for part in parts:
        shape, dtype = part.shape, part.dtype
        if dtype.hasobject:
            raise ValueError(f"{name!r} holds Python objects (pickle), which are never read; save a plain float array")
        if len(shape) < 2:
            raise ValueError(f"has shape {shape}; jaxdict wants (samples, features)")
        if not _is_floating(dtype):
            raise ValueError(f"has dtype {dtype}, not floating point; convert it if these are measurements")
        if math.prod(shape) == 0:
            raise ValueError(f"is empty: shape {shape}")
    shape = parts[0].shape
    widths = {math.prod(shape[k:]): k for k in range(len(shape) - 1, 0, -1)}
    if wanted.width is not None and len(shape) > 2 and wanted.width not in widths:
        could = " or ".join(map(str, widths))
        raise ValueError(
            f"has shape {shape}: rows of {could} numbers, not of {wanted.width}; is it of another layer or model?"
        )
    width = wanted.width if wanted.width in widths else shape[-1]
    for part in parts:
        if leading_axes(part.shape, width) == 0:
            raise ValueError(f"holds arrays of shapes {shape} and {part.shape}, which have no rows of one width")
    return width


def _attach_ids(held: Held, rows: list[Rows]) -> None:
    """The tokens in the same file, where there is one for each row."""
    ids = next((held[name] for name in IDS if name in held), [])
    fits = len(ids) == len(rows) and all(
        np.issubdtype(of.dtype, np.integer) and math.prod(of.shape) == len(part)
        for of, part in zip(ids, rows, strict=True)
    )
    for of, part in zip(ids, rows, strict=True) if fits else ():
        part.ids = of.read
