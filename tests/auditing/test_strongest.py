"""The strongest rows and the histogram of every feature against all codes at once, however the rows are cut."""

import numpy as np
import pytest

from jaxdict.auditing.strongest import BINS, EXAMPLES, never_on, with_entries

RNG = np.random.default_rng(0)
# Feature 0 is never on, feature 1 on every row, 2 on five rows, 3 with both signs and ties; codes over fourteen octaves.
Z = np.where(RNG.random((300, 4)) < 0.3, 2 ** RNG.uniform(-9, 5, (300, 4)), 0).astype(np.float32)
Z[:, 0] = 0
Z[:, 1] = 2 ** RNG.uniform(-9, 5, 300)
Z[5:, 2] = 0
Z[:5, 2] = 1, 2, 4, 8, 16
Z[:, 3] = RNG.choice([-2, -1, 0, 1, 2], 300)


def held_after(Z, cuts):
    held = never_on(Z.shape[1])
    for start, stop in zip([0, *cuts], [*cuts, len(Z)], strict=True):
        row, feature = np.nonzero(Z[start:stop])
        held = with_entries(held, feature, start + row, Z[start:stop][row, feature])
    return held


@pytest.mark.parametrize("cuts", [(), (1, 2, 100), tuple(range(7, 300, 7)), (0, 0, 299)])
def test_they_are_those_of_all_rows_at_once(cuts):
    held = held_after(Z, cuts)
    for k in range(Z.shape[1]):
        on = np.flatnonzero(Z[:, k])
        order = on[np.argsort(-np.abs(Z[on, k]), kind="stable")][:EXAMPLES]
        rows, codes = held.of(k)
        np.testing.assert_array_equal(rows, order)  # of equal codes the earlier row
        np.testing.assert_array_equal(codes, Z[order, k])
        sizes = np.abs(Z[on, k].astype(np.float64))
        assert held.counts[k].sum() == len(on)
        edges = held.edges[k] * 2.0 ** (-np.arange(BINS) / 2)
        below = np.array([np.sum(sizes <= edge * (1 + 1e-12)) for edge in edges])
        np.testing.assert_array_equal(held.counts[k], -np.diff([*below, 0]))
        assert not len(on) or held.edges[k] / np.sqrt(2) < sizes.max() <= held.edges[k] * (1 + 1e-12)


def test_memory_does_not_grow_with_the_rows():
    held = held_after(np.tile(Z, (5, 1)), range(50, 1500, 50))
    assert sum(array.nbytes for array in held) == (12 * EXAMPLES + 8 * BINS + 4) * Z.shape[1]


def test_what_was_held_before_stays_whole():
    """Ctrl-C between two chunks finds the old record."""
    held = held_after(Z[:100], ())
    copies = [array.copy() for array in held]
    row, feature = np.nonzero(Z[100:])
    with_entries(held, feature, 100 + row, 100 * Z[100:][row, feature])
    for array, copy in zip(held, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
