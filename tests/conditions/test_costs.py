"""T16: measured costs against F evaluated along the same path, closed forms, and certified fits where nothing costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxdict as jd
from jaxdict.conditions import direction_cost, pair_costs, turning_gains
from jaxdict.problem import canonical, sparse_codes

EPS = np.finfo(float).eps


def random_point(seed, n=40, k=5, d=4, metric=False):
    rng = np.random.default_rng(seed)
    Z = np.maximum(rng.normal(size=(n, k)), 0)
    atoms = rng.normal(size=(k, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    X = Z @ atoms + 0.3 * rng.normal(size=(n, d))
    weights, m = rng.uniform(0.2, 2, n), rng.uniform(0.5, 2, d) if metric else None
    problem = jd.Problem(lam=0.3, metric=m, weights=weights)
    return (
        problem,
        jd.Dictionary(jnp.asarray(atoms), jnp.asarray(0.1 * rng.normal(size=d))),
        jnp.asarray(Z),
        jnp.asarray(X),
    )


def along_the_path(problem, dictionary, Z, X, i, j, c, t):
    """F after absorbing t of atom i into atom j, everything rebuilt."""
    atoms, offset = np.array(dictionary.atoms), np.array(dictionary.offset)
    Z = np.array(Z)
    moved = atoms[j] + t * atoms[i]
    nu = np.linalg.norm(moved)
    z_i = np.maximum(Z[:, i] - t * Z[:, j] + t * c, 0)
    offset = offset - t * c * atoms[i]
    Z[:, i], Z[:, j], atoms[j] = z_i, Z[:, j] * nu, moved / nu
    return float(jd.objective(problem, jd.Dictionary(jnp.asarray(atoms), jnp.asarray(offset)), jnp.asarray(Z), X))


@pytest.mark.parametrize(("seed", "c"), [(0, 0.0), (1, 0.4)])
def test_pair_cost_is_the_fall_of_f_along_the_path(seed, c):
    point = random_point(seed, metric=seed % 2 == 1)
    F = float(jd.objective(*point))
    found = pair_costs(*point, 1, 3, c)
    step, decrease = float(found.step), float(found.decrease)
    # Exact at the step reported, and no step of a fine grid does better: the search brackets by a grid five times coarser.
    assert abs(F - along_the_path(*point, 1, 3, c, step) - decrease) <= 64 * EPS * F
    best = max(F - along_the_path(*point, 1, 3, c, t) for t in np.geomspace(1e-3, 30, 300))
    assert decrease >= best - 1e-9 * F
    h = 1e-6
    slope = (along_the_path(*point, 1, 3, c, h) - F) / h
    assert abs(-slope - float(found.rate)) <= 1e-4 * (1 + abs(slope))  # one-sided difference: error of order h
    assert 0 <= float(found.guaranteed) <= decrease + 64 * EPS * F


def test_pair_cost_of_a_strict_child_in_closed_form():
    # z_j = 1 only where z_i = 1, orthogonal: F(t) - F(0) = lam zbar_j (sqrt(1 + t^2) - 1 - t) up to t = 1.
    codes = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = pair_costs(jd.Problem(lam=0.4), jd.Dictionary(jnp.eye(2)), codes, codes, 0, 1)
    # Beyond t = 1 the clipped code costs more than is gained, so the best step is that kink; golden section finds it to 1e-7.
    assert float(found.decrease) == pytest.approx(0.4 * 0.25 * (2 - np.sqrt(2)), abs=1e-7)
    assert float(found.step) == pytest.approx(1, abs=1e-5)
    assert float(found.rate) == pytest.approx(0.4 * 0.25, abs=16 * EPS)
    # Guaranteed: rate tau - L tau^2 / 2 with tau = 1, L = lam zbar_j.
    assert float(found.guaranteed) == pytest.approx(0.4 * 0.25 * 0.5, abs=16 * EPS)


@pytest.mark.slow
def test_pairs_in_batches_sparse_codes_jit_and_vmap_agree():
    point = random_point(7)
    i, j = jnp.array([[0, 1], [2, 3]]), jnp.array([[1, 2], [4, 0]])
    found = pair_costs(*point, i, j)
    assert found.decrease.shape == (2, 2)
    problem, dictionary, Z, X = point
    sparse = pair_costs(problem, dictionary, sparse_codes(Z), X, i, j)
    jitted = jax.jit(pair_costs)(*point, i, j)
    mapped = jax.vmap(lambda a, b: pair_costs(*point, a, b))(i, j)
    for other in (sparse, jitted, mapped):
        np.testing.assert_allclose(other.decrease, found.decrease, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(other.rate, found.rate, rtol=1e-9, atol=1e-14)


def test_atoms_of_other_norms_cost_the_same():
    problem, dictionary, Z, X = random_point(3)
    norms = jnp.array([0.5, 2.0, 1.5, 0.7, 3.0])
    scaled = jd.Dictionary(dictionary.atoms * norms[:, None], dictionary.offset)
    np.testing.assert_allclose(
        pair_costs(problem, scaled, Z / norms, X, 0, 2).decrease, pair_costs(problem, dictionary, Z, X, 0, 2).decrease,
        rtol=1e-10,
    )  # fmt: skip


def test_negative_codes_are_refused():
    with pytest.raises(ValueError, match="codes >= 0"):
        pair_costs(jd.Problem(lam=0.1), jd.Dictionary(jnp.eye(2)), -jnp.ones((3, 2)), jnp.ones((3, 2)), 0, 1)


@pytest.fixture(scope="module")
def fitted():
    X = jax.random.normal(jax.random.key(0), (120, 4))
    problem = jd.Problem(lam=0.4)
    return problem, jd.fit(problem, X, 6, key=jax.random.key(1), tol=1e-9), X


def test_nothing_costs_at_a_stationary_point(point):
    i, j = jnp.nonzero(~jnp.eye(4, dtype=bool))
    found = pair_costs(*point, i, j)
    assert float(jnp.max(found.rate)) <= 1e-9
    assert float(jnp.max(found.decrease)) <= 1e-9


@pytest.mark.slow
def test_nothing_costs_at_a_certified_optimum(fitted):
    problem, solution, X = fitted
    i, j = jnp.nonzero(~jnp.eye(6, dtype=bool))
    found = pair_costs(problem, solution.dictionary, solution.codes, X, i, j)
    # Stationary to 1e-9: every direction's rate is at most that times lam zbar, so no decrease beyond it either.
    assert float(jnp.max(found.rate)) <= 1e-9
    assert float(jnp.max(found.decrease)) <= 1e-9


@pytest.mark.slow
def test_a_direction_costs_what_a_line_search_finds(fitted):
    problem, solution, X = fitted
    turned = jd.Dictionary(
        solution.dictionary.atoms.at[0].set(solution.dictionary.atoms[1]), solution.dictionary.offset
    )
    codes = jd.encode(problem, turned, X, tol=1e-12).codes
    down = jd.steepest_feasible_direction(problem, turned, codes, X)
    found = direction_cost(problem, turned, codes, X, down)
    slope = jd.directional_derivative(problem, turned, codes, X, down)
    np.testing.assert_allclose(float(found.rate), -float(slope), rtol=1e-10)
    t = float(found.step)
    moved, new_codes = canonical(
        jd.Dictionary(turned.atoms + t * down.atoms, turned.offset + t * down.offset),
        jnp.maximum(codes + t * down.codes, 0),
    )
    fall = jd.objective(problem, turned, codes, X) - jd.objective(problem, moved, new_codes, X)
    np.testing.assert_allclose(float(found.decrease), float(fall), rtol=1e-9)
    assert float(found.decrease) > 0


def test_turning_gain_is_the_best_turn_of_one_atom():
    problem, dictionary, Z, X = random_point(5)
    problem = jd.Problem(lam=0.3)
    R = jd.residual(dictionary, Z, X)
    cross, squares = Z.T @ R / len(X), jnp.mean(Z * Z, axis=0)
    gains = turning_gains(dictionary.atoms, cross, squares)

    def value(v, k):
        atoms = dictionary.atoms.at[k].set(jnp.asarray(v / np.linalg.norm(v)))
        return float(jd.objective(problem, jd.Dictionary(atoms, dictionary.offset), Z, X))

    F = float(jd.objective(problem, dictionary, Z, X))
    for k in range(3):
        best = minimize(value, np.array(dictionary.atoms[k]), args=(k,), method="BFGS", options={"gtol": 1e-9})
        assert float(gains[k]) == pytest.approx(F - best.fun, rel=1e-5, abs=1e-10)  # BFGS by differences: about 1e-8
