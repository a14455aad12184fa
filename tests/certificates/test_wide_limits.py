"""T11 to T14: the wide limit against closed forms, SciPy, its own dual, and points of finite width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxdict as jd
from jaxdict.certificates.wide_limits import count_rays, shrink, wide_limit

N, D = 40, 3
LIMIT = jax.jit(wide_limit)


def huber(t, lam):
    return np.where(t <= lam, 0.5 * t**2, lam * t - 0.5 * lam**2)


def certified(limit):
    """Primal and dual meet to 1e-12 relative: the value is proved, whatever found it."""
    assert float(limit.dual_value) <= float(limit.value) * (1 + 1e-14)
    assert float(limit.value - limit.dual_value) <= 1e-12 * float(limit.value)


def test_without_offset_the_wide_limit_is_the_mean_huber_function():
    X = np.random.default_rng(0).normal(size=(N, D))
    limit = LIMIT(jd.Problem(lam=1.2, offset=False), jnp.array(X))
    np.testing.assert_allclose(limit.value, huber(np.linalg.norm(X, axis=1), 1.2).mean(), rtol=1e-14)
    np.testing.assert_allclose(limit.radius, np.maximum(np.linalg.norm(X, axis=1) - 1.2, 0), atol=1e-14)
    assert not np.any(limit.offset)
    certified(limit)


def test_above_lam_max_it_is_half_the_variance():
    X = np.random.default_rng(1).normal(size=(N, D)) + 3
    problem = jd.Problem(lam=1.0)
    lam = 1.001 * float(problem.lam_max(jnp.array(X)))
    limit = LIMIT(jd.Problem(lam=lam), jnp.array(X))
    np.testing.assert_allclose(limit.value, 0.5 * X.var(axis=0).sum(), rtol=1e-13)
    np.testing.assert_allclose(limit.offset, X.mean(axis=0), rtol=1e-13)
    assert int(limit.n_rays) == 0


@pytest.mark.parametrize("lam", [0.05, 0.7])
@pytest.mark.parametrize("metric", [None, np.array([0.3, 1.0, 4.0])])
def test_scipy_finds_no_lower_value(lam, metric):
    """An outside minimiser over offset and reconstruction at once, from the answer and from the mean."""
    rng = np.random.default_rng(2)
    X, weights = rng.normal(size=(8, D)), rng.integers(0, 3, 8) * 1.0
    limit = LIMIT(jd.Problem(lam=lam, metric=metric, weights=weights), jnp.array(X))
    m = np.ones(D) if metric is None else metric
    w = weights / weights.sum()

    def value(v):
        b, xhat = v[:D], v[D:].reshape(X.shape)
        norms = np.sqrt(np.sum(xhat**2, axis=1) + 1e-16)
        loss = w @ (0.5 * np.sum(m * (X - b - xhat) ** 2, axis=1) + lam * norms)
        slope = w[:, None] * (-m * (X - b - xhat))
        return loss, np.concatenate([slope.sum(0), (slope + lam * w[:, None] * xhat / norms[:, None]).ravel()])

    found = minimize(value, np.concatenate([X.mean(0), 0.5 * X.ravel()]), jac=True, method="L-BFGS-B",
                     options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-10})  # fmt: skip
    np.testing.assert_allclose(limit.value, found.fun, atol=1e-6)
    assert float(limit.dual_value) <= found.fun + 1e-7
    certified(limit)


@pytest.mark.parametrize("lam", [1e-6, 1e-2, 0.5, 20.0])
@pytest.mark.parametrize("kind", ["gauss", "outliers", "collinear", "heap", "far", "metric"])
def test_primal_and_dual_meet(kind, lam):
    rng = np.random.default_rng(3)
    X, problem = rng.normal(size=(N, D)), jd.Problem(lam=lam)
    if kind == "outliers":  # rows of norm 20000 beside ordinary and empty ones
        X = 100 * X
        X[:3], X[3:5] = 20000 * X[:3] / np.linalg.norm(X[:3], axis=1)[:, None], 0
    elif kind == "collinear":  # the Hessian is singular
        X = X[:, :1] * np.array([[1.0, 2.0, -1.0]])
    elif kind == "heap":  # the geometric median is a sample
        X[: N // 2 + 2] = 0
    elif kind == "far":
        X = X + 1e5
    elif kind == "metric":
        problem = jd.Problem(lam=lam, metric=np.array([1e-2, 1.0, 50.0]), weights=rng.integers(0, 3, N) * 1.0)
    certified(LIMIT(problem, jnp.array(X)))


def test_degenerate_data_have_value_zero():
    for X in (np.zeros((N, D)), np.ones((N, D))):
        limit = LIMIT(jd.Problem(lam=1.0), jnp.array(X))
        assert float(limit.value) == 0
        assert float(limit.dual_value) == 0
        assert int(limit.n_rays) == 0


def test_samples_of_weight_zero_do_not_count():
    rng = np.random.default_rng(4)
    X, weights = rng.normal(size=(N, D)), np.repeat([1.0, 0.0], N // 2)
    X[N // 2 :] *= 1e6
    half = LIMIT(jd.Problem(lam=0.5), jnp.array(X[: N // 2]))
    both = LIMIT(jd.Problem(lam=0.5, weights=weights), jnp.array(X))
    np.testing.assert_allclose(both.value, half.value, rtol=1e-13)
    assert int(both.n_rays) == int(half.n_rays)


@pytest.mark.slow
def test_no_point_of_finite_width_is_below_the_certified_bound():
    """T12 over random dictionaries, codes and offsets, optimal codes included."""
    rng = np.random.default_rng(5)
    X = jnp.array(rng.normal(size=(N, D)))
    problem = jd.Problem(lam=0.3, metric=np.array([0.5, 1.0, 2.0]))
    bound = float(LIMIT(problem, X).dual_value)
    values = []
    for _ in range(20):
        atoms = rng.normal(size=(30, D))
        dictionary = jd.Dictionary(
            jnp.array(atoms / np.linalg.norm(atoms, axis=1)[:, None]), jnp.array(0.1 * rng.normal(size=D))
        )
        codes = jnp.array(np.abs(rng.normal(size=(N, 30))) * (rng.random((N, 30)) < 0.1))
        values.append(float(jd.objective(problem, dictionary, codes, X)))
        values.append(float(jd.objective(problem, dictionary, jd.encode(problem, dictionary, X).codes, X)))
    assert min(values) >= bound
    assert min(values) < 1.5 * bound  # 30 atoms in three dimensions come near: the bound is not idle


def test_one_atom_for_each_sample_attains_it():
    """T11: the wide optimum is a dictionary of the rays `xhat_n / ||xhat_n||`."""
    X = jnp.array(np.random.default_rng(6).normal(size=(N, D)))
    problem = jd.Problem(lam=0.8, metric=np.array([0.5, 1.0, 2.0]))
    limit = LIMIT(problem, X)
    radius, directions = shrink(X - limit.offset, 0.8, problem.metric)
    atoms = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    value = jd.objective(problem, jd.Dictionary(atoms, limit.offset), jnp.diag(radius), X)
    np.testing.assert_allclose(value, limit.value, rtol=1e-13)


@pytest.mark.parametrize("lam", [1e-9, 0.1, 1.0])
@pytest.mark.parametrize("samples", [pytest.param(7, marks=pytest.mark.slow), 8])
def test_one_dimensional_data_need_only_the_pair(samples, lam):
    """T14: `z = (+-(x - b) - lam)_+` over the atoms +1, -1 is globally optimal."""
    X = jnp.array(np.random.default_rng(7).normal(size=(samples, 1)))
    problem = jd.Problem(lam=lam)
    limit = LIMIT(problem, X)
    codes = jnp.maximum(jnp.concatenate([X - limit.offset, limit.offset - X], axis=1) - lam, 0)
    value = jd.objective(problem, jd.Dictionary(jnp.array([[1.0], [-1.0]]), limit.offset), codes, X)
    np.testing.assert_allclose(value, limit.value, rtol=1e-12)
    certified(limit)
    assert int(limit.n_rays) <= 2


def test_shrink_is_stationary_and_zero_exactly_inside():
    """The subgradient condition `m (xhat - y) + lam xhat / ||xhat|| = 0`, for a metric over six orders."""
    rng = np.random.default_rng(8)
    y, m = (
        jnp.array(rng.normal(size=(200, 6)) * np.exp(3 * rng.normal(size=(200, 1)))),
        jnp.array(10.0 ** np.arange(-3, 3)),
    )
    radius, p = shrink(y, 0.7, m)
    inside = np.linalg.norm(m * y, axis=1) <= 0.7
    np.testing.assert_array_equal(radius == 0, inside)
    xhat = radius[:, None] * p
    slopes = np.where(inside[:, None], 0, m * (xhat - y) + 0.7 * p)
    assert np.abs(slopes).max() <= 1e-12 * float(jnp.abs(m * y).max())
    np.testing.assert_allclose(np.linalg.norm(p, axis=1)[~inside], 1, atol=1e-13)


def test_rays_from_the_origin_are_counted_whatever_their_scale():
    rng = np.random.default_rng(9)
    rays = rng.normal(size=(5, D))
    X = jnp.array(rays[rng.integers(0, 5, N)] * np.exp(rng.normal(size=(N, 1))) * 100)
    assert int(LIMIT(jd.Problem(lam=0.1, offset=False), X).n_rays) == 5
    signs = jnp.array(rng.choice([-1.0, 1.0], size=(N, 1)))
    assert int(LIMIT(jd.Problem(lam=0.1, offset=False, signed=True), X * signs).n_rays) == 5
    assert int(LIMIT(jd.Problem(lam=0.1, offset=False), X.astype(jnp.float32)).n_rays) == 5


def test_ray_count_matches_all_pairs():
    rng = np.random.default_rng(10)
    rows = rng.normal(size=(60, 2))
    rows = rows[rng.integers(0, 60, 300)]
    rows = rows / np.linalg.norm(rows, axis=1)[:, None]
    counted = rng.random(300) < 0.5
    distinct = len(np.unique(np.round(rows[counted], 9), axis=0))
    assert int(count_rays(jnp.array(rows), jnp.array(counted), jnp.ones(300))) == distinct


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("d", [9, 40, 300])
def test_rays_are_told_apart_by_few_numbers_where_there_are_many_dimensions(d, dtype):
    rng = np.random.default_rng(d)
    rays = rng.normal(size=(50, d))
    rays[1], rays[2] = rays[0], rays[0]
    rays[1, 3] += 0.01  # near the first, and it without a coordinate
    rays[2, -1] = 0
    rays = rays / np.linalg.norm(rays, axis=1)[:, None]
    rows = np.concatenate([rays, np.eye(d)])[rng.integers(0, 50 + d, 2000)]
    distinct = len(np.unique(np.round(rows, 9), axis=0))
    assert int(count_rays(jnp.array(rows, dtype), jnp.ones(2000, bool), jnp.ones(2000, dtype))) == distinct


def test_float32_vmap_and_gradient():
    X = jnp.array(np.random.default_rng(11).normal(size=(N, D)))
    single = LIMIT(jd.Problem(lam=0.5), X.astype(jnp.float32))
    assert single.value.dtype == jnp.float32
    double = LIMIT(jd.Problem(lam=0.5), X)
    np.testing.assert_allclose(single.value, double.value, rtol=1e-6)
    assert float(single.dual_value) <= float(double.value) * (1 + 1e-6)
    lams = jnp.array([0.1, 0.5, jnp.nan])
    many = jax.jit(jax.vmap(lambda lam: wide_limit(jd.Problem(lam=lam), X)))(lams)
    np.testing.assert_allclose(many.value[1], double.value, rtol=1e-13)
    assert np.isnan(many.value[2])
    # Envelope: dF_wide / dlam = E||xhat||.
    slope = jax.jit(jax.grad(lambda lam: wide_limit(jd.Problem(lam=lam), X).value))(jnp.array(0.5))
    np.testing.assert_allclose(slope, double.radius.mean(), rtol=1e-12)
