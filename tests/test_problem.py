"""Problem P: its two gauges, its invariance, lam_max, and the directional derivative against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.numerics import pairwise_sum


def point(seed=0, n=30, d=5, k=7, signed=False):
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(k, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    Z = rng.normal(size=(n, k))
    Z = np.where(rng.uniform(size=Z.shape) < 0.5, 0, Z if signed else np.abs(Z))
    return rng.normal(size=(n, d)), jd.Dictionary(D, rng.normal(size=d)), Z


def test_objective_is_its_formula():
    X, dictionary, Z = point()
    rng = np.random.default_rng(1)
    m, w = rng.uniform(0.5, 2, 5), rng.uniform(0, 2, 30)
    r = X - dictionary.offset - Z @ dictionary.atoms
    by_hand = np.average(0.5 * (m * r**2).sum(1) + 0.3 * Z.sum(1), weights=w)
    problem = jd.Problem(lam=0.3, metric=m, weights=w)
    np.testing.assert_allclose(jd.objective(problem, dictionary, Z, X), by_hand, rtol=1e-14)
    np.testing.assert_allclose(jd.objective(problem, dictionary, jd.sparse_codes(Z), X), by_hand, rtol=1e-14)


def test_penalised_gauge_is_invariant_and_agrees_at_unit_atoms():
    X, dictionary, Z = point()
    c = np.random.default_rng(2).uniform(0.5, 2, 7)
    free = jd.Problem(lam=0.3, gauge="penalised")
    scaled = jd.Dictionary(dictionary.atoms * c[:, None], dictionary.offset)
    value = jd.objective(jd.Problem(lam=0.3), dictionary, Z, X)
    np.testing.assert_allclose(jd.objective(free, scaled, Z / c, X), value, rtol=1e-13)
    back, codes = jd.canonical(scaled, jnp.asarray(Z / c))
    np.testing.assert_allclose(back.atoms, dictionary.atoms, atol=1e-14)
    np.testing.assert_allclose(codes, Z, atol=1e-13)


@pytest.mark.parametrize("gauge", ["constrained", "penalised"])
@pytest.mark.parametrize("signed", [False, True])
def test_steepest_direction_and_its_derivative(signed, gauge):
    X, dictionary, Z = point(3, signed=signed)
    problem = jd.Problem(lam=0.3, signed=signed, gauge=gauge)
    d = jd.steepest_feasible_direction(problem, dictionary, Z, X)
    slope = float(jd.directional_derivative(problem, dictionary, Z, X, d))
    squared = sum(float(jnp.sum(part**2)) for part in d)
    np.testing.assert_allclose(slope, -squared, rtol=1e-12)  # Moreau: the projection's slope is minus its squared norm
    t = 1e-6

    def at(t):
        moved = jd.Dictionary(dictionary.atoms + t * d.atoms, dictionary.offset + t * d.offset)
        return float(jd.objective(problem, moved, Z + t * d.codes, X))

    np.testing.assert_allclose(
        (at(t) - at(0)) / t, slope, rtol=1e-4
    )  # F's curvature is of order 10 here, times t / slope
    if not signed:
        assert float(jnp.min((Z + 1e-3 * d.codes)[Z == 0])) >= 0
    if gauge == "constrained":
        assert float(jnp.max(jnp.sum(d.atoms * dictionary.atoms, axis=1))) <= 1e-12


def test_no_feasible_direction_is_steeper():
    X, dictionary, Z = point(4)
    problem = jd.Problem(lam=0.3)
    best = jd.steepest_feasible_direction(problem, dictionary, Z, X)
    size = sum(float(jnp.sum(part**2)) for part in best) ** 0.5
    rng = np.random.default_rng(0)
    for _ in range(50):
        atoms = rng.normal(size=(7, 5))
        outward = np.maximum((atoms * dictionary.atoms).sum(1, keepdims=True), 0)
        codes = rng.normal(size=Z.shape) / 30
        other = [atoms - outward * dictionary.atoms, np.where(Z > 0, codes, np.abs(codes)), rng.normal(size=5)]
        length = sum((part**2).sum() for part in other) ** 0.5
        slope = jd.directional_derivative(
            problem, dictionary, Z, X, type(best)(*(part * size / length for part in other))
        )
        assert float(slope) >= -(size**2) - 1e-12


@pytest.mark.parametrize("options", [{}, {"offset": False}, {"signed": True}, {"metric": [0.5, 1.0, 2.0, 1.0, 1.5]}])
def test_at_lam_max_codes_are_zero_and_below_they_are_not(options):
    X, dictionary, _ = point(5)
    top = float(jd.Problem(lam=1.0, **options).lam_max(X, dictionary))
    for factor, some in ((1.0001, False), (0.99, True)):
        codes = jd.encode(jd.Problem(lam=factor * top, **options), dictionary, X, tol=1e-9).codes
        assert bool(jnp.any(codes != 0)) == some
    anywhere = jd.Problem(lam=1.0, **options).lam_max(X)
    zero = jd.Dictionary(dictionary.atoms, jnp.mean(X, axis=0) * (1.0 if options.get("offset", True) else 0.0))
    for factor, optimal in ((1.0001, True), (0.99, False)):
        seen = jd.certify(jd.Problem(lam=factor * float(anywhere), **options), zero, np.zeros((30, 7)), X)
        assert bool(seen.is_globally_optimal(1e-9)) == optimal


def test_lam_max_by_hand():
    assert float(jd.lam_max(np.array([[3.0, 4.0], [0.0, 1.0]]), offset=False)) == 5
    assert float(jd.lam_max(np.array([[3.0, 0.0], [-1.0, 0.0]]))) == 2


def test_weight_zero_samples_do_not_count():
    X, dictionary, Z = point(6)
    X[0] = 1e3
    w = np.ones(30)
    w[0] = 0
    problem = jd.Problem(lam=0.3, weights=w)
    rest = jd.Problem(lam=0.3)
    np.testing.assert_allclose(
        jd.objective(problem, dictionary, Z, X), jd.objective(rest, dictionary, Z[1:], X[1:]), rtol=1e-13
    )
    both = [jd.certify(p, dictionary, z, x).stationarity for p, z, x in ((problem, Z, X), (rest, Z[1:], X[1:]))]
    np.testing.assert_allclose(both[0].worst, both[1].worst, rtol=1e-12)


def test_float32_objective_holds_1e_6():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200_000, 4)).astype(np.float32)
    Z = np.abs(rng.normal(size=(200_000, 3))).astype(np.float32)
    D = np.linalg.qr(rng.normal(size=(4, 4)))[0][:3].astype(np.float32)
    value = jd.objective(jd.Problem(lam=0.1), jd.Dictionary(D), Z, X)
    r = X.astype(np.float64) - Z.astype(np.float64) @ D
    truth = (0.5 * (r**2).sum(1) + np.float64(np.float32(0.1)) * Z.sum(1, dtype=np.float64)).mean()
    assert value.dtype == jnp.float32
    assert abs(float(value) - truth) <= 1e-6 * truth
    assert float(pairwise_sum(jnp.full(2**20 + 3, 0.1, jnp.float32))) == pytest.approx(0.1 * (2**20 + 3), rel=2e-7)


def test_negative_codes_and_norms_off_the_sphere_are_told():
    X, dictionary, Z = point(7)
    problem = jd.Problem(lam=0.3)
    assert jnp.isinf(jd.certify(problem, dictionary, -Z, X).stationarity.codes)
    outside = jd.Dictionary(1.5 * dictionary.atoms, dictionary.offset)
    assert float(jd.certify(problem, outside, Z, X).stationarity.atoms) >= 0.5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lam": -1}, "lam is negative"),
        ({"lam": 1, "gauge": "free"}, "gauge='free'"),
        ({"lam": 1, "metric": [1.0, 0.0]}, "metric is zero or negative"),
        ({"lam": 1, "weights": [1.0, -1.0]}, "weights is negative"),
        ({"lam": 1j}, "lam has dtype"),
    ],
)
def test_bad_problems_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        jd.Problem(**options)


def test_problem_is_a_pytree_under_jit_vmap_and_grad():
    X, dictionary, Z = point(8)
    value = lambda lam: jd.objective(jd.Problem(lam=lam), dictionary, Z, X)  # noqa: E731
    np.testing.assert_allclose(jax.grad(value)(0.3), Z.sum(1).mean(), rtol=1e-13)
    many = jax.vmap(lambda p: jd.objective(p, dictionary, Z, X))(jd.Problem(lam=jnp.array([0.1, 0.2])))
    np.testing.assert_allclose(many, [float(value(0.1)), float(value(0.2))], rtol=1e-13)
