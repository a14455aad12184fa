"""The host's table of features against dense arrays and the package's own pair statistics."""

import numpy as np
import pytest

from jaxdict.auditing.code_tables import CodeTable, extremes_where_off
from jaxdict.conditions import pair_statistics

RNG = np.random.default_rng(0)
Z = np.where(RNG.random((60, 7)) < 0.4, RNG.uniform(0.1, 2, (60, 7)), 0).astype(np.float32)
Z[:, 6] = 1 + Z[:, 6]  # never off
TABLE = CodeTable.from_dense(Z, np.arange(100, 160))


def test_columns_counts_and_strongest_rows():
    np.testing.assert_array_equal(TABLE.counts, (Z != 0).sum(axis=0))
    for k in range(7):
        np.testing.assert_array_equal(TABLE.dense_column(k), Z[:, k].astype(float))
        rows, values = TABLE.strongest(k, 3)
        assert list(rows - 100) == list(np.argsort(-Z[:, k], kind="stable")[:3])
        np.testing.assert_array_equal(values, np.sort(Z[:, k])[::-1][:3])


def test_pairs_that_are_on_together():
    both = TABLE.together().toarray()
    on = (Z != 0).astype(int)
    wanted = on.T @ on
    np.fill_diagonal(wanted, 0)
    np.testing.assert_array_equal(both, wanted)


@pytest.mark.parametrize("quantile", [0.0, 0.2])
def test_extremes_are_those_of_the_pair_condition(quantile):
    wanted = pair_statistics(Z, quantile=quantile)
    for i in range(7):
        for j in range(7):
            if i != j:
                found = extremes_where_off(TABLE, i, j, quantile)
                assert found.largest == np.float32(wanted.largest[i, j]), (i, j)
                if quantile == 0:
                    assert found.smallest == np.float32(wanted.smallest[i, j]), (i, j)


def test_an_empty_table_has_no_pairs():
    empty = CodeTable.from_dense(np.zeros((4, 3), np.float32), np.arange(4))
    assert empty.together().nnz == 0
    assert list(empty.counts) == [0, 0, 0]
    assert empty.strongest(0, 5)[0].size == 0
