"""What of a folder are shards of activations, and in which order."""

import json
import tempfile
from pathlib import Path

from jaxdict.files.readers import READERS
from jaxdict.storage import listing, natural_order

# Tokens and labels that lie beside activations are no shards of them.
BESIDE = ("tokens", "token_ids", "input_ids", "labels", "documents")
KINDS = ".npy, .npz, .safetensors, .pt, .arrow or .parquet"


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder in the order of their rows: that of their names, numbers in them by value.

    A folder that Hugging Face's datasets wrote says itself which files are its own (`state.json`). Folders of such folders (`shard_0`,
    `shard_1`, ..., as a stopped CacheActivationsRunner leaves them) are joined. Raises ValueError where there are none, or where it is
    open which of several folders is meant.

    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("acts-10.npy", "acts-9.npy", "tokens.npy"):
    ...     (folder / name).touch()
    >>> [file.name for file in shard_files(folder)]
    ['acts-9.npy', 'acts-10.npy']
    """
    files = _own_files(folder)
    if files:
        return files
    inner = [at for at in sorted(folder.iterdir(), key=_order) if at.is_dir() and _holds_shards(at)]
    if len(inner) == 1 or (inner and all(at.name.startswith("shard_") for at in inner)):
        return [file for at in inner for file in shard_files(at)]
    if inner:
        raise ValueError(
            f"{folder}: holds several folders of activations ({listing(at.name for at in inner)}); give one"
        )
    raise ValueError(f"{folder}: holds no activations; give a folder of {KINDS} shards")


def _own_files(folder: Path) -> list[Path]:
    named = _files_of_a_dataset(folder)
    if named is not None:
        return named
    files = [
        file
        for file in folder.iterdir()
        if file.suffix in READERS
        and not file.name.startswith((".", "cache-"))  # `datasets` caches the results of maps beside its own files
        and file.stem not in BESIDE
        and file.is_file()
    ]
    return sorted(files, key=_order)


def _files_of_a_dataset(folder: Path) -> list[Path] | None:
    state = folder / "state.json"
    if not state.is_file():
        return None
    try:
        names = [str(entry["filename"]) for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state}: does not name the files of a dataset; the folder is damaged") from error
    return [folder / Path(name).name for name in names]


def _holds_shards(folder: Path) -> bool:
    inner = any(at.is_dir() and at.name.startswith("shard_") and _own_files(at) for at in folder.iterdir())
    return inner or bool(_own_files(folder))


def _order(path: Path):
    return natural_order(path.name)


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
