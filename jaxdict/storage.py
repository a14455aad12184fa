"""Files that appear whole or not at all, safetensors in and out, and names made of every byte that matters."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

# The types that a safetensors file may hold and numpy can, by the names it gives them; 8-bit floats and the like are not among them.
SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip
MAX_SAFETENSORS_HEADER = 10**8  # the format's own limit
# Rows of an array that go into a name at a time, so that a memory-mapped one is never copied whole.
ROWS_PER_BLOCK = 4096


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end of the block: readers see the old file or the whole new one.

    The block makes a file or, where there is nothing at `path` yet, a folder there. Raises OSError with the path's name where it
    cannot be written; then nothing is left behind. What killed writes of this machine left in the folder is cleared away first.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    path = Path(path)
    _clear_stale(path.parent)
    temporary = path.parent / f"{_our_prefix()}{os.getpid()}-{os.urandom(4).hex()}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """`replacing` around one call: `write` is given the temporary path."""
    with replacing(path) as temporary:
        write(temporary)


def replace_text(path: Path, text: str) -> None:
    """Write a text file, the old one or the whole new one for whoever reads it."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_text(path: Path, text: str) -> Path:
    """`replace_text`, its folder made where there is none; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
    return path


def replace_arrays(path: Path, arrays) -> None:
    """Write named arrays as an .npz file, the old one or the whole new one for whoever reads it."""
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}

    def write(temporary):
        with open(temporary, "wb") as file:  # given a name without .npz, numpy would add it
            np.savez(file, **plain)

    replace_file(path, write)


def replace_safetensors(path: Path, arrays, metadata: dict[str, str] | None = None) -> None:
    """Write named arrays as a safetensors file, the old one or the whole new one for whoever reads it.

    Raises OSError with the file's name where it cannot be written, a full disk among others.
    """
    save_file, failure = _safetensors()
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}

    def write(temporary):
        try:
            save_file(plain, temporary, metadata=metadata)
        except failure as error:  # what the package makes of every error of the system
            raise OSError(one_line(error)) from error

    replace_file(path, write)


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file: where its bytes are; `dtype` is None where numpy has no such type."""

    dtype: np.dtype | None
    shape: tuple[int, ...]
    start: int
    n_bytes: int


def safetensors_layout(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors of a safetensors file by name, each checked against the file's size, and its metadata; no data is read.

    The layout: the header's length in 8 bytes, the header in JSON, then the tensors' bytes. Read here because the package's own
    reader for numpy copies, and knows fewer types. Raises ValueError where the header is longer than the file, is not the
    expected JSON, or points outside the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        length = int.from_bytes(begin, "little")
        if len(begin) < 8 or length > min(size - 8, MAX_SAFETENSORS_HEADER):
            raise ValueError(
                f"header length {length} does not fit a file of {size} bytes; truncated or not a safetensors file"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("header is not valid JSON; the file is damaged or not a safetensors file") from None
    if not isinstance(header, dict):
        raise ValueError("header is not an object of tensors; not a safetensors file")
    metadata = header.pop("__metadata__", None)
    layout = {name: _stored_tensor(name, spec, 8 + length, size) for name, spec in header.items()}
    return layout, metadata if isinstance(metadata, dict) else {}


def tensor_size(name: str, shape, dtype: np.dtype) -> int:
    """Bytes a tensor of this shape takes, exactly. Raises ValueError unless every size is a whole number >= 0."""
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape) or len(shape) > 8:
        raise ValueError(f"tensor {name} has shape {list(shape)[:9]}, expected at most 8 whole numbers >= 0")
    return math.prod(shape) * dtype.itemsize


def digest(*parts) -> str:
    """A name of values that changes with every byte of them: shapes, types and bytes of arrays, settings, names of functions.

    Anything made of numbers, texts, arrays, lists, dictionaries, named tuples, dataclasses and functions.

    >>> digest(np.zeros(2000), 1e-6) == digest(np.zeros(2000), 1e-6)
    True
    >>> digest(np.zeros(2000)) == digest(np.zeros((2, 1000))), digest(np.ones(2, "f4")) == digest(np.ones(2, "f8"))
    (False, False)
    """
    found = hashlib.sha256()
    _feed(found, parts)
    return found.hexdigest()[:32]


def natural_order(name: str) -> tuple:
    """A key that sorts names as people count: numbers in them by value, so that part-2 stands before part-10.

    >>> sorted(["part-10.npy", "part-2.npy", "a.npy", "part-02.npy"], key=natural_order)
    ['a.npy', 'part-02.npy', 'part-2.npy', 'part-10.npy']
    """
    pieces = re.split(r"([0-9]+)", name)
    return tuple((int(piece), "") if k % 2 else (-1, piece) for k, piece in enumerate(pieces)), name


def listing(names: Iterable[Any], most: int = 8) -> str:
    """Names from a file, quoted, cut and counted, so that a message stays on one line whatever the file says.

    >>> listing(["a", "b\\n" * 40], most=1)
    "'a' and 1 more"
    >>> listing([])
    'nothing'
    """
    names = list(names)
    shown = ", ".join(repr(name if len(str(name)) <= 48 else str(name)[:45] + "...") for name in names[:most])
    return (shown or "nothing") + (f" and {len(names) - most} more" if len(names) > most else "")


def one_line(error) -> str:
    """An error's message on one line, or its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def shown_path(path) -> str:
    """A path as text that can be printed and drawn: bytes of its name that are not UTF-8 become the sign for what is unknown.

    >>> shown_path(os.fsdecode(b"acts-\\xff.npy"))
    'acts-\ufffd.npy'
    """
    return str(path).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _stored_tensor(name, spec, data_start: int, size: int) -> StoredTensor:
    shown = listing([name])
    try:
        dtype_name, shape, (begin, end) = spec["dtype"], spec["shape"], spec["data_offsets"]
        dtype = SAFETENSORS_DTYPES.get(dtype_name)
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"tensor {shown} has a header without a known dtype, a shape and two offsets") from None
    if not isinstance(shape, list):
        raise ValueError(f"tensor {shown} has a shape that is not a list")
    n_bytes = None if dtype is None else tensor_size(shown, shape, dtype)
    if not (type(begin) is int and type(end) is int and 0 <= begin <= end <= size - data_start):
        raise ValueError(f"tensor {shown} lies outside the file ({size} bytes); truncated or damaged")
    if n_bytes not in (None, end - begin):
        raise ValueError(
            f"tensor {shown} of shape {tuple(shape)} takes {n_bytes} bytes, its offsets hold {end - begin}"
        )
    return StoredTensor(dtype, tuple(shape), data_start + begin, end - begin)


def _our_prefix() -> str:
    """How temporary files of this machine begin; the process's number follows."""
    return f".jaxdict-{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}-"


def _clear_stale(folder: Path) -> None:
    """Remove temporary files and folders of processes of this machine that are no more."""
    for left in folder.glob(f"{_our_prefix()}*"):
        number = left.name.removeprefix(_our_prefix()).partition("-")[0]
        if number.isdigit() and not _is_running(int(number)):
            shutil.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):
                left.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or a system that does not say
        return True
    return True


def _safetensors():
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('saving needs safetensors: pip install "jaxdict[cli]"', name=error.name) from error
    return save_file, SafetensorError


def _feed(found, value) -> None:
    """Add a value to a hash, each part with its type and its length, so that no two values are fed alike."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _feed(found, ("key", str(value.dtype), jax.random.key_data(value)))
    if hasattr(value, "__array__") or (hasattr(value, "shape") and hasattr(value, "dtype")):
        return _feed_array(found, value)
    if isinstance(value, functools.partial):
        return _feed(found, ("partial", value.func, value.args, value.keywords))
    if isinstance(value, dict):
        return _feed(found, ("dict", sorted(value.items(), key=lambda item: repr(item[0]))))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _feed(found, (type(value).__qualname__, fields))
    if isinstance(value, (list, tuple)):
        found.update(f"{type(value).__qualname__} {len(value)};".encode())
        for part in value:
            _feed(found, part)
        return None
    qualname = getattr(value, "__qualname__", None)
    text = repr(value) if qualname is None else f"{value.__module__}.{qualname}"
    raw = text.encode("utf-8", errors="surrogatepass")
    found.update(f"{type(value).__qualname__} {len(raw)};".encode() + raw)
    return None


def _feed_array(found, value) -> None:
    array = value if hasattr(value, "shape") and hasattr(value, "dtype") else np.asarray(value)
    found.update(f"array {array.dtype!s} {tuple(array.shape)};".encode())
    if not array.shape:
        found.update(np.asarray(array).tobytes())
        return
    for start in range(0, array.shape[0], ROWS_PER_BLOCK):
        found.update(np.ascontiguousarray(array[start : start + ROWS_PER_BLOCK]).tobytes())
