"""T17 and T18: what fresh rows show of a population, against brute force, repeated draws and known populations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict import population
from jaxdict.population import rows as fresh_rows

D_IN, K = 6, 5
TRUE = np.linalg.qr(np.random.default_rng(0).normal(size=(D_IN, D_IN)))[0][:K]


def rows(key, n):
    """A population: sparse non-negative mixtures of TRUE and a little noise."""
    on, size, noise = jax.random.split(key, 3)
    active = jax.random.bernoulli(on, 0.3, (n, K))
    return (active * jax.random.uniform(size, (n, K), minval=0.5, maxval=1.5)) @ TRUE + 0.05 * jax.random.normal(
        noise, (n, D_IN)
    )


def turned():
    """The truth with its first atom turned by about 0.3."""
    atoms = np.array(TRUE)
    atoms[0] = atoms[0] + 0.3 * atoms[1]
    return jd.Dictionary(jnp.asarray(atoms / np.linalg.norm(atoms, axis=1, keepdims=True)), jnp.zeros(D_IN))


PROBLEM = jd.Problem(lam=0.1, offset=True)


def by_pairs(problem, dictionary, X, w):
    """`sum_{n != m} w_n w_m <t_n, t_m> / sum_{n != m} w_n w_m` from the definition, row by row, and likewise `(E|z|)^2`."""
    Z = np.asarray(
        jd.encode(
            jd.Problem(problem.lam, problem.offset, problem.signed, problem.gauge, problem.metric),
            dictionary,
            X,
            tol=1e-12,
        ).codes
    )
    atoms, m = np.asarray(dictionary.atoms), np.ones(D_IN) if problem.metric is None else np.asarray(problem.metric)
    norms = np.linalg.norm(atoms, axis=1)
    units, Z = atoms / norms[:, None], Z * norms
    mr = m * (np.asarray(X) - np.asarray(dictionary.offset) - Z @ units)
    lam, out = float(problem.lam), []
    for k in range(K):
        if problem.gauge == "penalised":
            t = Z[:, k : k + 1] * mr - lam * np.abs(Z[:, k : k + 1]) * units[k]
        else:
            t = Z[:, k : k + 1] * (mr - (mr @ units[k])[:, None] * units[k])
        pairs = np.outer(w, w) - np.diag(w**2)
        out.append(np.sum(pairs * (t @ t.T)) / (lam**2 * np.sum(pairs * np.abs(np.outer(Z[:, k], Z[:, k])))))
    pairs = np.outer(w, w) - np.diag(w**2)
    return np.array(out), np.sum(pairs * (mr @ mr.T)) / np.sum(pairs) / lam**2


@pytest.mark.parametrize("variant", ["plain", "penalised", "signed", "metric and weights"])
def test_decoder_rows_are_means_over_pairs_of_different_rows(variant):
    X, w = rows(jax.random.key(1), 40), np.ones(40)
    problem, dictionary = PROBLEM, turned()
    if variant == "penalised":
        problem, dictionary = jd.Problem(lam=0.1, gauge="penalised"), dictionary._replace(atoms=1.7 * dictionary.atoms)
    if variant == "signed":
        problem, X = jd.Problem(lam=0.1, signed=True), X - 0.3
    if variant == "metric and weights":
        w = np.array(jax.random.uniform(jax.random.key(2), (40,)))
        w[:3] = 0
        problem = jd.Problem(lam=0.1, metric=np.linspace(0.5, 2, D_IN), weights=w)
    found = population.defects(problem, dictionary, X)
    squared, offset = by_pairs(problem, dictionary, X, w)
    # Differences of sums of some 40 terms of order one over (lam zbar)^2, about 1e-4: rounding near 1e-11.
    np.testing.assert_allclose(found.squared, squared, atol=1e-9)
    np.testing.assert_allclose(found.offset_squared, offset, atol=1e-9)
    assert int(found.rows) == np.sum(w > 0)


def test_naive_defects_are_those_of_the_certificate():
    X, dictionary = rows(jax.random.key(3), 60), turned()
    codes = jd.encode(PROBLEM, dictionary, X, tol=1e-12).codes
    told = jd.certify(PROBLEM, dictionary, codes, X).stationarity.by_atom
    np.testing.assert_allclose(population.defects(PROBLEM, dictionary, X, codes).naive, told, rtol=1e-9)


@pytest.mark.slow
def test_unbiased_over_draws_where_the_naive_square_is_not():
    dictionary, many = turned(), jax.random.split(jax.random.key(4), 200)
    draws = jnp.stack([rows(key, 30) for key in many])
    each = jax.jit(jax.vmap(lambda X: population.population_sums(PROBLEM, dictionary, X)))(draws)
    pairs = each.weight**2 - each.weight_squares
    unbiased = (jnp.sum(each.pulls**2, -1) - each.pull_squares) / pairs[:, None]
    naive = jnp.sum(each.pulls**2, -1) / each.weight[:, None] ** 2
    truth_sums = population.population_sums(PROBLEM, dictionary, rows(jax.random.key(5), 100_000))
    truth = jnp.sum(truth_sums.pulls**2, -1) / truth_sums.weight**2
    error = jnp.std(unbiased, axis=0) / np.sqrt(200)
    # Two standard errors would fail for one in twenty of five atoms; four for one in thousands.
    assert bool(jnp.all(jnp.abs(jnp.mean(unbiased, axis=0) - truth) < 4 * error))
    assert bool(jnp.all(jnp.mean(naive, axis=0) - truth > 3 * error))
    # The scale of T1's line, `(E|z|)^2`: likewise.
    scale = (each.codes**2 - each.code_squares) / pairs[:, None]
    right = (truth_sums.codes / truth_sums.weight) ** 2
    assert bool(jnp.all(jnp.abs(jnp.mean(scale, axis=0) - right) < 4 * jnp.std(scale, axis=0) / np.sqrt(200)))
    naively = (each.codes / each.weight[:, None]) ** 2
    assert bool(jnp.all(jnp.mean(naively, axis=0) > jnp.mean(scale, axis=0)))


def test_an_atom_of_one_row_shows_nothing():
    X = rows(jax.random.key(4), 20)
    codes = np.array(jd.encode(PROBLEM, turned(), X).codes)
    codes[1:, 2] = 0
    codes[0, 2] = 0.7
    found = population.defects(PROBLEM, turned(), X, jnp.asarray(codes))
    assert np.isnan(found.squared).tolist() == [False, False, True, False, False]
    assert np.isfinite(found.naive).all()
    assert np.isfinite(float(found.rms))


@pytest.mark.slow
def test_intervals_cover():
    dictionary, truth = turned(), jd.Dictionary(jnp.asarray(TRUE), jnp.zeros(D_IN))
    draws = jnp.stack([rows(key, 150) for key in jax.random.split(jax.random.key(6), 100)])
    found = jax.jit(jax.vmap(lambda X: population.compare(PROBLEM, dictionary, truth, X)))(draws)
    right = population.compare(PROBLEM, dictionary, truth, rows(jax.random.key(7), 100_000)).gain
    covered = int(jnp.sum(jnp.abs(found.gain - right) < 1.96 * found.standard_error))
    assert 88 <= covered <= 99  # binomial(100, .95) within three standard deviations


def test_documents_widen_the_error():
    dictionary, truth = turned(), jd.Dictionary(jnp.asarray(TRUE), jnp.zeros(D_IN))
    X = jnp.repeat(rows(jax.random.key(8), 50), 4, axis=0)  # every row four times: a document
    documents = np.repeat(np.array([f"doc {i}" for i in range(50)]), 4)
    alone = population.compare(PROBLEM, dictionary, truth, X)
    grouped = population.compare(PROBLEM, dictionary, truth, X, groups=documents)
    single = population.compare(PROBLEM, dictionary, truth, X[::4])
    np.testing.assert_allclose(grouped.gain, single.gain, rtol=1e-8)
    np.testing.assert_allclose(grouped.standard_error, single.standard_error, rtol=1e-8)
    assert float(alone.standard_error) < 0.6 * float(grouped.standard_error)
    assert int(grouped.groups) == 50
    assert "50 documents" in grouped.message()


@pytest.mark.slow
def test_refutes_a_turned_atom_and_not_an_optimum():
    X = rows(jax.random.key(9), 3000)
    found = population.refute(PROBLEM, turned(), X, key=jax.random.key(0))
    assert float(found.z) > 5
    assert "refuted" in found.message()
    assert float(found.gain) > 0
    fitted = jd.fit(PROBLEM, rows(jax.random.key(10), 20_000), start=turned(), tol=1e-6)
    assert float(population.refute(PROBLEM, fitted.dictionary, X, key=jax.random.key(0)).z) < 3


@pytest.mark.slow
def test_a_fit_on_few_rows_is_refuted_by_others():
    few = rows(jax.random.key(11), 40)
    fitted = jd.fit(PROBLEM, few, start=turned(), tol=1e-8)
    assert float(fitted.certificate.stationarity.worst) < 1e-7
    fresh = population.defects(PROBLEM, fitted.dictionary, rows(jax.random.key(12), 4000))
    assert float(fresh.rms) > 1e-2
    assert "fresh rows" in fresh.message()


@pytest.mark.slow
def test_chunks_sparse_codes_and_memory_maps_agree(monkeypatch, tmp_path):
    X, dictionary = rows(jax.random.key(13), 100), turned()
    whole = population.defects(PROBLEM, dictionary, X)
    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr(fresh_rows, "CHUNK_ENTRIES", 16 * K)
    mapped = population.defects(PROBLEM, dictionary, np.load(tmp_path / "x.npy", mmap_mode="r"))
    sparse = population.defects(
        PROBLEM, dictionary, X, jd.sparse_codes(jd.encode(PROBLEM, dictionary, X, tol=1e-10).codes)
    )
    for other in (mapped, sparse):
        np.testing.assert_allclose(other.squared, whole.squared, atol=1e-8)
    gains = [
        population.compare(PROBLEM, dictionary, jd.Dictionary(jnp.asarray(TRUE)), data).gain
        for data in (X, np.asarray(X))
    ]
    np.testing.assert_allclose(*gains, rtol=1e-9)


def test_errors_say_what_is_wrong():
    X = rows(jax.random.key(14), 10)
    with pytest.raises(ValueError, match="groups has shape"):
        population.compare(PROBLEM, turned(), turned(), X, groups=np.zeros(3))
    with pytest.raises(ValueError, match="fewer than two rows"):
        population.defects(PROBLEM, turned(), X[:1])
    with pytest.raises(ValueError, match="at least four"):
        population.refute(PROBLEM, turned(), X, key=jax.random.key(0), groups=np.zeros(10))
