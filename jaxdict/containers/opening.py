"""The first bytes of a file: what it is, whatever it is named."""

from pathlib import Path

from jaxdict.containers.archives import read_npz, read_safetensors
from jaxdict.containers.tensors import BadFileError, Tensors
from jaxdict.containers.torch_archive import read_torch

PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def open_tensors(path: Path) -> Tensors:
    """The tensors of a weights file, its container told by its first bytes. Raises ValueError for any other file."""
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PK"):
        return read_npz(path) if path.suffix == ".npz" else _read_zip(path)
    if start[8:9] == b"{":
        return read_safetensors(path)
    refuse_bare_pickle(path)
    raise BadFileError(f"{path}: starts with {start[:8]!r}, which is not safetensors, npz or torch zip")


def refuse_bare_pickle(path: Path) -> None:
    """Raise ValueError for a file in the format of torch before version 1.6, or any other pickle."""
    with path.open("rb") as file:
        start = file.read(2)
    if start.startswith(PICKLE_STARTS):
        raise BadFileError(
            f"{path}: a bare pickle (old torch format), which can run code, is not read; "
            "re-save it with torch.save of version 1.6 or later"
        )


def _read_zip(path):
    try:
        return read_torch(path)
    except ValueError:
        # An .npz under another name; if it is not one either, the first complaint is the better one.
        tensors = read_npz(path)
        if tensors.entries:
            return tensors
        raise
