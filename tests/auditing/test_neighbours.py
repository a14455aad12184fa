"""Nearest atoms, duplicates and antipodes: the blocks of the upper half say what all cosines at once do."""

import numpy as np
import pytest

from jaxdict.auditing import neighbours as module
from jaxdict.auditing.neighbours import ANTIPODE, DUPLICATE, neighbours


def atoms(n, d=5, seed=0):
    """Random directions with copies and opposites among them."""
    A = np.random.default_rng(seed).normal(size=(n, d))
    A[n // 2] = A[1] + 0.01 * A[0]
    A[n - 1] = -A[2]
    return A / np.linalg.norm(A, axis=1, keepdims=True)


@pytest.mark.parametrize("entries", [1, 40, 10_000])
def test_blocks_say_what_all_cosines_do(entries, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", entries)
    units = atoms(23)
    found, G = neighbours(units, 100), units @ units.T
    apart = np.where(np.eye(23, dtype=bool), -np.inf, G)
    np.testing.assert_array_equal(found.nearest, apart.argmax(axis=1))
    np.testing.assert_allclose(found.cosine, apart.max(axis=1), atol=1e-6)  # float32
    i, j = np.triu_indices(23, 1)
    for pairs, listed in ((found.close, G[i, j] > DUPLICATE), (found.opposite, G[i, j] < ANTIPODE)):
        assert listed.sum() >= 1
        assert set(zip(pairs.first, pairs.second, strict=True)) == set(zip(i[listed], j[listed], strict=True))
        np.testing.assert_allclose(pairs.cosine, G[pairs.first, pairs.second], atol=1e-6)
        assert np.all(np.diff(np.abs(pairs.cosine)) <= 0)


def test_only_the_furthest_are_listed_and_equals_by_number(monkeypatch):
    """Hundreds of copies of one atom: a list of all their pairs would be the square of that."""
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 1000)
    found = neighbours(np.tile([[1.0, 0.0]], (300, 1)), 3)
    assert list(zip(found.close.first, found.close.second, strict=True)) == [(0, 1), (0, 2), (0, 3)]
    assert found.nearest.tolist() == [1, *[0] * 299]
    assert len(found.opposite.first) == 0


def test_one_atom_has_no_neighbour():
    found = neighbours(np.ones((1, 1)), 5)
    assert np.isnan(found.cosine[0])
    assert len(found.close.first) == 0
