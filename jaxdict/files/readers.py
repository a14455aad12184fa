"""What a file of arrays holds, before any of it is read: by name, the pieces that lie one below the other."""

import functools
import zipfile

import ml_dtypes
import numpy as np

from jaxdict.containers.opening import refuse_bare_pickle
from jaxdict.containers.tensors import Entry
from jaxdict.containers.torch_archive import torch_pieces
from jaxdict.files.arrow import arrow_pieces, parquet_pieces
from jaxdict.storage import safetensors_layout

# By name, arrays whose first axes follow one another.
Held = dict[str, list[Entry]]


def held_arrays(path) -> Held:
    """The arrays of a file by name. Raises ValueError for a file that is damaged, or not of the kind that its name says."""
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    return READERS[path.suffix](path)


def _begins(path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def _npy(path) -> Held:
    if not _begins(path, b"\x93NUMPY"):
        raise ValueError("not a .npy file (it does not begin with numpy's mark)")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "mmap" in str(error):
            raise ValueError("truncated: it holds fewer numbers than its header says") from error
        if "object" in str(error).lower():
            raise ValueError("holds Python objects (pickle), which are never read; save a plain float array") from error
        raise
    return {"": [_entry(array)]}


def _npz(path) -> Held:
    if not _begins(path, b"PK"):
        raise ValueError("not an .npz file (it does not begin with zip's mark)")
    held = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            with archive.open(member) as file:
                shape, dtype = _npy_header(file)
            held[name] = [Entry(shape, dtype, functools.cache(functools.partial(_npz_array, path, name)))]
    return held


def _npz_array(path, name):
    with np.load(path, allow_pickle=False) as arrays:
        try:
            return arrays[name]
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            raise ValueError(
                f"{name!r} holds Python objects (pickle), which are never read; save a plain float array"
            ) from error


def _npy_header(file):
    """(shape, dtype) of a .npy stream."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _safetensors(path) -> Held:
    return {name: [_entry(view)] for name, view in safetensors_views(path)[0].items()}


def safetensors_views(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, memory-mapped, and its metadata; types that numpy does not have are left out."""
    layout, metadata = safetensors_layout(path)
    views = {}
    for name, (dtype, shape, start, n_bytes) in layout.items():
        if dtype is not None:  # a file of no bytes cannot be mapped
            views[name] = np.memmap(path, dtype, "r", start, shape) if n_bytes else np.zeros(shape, dtype)
    return views, metadata


def _torch(path) -> Held:
    refuse_bare_pickle(path)
    return torch_pieces(path)


def _entry(array: np.ndarray) -> Entry:
    return Entry(array.shape, array.dtype, lambda: array)


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    """bfloat16 where numpy, which has no name for it, sees two raw bytes."""
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


READERS = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
    ".arrow": arrow_pieces,
    ".parquet": parquet_pieces,
}
