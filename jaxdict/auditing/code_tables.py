"""An SAE's features on many rows, kept on the host as one sparse table: what fires, how strongly, and with what."""

from typing import Any

import numpy as np
import scipy.sparse


class CodeTable:
    """Non-zero features of rows, by row and by feature; rows may be a subset of the data (`rows` names them).

    >>> table = CodeTable.from_dense(np.array([[1.0, 0.0], [2.0, 3.0]]), np.array([10, 20]))
    >>> [part.tolist() for part in table.column(0)]
    [[0, 1], [1.0, 2.0]]
    """

    def __init__(self, by_row: Any, rows: np.ndarray):
        self.by_row, self.rows = by_row, np.asarray(rows)  # rows x features, compressed by row
        self.by_feature: Any = by_row.tocsc()
        self.by_feature.sort_indices()

    @classmethod
    def from_dense(cls, codes: np.ndarray, rows: np.ndarray) -> "CodeTable":
        """The table of dense codes (rows, features)."""
        return cls(sparse_rows(codes), rows)

    @property
    def counts(self) -> np.ndarray:
        """On how many rows each feature is on, (features,)."""
        return np.diff(self.by_feature.indptr)

    def column(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Where a feature is on (positions in the table, ascending) and its values there."""
        begin, end = self.by_feature.indptr[feature : feature + 2]
        return self.by_feature.indices[begin:end], self.by_feature.data[begin:end]

    def dense_column(self, feature: int) -> np.ndarray:
        """A feature's value on every row of the table."""
        out = np.zeros(self.by_row.shape[0], np.float64)
        at, values = self.column(feature)
        out[at] = values
        return out

    def slots(self, features: np.ndarray, step: int = 16) -> tuple[np.ndarray, np.ndarray]:
        """Indices into `features` and values of some features on every row, padded: (rows, slots), slots a multiple of `step`.

        >>> table = CodeTable.from_dense(np.array([[1.0, 0.0, 5.0], [0.0, 3.0, 2.0]]), np.arange(2))
        >>> [part.tolist() for part in table.slots(np.array([1, 2]), step=2)]
        [[[1, 0], [0, 1]], [[5.0, 0.0], [3.0, 2.0]]]
        """
        part = self.by_row[:, features]
        part.sort_indices()
        counts = np.diff(part.indptr)
        size = step * max(1, -(-int(counts.max(initial=0)) // step))
        row = np.repeat(np.arange(len(counts)), counts)
        slot = np.arange(part.nnz) - np.repeat(part.indptr[:-1], counts)
        indices, values = np.zeros((len(counts), size), np.int32), np.zeros((len(counts), size), part.dtype)
        indices[row, slot], values[row, slot] = part.indices, part.data
        return indices, values

    def together(self) -> scipy.sparse.coo_matrix:
        """On how many rows each pair of features is on together; pairs that never are have no entry."""
        on = self.by_row.copy()
        on.data = np.ones_like(on.data, dtype=np.int32)
        both = (on.T @ on).tocoo()
        apart = both.row != both.col
        return scipy.sparse.coo_matrix((both.data[apart], (both.row[apart], both.col[apart])), both.shape)


def sparse_rows(codes: np.ndarray) -> scipy.sparse.csr_matrix:
    """Dense codes as compressed rows, values in float32."""
    counts = np.count_nonzero(codes, axis=1)
    row, col = np.nonzero(codes)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return scipy.sparse.csr_matrix((codes[row, col].astype(np.float32), col.astype(np.int32), starts), codes.shape)
