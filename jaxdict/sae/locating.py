"""Where in a folder the weights of an SAE lie."""

import os
from pathlib import Path

from jaxdict.containers.tensors import BadFileError
from jaxdict.storage import listing, natural_order

# The names weights go by, most telling first; `trainer_state.pt` and `sparsity.safetensors` lie beside them and are
# not weights.
WEIGHT_FILES = (
    "sae_weights.safetensors",
    "sae.safetensors",
    "ae.pt",
    "params.npz",
    "params.safetensors",
    "checkpoints/final.safetensors",
    "final.safetensors",
)
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
NOT_WEIGHTS = ("sparsity.safetensors", "trainer_state.pt")
# How deep a release's folder is searched, and in how many folders of it.
MOST_DEPTH, MOST_FOLDERS = 6, 4096


class SeveralError(BadFileError):
    """A folder of several SAEs; `places` are the files or folders to choose from."""

    def __init__(self, message: str, places: list[Path]):
        super().__init__(message)
        self.places = places


def find_weights(path: Path) -> Path:
    """The weights file: the path itself, or the one in a folder or below it.

    Raises FileNotFoundError where there is none, ValueError that lists them where there are several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        hint = "on the Hub write hf://owner/repo/folder; a release of SAELens needs sae-lens, whose table names it"
        raise FileNotFoundError(f"{path}: no such file or folder; {hint}")
    named = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    if named:
        return named[0]
    files = [file for file in sorted(path.iterdir()) if may_be_weights(file.name) and file.is_file()]
    if len(files) == 1:
        return files[0]
    if files:
        names = listing(file.name for file in files)
        raise SeveralError(f"{path}: holds several weights files ({names}); give the one to read", files)
    return _below(path)


def may_be_weights(name: str) -> bool:
    """Whether a file's name is one that weights may have.

    >>> may_be_weights("layer_3.pt"), may_be_weights("sparsity.safetensors")
    (True, False)
    """
    return name.endswith(WEIGHT_SUFFIXES) and name not in NOT_WEIGHTS


def _below(path: Path) -> Path:
    """The only weights below a folder that holds none itself."""
    folders = []
    for at, inside, files in os.walk(path):
        depth = len(Path(at).relative_to(path).parts)
        inside[:] = [] if depth >= MOST_DEPTH else sorted(name for name in inside if not name.startswith("."))
        if any((Path(at) / name).is_file() for name in WEIGHT_FILES) or any(map(may_be_weights, files)):
            folders.append(Path(at))
            inside[:] = []  # what lies deeper are checkpoints of the same
        if len(folders) > MOST_FOLDERS:
            break
    folders.sort(key=lambda folder: natural_order(str(folder.relative_to(path))))
    if len(folders) == 1:
        return find_weights(folders[0])
    if folders:
        names = listing(folder.relative_to(path).as_posix() for folder in folders)
        raise SeveralError(f"{path}: holds {len(folders)} folders of weights ({names}); give the one to read", folders)
    seen = listing(sorted(file.name for file in path.iterdir()))
    raise FileNotFoundError(f"{path}: holds no weights file ({', '.join(WEIGHT_FILES)}); found {seen}")
