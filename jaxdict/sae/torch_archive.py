"""torch's zip format read without torch and without `pickle.load`: the archive, its storages and their views."""

import zipfile
from pathlib import Path

import numpy as np

from jaxdict.sae.containers import open_zip, read_member, tensor_bytes
from jaxdict.sae.tensors import BadFileError, Entry, Tensors
from jaxdict.sae.torch_program import TensorView, run_program
from jaxdict.storage import listing

# The program of an SAE's state is about a kilobyte; with an optimizer's, a few.
MAX_PROGRAM_BYTES = 2**20


def read_torch(path: Path) -> Tensors:
    """The state saved in a torch zip file: tensors by dotted name, other plain values beside them.

    Nested dictionaries are joined by dots: `{"ae": {"bias": t}}` gives "ae.bias". Nothing in the file is executed,
    and no array is larger than the member it comes from. Raises ValueError for anything but tensors and plain values.
    """
    with open_zip(path) as archive:
        names = {info.filename for info in archive.infolist()}
        programs = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise BadFileError(
                f"{path}: a zip without one data.pkl is not a torch file; found {listing(sorted(names))}"
            )
        prefix = programs[0][: -len("data.pkl")]
        if prefix + "byteorder" in names and read_member(path, archive, prefix + "byteorder", 64).strip() != b"little":
            raise BadFileError(f"{path}: 'byteorder' is not little; re-save the file on a little-endian machine")
        state = run_program(path, read_member(path, archive, programs[0], MAX_PROGRAM_BYTES))
        if not isinstance(state, dict):
            raise BadFileError(f"{path}: holds a {type(state).__name__}, expected a state_dict of named tensors")
        entries, values = {}, {}
        for name, value in _flatten(path, state):
            if isinstance(value, TensorView):
                entries[name] = _entry(path, archive, prefix, name, value)
            else:
                values[name] = value
    return Tensors(path, entries, values, container="torch")


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


def _entry(path, archive: zipfile.ZipFile, prefix, name, tensor: TensorView) -> Entry:
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

    def read() -> np.ndarray:
        with open_zip(path) as again:
            flat = np.frombuffer(read_member(path, again, member, held), storage.dtype)
        strides = [step * storage.dtype.itemsize for step in stride]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat[offset:], shape, strides))

    return Entry(shape, storage.dtype, read)
