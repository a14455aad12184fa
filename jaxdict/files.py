"""Reading activations: .npy, .npz, .safetensors and folders of shards; nothing is ever unpickled."""

import functools
import tempfile
import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxdict.storage import natural_order, one_line, safetensors_layout, shown_path

SHARDS = (".npy", ".npz", ".safetensors")


def read_activations(path, key: str | None = None) -> np.ndarray:
    """Activations (samples, d) from a file or from a folder of shards, in the type that they are stored in.

    `.npy` and `.safetensors` are memory-mapped; of an `.npz` or `.safetensors` file with several floating 2-D
    arrays `key` names the one wanted; the shards of a folder are taken in natural order
    of their names (part-2 before part-10) and joined. bfloat16, float32, float64 (bfloat16 is what numpy
    stores as two raw bytes).

    Raises OSError for a file that cannot be opened, ValueError for one that cannot be understood, with its name, in
    one line.

    >>> import tempfile, pathlib, numpy as np
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "acts.npy"
    >>> np.save(file, np.ones((3, 2), np.float16))
    >>> read_activations(file).shape
    (3, 2)
    """
    stored = open_activations(path, key)
    return stored[:] if isinstance(stored, Shards) else stored


class Shards:
    """Arrays of one width, one below the other, read only where they are looked at.

    What a memory-mapped array can be asked for here: `shape`, `dtype`, `len`, a slice or an array of rows. `names` are those of
    the files, in the order of the rows; rows are given as `dtype`, by default one that holds all of theirs.

    >>> shards = Shards([np.zeros((2, 3)), np.ones((2, 3))])
    >>> shards.shape, shards[1:3].tolist(), shards[np.array([3, 0])][:, 0].tolist()
    ((4, 3), [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], [1.0, 0.0])
    """

    ndim = 2

    def __init__(self, arrays, names=(), dtype=None):
        self.arrays, self.names = list(arrays), tuple(names)
        self.starts = np.cumsum([0, *(len(array) for array in self.arrays)])
        self.shape = (int(self.starts[-1]), self.arrays[0].shape[1])
        own = functools.reduce(jnp.promote_types, (array.dtype for array in self.arrays))
        self.dtype = own if dtype is None else np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        rows = np.arange(len(self))[rows]
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        for k in np.unique(shard):
            mine = shard == k
            inside = rows[mine] - self.starts[k]
            whole = slice(inside[0], inside[-1] + 1) if np.all(np.diff(inside) == 1) else inside
            out[mine] = self.arrays[k][whole]
        return out


def open_activations(path, key: str | None = None) -> "np.ndarray | Shards":
    """As `read_activations`, but a folder's shards stay on disk until rows of them are asked for.

    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in "ab":
    ...     np.save(folder / f"{name}.npy", np.ones((2, 3), np.float16))
    >>> open_activations(folder).shape
    (4, 3)
    """
    path = Path(path)
    if path.is_dir():
        return _open_shards(path, key)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: unknown kind of file {path.suffix!r}; give .npy, .npz, .safetensors or a folder of these"
        )
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        array = readers[path.suffix](path, key)
        return _as_activations(array)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: {one_line(error)}") from error
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or one_line(error)}") from error


def check_writable(directory) -> Path:
    """Make the folder if it is not there and try to write in it, so that an unwritable output is known before compute.

    Raises OSError with the folder's name.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError as error:
        raise OSError(f"{directory}: cannot write results there: {error.strerror or error}") from error


def _read_npy(path, key):
    if path.open("rb").read(6) != b"\x93NUMPY":
        raise ValueError("not a .npy file (it does not begin with numpy's mark)")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "mmap" in str(error):
            raise ValueError("truncated: it holds fewer numbers than its header says") from error
        if "object" in str(error).lower():
            raise ValueError("holds Python objects (pickle), which are never read; save a plain float array") from error
        raise


def _read_npz(path, key):
    if path.open("rb").read(2) != b"PK":
        raise ValueError("not an .npz file (it does not begin with zip's mark)")
    with zipfile.ZipFile(path) as archive:
        headers = {}
        for member in archive.namelist():
            with archive.open(member) as file:
                headers[member.removesuffix(".npy")] = _npy_header(file)
    name = _choose(headers, key)
    if headers[name][1].hasobject:
        raise ValueError(f"{name!r} holds Python objects (pickle), which are never read; save a plain float array")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def _npy_header(file):
    """(shape, dtype) of a .npy stream."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read_safetensors(path, key):
    views, _ = safetensors_views(path)
    return views[_choose({name: (view.shape, view.dtype) for name, view in views.items()}, key)]


def safetensors_views(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, memory-mapped, and its metadata; types that numpy does not have are left out."""
    layout, metadata = safetensors_layout(path)
    views = {}
    for name, (dtype, shape, start, n_bytes) in layout.items():
        if dtype is not None:  # a file of no bytes cannot be mapped
            views[name] = np.memmap(path, dtype, "r", start, shape) if n_bytes else np.zeros(shape, dtype)
    return views, metadata


def _choose(headers, key):
    """The array asked for, or the only floating 2-D one."""
    described = ", ".join(f"{name} {shape} {dtype}" for name, (shape, dtype) in sorted(headers.items())) or "nothing"
    if key is not None:
        if key not in headers:
            raise ValueError(f"has no array {key!r}; it holds {described}")
        return key
    wanted = [name for name, (shape, dtype) in headers.items() if len(shape) == 2 and _is_floating(dtype)]
    if len(wanted) == 1:
        return wanted[0]
    if not wanted and len(headers) == 1:
        return next(iter(headers))  # what is wrong with it is said when its shape and type are looked at
    how_many = f"{len(wanted)} floating 2-D arrays" if wanted else "no floating 2-D array"
    raise ValueError(f"holds {how_many}: name one by its key; it holds {described}")


def _is_floating(dtype) -> bool:
    return dtype == np.dtype("V2") or jnp.issubdtype(dtype, jnp.floating)


def _as_activations(array):
    if array.dtype == np.dtype("V2"):
        array = array.view(ml_dtypes.bfloat16)
    if array.ndim != 2:
        hint = f"; flatten to rows: X.reshape(-1, {array.shape[-1]})" if array.ndim > 2 else ""
        raise ValueError(f"has shape {array.shape}; jaxdict wants (samples, features){hint}")
    if not _is_floating(array.dtype):
        raise ValueError(f"has dtype {array.dtype}, not floating point; convert it if these are measurements")
    if array.size == 0:
        raise ValueError(f"is empty: shape {array.shape}")
    return array


def shard_files(folder) -> list[Path]:
    """The shards of a folder in the order in which their rows are taken: that of their names, numbers in them by value."""
    files = [file for file in Path(folder).iterdir() if file.suffix in SHARDS and not file.name.startswith(".")]
    return sorted(files, key=lambda file: natural_order(file.name))


def shard_names(path) -> list[str]:
    """The names of a folder's shards in the order of their rows; nothing for a file."""
    return [shown_path(file.name) for file in shard_files(path)] if Path(path).is_dir() else []


def _open_shards(folder, key) -> Shards:
    files = shard_files(folder)
    if not files:
        raise ValueError(f"{folder}: holds no activations; give a folder of .npy, .npz or .safetensors shards")
    shards = [open_activations(file, None if file.suffix == ".npy" else key) for file in files]
    for file, shard in zip(files, shards, strict=True):
        if shard.shape[1] != shards[0].shape[1]:
            raise ValueError(f"{file}: {shard.shape[1]} features where {files[0].name} has {shards[0].shape[1]}")
    return Shards(shards, [shown_path(file.name) for file in files])
