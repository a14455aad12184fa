"""The size-penalised problem along tau (T15): its ends, the number of atoms between, and what fresh rows say."""

import numpy as np
import pytest

import jaxdict as jd
from jaxdict import wide


@pytest.fixture(scope="module")
def rays():
    """Four rays in the plane with noise, some rows to learn from and some aside."""
    rng = np.random.default_rng(0)
    angles = np.array([0.2, 1.7, 3.1, 4.6])
    atoms = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    which = rng.integers(0, 4, 116)
    X = rng.uniform(1, 3, 116)[:, None] * atoms[which] + 0.03 * rng.normal(size=(116, 2))
    return X[:16], X[16:]


@pytest.fixture(scope="module")
def path(rays):
    X, fresh = rays
    edge = float(wide.tau_max(X, 0.2))
    return wide.size_path(X, 0.2, edge * np.geomspace(0.05, 1, 8), held_out=fresh, tol=1e-3)  # sorted within


def test_the_path_runs_from_nothing_through_the_rays(path, rays):
    X, _ = rays
    assert path.n_atoms[0] == 0
    assert 4 in path.n_atoms
    assert np.all(np.diff(path.taus) < 0)
    np.testing.assert_allclose(path.points[0].value, 0.5 * np.sum(X**2), rtol=1e-3)
    values = [float(point.value) for point in path.points]
    assert np.all(np.diff(values) <= 1e-3 * values[0])  # a lower price of atoms never costs more
    assert all(point.certificate.status == 0 for point in path.points)
    assert "the gap is closed at 8 of 8" in path.message()


def test_the_planted_number_lasts_longest_and_fresh_rows_want_no_fewer(path):
    assert path.lasting() == 4, path.n_atoms
    assert "4 atoms last longest" in path.message()
    i = path.best()
    assert path.n_atoms[i] >= 4
    assert f"On 100 fresh rows {path.n_atoms[i]} atoms (tau={path.taus[i]:.3g})" in path.message()
    assert np.all(path.n_atoms[path.fresh - path.fresh.min() <= path.standard_errors] >= path.n_atoms[i])
    assert path.standard_errors[np.argmin(path.fresh)] == 0
    assert path.n_atoms[path.best(errors=0.0)] >= path.n_atoms[i]
    assert path.n_atoms[path.best(errors=1e9)] == 0


def test_held_out_is_the_plain_objective_at_exact_codes(path, rays):
    _, fresh = rays
    i = path.best()
    problem, dictionary = jd.Problem(lam=0.2, offset=False), path.points[i].dictionary
    codes = jd.encode(problem, dictionary, fresh).codes
    np.testing.assert_allclose(path.fresh[i], jd.objective(problem, dictionary, codes, fresh), rtol=1e-9)
    np.testing.assert_allclose(path.fresh[0], 0.5 * np.mean(np.sum(fresh**2, axis=1)), rtol=1e-9)


@pytest.mark.parametrize("offset", [False, True])
def test_without_a_price_the_end_is_the_wide_limit(offset):
    X, m = np.random.default_rng(1).normal(size=(6, 2)), np.array([1.5, 0.7])
    end = wide.size_path(X, 0.4, [1.0, 0.0], offset=offset, metric=m).points[-1]
    limit = wide.bound(X, 0.4, offset=offset, metric=m)
    np.testing.assert_allclose([end.value, end.lower_bound], 6 * limit.value, rtol=2e-4)


@pytest.mark.slow
def test_tau_max_is_where_the_first_atom_pays():
    X, lam = np.random.default_rng(2).normal(size=(9, 2)), 0.3
    for options in ({}, {"offset": True}, {"metric": np.array([2.0, 0.5])}):
        edge = float(wide.tau_max(X, lam, **options))
        pull = options.get("metric", 1) * (X - X.mean(0) if "offset" in options else X)
        np.testing.assert_allclose(wide.polar(pull, edge).value, lam, rtol=1e-6)
        assert wide.solve_size_penalised(X, lam, edge * 1.001, **options).codes.shape[1] == 0
        assert wide.solve_size_penalised(X, lam, edge * 0.98, tol=1e-6, **options).codes.shape[1] == 1
    birth = jd.certify(jd.Problem(lam=lam, offset=False), jd.Dictionary(np.eye(2)), np.zeros((9, 2)), X).birth
    np.testing.assert_allclose(9 * birth.gain, (lam * float(wide.tau_max(X, lam))) ** 2 / 2, rtol=1e-6)  # T10


@pytest.mark.slow
def test_a_start_of_the_step_before_gives_what_a_fresh_one_gives():
    X = np.random.default_rng(3).normal(size=(10, 2))
    path = wide.size_path(X, 0.2, [2.0, 1.0, 0.5])
    for tau, point in zip(path.taus, path.points, strict=True):
        np.testing.assert_allclose(point.value, wide.solve_size_penalised(X, 0.2, tau).value, rtol=1e-4)


def test_what_is_refused():
    X = np.ones((3, 2))
    for taus in ([], [-1.0], [np.nan]):
        with pytest.raises(ValueError, match="give one or more prices"):
            wide.size_path(X, 0.2, taus)
    with pytest.raises(ValueError, match="give rows of the same kind"):
        wide.size_path(X, 0.2, [1.0], held_out=np.ones((4, 3)))
    with pytest.raises(ValueError, match="wants two or more"):
        wide.size_path(X, 0.2, [1.0], held_out=np.ones((1, 2)))
    with pytest.raises(ValueError, match="no fresh rows"):
        wide.size_path(X, 0.2, [1.0]).best()


def test_the_number_that_lasts_is_read_off_prices_not_points():
    def with_atoms(taus, n_atoms):
        points = tuple(wide.SizePenalised(jd.Dictionary(np.eye(k)), np.zeros((1, k)), None, 0) for k in n_atoms)
        return wide.SizePath(np.array(taus), points, None)

    assert with_atoms([9.0, 8.0, 7.0, 6.0, 1.0], [0, 2, 2, 2, 5]).lasting() == 2
    assert with_atoms([9.0, 8.0, 7.0, 6.5, 1.0], [2, 2, 2, 3, 5]).lasting() == 3
    assert with_atoms([9.0], [0]).lasting() == 0
