"""Shrinking, vanishing and the loss gaps of digons: formulas against simulation (theory.md section 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdict import recovery

N = 50_000


@pytest.fixture(scope="module")
def mixed():
    """Two digons and an identity dimension, rotated; sparsities differ from feature to feature."""
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (3, 3)))[0]
    directions = recovery.block_map(recovery.digon_map(2), recovery.identity_map(1)) @ turn
    return directions, jnp.array([0.9, 0.8, 0.5, 0.6, 0.3])


@pytest.mark.parametrize("S", [0.0, 0.3, 0.9, 0.99])
def test_reconstruction_is_exact_for_every_sparsity(mixed, S):
    directions, _ = mixed
    x = recovery.sparse_features(jax.random.key(0), 2000, jnp.full(5, S)).x
    x_p = recovery.superpose(x, directions)
    assert float(recovery.reconstruction_loss(recovery.closed_form(directions), x_p)) < 1e-12
    # With spare latents, in any order, and in any metric too.
    sae = recovery.closed_form(directions, 7, order=jnp.array([3, 1, 4, 0, 2]))
    assert float(recovery.reconstruction_loss(sae, x_p, metric=jnp.array([0.1, 1.0, 7.0]))) < 1e-12


@pytest.mark.parametrize("magnitudes", ["uniform", "exponential", "lognormal", "constant"])
def test_rates_and_ground_truth_loss_agree_with_simulation(mixed, magnitudes):
    directions, S = mixed
    x = recovery.sparse_features(jax.random.key(1), N, S, magnitudes=magnitudes).x
    latents = recovery.closed_form(directions).encode(recovery.superpose(x, directions))
    shrinks, vanishes = recovery.simulated_rates(x, latents)
    for digon in (slice(0, 2), slice(2, 4)):
        exact = recovery.digon_rates(S[digon], magnitudes)
        error = 5 * 0.5 / N**0.5  # five standard errors of a share, at most
        if magnitudes != "constant":  # there exact ties are left to rounding
            np.testing.assert_allclose(shrinks[digon], exact.shrinks, atol=error)
            np.testing.assert_allclose(vanishes[digon], exact.vanishes, atol=error)
        lost = jnp.sum((x[:, digon] - latents[:, digon]) ** 2, axis=1)
        assert abs(float(lost.mean() - exact.loss_gt)) < 5 * float(lost.std()) / N**0.5
        energy = jnp.sum(x[:, digon] ** 2, axis=1)
        assert abs(float(energy.mean() - exact.energy)) < 5 * float(energy.std()) / N**0.5
    np.testing.assert_allclose(latents[:, 4], x[:, 4], atol=1e-14)  # the identity's feature is recovered
    np.testing.assert_allclose(latents[:, :2], recovery.digon_output(x[:, :2]), atol=1e-14)


def test_constant_magnitudes_tie_and_both_vanish():
    rates = recovery.digon_rates(jnp.array([0.5, 0.8]), "constant")
    np.testing.assert_allclose(rates.vanishes, 0.1, rtol=1e-12)
    assert not rates.shrinks.any()
    x = recovery.sparse_features(jax.random.key(1), N, jnp.array([0.5, 0.8]), magnitudes="constant").x
    latents = recovery.closed_form(recovery.digon_map(1)).encode(recovery.superpose(x, recovery.digon_map(1)))
    np.testing.assert_allclose(recovery.simulated_rates(x, latents)[1], 0.1, atol=5 * 0.3 / N**0.5)


def test_any_magnitude_function():
    law = lambda key, shape: jax.random.uniform(key, shape) ** 2  # noqa: E731
    rates = recovery.digon_rates(jnp.array([0.5, 0.5]), law, key=jax.random.key(0))
    # x = u^2: E[x^2] = 1/5, E[min(u)^4] = 2 int u^4 (1 - u) du = 1/15.
    assert float(rates.loss_gt) == pytest.approx(2 * 0.25 / 15, rel=0.03)
    assert float(rates.energy) == pytest.approx(1 / 5, rel=0.03)
    with pytest.raises(ValueError, match="key is not given"):
        recovery.digon_rates(jnp.array([0.5, 0.5]), law)


def test_recovery_comes_with_extreme_sparsity_at_its_rate():
    S = jnp.array([0.9, 0.99, 0.999, 0.9999])
    exact = recovery.digon_rates(jnp.stack([S, S], axis=-1))
    np.testing.assert_allclose(exact.loss_gt, (1 - S) ** 2 / 3, rtol=1e-12)
    np.testing.assert_allclose(exact.energy, 2 * (1 - S) / 3, rtol=1e-12)
    np.testing.assert_allclose(exact.ratio, (1 - S) / 2, rtol=1e-12)
    assert float(recovery.recovery_rate(S, exact.loss_gt)) == pytest.approx(2, abs=1e-9)


def closed_form_losses(directions, sparsities, metric=None):
    gaps = []
    for S in sparsities:
        f = recovery.stratified_features(jax.random.key(0), 60, jnp.full(directions.shape[0], S))
        x_p = recovery.superpose(f.x, directions)
        gaps.append(recovery.loss_gaps(recovery.closed_form(directions), f.x, x_p, weights=f.weights, metric=metric))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *gaps)


@pytest.mark.slow
def test_no_recovery_in_a_pentagon_however_sparse():
    """Refuted beyond digons and their like: neighbours at a positive cosine answer for each other, so L_GT ~ (1 - S)."""
    S = jnp.array([0.99, 0.999, 0.9999])
    triangle, pentagon = (closed_form_losses(recovery.polygon_map(n), S).ground_truth for n in (3, 5))
    assert float(recovery.recovery_rate(S, triangle)) == pytest.approx(2, abs=0.05)
    assert float(recovery.recovery_rate(S, pentagon)) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_gaps_and_their_dependence_on_sparsity_and_weights(mixed):
    """In digons no reconstruction loss, weighted or not, follows L_GT; both gaps are L_GT, falling with S."""
    S = jnp.array([0.5, 0.8, 0.95])
    axes = recovery.block_map(recovery.digon_map(2), recovery.identity_map(1))
    plain = closed_form_losses(axes, S)
    metric = recovery.reweight(jnp.array([1.0, 2.0, 3.0]), 2.0)
    weighted = closed_form_losses(axes, S, metric)
    np.testing.assert_allclose(plain.gap, plain.ground_truth, atol=1e-14)
    np.testing.assert_allclose(weighted.weighted_gap, weighted.ground_truth, atol=1e-14)
    np.testing.assert_allclose(weighted.gap, weighted.ground_truth, atol=1e-14)
    assert (jnp.diff(plain.gap) < 0).all()
    np.testing.assert_allclose(plain.gap, 2 * (1 - S) ** 2 / 3, rtol=0.3)  # 60 magnitudes a pattern: 3 s.e.
    # Where the reconstruction is not exact, weights do move the gap: linearly, through L_WSAE.
    once, twice = (closed_form_losses(recovery.polygon_map(3), S, m * jnp.ones(2)) for m in (1.0, 2.0))
    np.testing.assert_allclose(twice.weighted, 2 * once.sae, rtol=1e-12)
    np.testing.assert_allclose(twice.weighted_gap, once.gap - once.sae, rtol=1e-10)
    assert (once.sae > 0).all()
