"""safetensors and npz files read without trust: sizes are checked against the file before any array is made."""

import ast
import struct
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxdict.containers.tensors import BadFileError, Entry, Tensors
from jaxdict.storage import StoredTensor, listing, safetensors_layout, tensor_size

# What broken or hostile archives make zipfile raise; OSError from seeking before the start.
ZIP_ERRORS = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    OverflowError,
    KeyError,
    IndexError,
    UnicodeError,
    NotImplementedError,
)
# Weights barely compress. A member claiming more than this many times the archive's size is a bomb, unless it is small.
MAX_EXPANSION = 16
SMALL_BYTES = 2**24
MAX_NPY_HEADER = 2**14


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, read when they are asked for.

    Raises ValueError where the header is longer than the file, is not the expected JSON, or points outside the data.
    """
    try:
        layout, _ = safetensors_layout(path)
        entries = {name: _safetensors_entry(path, name, tensor) for name, tensor in layout.items()}
    except ValueError as error:
        raise BadFileError(f"{path}: {error}") from None
    return Tensors(path, entries, container="safetensors")


def _safetensors_entry(path, name, tensor: StoredTensor) -> Entry:
    if tensor.dtype is None:
        raise ValueError(f"tensor {listing([name])} has a header without a known dtype, a shape and two offsets")
    dtype = tensor.dtype

    def read() -> np.ndarray:
        with path.open("rb") as file:
            file.seek(tensor.start)
            raw = file.read(tensor.n_bytes)
        if len(raw) != tensor.n_bytes:
            raise BadFileError(f"{path}: tensor {listing([name])} ends early; the file is truncated")
        return np.frombuffer(raw, dtype).reshape(tensor.shape)

    return Entry(tensor.shape, dtype, read)


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip archive, opened for reading. Raises ValueError if its directory is broken."""
    try:
        return zipfile.ZipFile(path)
    except (*ZIP_ERRORS, ValueError):
        raise BadFileError(
            f"{path}: the zip directory is missing or damaged; the file is truncated or not an archive"
        ) from None


def read_member(path: Path, archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The bytes of one member, at most `most`. Raises ValueError for a larger, damaged or explosive one."""
    shown = listing([name])
    try:
        info = archive.getinfo(name)
        limit = max(SMALL_BYTES, MAX_EXPANSION * path.stat().st_size)
        if info.file_size > most or info.file_size > limit:
            raise BadFileError(
                f"{path}: member {shown} claims {info.file_size} bytes, at most {min(most, limit)} are plausible"
            )
        with archive.open(info) as member:
            # zipfile already stops at file_size; asking for one byte more shows a member that lied.
            raw = member.read(info.file_size + 1)
    except ZIP_ERRORS:
        raise BadFileError(f"{path}: member {shown} cannot be read; the file is truncated or damaged") from None
    if len(raw) != info.file_size:
        raise BadFileError(f"{path}: member {shown} has {len(raw)} bytes, the directory says {info.file_size}")
    return raw


def read_npz(path: Path) -> Tensors:
    """The arrays of an .npz file, read when they are asked for; object arrays, which hold pickles, are refused."""
    with open_zip(path) as archive:
        names = [info.filename for info in archive.infolist() if info.filename.endswith(".npy")]
        entries = {name[: -len(".npy")]: _npy_entry(path, archive, name) for name in names}
    return Tensors(path, entries, container="npz")


def _npy_entry(path, archive, name) -> Entry:
    field = name[: -len(".npy")]
    shape, dtype, fortran, start, n_bytes = _npy_header(path, archive, name, listing([field]))

    def read() -> np.ndarray:
        with open_zip(path) as again:
            raw = read_member(path, again, name, start + n_bytes)
        return np.frombuffer(raw, dtype, offset=start).reshape(shape, order="F" if fortran else "C")

    return Entry(shape, dtype, read)


def _npy_header(path, archive, name, shown):
    """Shape, dtype, order, where the data starts and how many bytes it takes, from a bounded prefix of the member."""
    try:
        info = archive.getinfo(name)
        with archive.open(info) as member:
            prefix = member.read(12 + MAX_NPY_HEADER)
    except ZIP_ERRORS:
        raise BadFileError(f"{path}: array {shown} cannot be read; the file is truncated or damaged") from None
    if prefix[:6] != b"\x93NUMPY" or len(prefix) < 12:
        raise BadFileError(f"{path}: array {shown} does not start like a .npy file")
    width = 2 if prefix[6] == 1 else 4
    length, start = int.from_bytes(prefix[8 : 8 + width], "little"), 8 + width
    if length > MAX_NPY_HEADER or start + length > len(prefix):
        raise BadFileError(
            f"{path}: array {shown} has a header of {length} bytes, at most {MAX_NPY_HEADER} are plausible"
        )
    try:
        spec = ast.literal_eval(prefix[start : start + length].decode("latin-1"))
        dtype, shape, fortran = np.dtype(spec["descr"]), tuple(spec["shape"]), bool(spec["fortran_order"])
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise BadFileError(f"{path}: array {shown} has a header that cannot be read") from None
    if dtype == np.dtype("V2"):  # numpy has no name for bfloat16 and writes it as two raw bytes
        dtype = np.dtype(ml_dtypes.bfloat16)
    if dtype.kind not in "fiub" and dtype != np.dtype(ml_dtypes.bfloat16):
        raise BadFileError(
            f"{path}: array {shown} has dtype {dtype.kind!r}, expected numbers (objects would need pickle)"
        )
    n_bytes = tensor_bytes(path, name, shape, dtype)
    if info.file_size - start - length != n_bytes:
        held = info.file_size - start - length
        raise BadFileError(f"{path}: array {shown} of shape {shape} takes {n_bytes} bytes, its member holds {held}")
    return shape, dtype, fortran, start + length, n_bytes


def tensor_bytes(path, name, shape, dtype) -> int:
    """Bytes a tensor of this shape takes, exactly. Raises ValueError unless every size is a whole number >= 0."""
    try:
        return tensor_size(repr(name), shape, dtype)
    except ValueError as error:
        raise BadFileError(f"{path}: {error}") from None
