"""Features by key: rates, magnitudes, and the stratified sampler against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdict import recovery
from jaxdict.recovery.digons import MINIMUM_SQUARED, SECOND_MOMENT

S = jnp.array([0.9, 0.5, 0.0])


@pytest.mark.parametrize("magnitudes", ["uniform", "exponential", "lognormal", "constant"])
def test_rates_and_moments(magnitudes):
    n = 40_000
    features = recovery.sparse_features(jax.random.key(0), n, S, magnitudes=magnitudes)
    assert (features.x >= 0).all()
    # Five standard errors of a share, and of a second moment (fourth moments here are at most 24).
    np.testing.assert_allclose((features.x > 0).mean(axis=0), 1 - S, atol=5 * 0.5 / n**0.5)
    np.testing.assert_allclose(
        (features.x**2).mean(axis=0), (1 - S) * SECOND_MOMENT[magnitudes], atol=5 * (24 / n) ** 0.5
    )
    pairs = features.x[:, 2].reshape(-1, 2)
    np.testing.assert_allclose((pairs.min(axis=1) ** 2).mean(), MINIMUM_SQUARED[magnitudes], atol=0.05)


def test_any_magnitudes():
    law = lambda key, shape: 2 + jax.random.uniform(key, shape)  # noqa: E731
    x = recovery.sparse_features(jax.random.key(0), 500, S, magnitudes=law).x
    assert x[x > 0].min() >= 2
    assert x.max() <= 3


def test_more_sparsity_only_switches_off():
    few, many = (recovery.sparse_features(jax.random.key(0), 500, jnp.full(4, s)).x for s in (0.8, 0.3))
    assert ((few == many) | (few == 0)).all()
    assert (few > 0).sum() < (many > 0).sum()


def test_stratified_patterns_have_their_exact_probabilities():
    features = recovery.stratified_features(jax.random.key(0), 3, S)
    patterns = np.asarray(features.x > 0)
    for pattern in np.unique(patterns, axis=0):
        exact = np.prod(np.where(pattern, 1 - S, S))
        share = np.asarray(features.weights)[(patterns == pattern).all(axis=1)].sum() / len(patterns)
        assert abs(share - exact) < 1e-12
    assert abs(float(features.weights.mean()) - 1) < 1e-12


def test_stratified_expectations_are_those_of_plain_samples():
    law = jnp.array([0.9, 0.7, 0.5])
    stratified = recovery.stratified_features(jax.random.key(0), 2000, law)
    plain = recovery.sparse_features(jax.random.key(1), 100_000, law)
    means = [jnp.mean(f.weights * jnp.sum(f.x, axis=1) ** 2) for f in (stratified, plain)]
    assert abs(float(means[0] - means[1])) < 5 * 1.0 / 16_000**0.5
    assert float(stratified.energy) == pytest.approx(float(plain.energy), rel=0.05)  # five standard errors


@pytest.mark.parametrize(("sparsity", "what"), [(0.5, "one probability a feature"), ([1.5], "not probabilities")])
def test_bad_sparsity(sparsity, what):
    with pytest.raises(ValueError, match=what):
        recovery.sparse_features(jax.random.key(0), 5, sparsity)


def test_bad_requests():
    with pytest.raises(ValueError, match="'gauss' is unknown"):
        recovery.sparse_features(jax.random.key(0), 5, S, magnitudes="gauss")
    with pytest.raises(ValueError, match="activity patterns"):
        recovery.stratified_features(jax.random.key(0), 1, jnp.full(20, 0.5))
