"""Training: the loss is problem P's with an encoder, it falls, keys decide, top-k keeps k; no loss below exact codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd

X = np.random.default_rng(0).normal(size=(300, 5)) @ np.random.default_rng(1).normal(size=(5, 6))
SIZES = {"steps": 300, "batch_size": 100, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def trained():
    losses = []
    sae = jd.sae.train(X, 8, key=jax.random.key(0), lam=0.2, callback=lambda *told: losses.append(told), **SIZES)
    return sae, losses


def test_loss_is_the_objective_of_the_saes_codes(trained):
    sae, _ = trained
    problem = jd.Problem(lam=0.2)
    own = float(jd.objective(problem, sae.dictionary, sae.encode(X), X))
    assert float(jd.sae.training_loss(sae, jnp.asarray(X), 0.2)) == pytest.approx(own, rel=1e-12)
    exact = jd.encode(problem, sae.dictionary, X, tol=1e-12).codes
    assert own >= float(jd.objective(problem, sae.dictionary, exact, X)) - 1e-12


def test_training_lowers_the_loss_and_reports(trained):
    sae, losses = trained
    start = jd.sae.train(X, 8, key=jax.random.key(0), lam=0.2, steps=1, batch_size=100, learning_rate=1e-9)
    before, after = (float(jd.sae.training_loss(one, jnp.asarray(X), 0.2)) for one in (start, sae))
    assert after < 0.6 * before
    assert [told[:2] for told in losses] == [(100, 300), (200, 300), (300, 300)]
    np.testing.assert_allclose(sae.norms, 1, rtol=1e-12)
    assert (sae.lam, sae.metadata.architecture) == (0.2, "standard")


def test_same_key_same_result_and_another_key_another(trained):
    again = jd.sae.train(X, 8, key=jax.random.key(0), lam=0.2, **SIZES)
    np.testing.assert_array_equal(again.W_dec, trained[0].W_dec)
    other = jd.sae.train(X, 8, key=jax.random.key(1), lam=0.2, **SIZES)
    assert float(jnp.max(jnp.abs(other.W_dec - again.W_dec))) > 0.1


def test_topk_keeps_k():
    sae = jd.sae.train(X, 8, key=jax.random.key(0), architecture="topk", k=2, **SIZES)
    on = np.sum(np.asarray(sae.encode(X)) != 0, axis=1)
    assert on.max() == 2
    assert sae.lam is None
    explained = 1 - np.sum((X - np.asarray(sae(X))) ** 2) / np.sum((X - X.mean(0)) ** 2)
    assert explained > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gated"}, "architecture='gated'"),
        ({}, "lam is None"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"architecture": "topk"}, "k is None"),
        ({"architecture": "topk", "k": 9}, "k is 9"),
        ({"lam": 0.1, "steps": 0}, "steps is 0"),
        ({"lam": 0.1, "learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jd.sae.train(X, 8, key=jax.random.key(0), **options)
