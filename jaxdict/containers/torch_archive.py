"""torch's zip format read without torch and without `pickle.load`: the archive, its storages and their views."""

import functools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxdict.containers.archives import open_zip, read_member, tensor_bytes
from jaxdict.containers.tensors import BadFileError, Entry, Tensors
from jaxdict.containers.torch_program import TensorView, run_program
from jaxdict.storage import listing

# The program of an SAE's state is about a kilobyte; with an optimizer's, a few.
MAX_PROGRAM_BYTES = 2**20
# That of a list of a hundred thousand tensors is about twenty megabytes.
MOST_OF_A_LIST = 2**26
# Bytes of a zip member's local header before its name.
LOCAL_HEADER = 30


def read_torch(path: Path) -> Tensors:
    """The state saved in a torch zip file: tensors by dotted name, other plain values beside them.

    Nested dictionaries are joined by dots: `{"ae": {"bias": t}}` gives "ae.bias". Nothing in the file is executed,
    and no array is larger than the member it comes from. Raises ValueError for anything but tensors and plain values.
    """
    with open_zip(path) as archive:
        prefix, state = _program(path, archive)
        if not isinstance(state, dict):
            raise BadFileError(f"{path}: holds a {type(state).__name__}, expected a state_dict of named tensors")
        entries, values = {}, {}
        for name, value in _flatten(path, state):
            if isinstance(value, TensorView):
                entries[name] = _entry(path, archive, prefix, name, value)
            else:
                values[name] = value
    return Tensors(path, entries, values, container="torch")


def torch_pieces(path: Path) -> dict[str, list[Entry]]:
    """The tensors in a torch zip file, memory-mapped: one ("" is its name), a list of them, or a dictionary of either.

    A list's tensors are pieces of one array, those of one axis a row each. Raises ValueError for anything else.
    """
    with open_zip(path) as archive:
        prefix, state = _program(path, archive, MOST_OF_A_LIST)
        named = _flatten(path, state) if isinstance(state, dict) else [("", state)]
        found = {}
        for name, value in named:
            listed = type(value) in (list, tuple)  # a description of a tensor is a tuple of its own kind
            views = value if listed else [value]
            if views and all(isinstance(view, TensorView) for view in views):
                parts = [_entry(path, archive, prefix, name, view, mapped=True) for view in views]
                found[name] = [_as_row(part) for part in parts] if listed else parts
    if not found:
        raise BadFileError(f"{path}: holds no tensor, no list and no dictionary of tensors")
    return found


def _as_row(entry: Entry) -> Entry:
    if len(entry.shape) != 1:
        return entry
    return Entry((1, *entry.shape), entry.dtype, lambda: entry.read()[None])


def _program(path: Path, archive: zipfile.ZipFile, most: int = MAX_PROGRAM_BYTES) -> tuple[str, Any]:
    """The folder within the archive, and what its program builds."""
    names = {info.filename for info in archive.infolist()}
    programs = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise BadFileError(f"{path}: a zip without one data.pkl is not a torch file; found {listing(sorted(names))}")
    prefix = programs[0][: -len("data.pkl")]
    if prefix + "byteorder" in names and read_member(path, archive, prefix + "byteorder", 64).strip() != b"little":
        raise BadFileError(f"{path}: 'byteorder' is not little; re-save the file on a little-endian machine")
    return prefix, run_program(path, read_member(path, archive, programs[0], most))


def _flatten(path, state, most_depth=8):
    """Leaves of nested dictionaries with dotted names. A depth limit stops a dictionary that contains itself."""
    pending = [("", state, 0)]
    leaves = 0
    while pending:
        prefix, node, depth = pending.pop()
        for key, value in node.items():
            leaves += 1
            if depth > most_depth or leaves > 100_000:
                raise BadFileError(f"{path}: data.pkl nests dictionaries too deep or too wide")
            if type(value) is dict:
                pending.append((f"{prefix}{key}.", value, depth + 1))
            else:
                yield f"{prefix}{key}", value


def _entry(path, archive: zipfile.ZipFile, prefix, name, tensor: TensorView, mapped: bool = False) -> Entry:
    storage, shape, stride, offset = tensor.storage, tensor.shape, tensor.stride, tensor.offset
    shown, member = listing([name]), f"{prefix}data/{storage.key}"
    n_bytes = tensor_bytes(path, name, shape, storage.dtype)
    steps = (*stride, offset)
    if len(stride) != len(shape) or not all(type(step) is int and 0 <= step <= storage.length for step in steps):
        raise BadFileError(f"{path}: tensor {shown} has strides or an offset that do not fit its storage")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    # The first test also refuses stride 0, by which a small storage would pass for a huge tensor.
    if n_bytes > storage.length * storage.dtype.itemsize or (n_bytes and last >= storage.length):
        raise BadFileError(
            f"{path}: tensor {shown} of shape {shape} does not fit its storage of {storage.length} numbers"
        )
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise BadFileError(f"{path}: tensor {shown} refers to a missing storage {listing([storage.key])}") from None
    held = info.file_size
    if info.compress_type != zipfile.ZIP_STORED or held != info.compress_size or held > path.stat().st_size:
        raise BadFileError(
            f"{path}: storage of tensor {shown} is compressed or larger than the file; torch never writes that"
        )
    if held != storage.length * storage.dtype.itemsize:
        raise BadFileError(
            f"{path}: storage of tensor {shown} has {held} bytes, expected {storage.length * storage.dtype.itemsize}"
        )

    strides = [step * storage.dtype.itemsize for step in stride]

    def read() -> np.ndarray:
        with open_zip(path) as again:
            flat = np.frombuffer(read_member(path, again, member, held), storage.dtype)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat[offset:], shape, strides))

    @functools.cache
    def view() -> np.ndarray:
        flat = np.memmap(path, storage.dtype, "r", _start(path, info), (storage.length,))
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, strides, writeable=False)

    return Entry(shape, storage.dtype, view if mapped and n_bytes else read)


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: behind its local header, whose last fields have lengths of their own."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise BadFileError(
            f"{path}: member {listing([info.filename])} has no header where it should be; truncated or damaged"
        )
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + LOCAL_HEADER + name + extra
