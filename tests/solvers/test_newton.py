"""Truncated Newton: its model is the objective's, its search the trust region's, both ways of computing it agree, and it converges fast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.encoding.numba_engine.calls import kernels
from jaxdict.numerics import unit_rows
from jaxdict.solvers import newton
from jaxdict.solvers.quasi_newton import dot
from jaxdict.solvers.reduced import first_point, next_point

N, D, K = 80, 6, 9
X = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)))
ATOMS = jnp.asarray(np.random.default_rng(1).normal(size=(K, D)))
PROBLEMS = {
    "plain": jd.Problem(lam=0.3, offset=False),
    "signed": jd.Problem(lam=0.3, signed=True),
    "metric and weights": jd.Problem(lam=0.3, metric=[0.5, 1, 2, 1, 0.7, 1.5], weights=[0.0, 1.0] * (N // 2)),
}


@pytest.fixture(scope="module", params=PROBLEMS)
def start(request):
    problem = PROBLEMS[request.param].astype(X.dtype)
    point, _ = jax.jit(lambda: first_point(problem, X, jd.Dictionary(unit_rows(ATOMS), jnp.full(D, 0.1)), 18))()
    return problem, point


@pytest.mark.slow
@pytest.mark.parametrize("radius", [1e-3, 0.05, 1e3])
@pytest.mark.parametrize("seed", range(3))
def test_search_ends_where_a_trust_region_should(radius, seed, numba_search):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    values = rng.uniform(0.5, 3, 12)
    values[0] = -0.5 if seed == 2 else values[0]
    H, g = basis @ np.diag(values) @ basis.T, rng.normal(size=12)

    slopes = g[:9].reshape(3, 3), g[9:]
    by_jax = newton.steihaug(lambda v: by_jnp(H, v), tuple(map(jnp.asarray, slopes)), radius, 1e-10, 50)
    step, left, edge, count = numba_search(H, g.reshape(4, 3), radius, 1e-10, 50)
    flat = step.ravel()
    np.testing.assert_allclose(np.concatenate([by_jax.step[0].ravel(), by_jax.step[1]]), flat, rtol=1e-8, atol=1e-12)
    assert bool(by_jax.edge) == edge and int(by_jax.products) == count  # noqa: PT018
    if edge:
        np.testing.assert_allclose(np.linalg.norm(flat), radius, rtol=1e-10)
    else:
        np.testing.assert_allclose(flat, np.linalg.solve(H, -g), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(left.ravel(), -g - H @ flat, rtol=1e-6, atol=1e-8)
    assert edge or seed != 2  # negative curvature is followed to the edge
    # At least as good as the best point along the steepest descent (Cauchy's).
    reach = min(radius / np.linalg.norm(g), g @ g / (g @ H @ g) if g @ H @ g > 0 else np.inf)
    model = lambda v: g @ v + 0.5 * v @ H @ v  # noqa: E731
    assert model(flat) <= model(-reach * g) + 1e-12


@pytest.fixture(scope="module")
def numba_search():
    numba = pytest.importorskip("numba")
    from jaxdict.encoding.numba_engine.kernels.search import steihaug

    @numba.njit
    def product(H, change):
        return (H @ change.ravel()).reshape(change.shape)

    search = steihaug(product)
    # Kernels are for kernels: Python calls one of its own.
    return numba.njit(lambda H, slopes, radius, accuracy, most: search(H, slopes, radius, accuracy, most))


def by_jnp(H, v):
    image = jnp.asarray(H) @ jnp.concatenate([v[0].ravel(), v[1]])
    return image[:9].reshape(3, 3), image[9:]


@pytest.mark.skipif(kernels() is None, reason="numba is not installed")
@pytest.mark.parametrize("radius", [0.02, 10.0])
def test_kernels_and_plain_jax_search_alike(start, radius):
    problem, point = start
    fast, slow = (f(problem, X, point, jnp.asarray(radius), most=30) for f in (newton._search_by_numba, newton._search))
    scale = float(jnp.max(jnp.abs(slow[0][0])))
    # The same conjugate gradients; supports' systems are solved in another order, and rounding grows with the steps.
    np.testing.assert_allclose(fast[0][0], slow[0][0], atol=1e-7 * scale)
    np.testing.assert_allclose(fast[0][1], slow[0][1], atol=1e-7 * scale)
    np.testing.assert_allclose(fast[1], slow[1], rtol=1e-7)
    assert bool(fast[2]) == bool(slow[2])


def test_the_model_is_right_to_second_order(start):
    problem, point = start
    errors = []
    for radius in (1e-3, 1e-4):
        step, promise, edge = newton._search(problem, X, point, jnp.asarray(radius), most=30)
        assert bool(edge)
        moved = jd.Dictionary(unit_rows(point.dictionary.atoms + step[0]), point.dictionary.offset + step[1])
        gain = point.objective - next_point(problem, X, moved, point.slots).objective
        errors.append(float(abs(gain - promise)))
        linear = -dot((point.atoms_slope, point.offset_slope), step)
        bend = abs(float(linear - promise))  # the quadratic part, which the model must have right
        assert errors[-1] <= 0.05 * bend + 1e-14
    # What is left is of third order: a tenth of the radius leaves a thousandth, rounding apart.
    assert errors[1] <= 3e-3 * errors[0] + 1e-14


@pytest.mark.slow
def test_convergence_is_superlinear_at_the_end():
    # One pass of it from far, then the record of the last digits: from 1e-3 to 1e-9 in a handful of steps.
    solution = jd.fit(PROBLEMS["plain"], X, K, key=jax.random.key(0), tol=1e-9)
    assert int(solution.status) == 0
    worst = np.asarray(solution.history.stationarity)[: int(solution.steps)]
    first = int(np.argmax(worst <= 1e-3))
    assert len(worst) - first <= 8


def test_products_are_noticed():
    def steps(products):
        solver = jd.solvers.Combined(second=jd.solvers.Newton(products=products))
        return int(jd.fit(PROBLEMS["plain"], X, K, key=jax.random.key(0), tol=1e-6, solver=solver).steps)

    assert steps(100) < steps(1)
