"""A truth from files: atoms, and where they are known the rows' codes and each atom's parent. Nothing is unpickled."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxdict.results import ARRAYS_NAME, load_solution
from jaxdict.storage import listing, one_line
from jaxdict.synthetic_benchmark.saved import CONFIG, load_bench_model

NAMES = ("atoms", "codes", "parents")


def read_truth(path) -> dict[str, Any]:
    """The arrays of a truth, by name: a folder of atoms.npy, codes.npy and parents.npy (the last two where known), an .npz file of such
    arrays, a .npy file of atoms, a folder that `jaxdict fit` wrote, whose atoms are taken, or a saved model of SynthSAEBench
    (`synthetic.load_bench_model`): atoms and parents.

    Raises OSError for what cannot be opened and ValueError, with its name, for what holds no atoms.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.save(folder / "atoms.npy", np.eye(2))
    >>> read_truth(folder)["atoms"].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if (path / ARRAYS_NAME).is_file():
        return {"atoms": np.asarray(load_solution(path).dictionary.atoms)}
    if (path / CONFIG).is_file():
        model = load_bench_model(path)
        return {"atoms": np.asarray(model.dictionary.atoms), "parents": np.asarray(model.parents)}
    try:
        if path.is_dir():
            found = {name: np.load(path / f"{name}.npy") for name in NAMES if (path / f"{name}.npy").is_file()}
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found = dict(arrays)
        else:
            found = {"atoms": np.load(path)}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {one_line(error)}") from error
    unknown = [name for name in found if name not in NAMES]
    if unknown or "atoms" not in found:
        raise ValueError(
            f"{path}: holds {listing(found)}; a truth is atoms.npy, with codes.npy and parents.npy where they are known"
        )
    return found
