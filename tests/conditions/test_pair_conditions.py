"""T6: the pair condition, against brute force, at stationary points, and where it must fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stationary_points import made_child

import jaxdict as jd
from jaxdict.conditions import merge_pair_statistics, pair_statistics, pairs, pairs_from_statistics, row_direction


def brute_extremes(Z, quantile=0.0, keep=None):
    """The (K, K, N) computation: sort j's activations where i is off."""
    Z = np.asarray(Z)[slice(None) if keep is None else keep]
    n_atoms, active = Z.shape[1], (Z > 0).sum(axis=0)
    largest, smallest = np.full((n_atoms, n_atoms), -np.inf), np.full((n_atoms, n_atoms), np.inf)
    for i in range(n_atoms):
        falling = -np.sort(-Z[Z[:, i] == 0], axis=0)
        for j in range(n_atoms if len(falling) else 0):
            skip = int(quantile * active[j] + 1e-4)
            largest[i, j] = falling[skip, j] if skip < len(falling) else 0
            smallest[i, j] = falling[len(falling) - 1 - int(quantile * len(falling) + 1e-4), j]
    return largest, smallest


def random_codes(seed, n_samples, n_atoms, frequency):
    rng = np.random.default_rng(seed)
    codes = rng.exponential(size=(n_samples, n_atoms)) * (rng.random((n_samples, n_atoms)) < frequency)
    half = n_atoms // 2
    codes[:, :2] *= codes[:, half : half + 2] > 0  # two children
    return codes


def random_dictionary(n_atoms, d=5, seed=0):
    atoms = np.random.default_rng(seed).normal(size=(n_atoms, d))
    return jd.Dictionary(jnp.asarray(atoms))


@pytest.mark.parametrize("quantile", [0.0, 0.1])
@pytest.mark.parametrize(("frequency", "depth"), [(0.2, 64), (0.2, 2), (0.9, 3), (0.99, 64)])
def test_extremes_are_those_of_brute_force(quantile, frequency, depth):
    Z = random_codes(0, 90, 12, frequency)
    found = pair_statistics(jd.sparse_codes(jnp.asarray(Z), 12), n_atoms=12, quantile=quantile, depth=depth)
    largest, smallest = brute_extremes(Z, quantile)
    np.testing.assert_array_equal(found.largest, largest)
    np.testing.assert_array_equal(found.smallest, smallest)


@pytest.mark.slow
@pytest.mark.parametrize("quantile", [0.0, 0.02])
def test_sparse_codes_at_k_256_are_exact(quantile):
    Z = random_codes(1, 1500, 256, 0.05)
    found = pair_statistics(jd.sparse_codes(jnp.asarray(Z)), n_atoms=256, quantile=quantile, depth=8)
    largest, smallest = brute_extremes(Z, quantile)
    np.testing.assert_array_equal(found.largest, largest)
    np.testing.assert_array_equal(found.smallest, smallest)


@pytest.mark.slow
def test_dense_and_sparse_codes_weights_and_chunks_agree():
    Z, dictionary = random_codes(2, 90, 12, 0.3), random_dictionary(12)
    w = jnp.asarray(np.random.default_rng(1).integers(0, 3, size=90) * 1.0)
    dense = pairs(dictionary, jnp.asarray(Z), weights=w)
    sparse = pairs(dictionary, jd.sparse_codes(jnp.asarray(Z), 12), weights=w)
    np.testing.assert_allclose(dense.margin, sparse.margin, atol=1e-12)
    largest, _ = brute_extremes(Z, keep=np.asarray(w) > 0)
    np.testing.assert_allclose(dense.largest * (w @ Z / w.sum()), largest, atol=1e-12)
    chunks = [
        pair_statistics(jd.sparse_codes(jnp.asarray(Z[a:b]), 12), n_atoms=12, weights=w[a:b])
        for a, b in ((0, 30), (30, 60), (60, 90))
    ]
    streamed = pairs_from_statistics(dictionary, functools.reduce(merge_pair_statistics, chunks))
    np.testing.assert_allclose(streamed.margin, dense.margin, atol=1e-12)


def test_scales_of_atoms_do_not_matter():
    Z, dictionary = jnp.asarray(random_codes(3, 90, 12, 0.3)), random_dictionary(12)
    unit, codes = jd.canonical(dictionary, Z)
    np.testing.assert_allclose(pairs(dictionary, Z).margin, pairs(unit, codes).margin, atol=1e-12)


def test_three_samples_by_hand():
    """zbar = (1, 2/3): where 0 is off feature 1 reaches 2, so lower = 1 - 3 = -2, and is off once, so upper = 1."""
    codes = jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    found = pairs(jd.Dictionary(jnp.array([[1.0, 0.0], [0.6, 0.8]])), codes)
    assert found.lower[0, 1] == pytest.approx(-2.0)
    assert found.upper[0, 1] == pytest.approx(1.0)
    assert found.margin[0, 1] == pytest.approx(0.4)
    assert found.margin[1, 0] == pytest.approx(0.4)
    assert bool(jnp.isnan(found.margin[0, 0]))


def test_dead_features_are_nan_and_features_never_off_violate():
    codes = jnp.array([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    found = pairs(jd.Dictionary(jnp.eye(3)), codes)
    assert bool(jnp.isnan(found.margin[2]).all() & jnp.isnan(found.margin[:, 2]).all())
    assert float(found.margin[0, 1]) == -np.inf
    assert [(row.i, row.j) for row in found.violations()] == [(0, 1), (1, 0)]


def test_without_offset_only_children_violate_unless_they_are_duplicates():
    codes = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    apart = pairs(jd.Dictionary(jnp.eye(2)), codes, offset=False)
    assert float(apart.margin[0, 1]) == -1.0
    assert float(apart.margin[1, 0]) == pytest.approx(1.5)  # max z_0 / zbar_0 where 1 is off
    twins = pairs(jd.Dictionary(jnp.ones((2, 1))), codes, offset=False)
    assert float(twins.margin[0, 1]) == 0
    opposite = pairs(jd.Dictionary(jnp.array([[1.0], [-1.0]])), jnp.array([[1.0, 0.0], [0.0, 2.0]]), offset=False)
    assert float(opposite.margin[0, 1]) > 0  # the optimal antipodal pair, G = -1


def test_a_quantile_uncovers_a_hierarchy_behind_a_misfire():
    rng = np.random.default_rng(0)
    parent = rng.random(1000) < 0.3
    child = parent & (rng.random(1000) < 0.5)
    child[np.flatnonzero(~parent)[0]] = True
    codes, dictionary = jnp.asarray(np.stack([parent, child], axis=1) * 1.0), jd.Dictionary(jnp.eye(2))
    assert float(pairs(dictionary, codes).margin[0, 1]) > 0
    assert float(pairs(dictionary, codes, quantile=0.02).margin[0, 1]) == -1


def test_stationary_points_pass(point):
    problem, dictionary, codes, _ = point
    found = pairs(dictionary, codes, offset=problem.offset, weights=problem.weights)
    assert float(jnp.nanmin(found.margin)) >= -1e-9


@pytest.mark.parametrize("kind", ["child", "lower", "upper"])
def test_a_violated_pair_descends_at_its_rate(point, kind):
    problem, dictionary, codes, X = point
    codes = made_child(codes)
    if kind == "lower":  # weak, not silent, where the parent is off
        codes = codes.at[:, 1].add(jnp.where(codes[:, 0] > 0, 1, 0.05))
    if kind == "upper":  # strong where the parent is off
        codes = codes.at[:, 1].set(jnp.where(codes[:, 0] > 0, 0.05, 1.0))
        dictionary = dictionary._replace(atoms=dictionary.atoms.at[1].set(dictionary.atoms[0]))
    if kind != "child" and not problem.offset:
        return
    found = pairs(dictionary, codes, offset=problem.offset, weights=problem.weights)
    row = next(row for row in found.violations(None) if (row.i, row.j) == (0, 1))
    move = row_direction(dictionary, codes, 0, *found.separating_row(0, 1, offset=problem.offset))
    slope = float(jd.directional_derivative(problem, dictionary, codes, X, move))
    assert slope == pytest.approx(-float(problem.lam) * row.rate, abs=1e-10)
    assert slope < -1e-3


@pytest.mark.slow
def test_margins_are_differentiable_and_jit_agrees():
    Z, dictionary = jnp.asarray(random_codes(4, 90, 12, 0.3)), random_dictionary(12)
    sparse = jd.sparse_codes(Z, 12)

    def total(atoms, values, offset):
        return jnp.nansum(pairs(jd.Dictionary(atoms), sparse._replace(values=values), offset=offset).margin)

    for offset in (True, False):
        slopes = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnums=2)(dictionary.atoms, sparse.values, offset)
        assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)
        step = jax.random.normal(jax.random.key(0), sparse.values.shape) * (sparse.values > 0)
        ahead, behind = (total(dictionary.atoms, sparse.values + t * step, offset) for t in (1e-6, -1e-6))
        assert float(jnp.sum(slopes[1] * step)) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-5)


def test_float32_stays_float32_and_negative_codes_are_refused():
    Z, dictionary = random_codes(5, 90, 12, 0.3).astype(np.float32), random_dictionary(12)
    single = pairs(jd.Dictionary(dictionary.atoms.astype(jnp.float32)), jnp.asarray(Z))
    assert single.margin.dtype == jnp.float32
    np.testing.assert_allclose(single.margin, pairs(dictionary, jnp.asarray(Z, float)).margin, rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="codes >= 0"):
        pairs(dictionary, jnp.asarray(-Z))
