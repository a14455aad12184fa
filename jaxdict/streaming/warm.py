"""Codes kept from one pass to the next, to start from: 4 bytes a code (6 beyond 65,536 atoms) and 2 a row, in memory or on disk.

An index is exact, a value is rounded to bfloat16: it is a start, which the next pass solves to the end.
"""

from pathlib import Path

import ml_dtypes
import numpy as np
import scipy.sparse as sp

from jaxdict.problem import SparseCodes
from jaxdict.storage import replace_arrays
from jaxdict.streaming.sums import padded

# Slots of a start: the first of these that suffices, so that few shapes are compiled.
WIDTHS = (64, 256, 1024, 4096)


class WarmCodes:
    """Codes by pass and chunk. With a folder each pass has files of its own, so that a killed pass can be taken up where it was."""

    def __init__(self, folder: Path | None, dtype):
        self.folder, self.dtype, self.kept = folder, dtype, {}

    def read(self, trial: int, chunk: int, n_atoms: int) -> SparseCodes | None:
        """The codes that a pass left of a chunk, None where it left none."""
        if self.folder is None:
            parts = self.kept.get(chunk)
        else:
            path = self._path(trial, chunk)
            if not path.exists():
                return None
            with np.load(path, allow_pickle=False) as stored:
                parts = stored["counts"], stored["indices"], stored["values"]
        return None if parts is None else _unpacked(*parts, n_atoms, self.dtype)

    def write(self, trial: int, chunk: int, codes: sp.csr_matrix) -> None:
        """Keep a chunk's codes."""
        wide = codes.shape[1] >= 2**16  # type: ignore[index]
        kind = np.uint32 if wide else np.uint16
        counts = np.diff(codes.indptr).astype(kind)
        values = codes.data.astype(ml_dtypes.bfloat16).view(np.uint16)
        parts = counts, codes.indices.astype(kind), values
        if self.folder is None:
            self.kept[chunk] = parts
        else:
            replace_arrays(self._path(trial, chunk), dict(zip(("counts", "indices", "values"), parts, strict=True)))

    def forget(self, before: int) -> None:
        """Remove the files of passes before the one named."""
        for path in self.folder.glob("codes-*.npz") if self.folder is not None else ():
            if int(path.name.split("-")[1]) < before:
                path.unlink(missing_ok=True)

    def _path(self, trial, chunk) -> Path:
        assert self.folder is not None
        return self.folder / f"codes-{trial}-{chunk}.npz"


def _unpacked(counts, indices, values, n_atoms, dtype) -> SparseCodes:
    fullest = int(np.max(counts, initial=1))
    width = min(n_atoms, next((size for size in WIDTHS if size >= fullest), n_atoms))
    return padded(counts, indices, values.view(ml_dtypes.bfloat16).astype(dtype), width)
