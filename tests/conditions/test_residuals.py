"""T9 and C4: what residuals may say about features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stationary_points import turned

import jaxdict as jd
from jaxdict.conditions import mop_up, mop_up_direction, residual, residual_from_sums, residual_samples
from jaxdict.conditions.barycentres import unit_moments


def test_zero_at_stationary_points(point, signed_point):
    for problem, dictionary, codes, X in (point, signed_point):
        found = residual(problem, dictionary, codes, X)
        assert float(found.norm.max()) < 1e-9
        np.testing.assert_allclose(found.along, 1, atol=1e-10)
        for k in range(len(dictionary.atoms)):  # any direction u: the covariance, or the moment without offset
            swept = mop_up(problem, dictionary, codes, X, k, jnp.array([1.0, -2.0, 0.5]))
            assert float(swept.rate) < 1e-10


def test_norm_and_direction_against_numpy_and_the_descent(point, signed_point):
    for problem, dictionary, codes, X in (point, signed_point):
        dictionary = turned(dictionary)
        found = residual(problem, dictionary, codes, X)
        w = np.ones(len(X)) if problem.weights is None else np.asarray(problem.weights)
        m = np.ones(3) if problem.metric is None else np.asarray(problem.metric)
        r = np.asarray(X - dictionary.offset - codes @ dictionary.atoms)
        for k, d in enumerate(np.asarray(dictionary.atoms)):
            moment = (w / w.sum() * np.asarray(codes[:, k])) @ (m * r)
            scale = float(problem.lam) * (w / w.sum()) @ abs(np.asarray(codes[:, k]))
            assert float(found.norm[k]) == pytest.approx(np.linalg.norm(moment - (moment @ d) * d) / scale, rel=1e-9)
            assert float(found.direction[k] @ d) == pytest.approx(0, abs=1e-12)
            still = jd.Direction(jnp.zeros((len(dictionary.atoms), 3)), jnp.zeros_like(codes), jnp.zeros(3))
            move = still._replace(atoms=still.atoms.at[k].set(found.direction[k]))
            slope = float(jd.directional_derivative(problem, dictionary, codes, X, move))
            assert slope == pytest.approx(-scale * float(found.norm[k]), abs=1e-10)
        assert float(found.norm.max()) > 1e-2


def test_dead_features_are_nan_and_sparse_codes_agree(point):
    problem, dictionary, codes, X = point
    dictionary = turned(dictionary)._replace(atoms=jnp.concatenate([turned(dictionary).atoms, dictionary.atoms[:1]]))
    codes = jnp.pad(codes, [(0, 0), (0, 1)])
    dense, sparse = (residual(problem, dictionary, c, X) for c in (codes, jd.sparse_codes(codes)))
    assert bool(jnp.isnan(dense.norm[4]))
    np.testing.assert_allclose(dense.norm, sparse.norm, atol=1e-12)
    streamed = residual_from_sums(problem, dictionary, unit_moments(problem, dictionary, codes, X))
    np.testing.assert_array_equal(streamed.norm, dense.norm)


def test_samples_sum_to_the_norm(point):
    problem, dictionary, codes, X = point
    dictionary = turned(dictionary)
    found = residual(problem, dictionary, codes, X)
    samples, shares = residual_samples(problem, dictionary, codes, X, 1, found.direction[1], top=len(X))
    assert float(shares.sum()) == pytest.approx(float(found.norm[1]), rel=1e-9)
    assert bool((shares[:-1] >= shares[1:]).all())
    assert len(set(samples.tolist())) == len(X)


@pytest.mark.parametrize("offset", [True, False])
def test_a_labrador_cannot_leave_the_dog_in_the_residual(offset):
    """Binary z of frequency p, f active only where it is: Cov = fbar zbar (1 - p) / p."""
    rng = np.random.default_rng(0)
    z = (rng.random(400) < 0.25) * 2.0
    f = z * (rng.random(400) < 0.6)
    p, u = (z > 0).mean(), jnp.array([0.0, 1.0, 0.0])
    X = np.stack([z + 0.5 * (z > 0), f - f.mean() * offset, np.zeros(400)], axis=1)
    problem, point = jd.Problem(lam=0.5, offset=offset), (jd.Dictionary(jnp.eye(3)[:1], jnp.zeros(3)), z[:, None])
    found = mop_up(problem, *point, X, 0, u + 7 * point[0].atoms[0])
    np.testing.assert_allclose(found.u, u, atol=1e-12)
    assert float(found.covariance) == pytest.approx(f.mean() * z.mean() * (1 - p) / p, rel=1e-9)
    assert float(found.covariance) == pytest.approx(float(found.f_mean * (found.f_mean_code - found.mean_code)))
    assert float(found.f_mean_code) == pytest.approx(2.0)
    expected = found.covariance if offset else found.f_mean * found.f_mean_code
    assert float(found.rate) == pytest.approx(float(expected))
    move = mop_up_direction(problem, *point, 0, found)
    assert float(jd.directional_derivative(problem, *point, X, move)) == pytest.approx(-float(found.rate), abs=1e-12)


def test_the_rate_is_exact_at_any_point(point):
    problem, dictionary, codes, X = point
    dictionary = turned(dictionary, size=0.3)
    for seed in range(5):
        u = np.random.default_rng(seed).normal(size=3)
        found = mop_up(problem, dictionary, jd.sparse_codes(codes), X, 2, u)
        move = mop_up_direction(problem, dictionary, codes, 2, found)
        slope = float(jd.directional_derivative(problem, dictionary, codes, X, move))
        assert slope == pytest.approx(-float(found.rate), abs=1e-10)


def test_differentiable(point):
    problem, dictionary, codes, X = point
    total = lambda D: jnp.sum(residual(problem, dictionary._replace(atoms=D), codes, X).norm)  # noqa: E731
    for atoms in (dictionary.atoms, turned(dictionary).atoms):
        assert bool(jnp.isfinite(jax.jit(jax.grad(total))(atoms)).all())
