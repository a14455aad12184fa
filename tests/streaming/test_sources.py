"""Sources: every training row once an epoch, none of those kept aside, and the same from any position on."""

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxdict.files import Shards
from jaxdict.streaming import aside, sources
from jaxdict.streaming.processes import Processes
from jaxdict.streaming.sources import open_source

KEY = jax.random.key(0)
ROWS = np.arange(700 * 2, dtype=np.float64).reshape(700, 2)


def kinds():
    return {
        "array": ROWS,
        "shards": Shards([ROWS[:90], ROWS[90:500], ROWS[500:]]),
        "many shards": Shards([ROWS[a : a + 7] for a in range(0, 700, 7)]),
        "list": [ROWS[a : a + 37] for a in range(0, 700, 37)],
        "factory": lambda: (ROWS[a : a + 37] for a in range(0, 700, 37)),
    }


@pytest.mark.parametrize("kind", kinds())
def test_training_rows_and_rows_kept_aside_are_all_rows_once(kind):
    source = open_source(kinds()[kind], None, None, KEY)
    chunks = [piece.rows for piece in source.chunks(0, 50)]
    assert {len(rows) for rows in chunks[:-1]} == {50}
    trained, kept = np.concatenate(chunks)[:, 0], np.asarray(source.held.rows[:])[:, 0]
    assert len(trained) == source.n
    assert len(kept) >= 35
    np.testing.assert_array_equal(np.sort(np.concatenate([trained, kept])), ROWS[:, 0])
    assert len(np.unique(source.held.groups)) > 1


@pytest.mark.parametrize("kind", kinds())
def test_an_epoch_takes_each_row_once_and_can_be_taken_up_anywhere(kind):
    source = open_source(kinds()[kind], None, 0.1, KEY)
    whole = [piece.rows for piece in source.batches(KEY, 0, 40)]
    seen = np.concatenate(whole)[:, 0]
    assert len(np.unique(seen)) == len(seen) == source.n // 40 * 40
    for first in (1, 7):
        later = [piece.rows for piece in source.batches(KEY, first, 40)]
        np.testing.assert_array_equal(np.concatenate(later), np.concatenate(whole[first:]))
        later = [piece.rows for piece in source.chunks(first, 40)]
        np.testing.assert_array_equal(np.concatenate(later)[0], next(iter(source.chunks(first, 40))).rows[0])


def test_blocks_are_shuffled_by_the_key():
    source = open_source(ROWS, None, 0, KEY)
    first, again, other = (next(iter(source.batches(key, 0, 128))).rows for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_weights_go_with_their_rows():
    weights = ROWS[:, 0] + 1
    source = open_source(ROWS, weights, 0.1, KEY)
    for piece in source.batches(KEY, 0, 100):
        np.testing.assert_array_equal(piece.weights, piece.rows[:, 0] + 1)
    np.testing.assert_array_equal(source.held.weights, source.held.rows[:][:, 0] + 1)


def test_rows_can_be_kept_aside_by_number_by_mask_or_given():
    numbers = np.r_[10:20, 300:330]
    mask = np.zeros(700, bool)
    mask[numbers] = True
    for held_out in (numbers, mask):
        source = open_source(ROWS, None, held_out, KEY)
        np.testing.assert_array_equal(source.held.rows[:], ROWS[numbers])
        assert source.n == 660
        documents = np.r_[np.zeros(10), np.ones(30)]
        assert all(len(np.unique(documents[source.held.groups == group])) == 1 for group in source.held.groups)
    fresh = ROWS[:64] + 0.5
    source = open_source(ROWS, None, fresh, KEY)
    assert source.n == 700
    np.testing.assert_array_equal(source.held.rows[:], fresh)
    assert open_source(ROWS, None, 0, KEY).held is None


def test_whole_shards_are_kept_aside_where_there_are_many():
    source = open_source(kinds()["many shards"], None, None, KEY)
    kept = np.asarray(source.held.rows[:])[:, 0] // 2
    assert len(kept) % 7 == 0
    assert all(len(np.unique(kept[source.held.groups == group] // 7)) == 1 for group in source.held.groups)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_rows_become_float32(kind):
    source = open_source(np.ones((80, 3), kind), None, 0, KEY)
    assert next(iter(source.chunks(0, 80))).rows.dtype == np.float32


def test_what_is_refused():
    def refused(match, source, weights=None, held_out=None):
        with pytest.raises(ValueError, match=match):
            list(open_source(source, weights, held_out, KEY).chunks(0, 50))

    refused("only once", iter([ROWS]))
    refused("no source", 3)
    refused("shape", ROWS[0])
    refused("no batches", [])
    refused("batch 1 has shape", [ROWS, ROWS[:, :1]])
    refused("weights need", [ROWS], weights=np.ones(700))
    refused("one weight a row", ROWS, weights=np.ones(3))
    refused("held_out=1.5", ROWS, held_out=1.5)
    refused("names rows that are not there", ROWS, held_out=np.array([800]))
    refused("held_out has shape", ROWS, held_out=np.ones((4, 3)))
    refused("keeps all", ROWS, held_out=np.arange(700))
    bad = ROWS.copy()
    bad[650, 1] = np.nan
    refused("from row 6[0-9]* on", bad, held_out=0)
    sizes = iter([3, 3, 2, 2, 2])
    refused("gave .* rows where it gave", lambda: [ROWS[: 10 * next(sizes)]])


def test_the_share_kept_aside_has_a_limit(monkeypatch):
    monkeypatch.setattr(aside, "MOST_HELD", 10)
    assert open_source(ROWS, None, None, KEY).held.rows.shape[0] <= 12


def test_blocks_grow_where_there_would_be_too_many(monkeypatch):
    monkeypatch.setattr(sources, "MOST_BLOCKS", 5)
    assert len(open_source(ROWS, None, 0, KEY).starts) == 5


class Seen:
    """An array that remembers which of its rows were read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.rows = array, array.shape, array.dtype, set()

    def __getitem__(self, rows):
        self.rows |= set(np.arange(len(self.array))[rows].tolist())
        return self.array[rows]


@pytest.mark.parametrize("kind", ["array", "shards", "factory"])
def test_processes_share_out_batches_and_chunks(kind):
    source, halves = open_source(kinds()[kind], None, 0, KEY), [Processes(k, 2) for k in range(2)]
    whole = [piece.rows for piece in source.batches(KEY, 1, 50)]
    parts = [[piece.rows for piece in source.batches(KEY, 1, 50, slice(*process.share(50)))] for process in halves]
    for all_rows, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(all_rows, np.concatenate([first, second]))
    count = -(-source.n // 50)
    shared = [
        piece.rows
        for process in halves
        for piece in source.chunks(process.share(count)[0], 50, process.share(count)[1])
    ]
    for one, other in zip(source.chunks(0, 50), shared, strict=True):
        np.testing.assert_array_equal(one.rows, other)


def test_a_process_reads_its_own_share_only():
    seen = Seen(ROWS)
    source = open_source(seen, None, 0, KEY)
    list(source.chunks(7, 50, 14))
    assert seen.rows == set(range(350, 700))
    seen.rows = set()
    list(source.batches(KEY, 0, 100, slice(50, 100)))
    assert len(seen.rows) == 350
