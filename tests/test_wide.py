"""The bound's door, and the size-penalised problem (T15) against closed forms, SciPy and its certificates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxdict as jd
from jaxdict import wide


def value_of(X, atoms, codes, lam, tau):
    left = X - codes @ atoms
    return 0.5 * np.sum(left**2) + lam * (codes.sum() + tau * np.linalg.norm(codes, axis=0).sum())


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
    assert not solution.refuted
    assert float(solution.lower_bound) <= expected * (1 + 1e-12)


def test_without_size_penalty_it_is_the_wide_limit_summed():
    X = np.random.default_rng(0).normal(size=(12, 2))
    for offset in (False, True):
        solution = wide.solve_size_penalised(X, 0.4, 0.0, offset=offset, max_rounds=40)
        limit = wide.bound(X, 0.4, offset=offset)
        np.testing.assert_allclose(solution.lower_bound, 12 * limit.value, rtol=1e-9)
        np.testing.assert_allclose(solution.value, 12 * limit.value, rtol=1e-3)
        assert float(solution.value) >= 12 * float(limit.dual_value)


@pytest.mark.slow
def test_a_fine_grid_of_atoms_solved_by_scipy_is_no_better():
    """120 atoms around the circle, the convex problem in their codes by L-BFGS-B."""
    X, lam, tau = np.random.default_rng(1).normal(size=(5, 2)) * 2, 0.3, 0.5
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    atoms = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def smooth(v):
        codes = v.reshape(5, 120)
        norms = np.sqrt(np.sum(codes**2, axis=0) + 1e-14)
        left = X - codes @ atoms
        slope = -left @ atoms.T + lam + lam * tau * codes / norms
        return 0.5 * np.sum(left**2) + lam * (codes.sum() + tau * norms.sum()), slope.ravel()

    found = minimize(smooth, np.full(600, 0.01), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 600,
                     options={"maxiter": 20000, "maxfun": 40000, "ftol": 1e-14, "gtol": 1e-9})  # fmt: skip
    solution = wide.solve_size_penalised(X, lam, tau)
    assert not solution.refuted
    assert float(solution.value) <= found.fun * (1 + 1e-4)
    assert float(solution.value) >= found.fun * (1 - 2e-3)  # the grid is 3 degrees wide


def test_value_is_that_of_the_point_and_the_lower_bound_holds_for_rivals():
    rng = np.random.default_rng(2)
    X, lam, tau = rng.normal(size=(20, 4)), 0.2, 1.0
    solution = wide.solve_size_penalised(X, lam, tau)
    atoms, codes = np.asarray(solution.dictionary.atoms), np.asarray(solution.codes)
    np.testing.assert_allclose(solution.value, value_of(X, atoms, codes, lam, tau), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, atol=1e-12)
    assert codes.min() >= 0
    assert float(solution.gap) >= 0
    assert "Not refuted" in solution.message()
    for _ in range(20):  # no rival from other random atoms and its own best scale is below the optimum found
        rival = rng.normal(size=(6, 4))
        rival /= np.linalg.norm(rival, axis=1)[:, None]
        other = np.maximum(X @ rival.T - lam, 0) * rng.uniform(0, 1)
        assert value_of(X, rival, other, lam, tau) >= float(solution.value)


def test_polar_height_solves_its_equation_and_bounds_every_ratio():
    rng = np.random.default_rng(3)
    y, tau = rng.normal(size=(30, 7)), 0.7
    k = np.asarray(wide.polar_height(jnp.array(y), tau))
    np.testing.assert_allclose(np.linalg.norm(np.maximum(y - k, 0), axis=0), k * tau, rtol=1e-10)
    for _ in range(50):
        z = np.abs(rng.normal(size=y.shape)) * (rng.random(y.shape) < 0.3)
        ratios = np.sum(y * z, axis=0) / np.maximum(z.sum(0) + tau * np.linalg.norm(z, axis=0), 1e-12)
        assert np.all(ratios <= k * (1 + 1e-12))
    assert float(wide.polar_height(-jnp.ones((3, 1)), tau)[0]) == 0


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


def test_float32_in_float32_out_and_bad_arguments():
    X = jnp.array(np.random.default_rng(6).normal(size=(10, 2)), jnp.float32)
    solution = wide.solve_size_penalised(X, 0.3, 1.0, tol=1e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves((solution.codes, solution.value, solution.gap))} == {
        jnp.dtype("float32")
    }
    for lam, tau in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="give lam > 0 and tau >= 0"):
            wide.solve_size_penalised(X, lam, tau)
