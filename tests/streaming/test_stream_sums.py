"""Sums of chunks against the dense moments of the same codes, codes kept between passes, the reservoir, the search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.certificates.stationarity import stationarity
from jaxdict.objectives import moments
from jaxdict.streaming import reservoir, search, sums
from jaxdict.streaming.warm import WarmCodes

X = np.asarray(jax.random.normal(jax.random.key(0), (60, 4)))
ATOMS = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0])
DICTIONARY = jd.Dictionary(jnp.concatenate([ATOMS, -ATOMS[:2]]), jnp.full(4, 0.1))
KINDS = {
    "plain": {},
    "signed": {"signed": True},
    "metric": {"metric": jnp.array([0.5, 1.0, 2.0, 1.5])},
    "weights": {"weights": jnp.asarray(np.arange(60) % 3, float)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_chunks_are_the_moments(kind):
    problem = jd.Problem(lam=0.4, **KINDS[kind])
    w = None if problem.weights is None else np.asarray(problem.weights)
    total = sums.no_sums(6, 4)
    for at in (0, 30):
        part = slice(at, at + 30)
        chunk = sums.solve_chunk(problem, DICTIONARY, X[part], 1e-13)
        total = sums.plus(total, sums.sums_of(chunk, None if w is None else w[part]))
    codes = jd.encode(problem, DICTIONARY, X, tol=1e-13).codes
    found, wanted = sums.moments_of(total), moments(problem, DICTIONARY, codes, X)
    for name in ("mean_codes", "mean_squares", "cross", "mean_residual", "objective"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-11)
    expected = stationarity(problem, DICTIONARY, codes, X)
    expected = max(float(expected.atoms), float(expected.offset))
    assert sums.stationarity_of(problem, DICTIONARY, total) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("on_disk", [False, True])
def test_codes_between_passes_take_four_bytes_each_and_come_back(on_disk, tmp_path):
    warm = WarmCodes(tmp_path if on_disk else None, np.dtype(float))
    chunk = sums.solve_chunk(jd.Problem(lam=0.4, signed=True), DICTIONARY, X, 1e-9)
    assert warm.read(0, 0, 6) is None
    warm.write(0, 0, chunk.codes)
    dense = np.asarray(jd.dense_codes(jax.tree.map(jnp.asarray, warm.read(0, 0, 6)), 6))
    exact = chunk.codes.toarray()
    np.testing.assert_allclose(dense, exact, rtol=2**-8)
    assert np.any(exact < 0)
    if not on_disk:
        assert sum(part.nbytes for part in warm.kept[0]) == 4 * chunk.codes.nnz + 2 * 60
    else:
        warm.write(1, 0, chunk.codes)
        warm.forget(before=1)
        assert warm.read(0, 0, 6) is None
        assert warm.read(1, 0, 6) is not None


def test_the_reservoir_draws_rows_by_how_badly_they_are_explained():
    problem, chosen = jd.Problem(lam=0.5, offset=False), np.zeros(3)
    rows = np.repeat(np.array([[0.4, 0.0], [1.0, 0.0], [1.5, 0.0]]), [400, 200, 200], axis=0)
    dictionary = jd.Dictionary(jnp.array([[0.0, 1.0]]), jnp.zeros(2))
    chunk = sums.solve_chunk(problem, dictionary, rows, 1e-9)
    for seed in range(20):
        kept = reservoir.empty_reservoir(2, float)
        for part in (slice(0, 400), slice(400, 800)):
            piece = sums.Chunk(chunk.codes[part], chunk.pulls[part], chunk.values[part])
            kept = reservoir.keep_worst(
                problem, kept, rows[part], None, piece, np.random.default_rng([seed, part.start]).uniform(size=400)
            )
        chosen += [np.sum(kept.rows[:, 0] == size) for size in (0.4, 1.0, 1.5)]
    assert chosen[0] == 0
    assert chosen[2] > 2 * chosen[1] > 0  # weights 1 and 1/4, though most rows of each kind have room
    atoms, born = reservoir.born_from(problem, dictionary, kept, np.array([0]))
    assert born.tolist() == [0]
    np.testing.assert_allclose(atoms, [[1.0, 0.0]], atol=1e-9)


def test_search_ends_where_slopes_vanish_and_says_so_when_it_cannot_go_on():
    """One atom on data along one ray: the optimum is the ray's direction."""
    ray = np.array([0.6, 0.8])
    rows = np.random.default_rng(0).uniform(1, 2, (50, 1)) * ray
    problem, point = jd.Problem(lam=0.1, offset=False), jd.Dictionary(jnp.array([[1.0, 0.0]]), jnp.zeros(2))
    sums_at = lambda point: sums.sums_of(sums.solve_chunk(problem, point, rows, 1e-13))  # noqa: E731
    found = search.begin(problem, point, sums_at(point))
    for _ in range(40):
        trial = search.trial_of(found)
        found, accepted = search.judge(problem, found, trial, sums_at(trial))
        point = trial if accepted else point
    np.testing.assert_allclose(point.atoms[0], ray, atol=1e-9)
    start = search.begin(problem, point, sums_at(point))
    uphill = sums_at(jd.Dictionary(jnp.array([[0.0, -1.0]]), jnp.zeros(2)))
    for _ in range(2 * search.TRIALS):
        start, accepted = search.judge(problem, start, search.trial_of(start), uphill)
        assert not accepted
    assert start.stuck
