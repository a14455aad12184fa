"""T5: the hull condition, against scipy's linear programs, at stationary points, and its refutation as a descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from stationary_points import made_child

import jaxdict as jd
from jaxdict.conditions import barycentre_weights, hull, hull_direction
from jaxdict.conditions.nearest_point import nearest_point


def linear_distance(points, target, offset):
    """The largest coordinate's distance to the hull or cone, by linear programming: zero iff inside."""
    n, d = points.shape
    if n == 0:
        return np.inf if offset else abs(target).max()
    slack = np.ones((d, 1))
    bounds = np.block([[points.T, -slack], [-points.T, -slack]])
    sums = {"A_eq": np.r_[np.ones(n), 0][None], "b_eq": [1.0]} if offset else {}
    cost = np.r_[np.zeros(n), 1]
    return linprog(cost, A_ub=bounds, b_ub=np.r_[target, -target], bounds=(0, None), method="highs", **sums).fun


def random_case(seed, n_samples=40, n_atoms=5):
    """Codes and unit atoms of many kinds: ties, duplicates, children, dead features, positive and antipodal atoms."""
    rng = np.random.default_rng(seed)
    Z = rng.exponential(size=(n_samples, n_atoms)) * (
        rng.random((n_samples, n_atoms)) < rng.choice([0.2, 0.5, 0.8, 1.0])
    )
    Z = np.round(2 * Z) if seed % 3 == 0 else Z
    Z = (Z > 0) + 0.3 * Z if seed % 4 == 0 else Z
    if seed % 5 == 0:
        Z[:, 1] *= Z[:, 0] > 0
    if seed % 7 == 0:
        Z[:, 2] = 0
    atoms = rng.normal(size=(n_atoms, 3 + seed % 3))
    atoms = abs(atoms) if seed % 6 == 0 else atoms
    if seed % 11 == 0:  # cosines 0, 1 and -1 put the point on faces of the hull
        atoms = np.concatenate([np.eye(3), -np.eye(3)])[:n_atoms]
    return Z, atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


@pytest.mark.parametrize("offset", [pytest.param(True, marks=pytest.mark.slow), False])
def test_agreement_with_linear_programs(offset):
    outside = 0
    for seed in range(45):
        Z, atoms = random_case(seed)
        means, cosines = Z.mean(axis=0), atoms @ atoms.T
        found = hull(jd.Dictionary(jnp.asarray(atoms)), jnp.asarray(Z), jnp.arange(5), offset=offset)
        for i in range(5):
            used = (means > 0) & (np.arange(5) != i)
            target = 1 - cosines[i, used]
            expected = linear_distance(Z[Z[:, i] == 0][:, used] / means[used], target, offset)
            assert bool(found.inside[i]) == (expected <= 1e-8), (seed, i, expected, found.distance[i])
            w = np.asarray(found.weights[i])
            assert w.min() >= 0
            assert (w[Z[:, i] > 0] == 0).all()
            if found.inside[i]:  # proved by the weights
                np.testing.assert_allclose(w @ Z[:, used] / means[used], target, atol=1e-9)
                assert not offset or abs(w.sum() - 1) < 1e-12
            else:  # proved by the row
                outside += 1
                reach = Z @ np.asarray(found.row[i]) + float(found.constant[i])
                assert reach[Z[:, i] == 0].min(initial=0) > -1e-10
                change = float(found.constant[i]) + found.row[i][used] @ (means[used] * target)
                assert float(change) == pytest.approx(-float(found.violation[i]), abs=1e-10)
                assert found.violation[i] > 1e-9
    assert outside > 40


def boundary_cases():
    """Points on faces, edges and vertices of the hull by construction, and pushed off along an outward normal."""
    rng = np.random.default_rng(0)
    for case in range(60):
        d = 2 + case % 4
        points = rng.normal(size=(30, d)) if case % 2 else rng.integers(-2, 3, size=(30, d)) * 1.0
        normal = rng.normal(size=d)
        face = np.argsort(-(points @ normal))[: 1 + case % d]
        # lower the others so that the chosen points span a face
        heights = points @ normal
        points[face] += np.outer((heights.max() - heights[face]) / (normal @ normal), normal)
        on_face = rng.dirichlet(np.ones(len(face))) @ points[face]
        yield points, on_face, normal / np.linalg.norm(normal)


@pytest.mark.slow
def test_boundary_points_are_inside_and_a_step_out_is_measured():
    solve = jax.jit(lambda p, t: nearest_point(p, jnp.ones(len(p), bool), t, hull=True).weights @ p)
    for points, on_face, normal in boundary_cases():
        for step in (0.0, 1e-6, 0.1):
            target = on_face + step * normal
            distance = float(jnp.linalg.norm(target - solve(jnp.asarray(points), jnp.asarray(target))))
            assert distance == pytest.approx(step, abs=1e-10)


@pytest.mark.parametrize("kind", ["weights", "row"])
def test_stationary_points_are_inside(point, kind):
    problem, dictionary, codes, X = point
    dictionary = dictionary._replace(atoms=jnp.concatenate([dictionary.atoms, -dictionary.atoms[:1]]))
    codes = jnp.pad(codes, [(0, 0), (0, 1)])  # T5 speaks of dead features too: here one opposite to feature 0
    found = hull(dictionary, codes, jnp.arange(5), offset=problem.offset, weights=problem.weights)
    slack = [barycentre_weights(problem, dictionary, codes, X, i) for i in range(4)]
    if kind == "row":
        assert bool(found.inside[:4].all())
        return
    means = jnp.asarray(problem.weights if problem.weights is not None else jnp.ones(len(X))) @ codes
    means = means / (len(X) if problem.weights is None else problem.weights.sum())
    target = means[:4] * (1 - dictionary.atoms[:4] @ dictionary.atoms[:4].T)
    for i in range(4):  # the residual's slack is such a combination (T7)
        np.testing.assert_allclose((slack[i] @ codes)[:4], target[i], atol=1e-9)
        assert float(jnp.where(codes[:, i] > 0, abs(slack[i]), 0).max()) < 1e-11
        assert float(slack[i].min()) > -1e-12
        assert not problem.offset or float(slack[i].sum()) == pytest.approx(1, abs=1e-10)


def test_a_violation_descends_at_its_rate_and_a_step_lowers_the_objective(point):
    problem, dictionary, codes, X = point
    codes = made_child(codes)
    found = hull(dictionary, codes, 0, offset=problem.offset, weights=problem.weights)
    assert not bool(found.inside)
    assert float(found.violation) == pytest.approx(float(found.distance), rel=1e-9)
    move = hull_direction(dictionary, codes, 0, found)
    slope = float(jd.directional_derivative(problem, dictionary, codes, X, move))
    assert slope == pytest.approx(-float(problem.lam * found.violation), abs=1e-10)
    ahead = jd.Dictionary(dictionary.atoms + 1e-4 * move.atoms, dictionary.offset + 1e-4 * move.offset)
    ahead, ahead_codes = jd.canonical(ahead, codes + 1e-4 * move.codes)
    assert float(ahead_codes.min()) >= 0
    drop = jd.objective(problem, ahead, ahead_codes, X) - jd.objective(problem, dictionary, codes, X)
    assert float(drop) < 0.9e-4 * slope


@pytest.mark.slow
def test_norms_other_than_one_in_the_penalised_gauge():
    Z, atoms = random_case(5)
    dictionary = jd.Dictionary(jnp.asarray(atoms * np.array([[0.5], [2.0], [1.0], [3.0], [0.2]])))
    problem, X = jd.Problem(lam=0.3, gauge="penalised"), jnp.ones((40, 5))
    found = hull(dictionary, jnp.asarray(Z), 0)
    move = hull_direction(dictionary, jnp.asarray(Z), 0, found)
    slope = float(jd.directional_derivative(problem, dictionary, jnp.asarray(Z), X, move))
    assert slope == pytest.approx(-0.3 * float(found.violation), abs=1e-10)
    assert slope < -1e-3


@pytest.mark.slow
def test_a_feature_never_off():
    codes = jnp.array([[1.0, 1.0], [2.0, 0.0]])
    problem, X = jd.Problem(lam=0.5), jnp.ones((2, 2))
    found = hull(jd.Dictionary(jnp.eye(2)), codes, 0)
    assert (bool(found.inside), float(found.violation)) == (False, 1.0)
    move = hull_direction(jd.Dictionary(jnp.eye(2)), codes, 0, found)
    assert float(jd.directional_derivative(problem, jd.Dictionary(jnp.eye(2)), codes, X, move)) == pytest.approx(-0.5)
    assert not bool(hull(jd.Dictionary(jnp.eye(2)), codes, 0, offset=False).inside)
    assert bool(hull(jd.Dictionary(jnp.ones((2, 1))), codes, 0, offset=False).inside)  # d_j = d_i


def test_one_sample_one_atom_and_sparse_codes():
    assert bool(hull(jd.Dictionary(jnp.eye(1)), jnp.zeros((1, 1)), 0).inside)
    Z, atoms = random_case(2)
    dense, sparse = (
        hull(jd.Dictionary(jnp.asarray(atoms)), codes, jnp.arange(5))
        for codes in (jnp.asarray(Z), jd.sparse_codes(jnp.asarray(Z)))
    )
    np.testing.assert_array_equal(dense.distance, sparse.distance)


def test_jit_agrees_and_the_distance_has_a_derivative():
    Z, atoms = random_case(5)
    distance = lambda Z: hull(jd.Dictionary(jnp.asarray(atoms)), Z, 0).distance  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(distance))(jnp.asarray(Z))
    assert float(value) == pytest.approx(float(distance(jnp.asarray(Z))))
    step = np.random.default_rng(0).normal(size=Z.shape) * (Z > 0)
    change = (distance(jnp.asarray(Z + 1e-6 * step)) - distance(jnp.asarray(Z - 1e-6 * step))) / 2e-6
    assert float(jnp.sum(slope * step)) == pytest.approx(float(change), rel=1e-6)


def test_negative_codes_are_refused():
    with pytest.raises(ValueError, match="codes >= 0"):
        hull(jd.Dictionary(jnp.eye(2)), -jnp.ones((3, 2)), 0)
