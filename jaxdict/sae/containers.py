"""safetensors and npz files read without trust: sizes are checked against the file before any array is made."""

import ast
import json
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxdict.sae.tensors import BadFileError, Entry, Tensors, listing

SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
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
MAX_SAFETENSORS_HEADER = 10**8  # the format's own limit


def tensor_bytes(path, name: str, shape, dtype: np.dtype) -> int:
    """Bytes a tensor of this shape takes, exactly. Raises ValueError unless every size is a whole number >= 0."""
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape) or len(shape) > 8:
        raise BadFileError(
            f"{path}: tensor {name!r} has shape {list(shape)[:9]}, expected at most 8 whole numbers >= 0"
        )
    return math.prod(shape) * dtype.itemsize


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file (8-byte header length, JSON header, data), read when they are asked for.

    Raises ValueError where the header is longer than the file, is not the expected JSON, or points outside the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, MAX_SAFETENSORS_HEADER):
            raise BadFileError(
                f"{path}: header length {length} does not fit a file of {size} bytes; truncated or not safetensors"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadFileError(f"{path}: header is not valid JSON; the file is damaged or not safetensors") from None
    if not isinstance(header, dict):
        raise BadFileError(f"{path}: header is not an object of tensors")
    header.pop("__metadata__", None)
    data_start = 8 + length
    entries = {name: _safetensors_entry(path, name, spec, data_start, size) for name, spec in header.items()}
    return Tensors(path, entries, container="safetensors")


def _safetensors_entry(path, name, spec, data_start, size) -> Entry:
    shown = listing([name])
    try:
        dtype_name, shape, (begin, end) = spec["dtype"], spec["shape"], spec["data_offsets"]
        dtype = SAFETENSORS_DTYPES[dtype_name]
    except (TypeError, KeyError, ValueError):
        raise BadFileError(
            f"{path}: tensor {shown} has a header without a known dtype, a shape and two offsets"
        ) from None
    if not isinstance(shape, list):
        raise BadFileError(f"{path}: tensor {shown} has a shape that is not a list")
    n_bytes = tensor_bytes(path, name, shape, dtype)
    if not (type(begin) is int and type(end) is int and 0 <= begin <= end <= size - data_start):
        raise BadFileError(f"{path}: tensor {shown} lies outside the file ({size} bytes); truncated or damaged")
    if end - begin != n_bytes:
        raise BadFileError(
            f"{path}: tensor {shown} of shape {tuple(shape)} takes {n_bytes} bytes, its offsets hold {end - begin}"
        )

    def read() -> np.ndarray:
        with path.open("rb") as file:
            file.seek(data_start + begin)
            raw = file.read(n_bytes)
        if len(raw) != n_bytes:
            raise BadFileError(f"{path}: tensor {shown} ends early; the file is truncated")
        return np.frombuffer(raw, dtype).reshape(shape)

    return Entry(tuple(shape), dtype, read)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, through a temporary name, so that the file is whole or absent."""
    names = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}
    # Wide types first keeps every tensor aligned to its own size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for name in order:
                file.write(np.ascontiguousarray(tensors[name]).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
