"""Sums that the numba kernels take over samples: against the moments of the point's own codes, whatever the problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.certificates.stationarity import stationarity
from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.numba_engine.calls import kernels
from jaxdict.encoding.numba_engine.sums import sums_by_numba
from jaxdict.encoding.slots import Slots
from jaxdict.objectives import moments
from jaxdict.problem import sample_weights
from jaxdict.solvers.reduced import codes_at, next_point

kernel_threads = pytest.importorskip("jaxdict.encoding.numba_engine.kernels.threads")
PART_WORK = pytest.importorskip("jaxdict.encoding.numba_engine.kernels.sums").PART_WORK
pytestmark = pytest.mark.skipif(kernels() is None, reason="numba is not installed")

N, D, K = 80, 6, 9
X = np.random.default_rng(0).normal(size=(N, D))
ATOMS = np.random.default_rng(1).normal(size=(K, D))
ATOMS /= np.linalg.norm(ATOMS, axis=1, keepdims=True)
PROBLEMS = {
    "plain": jd.Problem(lam=0.3, offset=False),
    "offset": jd.Problem(lam=0.3),
    "signed": jd.Problem(lam=0.3, signed=True),
    "metric and weights": jd.Problem(lam=0.3, metric=[0.5, 1, 2, 1, 0.7, 1.5], weights=[0.0, 1.0] * (N // 2)),
}


def point_of(problem, slots, dtype=jnp.float64):
    problem, dictionary = problem.astype(dtype), jd.Dictionary(jnp.asarray(ATOMS, dtype), jnp.full(D, 0.1, dtype))
    plain = K * (2 if problem.signed else 1)
    empty = Slots(jnp.full((N, slots), plain), jnp.zeros((N, slots), dtype))
    return problem, next_point(problem, jnp.asarray(X, dtype), dictionary, empty)


@pytest.mark.parametrize("slots", [12, 2])  # two are too few for most samples: sums are of all codes nonetheless
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_point_is_that_of_its_codes(name, slots):
    problem, point = point_of(PROBLEMS[name], slots)
    codes = codes_at(problem, X, point)
    exact = jd.encode(problem, point.dictionary, X, tol=1e-13).codes
    np.testing.assert_allclose(codes, exact, atol=1e-9)  # both within 1e-12 of the same optimum, relative gap
    assert int(jnp.max(jnp.sum(codes != 0, axis=1))) > 2
    sums = moments(problem, point.dictionary, codes, X)
    squares = sample_weights(problem, X) / N @ (codes * codes)
    # Sums of the same numbers in another order.
    np.testing.assert_allclose(point.objective, sums.objective, rtol=1e-12)
    np.testing.assert_allclose(point.atoms_slope, -sums.cross, atol=1e-12)
    np.testing.assert_allclose(point.mean_codes, sums.mean_codes, atol=1e-12)
    np.testing.assert_allclose(point.mean_squares, squares, atol=1e-12)
    np.testing.assert_allclose(point.offset_slope, -sums.mean_residual if problem.offset else np.zeros(D), atol=1e-12)
    np.testing.assert_allclose(point.stationarity, stationarity(problem, point.dictionary, codes, X).worst, rtol=1e-9)
    assert bool(point.solved)


def test_float32_sums_are_those_of_float64():
    point, exact = (point_of(PROBLEMS["offset"], 12, dtype)[1] for dtype in (jnp.float32, jnp.float64))
    assert point.atoms_slope.dtype == jnp.float32
    np.testing.assert_allclose(point.objective, exact.objective, rtol=1e-6)  # codes are rounded to float32
    np.testing.assert_allclose(point.atoms_slope, exact.atoms_slope, atol=1e-5)


def test_a_sample_that_is_not_finite_spoils_the_point_and_says_so():
    problem, dictionary = PROBLEMS["plain"], jd.Dictionary(jnp.asarray(ATOMS))
    empty = Slots(jnp.full((N, 12), K), jnp.zeros((N, 12)))
    point = next_point(
        problem, jnp.asarray(X).at[3, 2].set(jnp.nan), jd.Dictionary(dictionary.atoms, jnp.zeros(D)), empty
    )
    assert np.isnan(point.objective)
    assert not bool(point.solved)


def test_vmap_is_one_call_after_another():
    problem = PROBLEMS["offset"]
    dictionaries = jax.vmap(lambda t: jd.Dictionary(jnp.asarray(ATOMS), jnp.full(D, t)))(jnp.array([0.1, 0.3]))
    empty = Slots(jnp.full((N, 12), K), jnp.zeros((N, 12)))
    run = lambda dictionary: next_point(problem, jnp.asarray(X), dictionary, empty)  # noqa: E731
    both = jax.jit(jax.vmap(run))(dictionaries)
    for k in range(2):
        one = run(jax.tree.map(lambda leaf, k=k: leaf[k], dictionaries))
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-12, atol=1e-14), both, one)


@pytest.mark.slow
def test_parts_do_not_depend_on_threads(monkeypatch):
    rng = np.random.default_rng(2)
    n, lam = 70_001, 0.02  # so many active atoms that there are parts, of unequal length
    atoms, targets = np.repeat(ATOMS, 4, axis=0), rng.normal(size=(n, D))
    atoms = atoms + 0.3 * rng.normal(size=atoms.shape)
    start = Slots(jnp.full((n, 8), len(atoms)), jnp.zeros((n, 8)))
    lasso = Lasso(jnp.asarray(targets), jnp.asarray(atoms), jnp.asarray(lam))
    run = jax.jit(lambda: sums_by_numba(lasso, jnp.full(n, 1 / n), start, 1e-12, 1e-11, 200, dense=False))
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(kernel_threads.count, "value", threads)
        found.append(run())
    for others in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, others, found[0])
    Z = np.asarray(jd.encode(jd.Problem(lam=lam, offset=False), jd.Dictionary(atoms), targets, tol=1e-12).codes)
    assert 3 * D * np.sum(Z > 0) >= 2 * PART_WORK
    np.testing.assert_allclose(found[0][2].cross, Z.T @ (targets - Z @ atoms) / n, atol=1e-9)  # and no row is left out
