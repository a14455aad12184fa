"""T7 and T8: the barycentre identity at stationary points, against its definition, and as a sum over samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stationary_points import turned

import jaxdict as jd
from jaxdict.conditions import barycentre, barycentre_from_sums, barycentre_weights, unit_moments
from jaxdict.objectives import combine


def by_definition(problem, dictionary, codes, X):
    """`E[z_j s_i] / zbar_j - G_ij` in numpy, from the correlations of every sample."""
    norms = np.linalg.norm(dictionary.atoms, axis=1, keepdims=True)
    units, Z, X = np.asarray(dictionary.atoms / norms), np.asarray(codes) * norms.T, np.asarray(X)
    w = np.ones(len(X)) if problem.weights is None else np.asarray(problem.weights)
    m = np.ones(X.shape[1]) if problem.metric is None else np.asarray(problem.metric)
    s = (m * (X - np.asarray(dictionary.offset) - Z @ units)) @ units.T / float(problem.lam)
    w = w / w.sum()
    return (w[:, None] * s).T @ Z / (w @ abs(Z)) - units @ units.T


def test_zero_at_stationary_points_for_dead_features_too(point):
    problem, dictionary, codes, X = point
    dictionary = dictionary._replace(atoms=jnp.concatenate([dictionary.atoms, -dictionary.atoms[:1]]))
    defect = barycentre(problem, dictionary, jnp.pad(codes, [(0, 0), (0, 1)]), X)
    assert float(abs(defect[:, :4]).max()) < 1e-9
    assert bool(jnp.isnan(defect[:, 4]).all())


def test_zero_at_signed_stationary_points(signed_point):
    assert float(abs(barycentre(*signed_point)).max()) < 1e-9


def test_equals_its_definition_and_fails_at_turned_atoms(point, signed_point):
    for problem, dictionary, codes, X in (point, signed_point):
        off = turned(dictionary)._replace(atoms=1.5 * turned(dictionary).atoms)
        defect = barycentre(problem, off, codes / 1.5, X)
        np.testing.assert_allclose(defect, by_definition(problem, off, codes / 1.5, X), atol=1e-11)
        assert float(abs(defect).max()) > 1e-2


def test_symmetry_at_stationary_points(point):
    """`E[z_j s_i] / zbar_j = E[z_i s_j] / zbar_i`."""
    problem, dictionary, codes, X = point
    moments = barycentre(problem, dictionary, codes, X) + dictionary.atoms @ dictionary.atoms.T
    np.testing.assert_allclose(moments, moments.T, atol=1e-9)


@pytest.mark.slow
def test_sparse_codes_and_chunks_agree_with_dense(monkeypatch, point):
    problem, dictionary, codes, X = point
    dictionary = turned(dictionary)
    dense = barycentre(problem, dictionary, codes, X)
    monkeypatch.setattr("jaxdict.objectives.BLOCK_ENTRIES", 41)  # several blocks, the last one padded
    jax.clear_caches()
    np.testing.assert_allclose(barycentre(problem, dictionary, jd.sparse_codes(codes), X), dense, atol=1e-12)
    w = problem.weights if problem.weights is not None else jnp.ones(len(X))

    def of_chunk(a, b):
        part = jd.Problem(problem.lam, problem.offset, metric=problem.metric, weights=w[a:b])
        return unit_moments(part, dictionary, codes[a:b], X[a:b])

    sums = combine(of_chunk(0, 17), of_chunk(17, 48), w[17:].sum() / w.sum())
    np.testing.assert_allclose(barycentre_from_sums(problem, dictionary, sums), dense, atol=1e-12)


def test_one_dimension_by_hand():
    """T14's pair: s = (1, -1) where +1 is on and (-1, 1) where -1 is on, so E[z_j s_i]/zbar_j = +-1 = G."""
    point = jd.Dictionary(jnp.array([[1.0], [-1.0]]), jnp.zeros(1)), jnp.array([[1.5, 0.0], [0.0, 0.5]])
    X, problem = jnp.array([[2.0], [-1.0]]), jd.Problem(lam=0.5, offset=True)
    assert float(abs(barycentre(problem, *point, X)).max()) < 1e-15
    np.testing.assert_allclose(barycentre_weights(problem, *point, X, 1), [1.0, 0.0], atol=1e-15)


def test_differentiable_and_float32(point):
    problem, dictionary, codes, X = point
    total = lambda D, Z: jnp.sum(barycentre(problem, dictionary._replace(atoms=D), Z, X) ** 2)  # noqa: E731
    off = turned(dictionary).atoms
    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(off, codes)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)
    step = np.random.default_rng(0).normal(size=off.shape)
    change = (total(off + 1e-6 * step, codes) - total(off - 1e-6 * step, codes)) / 2e-6
    assert float(jnp.sum(slopes[0] * step)) == pytest.approx(float(change), rel=1e-6)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (dictionary, codes, X))
    defect = barycentre(problem.astype(jnp.float32), *single)
    assert defect.dtype == jnp.float32
    assert float(abs(defect).max()) < 1e-5


def test_signed_slack_is_refused(signed_point):
    with pytest.raises(ValueError, match="signed"):
        barycentre_weights(*signed_point, 0)
