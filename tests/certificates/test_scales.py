"""Certificates at every scale of the data, and what they must not say there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.certificates.births import birth
from jaxdict.certificates.curvature import Curvature
from jaxdict.certificates.stationarity import stationarity
from jaxdict.objectives import moments


def point(dtype, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(3, 2))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X, Z = rng.normal(size=(16, 2)), np.maximum(rng.normal(size=(16, 3)), 0)
    problem = jd.Problem(lam=jnp.asarray(0.4 * scale, dtype))
    offset = jnp.asarray(scale * np.array([0.1, -0.2]), dtype)
    return (
        problem,
        jd.Dictionary(jnp.asarray(D, dtype), offset),
        jnp.asarray(scale * Z, dtype),
        jnp.asarray(scale * X, dtype),
    )


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100])
def test_measures_without_units_are_right_at_every_scale_in_float32(scale):
    plain = jd.certify(*point(jnp.float32))
    found = jd.certify(*point(jnp.float32, scale))
    for name in ("stationarity", "max_residual_ratio", "shares", "n_rays", "n_dead"):
        for one, other in zip(*(jax.tree.leaves(getattr(c, name)) for c in (found, plain)), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)
    assert not bool(found.is_stationary())
    assert not bool(found.is_globally_optimal())
    values = [float(found.objective), float(found.global_gap), float(found.directional_derivative)]
    wanted = [
        float(np.float32(scale) * v * np.float32(scale))
        for v in (plain.objective, plain.global_gap, plain.directional_derivative)
    ]
    np.testing.assert_allclose(values, wanted, rtol=2e-5)
    assert "Globally" not in found.message()
    assert "codes are within 0.0e+00" not in found.message()
    np.testing.assert_allclose(stationarity(*point(jnp.float32, scale)).worst, plain.stationarity.worst, rtol=2e-5)
    wide = jd.wide.bound(point(jnp.float32, scale)[3], 0.4 * scale)
    assert int(wide.n_rays) == int(plain.n_rays)


def test_the_slope_is_covariant():
    plain, scaled = jd.certify(*point(jnp.float64)), jd.certify(*point(jnp.float64, 3.0))
    np.testing.assert_allclose(scaled.directional_derivative, 9 * plain.directional_derivative, rtol=1e-12)


@pytest.mark.slow
def test_a_flat_offset_is_called_flat():
    """T14's pair where half the samples lie beyond +lam and half beyond -lam: b may move with nothing lost."""
    X = np.array([[3.0], [2.5], [-3.0], [-2.0]])
    pair, Z = (
        jd.Dictionary(np.array([[1.0], [-1.0]]), np.zeros(1)),
        np.concatenate([np.maximum(X - 1, 0), np.maximum(-X - 1, 0)], 1),
    )
    for dtype in (np.float32, np.float64):
        told = jd.certify(
            jd.Problem(lam=1.0), *jax.tree.map(lambda a, t=dtype: jnp.asarray(a, t), (pair, Z, X)), curvature=True
        )
        assert bool(told.is_stationary(1e-6))
        assert "flat as far as this precision" in told.message()
        assert "local minimum" not in told.message()


@pytest.mark.slow
def test_no_minimum_is_claimed_where_the_error_exceeds_the_value():
    X, Z = np.array([[3.0], [-3.0], [0.0]]), np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    told = jd.certify(jd.Problem(lam=1.0), jd.Dictionary(np.array([[1.0], [-1.0]]), np.zeros(1)), Z, X, curvature=True)
    for value, error in ((0.1, 0.2), (1e-9, 0.0), (0.1, 0.05)):
        known = told.curvature._replace(eigenvalue=jnp.array(value), residual_norm=jnp.array(error))
        assert isinstance(known, Curvature)
        said = told._replace(curvature=known).message()
        assert ("local minimum" in said) == (value > max(error, 1e-8))


def test_global_optimality_needs_codes_and_offset():
    """Two far samples, zero residual beyond lam nowhere: with codes or offset off, nothing is proved."""
    X, Z = np.array([[3.0], [-3.0], [0.0]]), np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    pair, problem = jd.Dictionary(np.array([[1.0], [-1.0]]), np.zeros(1)), jd.Problem(lam=1.0)
    assert bool(jd.certify(problem, pair, Z, X).is_globally_optimal(1e-9))
    more = np.where(Z > 0, 2.5, 0)  # residuals of one half: within lam, E[r] = 0, codes not optimal
    assert not bool(jd.certify(problem, pair, more, X).is_globally_optimal(1e-3))
    shifted = jd.Dictionary(
        pair.atoms, np.array([0.5])
    )  # codes optimal for this offset, but the zero sample pulls it back
    codes = np.concatenate([np.maximum(X - 0.5 - 1, 0), np.maximum(0.5 - X - 1, 0)], 1)
    told = jd.certify(problem, shifted, codes, X)
    assert float(told.stationarity.codes) < 1e-12
    assert float(told.max_residual_ratio) <= 1
    assert not bool(told.is_globally_optimal(1e-3))


def test_signed_codes_off_the_support_are_seen_on_both_sides():
    problem, D = jd.Problem(lam=1.0, offset=False, signed=True), jd.Dictionary(np.array([[1.0]]))
    for x in (3.0, -3.0):
        told = jd.certify(problem, D, np.zeros((1, 1)), np.array([[x]]))
        assert float(told.stationarity.codes) == pytest.approx(2.0)  # |s| - 1
        assert float(told.duality_gap.mean) == pytest.approx(2.0)  # 1/2 (3 - 1)^2


def test_an_atom_that_its_codes_pull_away_and_one_inside_the_ball():
    X, Z = np.array([[1.0, 0.0]]), np.array([[2.0]])  # r = -d: v = -u z / (lam z)
    problem = jd.Problem(lam=0.5, offset=False)
    assert float(stationarity(problem, jd.Dictionary(np.array([[1.0, 0.0]])), Z, X).atoms) == pytest.approx(2.0)
    inside = jd.Dictionary(np.array([[0.25, 0.0]]))  # r = (1/2, 0): v = (1, 0), outward, but the ball's inside is free
    assert float(stationarity(problem, inside, Z, X).atoms) == pytest.approx(1.0)
    outside = jd.Dictionary(np.array([[1.5, 0.0]]))  # r = (1/2, 0), along the atom: all that is wrong is its length
    assert float(stationarity(problem, outside, Z, np.array([[3.5, 0.0]])).atoms) == pytest.approx(0.5)


def test_an_atom_whose_mean_code_is_no_number_is_not_passed_over_as_dead():
    problem, D = jd.Problem(lam=0.5, offset=False), jd.Dictionary(np.array([[1.0, 0.0]]))
    assert np.isnan(stationarity(problem, D, np.array([[np.nan]]), np.array([[1.0, 0.0]])).atoms)


def test_the_wide_dual_is_scaled_to_be_feasible():
    """With an offset that is not the best, `E[m theta] = 0` is made so by a shift, which may leave the ball: then all shrink."""
    X = jnp.asarray(np.random.default_rng(5).standard_cauchy(size=(9, 2)))
    truth = float(jd.wide.bound(X, 0.3).value)
    for steps in (0, 1, 60):
        limit = jd.wide.bound(X, 0.3, max_steps=steps)
        assert float(limit.dual_value) <= truth + 1e-12
        assert float(limit.value) >= truth - 1e-9


OUTPUTS = {
    "wide_bound": lambda p, D, Z, X: jd.certify(p, D, Z, X).wide_bound,
    "global_gap": lambda p, D, Z, X: jd.certify(p, D, Z, X).global_gap,
    "objective": lambda p, D, Z, X: jd.certify(p, D, Z, X).objective,
    "gap": lambda p, D, Z, X: jd.certify(p, D, Z, X).duality_gap.mean,
    "birth": lambda p, D, Z, X: jd.certify(p, D, Z, X).birth.gain,
    "slope": lambda p, D, Z, X: jd.certify(p, D, Z, X).directional_derivative,
    "ratio": lambda p, D, Z, X: jd.certify(p, D, Z, X).max_residual_ratio,
    "atoms": lambda p, D, Z, X: stationarity(p, D, Z, X).atoms,
    "birth alone": lambda p, D, Z, X: birth(p, D, Z, X).gain,
    "wide.value": lambda p, D, Z, X: jd.wide.bound(X, p.lam, metric=p.metric, weights=p.weights).value,
    "wide.dual_value": lambda p, D, Z, X: jd.wide.bound(X, p.lam, metric=p.metric, weights=p.weights).dual_value,
    "lam_max": lambda p, D, Z, X: p.lam_max(X, D),
}
CONSTANT = {
    "wide.offset": lambda p, D, Z, X: jnp.sum(jd.wide.bound(X, p.lam).offset),
    "birth.atom": lambda p, D, Z, X: jnp.sum(birth(p, D, Z, X).atom),
    "curvature": lambda p, D, Z, X: jd.certify(p, D, Z, X, curvature=True).curvature.eigenvalue,
}


def with_everything():
    problem, D, Z, X = point(jnp.float64, seed=3)
    m, w = jnp.array([0.5, 1.5]), jnp.linspace(0.5, 1.5, 16)
    return jd.Problem(lam=problem.lam, metric=m, weights=w), D, Z, X


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_derivatives_are_those_of_finite_differences(name):
    args = with_everything()
    rng = np.random.default_rng(1)
    move = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)) * (a != 0), args)
    value = jax.jit(lambda t: OUTPUTS[name](*jax.tree.map(lambda a, v: a + t * v, args, move)))
    h = 1e-5
    wanted = (value(h) - value(-h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(value)(0.0), wanted, rtol=2e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONSTANT)
def test_what_is_said_to_be_constant_is(name):
    args = with_everything()
    assert not np.any(np.asarray(jax.grad(lambda X: CONSTANT[name](*args[:3], X))(args[3])))


def test_sparse_moments_do_not_grow_with_the_number_of_blocks():
    n, k, d, slots = 2048, 65536, 768, 32
    shapes = (
        jd.Problem(lam=0.1),
        jd.Dictionary(jax.ShapeDtypeStruct((k, d), jnp.float32), jax.ShapeDtypeStruct((d,), jnp.float32)),
        jd.SparseCodes(jax.ShapeDtypeStruct((n, slots), jnp.int32), jax.ShapeDtypeStruct((n, slots), jnp.float32)),
        jax.ShapeDtypeStruct((n, d), jnp.float32),
    )
    with jax.enable_x64(False):
        from_shapes = jax.jit(lambda lam, D, Z, X: moments(jd.Problem(lam=lam), D, Z, X))
        lam = jax.ShapeDtypeStruct((), jnp.float32)
        memory = from_shapes.lower(lam, *shapes[1:]).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2e9  # one (atoms, d) array is .2e9; one a block were 6.4e9


@pytest.mark.slow
def test_sums_over_many_blocks_hold_in_float32(monkeypatch):
    problem, D, Z, X = point(jnp.float32)
    problem, D, Z, X = problem, D, jnp.tile(Z, (64, 1)), jnp.tile(X, (64, 1))
    whole = moments(problem, D, Z, X)
    monkeypatch.setattr("jaxdict.objectives.BLOCK_ENTRIES", 27)
    jax.clear_caches()
    parts = moments(problem, D, jd.sparse_codes(Z), X)
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)
    jax.clear_caches()
