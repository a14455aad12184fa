"""Exact codes: closed forms, SciPy and scikit-learn as judges, the gap as its own proof, sparse and dense alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Lasso

import jaxdict as jd
from jaxdict.encoding.jax_engine.gradient import accelerated_gradient
from jaxdict.encoding.lasso import check, lasso_of

METHODS = ("gradient", "working_set", "auto")


def random_case(seed=0, n=40, d=10, k=24, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X, D = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(k, d)).astype(dtype)
    return X, D / np.linalg.norm(D, axis=1, keepdims=True), rng.normal(size=d).astype(dtype)


@pytest.mark.parametrize("method", METHODS)
def test_orthonormal_atoms_have_soft_threshold_codes(method):
    X = np.array([[3.0, 0.25, -1.0], [0.5, 2.0, 0.1]])
    codes = jd.encode(jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(3)), X, tol=1e-12, method=method).codes
    # For orthonormal atoms min 1/2 (x - z)^2 + lam z over z >= 0 is (x - lam)_+; the gap's tolerance bounds the error's square.
    np.testing.assert_allclose(codes, np.maximum(X - 0.5, 0), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_scipy_nnls_and_scikit_learn(method):
    X, D, b = random_case()
    lam = 0.3
    codes = np.asarray(jd.encode(jd.Problem(lam=lam), jd.Dictionary(D, b), X, tol=1e-12, method=method).codes)
    for n in range(4):
        # scikit-learn divides the data term by the number of its rows, here the dimensions.
        model = Lasso(alpha=lam / D.shape[1], positive=True, fit_intercept=False, tol=1e-14, max_iter=1_000_000)
        model.fit(D.T, X[n] - b)
        np.testing.assert_allclose(codes[n], model.coef_, atol=1e-5)
        # On the support the lasso is a least-squares fit to x - b moved by lam along the support's dual vector: NNLS solves it.
        support = codes[n] > 0
        A = D[support]
        moved = X[n] - b - np.linalg.pinv(A) @ np.full(support.sum(), lam)
        np.testing.assert_allclose(nnls(A.T, moved)[0], codes[n][support], atol=1e-5)


@pytest.mark.parametrize(
    ("signed", "gauge"),
    [
        (False, "constrained"),
        (True, "penalised"),
        pytest.param(True, "constrained", marks=pytest.mark.slow),
        pytest.param(False, "penalised", marks=pytest.mark.slow),
    ],
)
def test_all_variants_reach_the_gap_and_agree(signed, gauge):
    X, D, b = random_case(1)
    rng = np.random.default_rng(2)
    if gauge == "penalised":
        D = D * rng.uniform(0.5, 2, (D.shape[0], 1))
    problem = jd.Problem(lam=0.3, signed=signed, gauge=gauge, metric=rng.uniform(0.5, 2, X.shape[1]))
    dictionary = jd.Dictionary(D, b)
    dense = jd.encode(problem, dictionary, X, tol=1e-12)
    sparse = jd.encode(problem, dictionary, X, tol=1e-12, sparse=True)
    slow = jd.encode(problem, dictionary, X, tol=1e-12, method="gradient", max_steps=50_000)
    assert int(dense.status) == int(sparse.status) == int(slow.status) == 0
    assert isinstance(sparse.codes, jd.SparseCodes)
    np.testing.assert_allclose(jd.dense_codes(sparse.codes, 24), dense.codes, atol=1e-8)
    np.testing.assert_allclose(
        slow.codes, dense.codes, atol=1e-4
    )  # the slow one stops at a gap of 1e-12: error its root
    assert signed == bool(jnp.any(dense.codes < 0))
    for codes in (dense.codes, sparse.codes):
        assert float(jd.certify(problem, dictionary, codes, X).stationarity.codes) < 1e-6
    s = jd.correlations(problem, dictionary, dense.codes, X)
    assert float(jnp.max(jnp.abs(s) if signed else s)) <= 1 + 1e-10


def test_gap_is_the_gap_of_t2_and_bounds_the_error():
    X, D, b = random_case(3)
    problem, dictionary = jd.Problem(lam=0.3), jd.Dictionary(D, b)
    best = jd.encode(problem, dictionary, X, tol=1e-13).codes
    rough = jd.encode(problem, dictionary, X, tol=1e-3, method="gradient")
    r = np.asarray(jd.residual(dictionary, rough.codes, X))
    theta = r / np.maximum(1, (r @ D.T / 0.3).max(1))[:, None]
    y = X - b
    primal = 0.5 * (r**2).sum(1) + 0.3 * np.asarray(rough.codes).sum(1)
    dual = 0.5 * (y**2).sum(1) - 0.5 * ((y - theta) ** 2).sum(1)
    np.testing.assert_allclose(rough.gap, primal - dual, atol=1e-13)  # rounding of numbers of order 10
    least = 0.5 * ((y - np.asarray(best) @ D) ** 2).sum(1) + 0.3 * np.asarray(best).sum(1)
    assert np.all(primal - least <= np.asarray(rough.gap) + 1e-13)
    assert np.all(np.asarray(rough.gap) <= 1e-3 * primal)


def test_tighter_tolerance_gives_smaller_gaps():
    X, D, b = random_case(4)
    gaps = [
        float(jnp.max(jd.encode(jd.Problem(lam=0.3), jd.Dictionary(D, b), X, tol=tol, method="gradient").gap))
        for tol in (1e-2, 1e-4, 1e-6)
    ]
    assert gaps[0] > gaps[1] > gaps[2]


def test_float32_gap_is_true():
    X, D, b = random_case(5, n=200, d=16, k=40, dtype=np.float32)
    done = jd.encode(jd.Problem(lam=0.3), jd.Dictionary(D, b), X, tol=1e-6)
    assert done.codes.dtype == jnp.float32
    assert int(done.status) == 0
    exact = [np.asarray(v, np.float64) for v in (X, D, b)]
    lasso = lasso_of(
        jd.Problem(lam=float(np.float32(0.3))), jd.Dictionary(*map(jnp.asarray, exact[1:])), jnp.asarray(exact[0])
    )
    seen = check(lasso, jnp.asarray(np.asarray(done.codes, np.float64)))
    assert float(jnp.max(seen.gap / seen.primal)) <= 1.5e-6  # float32 rounding of the gap itself is under half of tol


def test_a_set_that_is_too_small_grows_or_says_so():
    X, D, b = random_case(6)
    problem, dictionary = jd.Problem(lam=0.02), jd.Dictionary(D, b)
    full = jd.encode(problem, dictionary, X, tol=1e-10)
    most = int(jnp.max(jnp.sum(full.codes > 0, axis=1)))
    assert most > 4
    short = jd.encode(problem, dictionary, X, tol=1e-10, sparse=True, slots=2)
    assert "too few slots" in short.message()
    traced = jax.jit(lambda X: jd.encode(problem, dictionary, X, tol=1e-6, slots=2))(jnp.asarray(X))
    assert int(traced.status) == 0  # dense codes fall back on the gradient
    np.testing.assert_allclose(traced.codes, full.codes, atol=1e-3)


def test_sparse_codes_grow_past_the_default_slots():
    rng = np.random.default_rng(8)
    D = np.linalg.qr(rng.normal(size=(90, 90)))[0]
    X = np.abs(rng.normal(size=(3, 90)) + 2) @ D
    done = jd.encode(jd.Problem(lam=0.01), jd.Dictionary(D), X, sparse=True, tol=1e-10)
    assert int(done.status) == 0
    assert done.codes.values.shape[1] > 64
    np.testing.assert_allclose(jd.dense_codes(done.codes, 90), np.maximum(X @ D.T - 0.01, 0), atol=1e-9)


def test_warm_start_takes_no_step_at_the_solution():
    X, D, b = random_case(7)
    problem, dictionary = jd.Problem(lam=0.3), jd.Dictionary(D, b)
    first = jd.encode(problem, dictionary, X, tol=1e-9, sparse=True)
    again = jd.encode(problem, dictionary, X, tol=1e-9, sparse=True, codes=first.codes)
    assert int(first.steps) > 0
    assert int(again.steps) == 0


def test_duplicate_atoms_zero_rows_and_large_rows():
    X, D, b = random_case(9)
    D = np.concatenate([D, D[:3]])
    X[0] = b
    X[1] *= 20_000
    done = jd.encode(jd.Problem(lam=0.3), jd.Dictionary(D, b), X, tol=1e-10)
    assert int(done.status) == 0
    assert float(jnp.max(jnp.abs(done.codes[0]))) == 0


def test_step_limit_is_said():
    X, D, b = random_case(10)
    done = jd.encode(jd.Problem(lam=0.01), jd.Dictionary(D, b), X, tol=1e-10, method="gradient", max_steps=10)
    assert "step limit" in done.message()


def test_restarts_beat_no_momentum_on_a_hard_case():
    X, D, b = random_case(11)
    lasso = lasso_of(jd.Problem(lam=0.05), jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.asarray(X))
    _, seen, steps = accelerated_gradient(lasso, jnp.zeros((40, 24)), 1e-8, 100_000)
    gram = lasso.atoms @ lasso.atoms.T
    step, Z = 1 / jnp.linalg.norm(gram, 2), jnp.zeros((40, 24))
    plain = jax.jit(lambda Z: jnp.maximum(Z - step * (Z @ gram - lasso.targets @ lasso.atoms.T + lasso.lam), 0))
    for _ in range(int(steps)):
        Z = plain(Z)
    assert float(jnp.max(check(lasso, Z).gap)) > 10 * float(jnp.max(seen.gap))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "magic"}, "method='magic' is unknown"),
        ({"lam": 0.0}, "lam"),
        ({"atoms": np.ones((4, 9))}, "features"),
        ({"codes": np.ones((3, 3))}, "codes have shape"),
    ],
)
def test_bad_input_is_refused(change, match):
    X, D, b = random_case()
    lam, atoms = change.pop("lam", 0.1), change.pop("atoms", D)
    with pytest.raises(ValueError, match=match):
        jd.encode(jd.Problem(lam=lam), jd.Dictionary(atoms, b[: atoms.shape[1]]), X, **change)
