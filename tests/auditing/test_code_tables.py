"""The host's table of features against dense arrays and the package's own pair statistics."""

import numpy as np
import pytest

import jaxdict as jd
from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.findings import allowed_cosines

RNG = np.random.default_rng(0)
Z = np.where(RNG.random((60, 7)) < 0.4, RNG.uniform(0.1, 2, (60, 7)), 0).astype(np.float32)
Z[:, 6] = 1 + Z[:, 6]  # never off
TABLE = CodeTable.from_dense(Z, np.arange(100, 160))


def test_columns_and_counts():
    np.testing.assert_array_equal(TABLE.counts, (Z != 0).sum(axis=0))
    for k in range(7):
        np.testing.assert_array_equal(TABLE.dense_column(k), Z[:, k].astype(float))


def test_pairs_that_are_on_together():
    both = TABLE.together().toarray()
    on = (Z != 0).astype(int)
    wanted = on.T @ on
    np.fill_diagonal(wanted, 0)
    np.testing.assert_array_equal(both, wanted)


@pytest.mark.slow
def test_allowed_cosines_are_those_of_the_pair_condition_on_all_features():
    dictionary = jd.Dictionary(np.linalg.qr(RNG.normal(size=(8, 8)))[0][:7])
    wanted = jd.conditions.pairs(dictionary, Z.astype(float))
    found, place = allowed_cosines(dictionary, TABLE, np.array([1, 2, 5, 6]))
    at = list(place)
    assert [place[k] for k in at] == [0, 1, 2, 3]
    for name in ("lower", "upper", "margin", "cosine"):
        np.testing.assert_allclose(
            getattr(found, name)[:4, :4], getattr(wanted, name)[np.ix_(at, at)], rtol=1e-6, err_msg=name
        )


def test_an_empty_table_has_no_pairs():
    empty = CodeTable.from_dense(np.zeros((4, 3), np.float32), np.arange(4))
    assert empty.together().nnz == 0
    assert list(empty.counts) == [0, 0, 0]
