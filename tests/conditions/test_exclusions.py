"""C2 and T14: exclusive features coexist at an optimum; dense antipodal pairs are permanent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.certificates.stationarity import stationarity
from jaxdict.conditions import antipodal, exclusive, hierarchy, hull, pairs


def test_exclusive_groups_are_found_and_independent_features_are_not():
    flagged_group, flagged_others = 0, 0
    flags = jax.jit(lambda codes: exclusive(codes).flagged)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        turn = rng.integers(0, 5, size=1000)
        others = rng.random((1000, 6)) < np.array([0.02, 0.05, 0.1, 0.3, 0.6, 0.9])
        on = np.concatenate([turn[:, None] == np.arange(4), others], axis=1)
        found = np.asarray(flags(jnp.asarray(on * 1.0)))
        flagged_group += found[:4, :4].sum()
        flagged_others += found.sum() - found[:4, :4].sum()
        assert (found == found.T).all()
    assert (flagged_group, flagged_others) == (100 * 12, 0)


def test_exclusive_pairs_pass_the_pair_condition_at_every_cosine_above_zero():
    """C2, with some sample where both are off: the bounds are 1 - max z/zbar <= 0 and 1."""
    rng = np.random.default_rng(0)
    turn = rng.integers(0, 3, size=200)
    codes = jnp.asarray((turn[:, None] == np.arange(2)) * (1 + rng.exponential(size=(200, 2))))
    assert exclusive(codes).candidates() == [(0, 1, 0.0, 0)]
    for angle in np.linspace(0, np.pi / 2, 7):
        atoms = jnp.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
        for offset in (True, False):
            assert float(jnp.nanmin(pairs(jd.Dictionary(atoms), codes, offset=offset).margin)) >= 0
    assert not bool(hierarchy(codes).flagged.any())


def test_signed_codes_count_as_on_wherever_they_are_not_zero():
    turns = np.arange(100) % 2
    codes = jnp.asarray(np.stack([turns * np.where(np.arange(100) % 4 == 1, -1.0, 1.0), 1.0 - turns], axis=1))
    assert exclusive(codes).candidates() == [(0, 1, 0.0, 0)]
    assert exclusive(jd.sparse_codes(codes)).candidates() == [(0, 1, 0.0, 0)]


def dense_pair(seed=0, lam=0.3):
    """T14: in one dimension the pair (+1, -1), z = (+-(x - b) - lam)_+ with b a Huber location, is optimal."""
    X = np.random.default_rng(seed).normal(size=(101, 1)) * 2
    b = np.median(X)
    for _ in range(2000):  # the mean of the clipped residuals vanishes at a Huber location
        b += np.clip(X - b, -lam, lam).mean()
    codes = np.maximum(np.concatenate([X - b, b - X], axis=1) - lam, 0)
    return jd.Problem(lam=lam), jd.Dictionary(jnp.array([[1.0], [-1.0]]), jnp.array([b])), jnp.asarray(codes), X


def test_the_dense_antipodal_pair_is_stationary_and_flagged():
    problem, dictionary, codes, X = dense_pair()
    assert float(stationarity(problem, dictionary, codes, X).worst) < 1e-12
    assert bool(hull(dictionary, codes, jnp.arange(2)).inside.all())
    assert float(jnp.nanmin(pairs(dictionary, codes).margin)) >= -1e-9
    found = antipodal(dictionary, codes)
    share = float((codes.max(axis=1) > 0).mean())
    assert found.candidates() == [(0, 1, -1.0, pytest.approx(share))]
    assert bool(found.dense[0, 1]) == (share > 0.5)
    assert float(found.overlap[0, 1]) == 0


def test_antipodal_thresholds_sparse_codes_and_rare_pairs():
    codes = jnp.zeros((10, 3)).at[0, 0].set(1.0).at[1, 1].set(1.0)
    atoms = jnp.array([[1.0, 0.0], [-1.0, 0.1], [0.0, 2.0]])
    for given in (codes, jd.sparse_codes(codes)):
        found = antipodal(jd.Dictionary(atoms), given)
        assert [row[:2] for row in found.candidates()] == [(0, 1)]
        assert not bool(found.dense.any())
        assert float(found.coverage[0, 1]) == pytest.approx(0.2)
    assert bool(antipodal(jd.Dictionary(atoms), codes, coverage=0.1).dense[0, 1])
    assert not bool(antipodal(jd.Dictionary(atoms), codes, cosine=-0.999).flagged.any())
