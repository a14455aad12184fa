"""Losses and matchings against formulas and scipy."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxdict import recovery
from jaxdict.recovery import Autoencoder

KEYS = jax.random.split(jax.random.key(0), 8)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_assignment_against_scipy(shape):
    costs = np.asarray(jax.random.normal(KEYS[0], (20, *shape)))
    size = max(shape)
    padded = np.zeros((20, size, size))
    padded[:, : shape[0], : shape[1]] = costs
    columns = jax.jit(jax.vmap(recovery.assignment))(jnp.asarray(padded))
    for cost, mine in zip(padded, np.asarray(columns), strict=True):
        assert sorted(mine) == list(range(size))
        assert cost[np.arange(size), mine].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum(), abs=1e-12)


def brute_force(x, z, scale):
    """The least mean squared distance over all permutations, with the best non-negative factors if asked for."""
    best = np.inf
    for order in permutations(range(x.shape[1])):
        moved = z[:, order]
        factor = np.maximum((x * moved).sum(0), 0) / (moved**2).sum(0) if scale else 1.0
        best = min(best, ((x - factor * moved) ** 2).sum(1).mean())
    return best


@pytest.mark.parametrize("scale", [False, True])
def test_ground_truth_loss_against_all_permutations(scale):
    x, z = (np.asarray(jax.random.uniform(key, (30, 4))) for key in KEYS[:2])
    found = recovery.ground_truth_loss(x, z, scale=scale)
    assert float(found.loss) == pytest.approx(brute_force(x, z, scale), rel=1e-12)
    assert float(found.by_feature.sum()) == pytest.approx(float(found.loss), rel=1e-12)
    if not scale:
        np.testing.assert_array_equal(found.scale, 1)


def test_more_latents_than_features_and_fewer():
    x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    spare = jnp.column_stack([jnp.array([0.5, 0.5]), x[:, ::-1]])
    found = recovery.ground_truth_loss(x, spare)
    assert found.latent.tolist() == [2, 1]
    assert float(found.loss) == pytest.approx(0.25)  # the spare latent's energy
    assert float(recovery.ground_truth_loss(x, spare, scale=True).loss) == 0
    found = recovery.ground_truth_loss(x, x[:, 1:])
    assert found.latent.tolist() == [-1, 0]
    assert found.by_feature.tolist() == [0.5, 0.0]


def test_weights_are_repeated_samples():
    x, z = (jax.random.uniform(key, (6, 3)) for key in KEYS[:2])
    weights = jnp.array([1.0, 2.0, 0.0, 1.0, 1.0, 1.0])
    rows = jnp.array([0, 1, 1, 3, 4, 5])
    sae = Autoencoder(jax.random.normal(KEYS[2], (4, 3)))
    for measure in (
        lambda x, z, w: recovery.ground_truth_loss(x, z, weights=w).loss,
        lambda x, z, w: recovery.reconstruction_loss(sae, x, weights=w),
        lambda x, z, w: recovery.penalty_term(sae, x, weights=w),
        lambda x, z, w: recovery.average_active(z, weights=w),
        lambda x, z, w: recovery.dimension_variance(x, weights=w),
    ):
        np.testing.assert_allclose(measure(x, z, weights), measure(x[rows], z[rows], None), rtol=1e-12)


def test_forward_and_losses_by_hand():
    W, V = jax.random.normal(KEYS[0], (5, 3)), jax.random.normal(KEYS[1], (5, 3))
    b, c = jax.random.normal(KEYS[2], (3,)), jax.random.normal(KEYS[3], (5,))
    x = jax.random.normal(KEYS[4], (7, 3))
    z = np.maximum((x - b) @ W.T + c, 0)
    untied = Autoencoder(W, V, c, b)
    np.testing.assert_allclose(untied.encode(x), z, rtol=1e-12)
    np.testing.assert_allclose(untied(x), z @ V + b, rtol=1e-12)
    np.testing.assert_allclose(Autoencoder(W)(x), np.maximum(x @ W.T, 0) @ W, rtol=1e-12)
    m = jnp.array([0.5, 1.0, 3.0])
    byhand = (m * (x - z @ V - b) ** 2).sum(1).mean()
    assert float(recovery.reconstruction_loss(untied, x, metric=m)) == pytest.approx(float(byhand), rel=1e-12)
    top = Autoencoder(W, V, c, b, k=2).encode(x)
    np.testing.assert_allclose(top, np.where(z >= -np.sort(-z, axis=1)[:, 1:2], z, 0), rtol=1e-12)
    penalty = (z.mean(0) * np.linalg.norm(V, axis=1)).sum()
    assert float(recovery.penalty_term(untied, x)) == pytest.approx(float(penalty), rel=1e-12)


def test_row_distance_and_alignment_see_through_order():
    W = jax.random.normal(KEYS[0], (5, 3))
    order = jax.random.permutation(KEYS[1], 5)
    assert float(recovery.row_distance(W[order], W)) == 0
    np.testing.assert_allclose(recovery.alignment(3 * W[order], W), 1, rtol=1e-12)
    other = jax.random.normal(KEYS[2], (5, 3))
    V, U = np.asarray(other), np.asarray(W)
    least = min(np.linalg.norm(V[list(p)] - U) for p in permutations(range(5)))
    assert float(recovery.row_distance(other, W)) == pytest.approx(float(least / np.linalg.norm(U)), rel=1e-12)
    assert recovery.alignment(W[:2], W).shape == (5,)
    assert (np.asarray(recovery.alignment(W[:2], W)) == 0).sum() == 3  # features without a row


def test_agreement_counts_restarts_at_the_best_solution():
    W = jax.random.normal(KEYS[0], (4, 3))
    rows = jnp.stack([W + 0.5, W, W[::-1], 1.001 * W])
    found = recovery.agreement(rows, jnp.array([jnp.nan, 0.1, 0.1, 0.2]))
    assert found.same.tolist() == [False, True, True, True]
    assert int(found.best) == 1
    assert float(found.share) == 0.75
    assert "3 of 4 restarts" in found.message()
