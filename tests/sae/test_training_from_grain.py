"""Training from grain, where that is installed: its data sets and loaders are batches like any other."""

import jax
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.sae.trainers.rows import rows_of

grain = pytest.importorskip("grain")

ROWS = np.random.default_rng(0).normal(size=(230, 3)).astype(np.float32)
SIZES = {"key": jax.random.key(1), "architecture": "topk", "k": 2, "epochs": 3, "batch_size": 50}


def data_set():
    return grain.MapDataset.source(ROWS).shuffle(seed=3).batch(64)


def iterable():
    return data_set().to_iter_dataset()


def loader():
    sampler = grain.samplers.IndexSampler(num_records=len(ROWS), num_epochs=1, shuffle=True, seed=3)
    return grain.DataLoader(data_source=ROWS, sampler=sampler, operations=[grain.transforms.Batch(64)], worker_count=0)


@pytest.mark.parametrize("source", [data_set, iterable, loader])
def test_batches_of_grain_are_batches(source):
    """Each row once an epoch, in grain's own order, whatever sizes its batches have."""
    batches = [np.asarray(batch) for batch in source()]
    assert len(batches) == 4
    order = np.concatenate(batches)
    np.testing.assert_array_equal(np.sort(order[:, 0]), np.sort(ROWS[:, 0]))
    assert not np.array_equal(order, ROWS)
    coming = rows_of(source(), 50, jax.random.key(0))._from(0)
    np.testing.assert_array_equal(np.concatenate([next(coming) for _ in range(8)]), np.tile(order[:200], (2, 1)))


@pytest.mark.slow
def test_an_sae_from_a_loader_is_that_of_its_rows_in_a_list():
    listed, streamed = (jd.sae.train(X, 5, **SIZES) for X in ([np.asarray(batch) for batch in loader()], loader()))
    for ours, theirs in zip(jax.tree.leaves(listed), jax.tree.leaves(streamed), strict=True):
        np.testing.assert_array_equal(ours, theirs)
