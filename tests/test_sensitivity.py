"""Derivatives of fitted optima: against re-solved problems, the optimality map's dense Jacobian, closed forms; and refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxdict as jd
from jaxdict.certificates.curvature import curvature
from jaxdict.certificates.optimality import optimality_map
from jaxdict.sensitivity import implicit_optimum, optimal_value, response

SOLVER = jd.solvers.QuasiNewton()  # one stage compiles faster than three
TIGHT = 2e-11  # worst stationarity of re-solved points: errors of differences about this over the step


def planted(n=50, d=3, k=4):
    rng = np.random.default_rng(0)
    D = rng.normal(size=(k, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    Z = (rng.random((n, k)) < 0.35) * rng.uniform(0.5, 1.5, (n, k))
    X = jnp.asarray(Z @ D + 0.05 * rng.normal(size=(n, d)))
    return X, jnp.asarray(D), jnp.asarray(rng.uniform(0.7, 1.3, d)), jnp.asarray(rng.uniform(0.5, 1.5, n))


@pytest.fixture(scope="module")
def fitted():
    """A strict minimum, what defines it, a direction in which that changes, and a fit at what it changes to."""
    jax.config.update("jax_enable_x64", True)  # module fixtures may be set up right after a doctest, which runs without
    X, D, metric, weights = planted()
    inputs = jnp.asarray(0.1), metric, weights, X
    rng = np.random.default_rng(1)
    direction = tuple(
        jnp.asarray(rng.normal(size=leaf.shape)) * scale
        for leaf, scale in zip(inputs, (0.05, 0.3, 0.3, 0.1), strict=True)
    )

    def fit(size=0.0, start=None):
        moved = [leaf + size * change for leaf, change in zip(inputs, direction, strict=True)]
        start = jd.Dictionary(D, jnp.zeros(3)) if start is None else start
        return jd.fit(problem_of(*moved[:3]), moved[3], start=start, tol=TIGHT, solver=SOLVER)

    solution = fit()
    assert int(solution.status) == 0
    return inputs, direction, solution, fit


def problem_of(lam, metric, weights):
    return jd.Problem(lam=lam, metric=metric, weights=weights)


def follow(solution):
    """The point as a function of (lam, metric, weights, X)."""
    return lambda lam, metric, weights, X: implicit_optimum(
        problem_of(lam, metric, weights), X, solution.dictionary, solution.codes
    )


@pytest.fixture(scope="module")
def moved(fitted):
    """The change of (dictionary, codes, objective) along the direction, by `jax.jvp` through `fit`."""
    inputs, direction, solution, _ = fitted

    def fit(lam, metric, weights, X):
        problem = problem_of(lam, metric, weights)
        found = jd.fit(problem, X, start=solution.dictionary, tol=TIGHT, solver=SOLVER, implicit=True)
        return found.dictionary, found.codes, found.objective

    return jax.jvp(fit, inputs, direction)[1]


@pytest.mark.slow
def test_derivatives_are_those_of_resolved_fits(fitted, moved):
    _, _, solution, fit = fitted
    size = 3e-5
    ahead, behind = (fit(sign * size, solution.dictionary) for sign in (1, -1))
    parts = lambda s: (s.dictionary, s.codes, s.objective)  # noqa: E731
    for ours, after, before in zip(*map(jax.tree.leaves, (moved, parts(ahead), parts(behind))), strict=True):
        difference = (after - before) / (2 * size)
        # Points are solved to 2e-11, over the step 3e-5; the largest entry is the unit.
        np.testing.assert_allclose(ours, difference, atol=1e-6 * float(jnp.abs(difference).max()))


@pytest.mark.slow
def test_reverse_is_forward_and_the_response_says_how_exact(fitted, moved):
    inputs, direction, solution, _ = fitted
    weigh = jnp.asarray(np.random.default_rng(2).normal(size=solution.dictionary.atoms.shape))
    loss = lambda *inputs: jnp.sum(weigh * follow(solution)(*inputs)[0].atoms)  # noqa: E731
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*inputs)
    total = sum(jnp.vdot(a, b) for a, b in zip(slopes, direction, strict=True))
    np.testing.assert_allclose(total, jnp.sum(weigh * moved[0].atoms), rtol=1e-9)
    names = dict(zip(("lam", "metric", "weights", "data"), direction, strict=True))
    told = response(problem_of(*inputs[:3]), solution.dictionary, solution.codes, inputs[3], **names)
    assert int(told.status) == 0
    assert "exact" in told.message()
    assert float(told.residual) < 1e-11
    for ours, theirs in zip(
        jax.tree.leaves((told.dictionary, told.codes, told.objective)), jax.tree.leaves(moved), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-9 * float(jnp.abs(theirs).max()))
    smallest = curvature(problem_of(*inputs[:3]), solution.dictionary, solution.codes, inputs[3]).eigenvalue
    np.testing.assert_allclose(told.condition, 1 / smallest, rtol=1e-12)
    # Tangent to the spheres.
    np.testing.assert_allclose(jnp.sum(told.dictionary.atoms * solution.dictionary.atoms, axis=1), 0, atol=1e-12)


@pytest.mark.slow
def test_its_linearisation_gives_the_implicit_derivative(fitted):
    """`J_y dy = -J_lam` by numpy on the map's dense Jacobian is the response that `jaxdict.sensitivity` solves for."""
    (lam, metric, weights, X), _, solution, _ = fitted
    problem = problem_of(lam, metric, weights)
    D, b = solution.dictionary
    shapes = D.shape, solution.codes.shape, b.shape
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

    def flat(y, lam):
        atoms, codes, offset = (part.reshape(shape) for part, shape in zip(jnp.split(y, cuts), shapes, strict=True))
        defects = optimality_map(problem_of(lam, metric, weights), jd.Dictionary(atoms, offset), codes, X)
        return jnp.concatenate([leaf.ravel() for leaf in defects])

    y = jnp.concatenate([D.ravel(), solution.codes.ravel(), b])
    jacobian, by_lam = jax.jit(jax.jacfwd(flat, argnums=(0, 1)))(y, problem.lam)
    dense = np.split(np.linalg.solve(jacobian, -by_lam), cuts)
    moved = response(problem, solution.dictionary, solution.codes, X, lam=1.0)
    for ours, theirs in zip((moved.dictionary.atoms, moved.codes, moved.dictionary.offset), dense, strict=True):
        np.testing.assert_allclose(ours.ravel(), theirs, atol=1e-7 * np.abs(theirs).max())


@pytest.mark.slow
def test_second_derivatives_of_the_optimum(fitted):
    inputs, _, solution, _ = fitted
    rest = inputs[1:]
    first = jax.jit(
        lambda lam: jax.jvp(lambda lam: follow(solution)(lam, *rest)[0].atoms, (lam,), (jnp.ones_like(lam),))[1]
    )
    second = jax.jit(lambda lam: jax.jvp(first, (lam,), (jnp.ones_like(lam),))[1])(inputs[0])

    def at(lam):
        found = jd.fit(problem_of(lam, *rest[:2]), rest[2], start=solution.dictionary, tol=TIGHT, solver=SOLVER)
        fixed = found.dictionary, found.codes
        point = lambda lam: implicit_optimum(problem_of(lam, *rest[:2]), rest[2], *fixed)[0].atoms  # noqa: E731
        return jax.jvp(point, (lam,), (jnp.ones_like(lam),))[1]

    difference = (at(inputs[0] + 1e-5) - at(inputs[0] - 1e-5)) / 2e-5
    np.testing.assert_allclose(second, difference, atol=2e-5 * float(jnp.abs(difference).max()))


def flat_problem():
    """x = 3 and -3 on a line, lam = 1, atoms +1 and -1: any offset between -2 and 2 costs the same (T14)."""
    return jd.Problem(lam=1.0), jnp.array([[3.0], [-3.0]]), jd.Dictionary(jnp.array([[1.0], [-1.0]]), jnp.zeros(1))


@pytest.mark.slow
def test_derivatives_are_nan_where_refused(fitted):
    inputs, _, solution, _ = fitted
    point = solution.dictionary, solution.codes
    loss = lambda *inputs: jnp.sum(implicit_optimum(problem_of(*inputs[:3]), inputs[3], *point, False)[0].atoms)  # noqa: E731
    for slope in jax.grad(loss, argnums=(0, 1, 2, 3))(*inputs):
        assert bool(jnp.all(jnp.isnan(slope)))
    with pytest.raises(ValueError, match="weights changes but the problem has none"):
        response(jd.Problem(lam=0.1), *point, inputs[3], weights=1.0)


@pytest.mark.slow
def test_fit_refuses_what_is_no_strict_minimum():
    problem, X, start = flat_problem()

    def loss(X):
        solution = jd.fit(problem, X, start=start, implicit=True, solver=jd.solvers.ProjectedGradient())
        return jnp.sum(solution.dictionary.offset), solution.status

    with pytest.raises(ValueError, match=r"implicit=True needs a strict minimum.*no derivative"):
        loss(X)
    (_, status), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(X)
    assert int(status) == 7
    assert bool(jnp.all(jnp.isnan(slope)))
    told = response(problem, start, jnp.array([[2.0, 0.0], [0.0, 2.0]]), X, data=jnp.ones_like(X))
    assert "refused" in told.message()
    assert bool(jnp.all(jnp.isnan(told.dictionary.offset)))


def test_optimal_value_has_the_envelopes_gradient_and_its_hessian():
    X, D, metric, weights = planted()
    b = 0.05 * jnp.ones(3)

    def value(lam, metric, weights, D, b, X):
        return optimal_value(problem_of(lam, metric, weights), jd.Dictionary(D, b), X, tol=1e-13)

    inputs = (jnp.asarray(0.1), metric, weights, D, b, X)
    Z = jd.encode(problem_of(0.1, metric, weights), jd.Dictionary(D, b), X, tol=1e-13).codes
    w, r = weights / weights.mean(), X - b - Z @ D
    gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3, 4, 5)))
    slopes = gradient(*inputs)
    np.testing.assert_allclose(slopes[0], jnp.mean(w * Z.sum(1)), rtol=1e-12)
    np.testing.assert_allclose(slopes[1], jnp.mean(w[:, None] * r**2, 0) / 2, rtol=1e-11)
    share = 0.5 * jnp.sum(metric * r**2, 1) + 0.1 * Z.sum(1)
    np.testing.assert_allclose(slopes[2], (share - jnp.mean(w * share)) / weights.sum(), atol=1e-14)
    np.testing.assert_allclose(slopes[3], -Z.T @ (w[:, None] * metric * r) / 50, atol=1e-13)
    np.testing.assert_allclose(slopes[4], -jnp.mean(w[:, None] * metric * r, 0), atol=1e-13)
    np.testing.assert_allclose(slopes[5], w[:, None] * metric * r / 50, atol=1e-14)
    rng = np.random.default_rng(3)
    direction = tuple(jnp.asarray(rng.normal(size=leaf.shape)) for leaf in inputs)
    bent = jax.jit(lambda inputs: jax.jvp(lambda inputs: gradient(*inputs), (inputs,), (direction,))[1])(inputs)
    step = lambda size: gradient(*(leaf + size * change for leaf, change in zip(inputs, direction, strict=True)))  # noqa: E731
    for ours, after, before in zip(bent, step(1e-6), step(-1e-6), strict=True):
        difference = (after - before) / 2e-6
        np.testing.assert_allclose(ours, difference, atol=1e-6 * float(jnp.abs(difference).max()))


@pytest.mark.slow
def test_vmap_and_float32(fitted, moved):
    inputs, direction, solution, _ = fitted
    along = lambda *inputs: jax.jvp(follow(solution), inputs, direction)[1][0].atoms  # noqa: E731
    pair = tuple(jnp.stack([leaf, leaf]) for leaf in inputs)
    both = jax.jit(jax.vmap(along))(*pair)
    np.testing.assert_allclose(both[1], moved[0].atoms, atol=1e-9)
    small = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), (inputs, direction, (solution.dictionary, solution.codes))
    )
    point = lambda *inputs: implicit_optimum(problem_of(*inputs[:3]), inputs[3], *small[2])[0].atoms  # noqa: E731
    single = jax.jit(lambda inputs: jax.jvp(point, inputs, small[1])[1])(small[0])
    assert single.dtype == jnp.float32
    # Rounding of the point, 1e-7, times the condition number, about 20.
    np.testing.assert_allclose(single, moved[0].atoms, atol=1e-4 * float(jnp.abs(moved[0].atoms).max()))


@pytest.mark.slow
def test_digits():
    X = load_digits().data[:150] / 16
    X = X - X.mean(0)
    X = jnp.asarray(X / np.sqrt((X**2).sum(1).mean()))
    solution = jd.fit(jd.Problem(lam=0.2), X, 6, key=jax.random.key(0), tol=TIGHT, second_order=True)
    told = response(jd.Problem(lam=0.2), solution.dictionary, solution.codes, X, lam=1.0)
    fits = [
        jd.fit(jd.Problem(lam=0.2 + size), X, start=solution.dictionary, tol=TIGHT, solver=SOLVER)
        for size in (3e-6, -3e-6)
    ]
    difference = (fits[0].dictionary.atoms - fits[1].dictionary.atoms) / 6e-6
    assert int(told.status) == 0
    np.testing.assert_allclose(told.dictionary.atoms, difference, atol=1e-6 * float(jnp.abs(difference).max()))


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jaxdict as jd
from jaxdict.sensitivity import implicit_optimum
assert jax.device_count() == 8
X, D = jax.random.normal(jax.random.key(0), (64, 3)), jnp.eye(3)[:2]
problem = jd.Problem(lam=0.3)
solution = jd.fit(problem, X, start=jd.Dictionary(D, jnp.zeros(3)), tol=1e-9)
rows = NamedSharding(Mesh(np.array(jax.devices()), ("samples",)), P("samples", None))
loss = jax.jit(lambda X, Z: jnp.sum(implicit_optimum(problem, X, solution.dictionary, Z)[0].atoms ** 3))
places = jnp.asarray, lambda leaf: jax.device_put(leaf, rows)
one, eight = (jax.grad(loss)(place(X), place(solution.codes)) for place in places)
np.testing.assert_allclose(one, eight, rtol=1e-8, atol=1e-10)
"""


@pytest.mark.slow
def test_eight_devices(on_eight_devices):
    on_eight_devices(EIGHT)


@pytest.mark.slow  # test_reported_cases.py has one such case
def test_a_python_number_is_differentiated_too():
    X, D, _, _ = planted()
    start = jd.fit(jd.Problem(lam=0.1), X, start=jd.Dictionary(D), tol=1e-9).dictionary

    def total(lam, start=start):
        return jnp.sum(jd.fit(jd.Problem(lam=lam), X, start=start, tol=1e-9, implicit=True).dictionary.atoms ** 3)

    def replaced(lam):
        problem = eqx.tree_at(lambda p: p.lam, jd.Problem(lam=1.0), lam)
        return jnp.sum(jd.fit(problem, X, start=start, tol=1e-9, implicit=True).dictionary.atoms ** 3)

    slope = jax.grad(total)(0.1)
    difference = (total(0.1 + 1e-5) - total(0.1 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-5)  # points to 1e-9, over the step 1e-5
    np.testing.assert_allclose(jax.grad(replaced)(0.1), slope, rtol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(0.1), slope, rtol=1e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(total))(jnp.array([0.1, 0.1])), [slope, slope], rtol=1e-7)


@pytest.mark.slow
def test_a_signed_optimum_moves_as_refits_say():
    X, D, _, _ = planted()
    signed = lambda lam: jd.Problem(lam=lam, signed=True)  # noqa: E731
    X = X * jnp.where(jnp.arange(len(X)) % 2 == 0, 1, -1)[:, None]
    here = jd.fit(signed(0.1), X, start=jd.Dictionary(D), tol=TIGHT)
    assert int(here.status) == 0
    assert bool(jnp.any(here.codes < 0)) and bool(jnp.any(here.codes > 0))  # noqa: PT018
    told = response(signed(0.1), here.dictionary, here.codes, X, lam=1.0)
    assert int(told.status) == 0, told.message()
    ends = [jd.fit(signed(0.1 + size), X, start=here.dictionary, tol=TIGHT) for size in (1e-5, -1e-5)]
    pairs = [(told.dictionary.atoms, [end.dictionary.atoms for end in ends]), (told.codes, [end.codes for end in ends])]
    for ours, (after, before) in pairs:
        difference = (after - before) / 2e-5
        np.testing.assert_allclose(ours, difference, atol=1e-5 * float(jnp.abs(difference).max()))
