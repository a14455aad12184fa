"""What the conditions say at points that `jd.fit` certifies, and at points moved away from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stationary_points import made_child, turned

import jaxdict as jd
from jaxdict import conditions, synthetic

pytestmark = pytest.mark.slow

TOL = 1e-10
CASES = [(True, False), (False, False), (True, True), (False, True)]  # offset, signed


def name_case(case):
    return f"offset={case[0]}, signed={case[1]}"


def fitted(X, n_atoms, lam, offset, signed):
    problem = jd.Problem(lam=lam, offset=offset, signed=signed)
    solution = jd.fit(problem, X, n_atoms, key=jax.random.key(0), tol=TOL)
    assert solution.certificate.is_stationary(1e-9), solution.message()
    return problem, solution.dictionary, solution.codes, X


def scaled(X, rows):
    X = np.asarray(X, float)[np.linspace(0, len(X) - 1, rows).round().astype(int)]
    X = X - X.mean(axis=0)
    return jnp.asarray(X / np.sqrt((X**2).sum(axis=1).mean()))


# Offset and signs once each by default; the other two with the slow tests.
PLANTED = [pytest.param(case, id=name_case(case)) for case in CASES]


@pytest.fixture(scope="module", params=PLANTED)
def planted_point(request):
    X = synthetic.independent(jax.random.key(3), 60, 4, 4, noise=0.02).X
    return fitted(X, 4, 0.1, *request.param)


@pytest.fixture(scope="module", params=CASES, ids=name_case)
def digits_point(request):
    from sklearn.datasets import load_digits

    return fitted(scaled(load_digits().data / 16, 500), 30, 0.1, *request.param)


@pytest.fixture(scope="module", params=CASES, ids=name_case)
def minilm_point(request):
    return fitted(scaled(jd.datasets.load("minilm_tokens").X, 500), 20, 0.15, *request.param)


def check_conditions(problem, dictionary, codes, X):
    """T5, T6 (codes >= 0 only), T7 and T9 at a stationary point."""
    live = np.asarray(jnp.mean(jnp.abs(codes), axis=0)) > 0
    assert live.any()
    defect = np.asarray(conditions.barycentre(problem, dictionary, codes, X))
    assert np.abs(defect[:, live]).max() <= 1e-8
    assert np.asarray(conditions.residual(problem, dictionary, codes, X).norm)[live].max() <= 1e-8
    if problem.signed:
        return
    margin = np.asarray(conditions.pairs(dictionary, codes, offset=problem.offset).margin)
    assert np.nanmin(margin) >= -1e-9
    found = conditions.hull(dictionary, codes, np.flatnonzero(live), offset=problem.offset)
    assert bool(found.inside.all()), float(found.distance.max())


def test_conditions_hold_at_planted_fits(planted_point):
    check_conditions(*planted_point)


@pytest.mark.slow
def test_conditions_hold_on_digits(digits_point):
    check_conditions(*digits_point)


@pytest.mark.slow
def test_conditions_hold_on_minilm(minilm_point):
    check_conditions(*minilm_point)


def test_residual_conditions_fail_at_turned_atoms(planted_point):
    problem, dictionary, _, X = planted_point
    dictionary = turned(dictionary)
    codes = jd.encode(problem, dictionary, X, tol=1e-13).codes
    defect = np.asarray(conditions.barycentre(problem, dictionary, codes, X))
    found = conditions.residual(problem, dictionary, codes, X)
    worst = int(np.nanargmax(np.asarray(found.norm)))
    assert np.nanmax(np.abs(defect)) > 1e-3
    assert float(found.norm[worst]) > 1e-3
    mean = jnp.mean(jnp.abs(codes[:, worst]))
    atoms = jnp.zeros_like(dictionary.atoms).at[worst].set(found.direction[worst])
    move = jd.Direction(atoms, jnp.zeros_like(codes), jnp.zeros(X.shape[1]))
    rate = -float(problem.lam * mean * found.norm[worst])
    descends_at(problem, dictionary, codes, X, move, rate)


def descends_at(problem, dictionary, codes, X, move, rate):
    """The slope is the predicted one, and a finite step (codes kept >= 0, atoms on the sphere) lowers the objective."""
    slope = float(jd.directional_derivative(problem, dictionary, codes, X, move))
    assert abs(slope - rate) <= 1e-10
    assert rate < 0
    size = max(float(jnp.abs(leaf).max()) for leaf in move)
    t = 1e-4 / size
    atoms = dictionary.atoms + t * move.atoms
    atoms = atoms / jnp.linalg.norm(atoms, axis=1, keepdims=True)
    moved = codes + t * move.codes
    moved = moved if problem.signed else jnp.maximum(moved, 0)
    before = jd.objective(problem, dictionary, codes, X)
    after = jd.objective(problem, jd.Dictionary(atoms, dictionary.offset + t * move.offset), moved, X)
    assert float(after) < float(before)


def test_pair_and_hull_conditions_fail_at_a_made_child(planted_point):
    problem, dictionary, codes, X = planted_point
    if problem.signed:
        pytest.skip("T5 and T6 are of codes >= 0")
    codes = made_child(codes)
    found = conditions.pairs(dictionary, codes, offset=problem.offset)
    hull = conditions.hull(dictionary, codes, 0, offset=problem.offset)
    assert float(found.margin[0, 1]) < -1e-3
    assert not bool(hull.inside)
    row, constant = found.separating_row(0, 1, offset=problem.offset)
    move = conditions.row_direction(dictionary, codes, 0, row, constant)
    rate = float(problem.lam * found.means[1] * found.margin[0, 1])
    descends_at(problem, dictionary, codes, X, move, rate)
    move = conditions.hull_direction(dictionary, codes, 0, hull)
    descends_at(problem, dictionary, codes, X, move, -float(problem.lam * hull.violation))
    move = conditions.absorption_direction(dictionary, codes, 0, 1)
    rate = conditions.hierarchy(codes, dictionary=dictionary, lam=problem.lam).rate[0, 1]
    descends_at(problem, dictionary, codes, X, move, -float(rate))
