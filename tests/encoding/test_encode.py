"""Exact codes: closed forms, SciPy and scikit-learn as judges, the gap as its own proof, sparse and dense alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Lasso

import jaxdict as jd
from jaxdict.encoding.exact import SOLVED
from jaxdict.encoding.jax_engine import calls as jax_calls
from jaxdict.encoding.jax_engine.gradient import accelerated_gradient
from jaxdict.encoding.lasso import check, codes_defect, duality_gap, lasso_of, plain_codes, within
from jaxdict.encoding.numba_engine.calls import kernels
from jaxdict.objectives import codes_violation, sample_gaps

METHODS = ("gradient", "working_set", "auto")
ON_ITS_OWN = ("gradient", "working_set", *(["numba"] if kernels() is not None else []))


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
    # The large row has codes and correlations of 1e5 that cancel to lam = .3: a rounding of 3e-11 is 1e-10 of lam, and so of the
    # objective, however they are summed. (The optimum itself, rounded to float64, has a gap of 5e-11, taken in long double.)
    done = jd.encode(jd.Problem(lam=0.3), jd.Dictionary(D, b), X, tol=1e-9)
    assert int(done.status) == 0
    assert float(jnp.max(jnp.abs(done.codes[0]))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ON_ITS_OWN)
def test_a_limit_is_told_from_a_stall(method):
    X, D, b = random_case(10)
    run = lambda **limits: jd.encode(jd.Problem(lam=0.01), jd.Dictionary(D, b), X, method=method, **limits)  # noqa: E731
    short = run(tol=1e-10, max_steps=10 if method == "gradient" else 1)
    assert "step limit" in short.message()
    assert "step limit" not in run(tol=1e-10, max_steps=20_000).message()  # raising it helps, as the message says
    if method != "gradient":  # which would take all its steps to find out
        assert "rounding" in run(tol=1e-40).message()


@pytest.mark.slow
def test_a_cold_start_leaves_room_for_what_is_missing():
    """13 active atoms of 64 slots, where far more than 64 atoms correlate with each sample beyond lam."""
    rng = np.random.default_rng(0)
    D = rng.normal(size=(512, 48))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    Z = np.zeros((8, 512))
    for row in Z:
        row[rng.choice(512, 13, replace=False)] = rng.uniform(1, 2, 13)
    lam = 0.05
    pulling = lam < Z @ D @ D.T
    assert np.min(np.sum(pulling, axis=1)) > 128
    for sparse in (False, True):
        done = jd.encode(jd.Problem(lam=lam), jd.Dictionary(D), Z @ D, method="working_set", slots=64, sparse=sparse)
        assert int(done.status) == SOLVED
        assert int(done.steps) <= 12


SCALES = {np.float32: (1e-30, 1e-20, 1e20, 1e30), np.float64: (1e-200, 1e200)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("method", ON_ITS_OWN)
@pytest.mark.parametrize("sparse", [False, True])
def test_any_scale_is_as_good_as_any(method, dtype, sparse):
    """F is covariant: `z(s x, t d, s t lam) = s / t z(x, d, lam)`, though squares of s are beyond what float32 holds."""
    X, D, b = random_case(12, n=12, d=6, k=10, dtype=dtype)
    run = lambda lam, D, b, X, **options: jd.encode(  # noqa: E731
        jd.Problem(lam=dtype(lam), **options), jd.Dictionary(D, b), X, method=method, sparse=sparse, slots=10, tol=1e-5
    )
    expected = np.asarray(jd.dense_codes(run(0.3, D, b, X).codes, 10), float)
    for s in SCALES[dtype]:
        done = run(0.3 * s, D, dtype(s) * b, dtype(s) * X)
        np.testing.assert_allclose(np.asarray(jd.dense_codes(done.codes, 10), float) / s, expected, atol=2e-2)
        assert int(done.status) == SOLVED
        assert np.all(np.asarray(done.gap) >= 0)
    t = SCALES[dtype][-1]
    for options, lam in (({"gauge": "penalised"}, 0.3), ({}, 0.3 * t)):
        done = run(lam, dtype(t) * D, b, X, **options)
        np.testing.assert_allclose(np.asarray(jd.dense_codes(done.codes, 10), float) * t, expected, atol=2e-2)


def test_a_gap_that_underflows_proves_nothing():
    """Rows 1e-25 times the largest, float32: the gap of wrong codes is 0, and so is the objective."""
    lam, X, D = jnp.float32(1e-26), jnp.full((1, 1), 1e-25, jnp.float32), jnp.ones((1, 1), jnp.float32)
    for z, solved in ((9e-26, True), (5e-26, False), (0.0, False)):
        seen = check(lasso_of(jd.Problem(lam=lam), jd.Dictionary(D), X), jnp.full((1, 1), z, jnp.float32))
        assert float(seen.primal[0]) == float(seen.gap[0]) == 0
        assert bool(within(seen, 1e-3)[0]) == solved


def test_gap_and_defect_of_the_plain_form_are_those_of_the_problem():
    """The twins: T2's gap and T1's codes line of objectives.py, signed and not, off the support too."""
    X, D, b = (jnp.asarray(v) for v in random_case(13))
    codes = jnp.asarray(np.random.default_rng(0).normal(size=(40, 24)) * (np.arange(24) < 4))
    for signed in (True, False):
        problem, dictionary = jd.Problem(lam=0.3, signed=signed), jd.Dictionary(D, b)
        Z = codes if signed else jnp.abs(codes)
        r, s = jd.residual(dictionary, Z, X), jd.correlations(problem, dictionary, Z, X)
        seen = check(lasso_of(problem, dictionary, X), plain_codes(problem, dictionary, Z))
        np.testing.assert_allclose(seen.gap, sample_gaps(problem, dictionary, Z, r, s), rtol=1e-10)
        violation = codes_violation(problem, Z, s)
        np.testing.assert_allclose(seen.defect, jnp.max(violation, axis=1), rtol=1e-10)
        if signed:  # the worst of some samples is a negative correlation of an unused atom
            worst = jnp.argmax(jnp.abs(s), axis=1)
            assert bool(jnp.any((s[jnp.arange(40), worst] < 0) & (worst >= 4)))


def test_gap_and_defect_by_hand():
    """One atom in use, one not: lam = 1, z = 2, correlations .5 and -3, then .5 and 3."""
    values, own = jnp.array([[2.0]]), jnp.array([[0.5]])
    for other, gap, defect in ((-3.0, 2 * 0.5, 0.5), (3.0, 0.5 * (2 / 3) ** 2 * 4 + 2 * (1 - 0.5 / 3), 2.0)):
        top = jnp.array([max(0.5, other)])
        np.testing.assert_allclose(duality_gap(1.0, jnp.array([4.0]), values, own, top), [gap], rtol=1e-12)
        np.testing.assert_allclose(codes_defect(1.0, values, own, top), [defect], rtol=1e-12)


@pytest.mark.parametrize("method", ON_ITS_OWN)
def test_a_value_of_zero_marks_an_empty_slot(method):
    X, D, b = random_case(14)
    found = jd.encode(jd.Problem(lam=0.5, signed=True), jd.Dictionary(D, b), X, method=method, sparse=True).codes
    assert np.asarray(found.indices).min() >= 0
    assert np.asarray(found.indices).max() < 24
    assert np.all(np.asarray(found.indices)[np.asarray(found.values) == 0] == 0)


@pytest.mark.slow
def test_sums_of_plain_jax_are_those_of_their_codes():
    X, D, b = (jnp.asarray(v) for v in random_case(15))
    problem, dictionary, weights = jd.Problem(lam=0.3), jd.Dictionary(D, b), jnp.linspace(0, 1, 40)
    lasso, start = lasso_of(problem, dictionary, X), jax_calls.empty_slots(X, 24)
    _, Z, sums, gap = jax_calls.sums(lasso, weights, start, 1e-12, 1e-11, dense=True)
    r = X - b - Z @ D
    np.testing.assert_allclose(sums.cross, (weights[:, None] * Z).T @ r, atol=1e-12)
    np.testing.assert_allclose(sums.mean_codes, weights @ Z, atol=1e-12)
    np.testing.assert_allclose(sums.mean_squares, weights @ Z**2, atol=1e-12)
    np.testing.assert_allclose(sums.mean_residual, weights @ r, atol=1e-12)
    np.testing.assert_allclose(sums.objective, weights @ (0.5 * jnp.sum(r * r, 1) + 0.3 * jnp.sum(Z, 1)), rtol=1e-12)
    assert sums.gap is sums.gap_max is sums.residual_max is None
    assert 0 <= float(gap) <= 1e-12
    assert float(sums.codes_defect) <= 1e-11
    rough = jax_calls.sums(lasso, weights, jax_calls.empty_slots(X, 1), 1e-1, 1.0, dense=False)
    assert float(rough[3]) > 0


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
