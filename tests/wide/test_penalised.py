"""The bound's door, and the size-penalised problem (T15) against closed forms, a cone programme, and its certificates."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import size_penalised

import jaxdict as jd
from jaxdict import wide

value_of = size_penalised.value


def random_problem(seed):
    """Tiny data in one to three dimensions, some on few rays, some in general position; lam and tau of every size."""
    rng = np.random.default_rng(seed)
    n, d = rng.integers(4, 11), 1 + seed % 3
    X = rng.normal(size=(n, d)) * 2
    if seed % 2:
        X = np.maximum(rng.normal(size=(n, d + 1)), 0) @ rng.normal(size=(d + 1, d)) + 0.05 * X
    return X, 0.1 * 5 ** rng.uniform(), 0.1 * 40 ** rng.uniform()


def test_bound_is_the_problems_wide_limit_and_refuses_integers():
    X = np.array([[3.0, 0], [0, 1], [1, 1]])
    limit = wide.bound(X, 0.5, weights=np.array([1.0, 2.0, 1.0]))
    problem = jd.Problem(lam=0.5, weights=np.array([1.0, 2.0, 1.0]))
    zero = jd.Dictionary(jnp.eye(2), limit.offset)
    assert float(limit.dual_value) <= float(jd.objective(problem, zero, jnp.zeros((3, 2)), jnp.array(X, float)))
    np.testing.assert_allclose(limit.value, limit.dual_value, rtol=1e-13)
    with pytest.raises(ValueError, match=r"X has shape \(3,\)"):
        wide.bound(np.ones(3), 0.5)
    with pytest.raises(ValueError, match="X has dtype int64, not floating point"):
        wide.bound(X.astype(int), 0.5)


@pytest.mark.parametrize("tau", [0.0, 0.3, 2.0])
def test_one_dimensional_data_have_a_closed_form(tau):
    """Atoms are +1 and -1, and each code is a proximal map: `(1 - lam tau / ||v||)_+ v`, `v = (+-x - lam)_+`."""
    x, lam = np.array([3.0, 1.0, 0.2, -2.0, -0.6]), 0.5
    solution = wide.solve_size_penalised(x[:, None], lam, tau)
    expected = 0
    codes = []
    for sign in (1, -1):
        v = np.maximum(sign * x - lam, 0)
        codes.append(np.maximum(1 - lam * tau / np.linalg.norm(v), 0) * v)
    expected = value_of(x[:, None], np.array([[1.0], [-1.0]]), np.stack(codes, axis=1), lam, tau)
    np.testing.assert_allclose(solution.value, expected, rtol=1e-10)
    np.testing.assert_allclose(solution.lower_bound, expected, rtol=1e-4)
    assert float(solution.lower_bound) <= expected * (1 + 1e-12)
    assert solution.certificate.status == 0


@pytest.mark.slow
def test_without_size_penalty_it_is_the_wide_limit_summed():
    X = np.random.default_rng(0).normal(size=(12, 2))
    for offset in (False, True):
        solution = wide.solve_size_penalised(X, 0.4, 0.0, offset=offset, max_rounds=40)
        limit = wide.bound(X, 0.4, offset=offset)
        np.testing.assert_allclose(solution.lower_bound, 12 * limit.value, rtol=1e-4)
        np.testing.assert_allclose(solution.value, 12 * limit.value, rtol=1e-4)
        assert float(solution.value) >= 12 * float(limit.dual_value)


@pytest.mark.parametrize(
    "seed", [seed if seed in (0, 1) else pytest.param(seed, marks=pytest.mark.slow) for seed in range(20)]
)
def test_the_gap_closes_and_a_cone_programme_agrees(seed):
    """Gap at most 1e-4 of the value, and the value that of an independent solver to 1e-5: neither is above the other by more."""
    pytest.importorskip("clarabel")
    conic = importlib.import_module("size_penalised_conic")
    X, lam, tau = random_problem(seed)
    solution = wide.solve_size_penalised(X, lam, tau)
    reference = conic.optimum(X, lam, tau)
    assert solution.certificate.status == 0, solution.message()
    assert float(solution.gap) <= 1e-4 * float(solution.value)
    assert float(solution.lower_bound) <= reference
    np.testing.assert_allclose(solution.value, reference, rtol=1e-5)


@pytest.mark.parametrize("offset", [False, True])
def test_a_metric_is_a_change_of_units_where_atoms_keep_theirs(offset):
    """Against the cone programme with the metric and the offset written out."""
    pytest.importorskip("clarabel")
    conic = importlib.import_module("size_penalised_conic")
    rng = np.random.default_rng(7)
    X, m, lam, tau = rng.normal(size=(7, 2)) + 0.5, np.array([2.0, 0.5]), 0.3, 0.5
    solution = wide.solve_size_penalised(X, lam, tau, offset=offset, metric=m)
    atoms, codes, b = np.asarray(solution.dictionary.atoms), np.asarray(solution.codes), solution.dictionary.offset
    left = X - np.asarray(b) - codes @ atoms
    value = 0.5 * np.sum(m * left**2) + lam * (codes.sum() + tau * np.linalg.norm(codes, axis=0).sum())
    np.testing.assert_allclose(solution.value, value, rtol=1e-12)
    assert solution.certificate.status == 0, solution.message()
    if offset:
        np.testing.assert_allclose(np.mean(left, axis=0), 0, atol=1e-12)
    best = conic.optimum(X, lam, tau, m=m, offset=offset)
    np.testing.assert_allclose(solution.value, best, rtol=1e-5)
    assert float(solution.lower_bound) <= best


@pytest.mark.slow
def test_value_is_that_of_the_point_and_the_lower_bound_holds_for_rivals():
    rng = np.random.default_rng(2)
    X, lam, tau = rng.normal(size=(12, 3)), 0.2, 1.0
    solution = wide.solve_size_penalised(X, lam, tau)
    atoms, codes = np.asarray(solution.dictionary.atoms), np.asarray(solution.codes)
    np.testing.assert_allclose(solution.value, value_of(X, atoms, codes, lam, tau), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, atol=1e-12)
    assert codes.min() >= 0
    assert float(solution.gap) >= 0
    assert solution.certificate.status == 0
    assert "gap" in solution.message()
    alone = wide.solve_size_penalised(X, lam, tau, max_cells=0)
    assert alone.certificate.status == 1
    assert alone.certificate.starts > 20
    assert f"none of {alone.certificate.starts} starts" in alone.message()
    np.testing.assert_allclose(alone.value, solution.value, rtol=1e-4)
    for _ in range(20):  # no rival from other random atoms and its own best scale is below the optimum found
        rival = rng.normal(size=(6, 3))
        rival /= np.linalg.norm(rival, axis=1)[:, None]
        other = np.maximum(X @ rival.T - lam, 0) * rng.uniform(0, 1)
        assert value_of(X, rival, other, lam, tau) >= float(solution.value)


def test_bigger_tau_uses_fewer_atoms_and_at_last_none():
    rng = np.random.default_rng(4)
    X = np.maximum(rng.normal(size=(20, 2)), 0) @ rng.normal(size=(2, 4))
    sizes = [wide.solve_size_penalised(X, 0.2, tau).codes.shape[1] for tau in (0.1, 3.0, 1000.0)]
    assert sizes[0] >= sizes[1] > sizes[2] == 0
    nothing = wide.solve_size_penalised(X, 0.2, 1000.0)
    np.testing.assert_allclose([nothing.value, nothing.lower_bound], 0.5 * np.sum(X**2), rtol=1e-12)


def test_max_atoms_is_kept_and_said():
    X = np.random.default_rng(5).normal(size=(20, 4))
    solution = wide.solve_size_penalised(X, 0.1, 0.1, max_atoms=3)
    assert solution.codes.shape == (20, 3)
    assert solution.refuted
    assert "Not optimal" in solution.message()


@pytest.mark.slow
def test_tol_max_rounds_and_start_are_heeded():
    X = np.random.default_rng(8).normal(size=(10, 2))
    fine, coarse = (wide.solve_size_penalised(X, 0.2, 0.3, tol=tol) for tol in (1e-5, 1e-1))
    assert float(fine.gap) <= 1e-5 * float(fine.value)
    assert float(coarse.gap) <= 1e-1 * float(coarse.value)
    assert coarse.certificate.cells < fine.certificate.cells
    assert wide.solve_size_penalised(X, 0.2, 0.3, max_rounds=0).rounds == 0
    again = wide.solve_size_penalised(X, 0.2, 0.31, start=fine)
    assert again.rounds < fine.rounds
    np.testing.assert_allclose(again.value, wide.solve_size_penalised(X, 0.2, 0.31).value, rtol=1e-4)
    with pytest.raises(ValueError, match="start from a solution of the same samples"):
        wide.solve_size_penalised(X[:5], 0.2, 0.3, start=fine)


def test_certificates_of_any_point_hold_and_name_the_atom_that_helps():
    rng = np.random.default_rng(9)
    X, lam, tau = rng.normal(size=(9, 3)), 0.3, 0.4
    best = wide.solve_size_penalised(X, lam, tau)
    for _ in range(5):
        atoms = rng.normal(size=(3, 3))
        codes = np.maximum(rng.normal(size=(9, 3)), 0)
        point = wide.certify_size(X, lam, tau, jd.Dictionary(jnp.array(atoms)), jnp.array(codes))
        sizes = codes.sum(0) + tau * np.linalg.norm(codes, axis=0)
        value = 0.5 * np.sum((X - codes @ atoms) ** 2) + lam * np.linalg.norm(atoms, axis=1) @ sizes
        np.testing.assert_allclose(point.value, value, rtol=1e-12)
        assert float(point.lower_bound) <= float(best.value)
        np.testing.assert_allclose(point.gap, point.value - point.lower_bound, rtol=1e-12)
        if point.refuted:
            left = X - codes @ atoms
            v = np.maximum(left @ np.asarray(point.direction) - lam, 0)
            added = np.maximum(1 - lam * tau / np.linalg.norm(v), 0) * v
            assert value_of(
                X - codes @ atoms, np.asarray(point.direction)[None], added[:, None], lam, tau
            ) < 0.5 * np.sum(left**2)
    with pytest.raises(ValueError, match="codes are negative"):
        wide.certify_size(X, lam, tau, best.dictionary, -best.codes)


@pytest.mark.slow
def test_an_offset_that_is_not_free_is_held_where_it_is():
    X, b = np.random.default_rng(10).normal(size=(6, 2)) + 3, np.array([3.0, 3.0])
    moved = wide.solve_size_penalised(X - b, 0.2, 0.3)
    held = wide.certify_size(X, 0.2, 0.3, moved.dictionary._replace(offset=b), moved.codes)
    np.testing.assert_allclose([held.value, held.gap], [moved.value, moved.gap], rtol=1e-6)


def test_float32_in_float32_out_and_bad_arguments():
    X = jnp.array(np.random.default_rng(6).normal(size=(10, 2)), jnp.float32)
    solution = wide.solve_size_penalised(X, 0.3, 1.0, tol=1e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves((solution.codes, solution.value, solution.gap))} == {
        jnp.dtype("float32")
    }
    for lam, tau in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="give lam > 0 and tau >= 0"):
            wide.solve_size_penalised(X, lam, tau)
