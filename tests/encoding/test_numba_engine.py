"""The numba kernels: SciPy and the gap as judges, plain JAX as a twin, hostile rows, and every transform of JAX."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

import jaxdict as jd
from jaxdict.encoding import engines
from jaxdict.encoding.jax_engine import calls as jax_calls
from jaxdict.encoding.lasso import Lasso, check
from jaxdict.encoding.numba_engine import calls, ffi
from jaxdict.encoding.numba_engine.sums import sums_by_numba
from jaxdict.encoding.slots import Slots, dense_from_slots

threads = pytest.importorskip("jaxdict.encoding.numba_engine.kernels.threads")
PATHS = ("gram", "wide")


def random_case(seed=0, n=40, d=10, k=24, dtype=np.float64):
    rng = np.random.default_rng(seed)
    Y, A = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(k, d)).astype(dtype)
    return Y, A / np.linalg.norm(A, axis=1, keepdims=True)


def solve(Y, A, lam, *start, path="gram", tol=1e-12, defect_tol=np.inf, max_steps=200, n_slots=0, dense=True):
    """`codes_by_numba` by the Gram matrix or by passes over all atoms, whatever the shapes; slots, codes and figures in NumPy."""
    start = Slots(*start) if len(start) == 2 else start[0] if start else None
    lasso = Lasso(*(jnp.asarray(v, Y.dtype) for v in (Y, A, lam)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "GRAM_ATOMS", 10**9 if path == "gram" else 0)
        slots, *found = jax.jit(
            lambda lasso, start: calls.codes_by_numba(
                lasso, start, tol, max_steps, defect_tol, n_slots=n_slots, dense=dense
            )
        )(lasso, start)
    return tuple(None if part is None else np.asarray(part) for part in (*slots, *found))


def true_gaps(Y, A, lam, Z):
    """T2's gap and objective, recomputed in float64 from the definition: primal less dual."""
    Y, A, Z = (np.asarray(v, np.float64) for v in (Y, A, Z))
    r = Y - Z @ A
    theta = r / np.maximum(1, (r @ A.T).max(1) / lam)[:, None]
    primal = 0.5 * (r**2).sum(1) + lam * Z.sum(1)
    return primal - 0.5 * (Y**2).sum(1) + 0.5 * ((Y - theta) ** 2).sum(1), primal


@pytest.mark.parametrize("path", PATHS)
def test_agrees_with_scipy_nnls(path):
    Y, A = random_case()
    Z = solve(Y, A, 0.3, path=path)[2]
    for n in range(8):
        # With lam 1 = B v, min 1/2||y - z A||^2 + lam sum z is non-negative least squares once lam is a linear row: append one row of
        # weight t that asks sum z = -lam / t^2; its quadratic part t^2/2 (sum z)^2 vanishes with t.
        t = 1e-4
        design = np.vstack([A.T, np.full((1, A.shape[0]), t)])
        expected = nnls(design, np.append(Y[n], -0.3 / t), maxiter=10_000)[0]
        np.testing.assert_allclose(Z[n], expected, atol=1e-5)  # t^2 (sum z) / curvature, and t lam / t rounding


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("seed", range(6))
def test_hostile_cases_reach_the_gap(path, seed):
    d, k = [(6, 20), (12, 8), (5, 60), (1, 7), (16, 16), (3, 200)][seed]
    Y, A = random_case(seed, n=60, d=d, k=k)
    A = np.concatenate(
        [A, A[:2], (A[0] + A[1])[None] / 2, -A[2:3], np.zeros((1, d))]
    )  # duplicates, a midpoint, a pair, nothing
    Y[0], Y[1], Y[2] = 0, 1e3 * Y[1], A[0]
    for lam in (1e-3, 0.1, 1.0):
        _, _, Z, gap, primal, used, looks = solve(Y, A, lam, path=path, tol=1e-9)
        assert np.all(Z >= 0)
        assert np.all(gap <= 1e-9 * primal)
        again, value = true_gaps(Y, A, lam, Z)
        # The definition's rounding: a difference of numbers as large as ||y||^2.
        noise = 1e-14 * (1 + (Y**2).sum(1))
        assert np.all(again <= 1e-9 * value + noise)
        np.testing.assert_allclose(value, primal, atol=float(noise.max()), rtol=1e-9)
        np.testing.assert_array_equal(used, (Z > 0).sum(1))
        assert looks.max() < 200


@pytest.mark.parametrize("path", PATHS)
def test_defect_reaches_what_solvers_need(path):
    Y, A = random_case(3, n=200, d=16, k=60)
    Z = solve(Y, A, 0.2, path=path, tol=1.8e-12, defect_tol=1e-11)[2]
    s = (Y - Z @ A) @ A.T / 0.2
    assert np.max(np.where(Z > 0, np.abs(1 - s), np.maximum(s - 1, 0))) <= 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_float32_gaps_are_true(path):
    Y, A = random_case(4, n=300, d=64, k=300, dtype=np.float32)
    lam = np.float32(0.8)
    _, _, Z, gap, primal, *_ = solve(Y, A, lam, path=path, tol=1e-6)
    assert Z.dtype == np.float32
    assert np.all(gap <= 1e-6 * primal)
    again, value = true_gaps(Y, A, float(lam), Z)
    # Taken in float64 from rounded codes; float32 only stores the result.
    np.testing.assert_allclose(
        again, gap, atol=2e-7 * float(value.max()) if path == "wide" else 1e-12 * float(value.max())
    )
    assert np.max(again / value) <= 1.2e-6


def test_the_two_paths_and_batches_of_one_agree():
    Y, A = random_case(5, n=50, d=12, k=80)
    by_gram, by_passes = solve(Y, A, 0.1)[2], solve(Y, A, 0.1, path="wide")[2]
    np.testing.assert_allclose(by_gram, by_passes, atol=1e-9)
    for path in PATHS:
        alone = np.concatenate([solve(Y[n : n + 1], A, 0.1, path=path)[2] for n in range(5)])
        np.testing.assert_allclose(alone, by_gram[:5], atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_bad_rows_harm_no_other(path):
    Y, A = random_case(6)
    good = solve(Y, A, 0.2, path=path)[2]
    bad = Y.copy()
    bad[3, 2], bad[7, 0], bad[9, 1] = np.nan, np.inf, -np.inf
    _, _, Z, gap, *_ = solve(bad, A, 0.2, path=path)
    assert np.flatnonzero(np.isnan(gap)).tolist() == [3, 7, 9]
    rest = np.setdiff1d(np.arange(40), [3, 7, 9])
    np.testing.assert_allclose(Z[rest], good[rest], atol=1e-12)
    for lam, atoms in ((np.nan, A), (0.0, A), (0.2, np.where(A > 0.5, np.nan, A))):
        assert np.isnan(solve(Y, atoms, lam, path=path)[3]).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("path", PATHS)
def test_gap_and_defect_are_those_of_plain_jax_at_any_codes(path, dtype, monkeypatch):
    """No look is allowed, so the kernels measure the codes they are given: few, so that atoms without one have correlations above lam."""
    monkeypatch.setattr(calls, "GRAM_ATOMS", 10**9 if path == "gram" else 0)
    Y, A = random_case(16, dtype=dtype)
    rng = np.random.default_rng(17)
    indices = np.argsort(rng.normal(size=(40, 24)), axis=1)[:, :3].astype(np.int32)
    slots = Slots(jnp.asarray(indices), jnp.asarray(rng.uniform(0.01, 0.3, (40, 3)), dtype))
    lasso = Lasso(jnp.asarray(Y), jnp.asarray(A), jnp.asarray(0.5, dtype))
    seen = check(lasso, dense_from_slots(slots, 24))
    s = np.max(np.where(dense_from_slots(slots, 24) > 0, -np.inf, seen.correlations), axis=1) / 0.5
    off_support = np.asarray(seen.defect) == np.maximum(s - 1, 0).astype(dtype)
    assert off_support.sum() > 10  # the defect is that of an atom without a code, in samples like these
    tight = 1e-5 if dtype == np.float32 else 1e-11
    found = calls.codes_by_numba(lasso, slots, 0.0, 0, n_slots=0, dense=True)
    np.testing.assert_allclose(found[2], seen.gap, rtol=tight)
    np.testing.assert_allclose(found[3], seen.primal, rtol=tight)
    weights = jnp.full(40, 1 / 40, dtype)
    for kept in (slice(None), slice(3, 4), slice(7, 8)):
        part = Lasso(lasso.targets[kept], *lasso[1:]), weights[kept], Slots(*(v[kept] for v in slots))
        _, _, sums, gap = sums_by_numba(*part, 0.0, 0.0, 0, dense=False)
        np.testing.assert_allclose(sums.codes_defect, jnp.max(seen.defect[kept]), rtol=tight)
        np.testing.assert_allclose(gap, jnp.max(seen.gap[kept] / seen.primal[kept]), rtol=tight)
        np.testing.assert_allclose(sums.objective, jnp.sum(weights[kept] * seen.primal[kept]), rtol=tight)


@pytest.mark.parametrize("n", [1, 1025, 2111])  # more than a thread's turn, and shares of unequal length
@pytest.mark.parametrize("path", PATHS)
def test_turns_and_blocks_of_any_length(path, n, monkeypatch):
    monkeypatch.setattr(threads.count, "value", 3)
    Y, A = random_case(18, n=n, d=6, k=67)
    Z, gap = solve(Y, A, 0.3, path=path, tol=1e-10)[2:4]
    assert np.all(gap <= 1e-10 * true_gaps(Y, A, 0.3, Z)[1])


@pytest.mark.parametrize("path", PATHS)
def test_room_grows(path, monkeypatch):
    Y, A = random_case(7, d=12, k=40)
    expected = solve(Y, A, 0.01, path=path)[2]
    assert (expected > 0).sum(1).max() > 6
    monkeypatch.setattr(calls, "ROOM", 3)
    np.testing.assert_allclose(solve(Y, A, 0.01, path=path)[2], expected, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_slots_hold_the_codes_or_an_honest_gap(path):
    Y, A = random_case(8)
    _, _, Z, *_ = solve(Y, A, 0.05, path=path)
    indices, values, none, _, _, used, _ = solve(Y, A, 0.05, path=path, n_slots=24, dense=False)
    assert none is None
    dense = np.zeros((40, 25))
    np.add.at(dense, (np.arange(len(dense))[:, None], indices.astype(int)), values)
    np.testing.assert_allclose(dense[:, :24], Z, atol=1e-10)
    indices, values, _, gap, primal, used, _ = solve(Y, A, 0.05, path=path, n_slots=2, dense=False)
    np.testing.assert_array_equal(used, (Z > 0).sum(1))  # says what is needed
    dense = np.zeros((40, 25))
    np.add.at(dense, (np.arange(len(dense))[:, None], indices.astype(int)), values)
    r = Y - dense[:, :24] @ A
    np.testing.assert_allclose(primal, 0.5 * (r**2).sum(1) + 0.05 * dense.sum(1), rtol=1e-10)
    np.testing.assert_allclose(gap, primal - true_gaps(Y, A, 0.05, Z)[1], atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_warm_starts_are_honoured(path):
    Y, A = random_case(9)
    indices, values, Z, *_, looks = solve(Y, A, 0.1, path=path, n_slots=24)
    assert looks.max() > 0
    assert solve(Y, A, 0.1, indices, values, path=path, tol=1e-10)[-1].max() == 0
    assert solve(Y, A, 0.1, Z, path=path, tol=1e-10)[-1].max() == 0
    elsewhere = np.abs(np.random.default_rng(0).normal(size=Z.shape))  # more codes in use than dimensions
    np.testing.assert_allclose(solve(Y, A, 0.1, elsewhere, path=path)[2], Z, atol=1e-9)


def test_encode_agrees_with_plain_jax():
    rng = np.random.default_rng(10)
    X, D = random_case(10)
    problem = jd.Problem(lam=0.3, signed=True, gauge="penalised", metric=rng.uniform(0.5, 2, 10))
    dictionary = jd.Dictionary(D * rng.uniform(0.5, 2, (24, 1)), rng.normal(size=10))
    plain = jd.encode(problem, dictionary, X, tol=1e-12, method="working_set")
    for method in ("numba", "auto"):
        done = jd.encode(problem, dictionary, X, tol=1e-12, method=method)
        np.testing.assert_allclose(done.codes, plain.codes, atol=1e-8)
        assert done.message() == plain.message()
    sparse = jd.encode(problem, dictionary, X, tol=1e-12, method="numba", sparse=True)
    np.testing.assert_allclose(jd.dense_codes(sparse.codes, 24), plain.codes, atol=1e-8)
    again = jd.encode(problem, dictionary, X, tol=1e-10, method="numba", sparse=True, codes=sparse.codes)
    assert int(again.steps) == 0
    short = jd.encode(problem, dictionary, X, method="numba", sparse=True, slots=1)
    assert "too few slots" in short.message()


def test_slots_of_solvers_keep_their_contract():
    Y, A = random_case(11)
    lasso = Lasso(jnp.asarray(Y), jnp.asarray(A), jnp.asarray(0.1))
    empty = Slots(jnp.full((40, 16), 24, jnp.int32), jnp.zeros((40, 16)))
    plain = jax_calls.exact_from_slots(lasso, empty, 1e-12, 200, 2000, 1e-11)
    weights = jnp.full(40, 1 / 40)
    fast = jax.jit(lambda *args: sums_by_numba(*args, 1e-12, 1e-11, 200, dense=True))(lasso, weights, empty)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), plain[:2]) == jax.tree.map(lambda a: (a.shape, a.dtype), fast[:2])
    np.testing.assert_allclose(fast[1], plain[1], atol=1e-9)
    dense = np.zeros((40, 25))
    np.add.at(dense, (np.arange(len(dense))[:, None], np.asarray(fast[0].indices)), np.asarray(fast[0].values))
    np.testing.assert_allclose(dense[:, :24], fast[1], atol=0)


def test_runs_under_every_transform():
    Y, A = random_case(12, n=12)
    X, D = jnp.asarray(Y).reshape(3, 4, 10), jnp.asarray(A)

    def codes(X, D, lam):
        return jd.encode(jd.Problem(lam=lam), jd.Dictionary(D), X, tol=1e-12, method="numba").codes

    expected = np.asarray(codes(X.reshape(12, 10), D, 0.2)).reshape(3, 4, 24)
    over_samples = jax.jit(jax.vmap(codes, (0, None, None)))(X, D, 0.2)
    np.testing.assert_allclose(over_samples, expected, atol=1e-10)
    lams = jnp.array([0.2, 0.5])
    grid = jax.vmap(jax.vmap(codes, (0, None, None)), (None, 0, 0))(X, jnp.stack([D, -D]), lams)
    np.testing.assert_allclose(grid[0], expected, atol=1e-10)
    np.testing.assert_allclose(grid[1, 2], codes(X[2], -D, 0.5), atol=1e-10)

    def looped(X, D):
        def again(carry):
            X, D, _, steps = carry
            return X, D, codes(X, D, 0.2), steps + 1

        return jax.lax.while_loop(lambda carry: carry[3] < 3, again, (X, D, jnp.zeros((4, 24)), 0))[2]

    np.testing.assert_allclose(jax.jit(looped)(X[0], D), expected[0], atol=1e-10)


def test_runs_from_several_threads_at_once():
    Y, A = random_case(
        13, n=3000, d=32, k=128
    )  # large enough for transfers that are not inlined, and for the kernels' threads
    run = jax.jit(lambda X: jd.encode(jd.Problem(lam=0.3), jd.Dictionary(jnp.asarray(A)), X, method="numba").codes)
    expected = run(jnp.asarray(Y))
    with ThreadPoolExecutor(4) as pool:
        for codes in pool.map(run, [jnp.asarray(Y)] * 8):
            np.testing.assert_array_equal(codes, expected)


def test_a_program_for_an_accelerator_holds_no_kernels():
    X, D = (jnp.asarray(v) for v in random_case(14, n=4))
    run = jax.jit(lambda X, D: jd.encode(jd.Problem(lam=0.3), jd.Dictionary(D), X).codes)
    assert "jaxdict_codes" not in jax.export.export(run, platforms=["cuda"])(X, D).mlir_module()
    assert "jaxdict_codes_by_gram_float64" in run.lower(X, D).as_text()
    assert "callback" not in run.lower(X, D).as_text()
    assert "cholesky" not in run.lower(X, D).as_text()  # the other branch is not compiled


def test_targets_and_what_their_threads_run_have_names_of_their_own():
    # Both are symbols of one process: one name for two would be a call of the wrong code.
    targets = ffi.kernels().TARGETS
    assert set(targets).isdisjoint(threads.BODIES)
    assert {name for _, bodies in targets.values() for name in bodies} <= set(threads.BODIES)


def test_without_numba(monkeypatch):
    monkeypatch.setattr(engines, "kernels", lambda: None)
    monkeypatch.setattr(ffi, "kernels", lambda: None)
    X, D = random_case(15, n=4)
    with pytest.raises(ImportError, match=r"jaxdict\[fast\]"):
        jd.encode(jd.Problem(lam=0.3), jd.Dictionary(D), X, method="numba")
