"""Maps: their geometry, what the toy model learns, and what a lone feature suffers at the closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdict import recovery
from jaxdict.problem import Dictionary
from jaxdict.synthetic import coherence


def cosines(directions):
    return np.asarray(directions @ directions.T)


def test_geometry():
    for n in (3, 5, 6):
        G = cosines(recovery.polygon_map(n))
        np.testing.assert_allclose(G[0], np.cos(2 * np.pi * np.arange(n) / n), atol=1e-15)
    np.testing.assert_allclose(cosines(recovery.tetrahedron_map()), 4 / 3 * np.eye(4) - 1 / 3, atol=1e-15)
    np.testing.assert_array_equal(cosines(recovery.digon_map(2)), np.kron(np.eye(2), [[1, -1], [-1, 1]]))


def test_blocks_do_not_meet():
    blocks = recovery.identity_map(2), recovery.polygon_map(3), recovery.tetrahedron_map()
    whole = recovery.block_map(*blocks)
    assert whole.shape == (9, 7)
    G = cosines(whole)
    assert not G[:2, 2:].any()
    assert not G[2:5, 5:].any()
    np.testing.assert_allclose(G[2:5, 2:5], cosines(blocks[1]), atol=1e-15)


@pytest.mark.parametrize("target", [0.4, 0.6, 0.95])
def test_random_map_has_the_coherence_asked_for(target):
    directions = recovery.random_map(jax.random.key(0), 8, 5, largest_cosine=target)
    np.testing.assert_allclose(jnp.linalg.norm(directions, axis=1), 1, atol=1e-12)
    assert float(coherence(Dictionary(directions))) == pytest.approx(target, abs=1e-9)
    other = recovery.random_map(jax.random.key(1), 8, 5, largest_cosine=target)
    assert not np.allclose(other, directions)


def test_coherence_out_of_reach():
    with pytest.raises(ValueError, match="out of reach"):
        recovery.random_map(jax.random.key(0), 8, 5, largest_cosine=0.1)  # Welch: at least .29


@pytest.mark.slow
def test_learned_map_gives_frequent_features_their_own_dimensions():
    # Two features on every other time, four rare ones, four dimensions: two are left for the four, as two digons.
    sparsity = jnp.array([0.5, 0.5, 0.97, 0.97, 0.97, 0.97])
    keys = jax.random.split(jax.random.key(0), 3)
    runs = jax.jit(jax.vmap(lambda key: recovery.learned_map(key, sparsity, 4, steps=1500, n_samples=256)))(keys)
    shares = np.asarray(jax.vmap(recovery.dimensions_per_feature)(runs.directions))
    np.testing.assert_allclose(shares[:, :2], 1, atol=0.02)
    best = int(runs.loss.argmin())
    np.testing.assert_allclose(shares[best, 2:], 0.5, atol=0.02)
    G = cosines(runs.directions[best])
    assert (np.sort(G, axis=1)[2:, 0] < -0.5).all()  # each of the four has its antipode
    # Not every run gets there: the third drops one rare feature, which leaves another a dimension, at a dearer loss.
    np.testing.assert_allclose(np.sort(shares[2, 2:]), [0, 0.5, 0.5, 1], atol=0.05)
    assert runs.loss[2] > 5 * runs.loss[best]


@pytest.mark.slow
def test_single_feature_error_is_the_limit_of_extreme_sparsity():
    directions = recovery.block_map(recovery.identity_map(1), recovery.polygon_map(5))
    for S in (0.99, 0.999):
        features = recovery.stratified_features(jax.random.key(0), 20, jnp.full(6, S))
        latents = recovery.closed_form(directions).encode(recovery.superpose(features.x, directions))
        ratio = jnp.mean(features.weights * jnp.sum((features.x - latents) ** 2, axis=1)) / features.energy
    limit = float(recovery.single_feature_error(directions).mean())
    assert limit == pytest.approx(5 / 6 * 2 * np.cos(2 * np.pi / 5) ** 2)
    assert float(ratio) == pytest.approx(limit, rel=0.15)  # 20 magnitudes a pattern; the next order is .001
    for exact in (recovery.digon_map(3), recovery.polygon_map(3), recovery.tetrahedron_map(), recovery.identity_map(2)):
        assert float(recovery.single_feature_error(exact).max()) < 1e-30
