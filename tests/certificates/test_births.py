"""T10: the gain of a new atom is exact, none is missed in the plane, and none is claimed where none exists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.certificates.births import birth, birth_gains, max_residual_ratio

N, K = 30, 3
METRICS = [None, np.array([0.3, 3.0])]


def point(seed, **options):
    rng = np.random.default_rng(seed)
    X = jnp.array(rng.normal(size=(N, 2)) * 2)
    atoms = rng.normal(size=(K, 2))
    dictionary = jd.Dictionary(jnp.array(atoms / np.linalg.norm(atoms, axis=1)[:, None]), jnp.zeros(2))
    codes = jnp.array(np.abs(rng.normal(size=(N, K))) * (rng.random((N, K)) < 0.3))
    return jd.Problem(lam=0.6, **options), dictionary, codes, X


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_gain_is_the_objectives_actual_decrease(metric, signed):
    """Add the atom with `z = (<d, r>_m - lam)_+ / ||d||_m^2` and evaluate F."""
    weights = np.random.default_rng(0).integers(0, 3, N) * 1.0
    problem, dictionary, codes, X = point(1, metric=metric, signed=signed, weights=weights)
    new = birth(problem, dictionary, codes, X)
    m = np.ones(2) if metric is None else metric
    r = jd.residual(dictionary, codes, X)
    products = r @ (m * new.atom)
    z = jnp.sign(products) * jnp.maximum(jnp.abs(products) - 0.6, 0) if signed else jnp.maximum(products - 0.6, 0)
    z = z / jnp.sum(m * new.atom**2)
    grown = jd.Dictionary(jnp.concatenate([dictionary.atoms, new.atom[None]]), dictionary.offset)
    after = jd.objective(problem, grown, jnp.concatenate([codes, z[:, None]], axis=1), X)
    before = jd.objective(problem, dictionary, codes, X)
    np.testing.assert_allclose(new.gain, before - after, rtol=1e-12)
    np.testing.assert_allclose(jnp.linalg.norm(new.atom), 1, atol=1e-14)
    assert float(new.gain) > 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_brute_force_over_the_circle_finds_no_better(metric, seed):
    problem, dictionary, codes, X = point(seed, metric=metric)
    new = birth(problem, dictionary, codes, X)
    angles = np.linspace(0, 2 * np.pi, 20000, endpoint=False)
    circle = jnp.array(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    best = float(jnp.max(birth_gains(problem, circle, jd.residual(dictionary, codes, X))))
    assert float(new.gain) >= best * (1 - 1e-12)
    assert float(new.gain) <= best * (1 + 1e-5)


def test_one_sample_has_a_closed_form():
    """r = (3, 4), lam = 1: the atom is r/5 and the gain (5 - 1)^2 / 2."""
    new = birth(jd.Problem(lam=1.0), jd.Dictionary(jnp.eye(2)), jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]]))
    np.testing.assert_allclose(new.gain, 8, rtol=1e-14)
    np.testing.assert_allclose(new.atom, [0.6, 0.8], rtol=1e-14)


@pytest.mark.parametrize("metric", METRICS)
def test_no_gain_iff_every_residual_is_within_lam(metric):
    problem, dictionary, codes, X = point(5, metric=metric)
    heights = max_residual_ratio(problem, dictionary, codes, X) * problem.lam
    for factor, gains in ((1.0001, False), (0.99, True)):
        at = jd.Problem(lam=heights * factor, metric=metric)
        new = birth(at, dictionary, codes, X)
        assert (float(new.gain) > 0) == gains
        assert (float(max_residual_ratio(at, dictionary, codes, X)) > 1) == gains
        np.testing.assert_allclose(jnp.linalg.norm(new.atom), 1, atol=1e-14)
    nothing = birth(problem, dictionary, jnp.zeros_like(codes), jnp.zeros_like(X))
    assert float(nothing.gain) == 0
    assert float(jnp.linalg.norm(nothing.atom)) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_more_steps_never_lower_the_gain(metric):
    args = point(6, metric=metric)
    gains = [float(birth(*args, starts=1, max_steps=steps).gain) for steps in (0, 1, 2, 5, 50)]
    assert gains == sorted(gains)
    assert gains[-1] > gains[0]


def test_sparse_codes_and_jit_agree_with_dense():
    problem, dictionary, codes, X = point(7)
    dense = birth(problem, dictionary, codes, X)
    sparse = jax.jit(birth)(problem, dictionary, jd.sparse_codes(codes), X)
    np.testing.assert_allclose(sparse.gain, dense.gain, rtol=1e-12)
    np.testing.assert_allclose(sparse.atom, dense.atom, atol=1e-6)
