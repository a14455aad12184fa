"""Codes of other kinds: SciPy's NNLS, all supports of tiny problems, closed forms and scikit-learn as judges, two engines as twins."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

import jaxdict as jd
from jaxdict.encoding.jax_engine import supports as jax_supports
from jaxdict.encoding.jax_engine import values as jax_values
from jaxdict.encoding.numba_engine import subsets as numba_subsets
from jaxdict.encoding.numba_engine.calls import kernels

METHODS = ("jax", *(["numba"] if kernels() is not None else []))
EXACT = {"tol": 1e-13}
both = pytest.mark.parametrize("method", METHODS)
# Plain JAX compiles each shape for seconds: where the kernels are at hand its turn is among the slow tests, but for what it does alone.
one_slow = pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=pytest.mark.slow if len(METHODS) > 1 and name == "jax" else ()) for name in METHODS],
)
either_sign = pytest.mark.parametrize("signed", [False, True])


def case(seed, n=12, d=6, k=8, dtype=np.float64):
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(k, d))
    atoms *= rng.uniform(0.5, 2, k)[:, None] / np.linalg.norm(atoms, axis=1, keepdims=True)
    D = jd.Dictionary(jnp.asarray(atoms, dtype), jnp.asarray(0.1 * rng.normal(size=d), dtype))
    return D, jnp.asarray(rng.normal(size=(n, d)), dtype), rng


def supports_of(rng, n, k, size, signed=False):
    """Codes with so many entries a row, of any values."""
    Z = np.zeros((n, k))
    for row in Z:
        on = rng.choice(k, size, replace=False)
        row[on] = rng.uniform(0.1, 2, size) * (rng.choice([-1, 1], size) if signed else 1)
    return jnp.asarray(Z)


def errors(D, codes, X, metric=None):
    r = np.asarray(jd.residual(D, codes, X), np.float64)
    return 0.5 * np.sum(r * r * (1 if metric is None else np.asarray(metric)), axis=1)


def least(A, y, signed):
    """Values and error of the least squares problem with columns A."""
    if not signed:
        z, left = nnls(A, y, maxiter=50 * A.shape[1] + 50)
        return z, 0.5 * left**2
    z = np.linalg.lstsq(A, y, rcond=None)[0]
    return z, 0.5 * np.sum((y - A @ z) ** 2)


def best_of_all(D, X, size, signed):
    """The least error over all supports of this size, row by row."""
    atoms, Y = np.asarray(D.atoms), np.asarray(X) - np.asarray(D.offset)
    sets = list(itertools.combinations(range(len(atoms)), size))
    return np.array([min(least(atoms[list(s)].T, y, signed)[1] for s in sets) for y in Y])


@both
@either_sign
@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
def test_values_are_those_of_scipy(method, signed, seed):
    D, X, rng = case(seed, d=9, k=14)
    metric = rng.uniform(0.5, 2, 9)
    Z = supports_of(rng, 12, 14, 5, signed)
    found = np.asarray(jd.dense_codes(jd.refit_values(D, Z, X, signed=signed, metric=metric, method=method), 14))
    root = np.sqrt(metric)
    for row, z, x in zip(found, np.asarray(Z), np.asarray(X), strict=True):
        on = np.flatnonzero(z)
        wanted, _ = least((root * np.asarray(D.atoms)[on]).T, root * (x - np.asarray(D.offset)), signed)
        np.testing.assert_allclose(row[on], wanted, atol=1e-8)
        assert not np.any(np.delete(row, on))


@one_slow
def test_a_value_becomes_zero_and_the_gap_of_the_support_says_so(method):
    D = jd.Dictionary(jnp.array([[1.0, 0.0], [0.6, 0.8]]))
    X, Z = jnp.array([[2.0, -1.0]]), jnp.array([[1.0, 1.0]])
    refitted = jd.refit_values(D, Z, X, method=method)
    np.testing.assert_allclose(jd.dense_codes(refitted, 2), [[2.0, 0.0]], atol=1e-14)
    assert float(jd.values_gap(D, refitted, X, support=Z)[0]) < 1e-25
    assert float(jd.values_gap(D, Z, X)[0]) > 1
    assert np.isinf(jd.values_gap(D, Z, X, support=refitted)[0])


@either_sign
@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
def test_the_gap_bounds_what_values_lose(signed, seed):
    D, X, rng = case(seed)
    metric = rng.uniform(0.5, 2, 6)
    Z = supports_of(rng, 12, 8, 4, signed)
    best = jd.refit_values(D, Z, X, signed=signed, metric=metric)
    gap = np.asarray(jd.values_gap(D, Z, X, signed=signed, metric=metric))
    lost = errors(D, Z, X, metric) - errors(D, best, X, metric)
    assert np.all(gap >= lost - 1e-12)
    if signed:  # a quadratic's own fall
        np.testing.assert_allclose(gap, lost, rtol=1e-9)
    left = np.asarray(jd.values_gap(D, best, X, support=Z, signed=signed, metric=metric))
    assert np.all(left < 1e-20)
    again = jd.refit_values(D, best, X, signed=signed, metric=metric)
    np.testing.assert_allclose(again.values, best.values, atol=1e-13)


@both
@either_sign
@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_supports_of_tiny_problems(method, signed, size):
    """No row is below the least error, and most reach it: of these all of size one, 92 to 100% of size two, 64 to 100% of three."""
    reached = []
    for seed in range(3):
        D, X, _ = case(10 + seed)
        done = jd.best_subset(D, X, size, signed=signed, method=method, **EXACT)
        least_errors, found = best_of_all(D, X, size, signed), errors(D, done.codes, X)
        assert np.all(found >= least_errors - 1e-12)
        assert np.all(np.sum(np.asarray(done.codes.values) != 0, axis=1) <= size)
        reached += list(found <= least_errors + 1e-10)
        assert done.message().startswith("best found")
        assert "upper bound" in done.message()
        assert np.all(np.asarray(done.gap) < 1e-20)
    assert np.mean(reached) >= {1: 1, 2: 0.9, 3: 0.6}[size]


@pytest.mark.slow
@both
@either_sign
def test_no_exchange_is_left(method, signed):
    """Every support that differs by one atom has a larger error."""
    D, X, _ = case(3, n=6, d=7, k=11)
    done = jd.best_subset(D, X, 4, signed=signed, method=method, **EXACT)
    found, Z = errors(D, done.codes, X), np.asarray(jd.dense_codes(done.codes, 11))
    atoms, Y = np.asarray(D.atoms), np.asarray(X) - np.asarray(D.offset)
    for z, y, error in zip(Z, Y, found, strict=True):
        on = np.flatnonzero(z)
        for out, new in itertools.product(on, set(range(11)) - set(on)):
            other = [k for k in on if k != out] + [new]
            assert least(atoms[other].T, y, signed)[1] > error - 1e-10


@one_slow
@either_sign
def test_orthogonal_dictionary_keeps_the_largest(method, signed):
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    X = rng.normal(size=(20, 7))
    done = jd.best_subset(jd.Dictionary(jnp.asarray(Q)), jnp.asarray(X), 3, signed=signed, method=method)
    height = X @ Q.T
    height = height if signed else np.maximum(height, 0)
    wanted = np.where(np.argsort(np.argsort(-np.abs(height), axis=1), axis=1) < 3, height, 0)
    np.testing.assert_allclose(jd.dense_codes(done.codes, 7), wanted, atol=1e-12)
    assert int(done.steps) == 0


@one_slow
def test_pursuit_alone_is_that_of_scikit_learn(method):
    rng = np.random.default_rng(1)
    atoms = rng.normal(size=(30, 12))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    X = rng.normal(size=(15, 12))
    done = jd.best_subset(jd.Dictionary(jnp.asarray(atoms)), jnp.asarray(X), 5, signed=True, max_steps=0, method=method)
    np.testing.assert_allclose(
        jd.dense_codes(done.codes, 30), orthogonal_mp(atoms.T, X.T, n_nonzero_coefs=5).T, atol=1e-10
    )
    assert done.message().startswith("step limit")


@pytest.mark.slow
@both
@either_sign
@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_pursuit_nor_than_the_start(method, signed, seed):
    D, X, rng = case(20 + seed, n=30, d=8, k=20)
    n_active = rng.integers(0, 6, 30)
    Z = supports_of(rng, 30, 20, 5, signed)
    order = np.argsort(np.argsort(-np.abs(np.asarray(Z)), axis=1), axis=1)
    Z = jnp.where(jnp.asarray(order < n_active[:, None]), Z, 0)
    options = {"signed": signed, "method": method}
    pursued = errors(D, jd.best_subset(D, X, n_active, max_steps=0, **options).codes, X)
    refitted = errors(D, jd.refit_values(D, Z, X, **options), X)
    cold = errors(D, jd.best_subset(D, X, n_active, **options).codes, X)
    warm = jd.best_subset(D, X, n_active, start=Z, **options)
    warm_errors = errors(D, warm.codes, X)
    assert np.all(cold <= pursued + 1e-12)
    assert np.all(warm_errors <= np.minimum(pursued, refitted) + 1e-12)
    assert np.all(np.sum(np.asarray(warm.codes.values) != 0, axis=1) <= n_active)
    assert np.any(cold < pursued - 1e-3)
    again = jd.best_subset(D, X, n_active, start=warm.codes, **options)
    np.testing.assert_allclose(errors(D, again.codes, X), warm_errors, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(len(METHODS) < 2, reason="numba is not installed")
@either_sign
@pytest.mark.parametrize("rows_of_gram", ["gram", "products"])
def test_both_engines_take_the_same_moves(signed, rows_of_gram, monkeypatch):
    if rows_of_gram == "products":
        monkeypatch.setattr(numba_subsets, "GRAM_ATOMS", 0)
        monkeypatch.setattr(jax_supports, "GRAM_ATOMS", 0)
        monkeypatch.setattr(jax_supports, "BLOCK_ENTRIES", 4 * 40 * 9)
    jax.clear_caches()
    D, X, rng = case(5, n=37, d=10, k=40)
    n_active = rng.integers(0, 10, 37)
    found = [jd.best_subset(D, X, n_active, signed=signed, method=m, **EXACT) for m in METHODS]
    first, second = (np.asarray(jd.dense_codes(f.codes, 40)) for f in found)
    np.testing.assert_allclose(first, second, atol=1e-9)
    assert int(found[0].steps) == int(found[1].steps) > 2
    jax.clear_caches()


@pytest.mark.skipif(len(METHODS) < 2, reason="numba is not installed")
@either_sign
def test_values_of_both_engines_agree_also_in_blocks(signed, monkeypatch):
    monkeypatch.setattr(jax_values, "BLOCK_ENTRIES", 400)
    jax.clear_caches()
    D, X, rng = case(6, n=30, d=10, k=40)
    Z = supports_of(rng, 30, 40, 8, signed)
    first, second = (jd.refit_values(D, Z, X, signed=signed, method=m).values for m in METHODS)
    np.testing.assert_allclose(first, second, atol=1e-11)
    jax.clear_caches()


@pytest.mark.slow
@both
def test_real_rows(method):
    X = jd.datasets.load("minilm_tokens").X[:96].astype(np.float64)
    mean = X.mean(0)
    rng = np.random.default_rng(0)
    atoms = X[rng.choice(96, 60, replace=False)] - mean
    D = jd.Dictionary(jnp.asarray(atoms / np.linalg.norm(atoms, axis=1, keepdims=True)), jnp.asarray(mean))
    own = jd.encode(jd.Problem(lam=0.6), D, X, sparse=True).codes
    size = np.sum(np.asarray(own.values) > 0, axis=1)
    refitted = jd.refit_values(D, own, X, method=method)
    best = jd.best_subset(D, X, size, start=own, method=method)
    for n in range(0, 96, 16):
        on = np.asarray(own.indices[n])[np.asarray(own.values[n]) > 0]
        _, left = least(np.asarray(D.atoms)[on].T, X[n] - mean, False)
        assert errors(D, refitted, X)[n] == pytest.approx(left, abs=1e-8)
    steps = [errors(D, codes, X).mean() for codes in (own, refitted, best.codes)]
    assert steps[0] > steps[1] > steps[2]


@one_slow
def test_float32_in_float32_out_and_close(method):
    D, X, rng = case(7, n=40, d=16, k=30)
    Z = supports_of(rng, 40, 30, 5)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (D, Z, X))
    values, exact = jd.refit_values(*half, method=method), jd.refit_values(D, Z, X, method=method)
    assert values.values.dtype == np.float32
    np.testing.assert_allclose(errors(D, values, X), errors(D, exact, X), rtol=1e-5)
    found, best = jd.best_subset(half[0], half[2], 5, method=method), jd.best_subset(D, X, 5, method=method)
    assert found.codes.values.dtype == found.gap.dtype == np.float32
    assert np.mean(errors(D, found.codes, X)) == pytest.approx(np.mean(errors(D, best.codes, X)), rel=1e-3)
    assert np.all(np.asarray(found.gap) < 1e-5 * errors(D, 0 * Z, X))


@one_slow
@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_data_of_any_size(method, size):
    D, X, _ = case(8, dtype=np.float32)
    D = jd.Dictionary(D.atoms * size, D.offset * size)
    one, other = (jd.best_subset(D._replace(offset=None), s * X, 3, method=method).codes for s in (1, size))
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(other.values, one.values * np.float32(size), rtol=1e-4)


@pytest.mark.slow
@both
@either_sign
def test_atoms_twice_and_rows_of_zero(method, signed):
    D, X, _ = case(9)
    twice = jd.Dictionary(jnp.concatenate([D.atoms, D.atoms]), D.offset)
    X = X.at[3].set(D.offset)
    done = jd.best_subset(twice, X, 4, signed=signed, method=method)
    alone = jd.best_subset(D, X, 4, signed=signed, method=method)
    np.testing.assert_allclose(errors(twice, done.codes, X), errors(D, alone.codes, X), atol=1e-9)
    assert not np.any(done.codes.values[3])
    Z = jnp.concatenate([jnp.ones((12, 8)), jnp.ones((12, 8))], axis=1)
    refitted = jd.refit_values(twice, Z, X, signed=signed, method=method)
    np.testing.assert_allclose(
        errors(twice, refitted, X), errors(D, jd.refit_values(D, jnp.ones((12, 8)), X, signed=signed), X), atol=1e-9
    )


@one_slow
def test_rows_that_are_not_finite_say_so_and_leave_the_others(method):
    D, X, _ = case(11)
    broken = X.at[2, 1].set(jnp.nan)
    program = jax.jit(lambda X: jd.best_subset(D, X, 3, method=method))
    done, well = program(broken), program(X)
    assert "non-finite" in done.message()
    others = np.arange(12) != 2
    np.testing.assert_allclose(done.codes.values[others], well.codes.values[others], atol=1e-12)


@one_slow
def test_n_active_traced_wants_slots(method):
    D, X, _ = case(12)
    program = jax.jit(lambda n: jd.best_subset(D, X, n, slots=4, method=method).codes)
    np.testing.assert_allclose(
        program(3).values[:, :3], jd.best_subset(D, X, 3, method=method).codes.values, atol=1e-12
    )
    with pytest.raises(ValueError, match="slots is not given"):
        jax.jit(lambda n: jd.best_subset(D, X, n).codes)(3)


def test_what_is_refused():
    D, X, _ = case(13)
    with pytest.raises(ValueError, match=r"start has 3 codes in row 0, n_active 2; "):
        jd.best_subset(D, X, 2, start=supports_of(np.random.default_rng(0), 12, 8, 3))
    with pytest.raises(ValueError, match="n_active=-1 is negative; "):
        jd.best_subset(D, X, -1)
    with pytest.raises(ValueError, match=r"n_active has shape \(3,\) but the data 12 rows; "):
        jd.best_subset(D, X, np.ones(3, int))
    with pytest.raises(ValueError, match="n_active has dtype float64; "):
        jd.best_subset(D, X, 2.5)
    with pytest.raises(ValueError, match="method='gradient' is unknown; "):
        jd.refit_values(D, jnp.ones((12, 8)), X, method="gradient")
    with pytest.raises(ValueError, match="codes are negative"):
        jd.refit_values(D, -jnp.ones((12, 8)), X)
    with pytest.raises(ValueError, match="metric has NaN"):
        jd.refit_values(D, jnp.ones((12, 8)), X, metric=np.full(6, np.nan))


@one_slow
def test_slopes_hold_the_support(method):
    D, X, rng = case(14)
    direction = jnp.asarray(rng.normal(size=X.shape))

    def error(X):
        codes = jd.best_subset(D, X, 3, method=method).codes
        return jnp.sum(jd.residual(D, codes, X) ** 2) + jnp.sum(codes.values**3)

    slope = float(jnp.vdot(jax.grad(error)(X), direction))
    step = 1e-6
    assert slope == pytest.approx(
        float((error(X + step * direction) - error(X - step * direction)) / (2 * step)), rel=1e-6
    )
