"""The gauge Omega_tau: closed forms, its axioms, its polar, and when a local optimum of the factors is the global one (T15)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict import wide


def size(z, tau):
    return np.sum(z) + tau * np.linalg.norm(z)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.0, 0.5, 4.0])
def test_rank_one_matrices_have_a_closed_form(tau):
    rng = np.random.default_rng(0)
    z, d = rng.normal(size=6), rng.normal(size=3)
    closed = float(wide.rank_one_gauge(jnp.array(z), jnp.array(d), tau))
    by_hand = np.linalg.norm(d) * (size(np.maximum(z, 0), tau) + size(np.maximum(-z, 0), tau))
    np.testing.assert_allclose(closed, by_hand, rtol=1e-12)
    found = wide.gauge(np.outer(z, d), tau)
    np.testing.assert_allclose(found.value, closed, rtol=2e-4)
    assert float(found.lower_bound) <= closed * (1 + 1e-9) <= float(found.value) * (1 + 2e-9)
    assert float(found.value - found.lower_bound) <= 1e-4 * float(found.value)


@pytest.mark.slow
def test_without_a_price_of_atoms_it_is_the_sum_of_norms_and_one_row_has_its_norm():
    rng = np.random.default_rng(1)
    Y = rng.normal(size=(5, 2))
    found = wide.gauge(Y, 0.0)
    np.testing.assert_allclose([found.value, found.lower_bound], np.linalg.norm(Y, axis=1).sum(), rtol=1e-4)
    found = wide.gauge(Y[:1], 0.7)
    np.testing.assert_allclose([found.value, found.lower_bound], 1.7 * np.linalg.norm(Y[0]), rtol=1e-4)
    assert float(wide.gauge(np.zeros((2, 2)), 0.7).value) == 0


def test_orthogonal_rays_of_separate_samples_add_up():
    """`Omega(sum_k z_k d_k^T) = sum_k ||z_k||_1 + tau ||z_k||_2` for orthonormal d_k and z_k that share no sample."""
    rng = np.random.default_rng(2)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    codes = np.zeros((7, 3))
    codes[np.arange(7), [0, 0, 1, 1, 1, 2, 2]] = rng.uniform(0.5, 2, 7)
    found = wide.gauge(codes @ axes, 0.8)
    expected = sum(size(z, 0.8) for z in codes.T)
    np.testing.assert_allclose([found.value, found.lower_bound], expected, rtol=2e-4)


@pytest.mark.slow
def test_it_is_a_gauge_and_its_pull_proves_it():
    rng = np.random.default_rng(3)
    A, B, tau = rng.normal(size=(5, 2)), rng.normal(size=(5, 2)), 0.6
    a, b, both, twice = (wide.gauge(Y, tau) for Y in (A, B, A + B, 2 * A))
    assert float(both.lower_bound) <= float(a.value + b.value)
    np.testing.assert_allclose(twice.value, 2 * a.value, rtol=2e-4)
    np.testing.assert_allclose(np.sum(np.asarray(a.pull) * A), a.lower_bound, rtol=1e-12)
    assert float(wide.polar(a.pull, tau).value) <= 1 + 1e-9
    assert float(np.sum(np.asarray(a.pull) * B)) <= float(b.value)  # a pull of polar one holds for every matrix
    left = A - np.asarray(a.codes) @ np.asarray(a.dictionary.atoms)
    sizes = [size(z, tau) for z in np.asarray(a.codes).T]
    np.testing.assert_allclose(a.value, sum(sizes) + 1.6 * np.linalg.norm(left, axis=1).sum(), rtol=1e-9)
    loose = wide.gauge(A, tau, tol=0.3)
    assert 1e-4 * float(loose.value) < float(loose.value - loose.lower_bound) <= 0.3 * float(loose.value)
    assert wide.gauge(A, tau, max_rounds=1).lower_bound < a.lower_bound


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_data_on_a_line_have_their_optimum_in_closed_form(tau):
    rng = np.random.default_rng(4)
    x, u = 2 * rng.normal(size=8), np.array([0.6, 0.8])
    codes = wide.rank_one_solution(jnp.array(x), 0.4, tau)
    proof = wide.certify_size(np.outer(x, u), 0.4, tau, jd.Dictionary(jnp.array([u, -u])), codes)
    assert proof.status == 0
    assert float(proof.gap) <= 1e-5 * float(proof.value)
    solved = wide.solve_size_penalised(np.outer(x, u), 0.4, tau)
    np.testing.assert_allclose(solved.value, proof.value, rtol=1e-6)


def test_a_large_lam_makes_zero_the_optimum_exactly_from_the_polar_on():
    X, tau = np.random.default_rng(5).normal(size=(7, 2)), 0.5
    edge = float(wide.polar(X, tau).value)
    assert wide.solve_size_penalised(X, edge * 1.001, tau).codes.shape[1] == 0
    assert wide.solve_size_penalised(X, edge * 0.99, tau, tol=1e-6).codes.shape[1] > 0


def joint_optimum(X, lam, tau, n_atoms, seed):
    """A local optimum in both factors from random ones: the package's descent, then codes thresholded to exact zeros."""
    rng = np.random.default_rng(seed)
    task = wide.descents.Task(X, np.ones(X.shape[1]), lam, tau, False)
    atoms = rng.normal(size=(n_atoms, X.shape[1]))
    atoms /= np.linalg.norm(atoms, axis=1)[:, None]
    codes = rng.uniform(0.1, 1, (len(X), n_atoms))
    for _ in range(3):  # a new start clears the memory of a descent that has stalled
        atoms, codes = wide.descents.descended(task, atoms, codes, steps=3000)
    codes = np.where(np.linalg.norm(codes, axis=0) > 1e-4 * np.linalg.norm(codes), codes, 0)
    return jd.Dictionary(jnp.array(atoms)), jnp.array(codes)


def test_a_local_optimum_with_an_atom_to_spare_is_the_global_one_and_one_atom_alone_is_not():
    X, lam, tau = np.random.default_rng(6).normal(size=(6, 2)), 0.3, 0.8
    convex = wide.solve_size_penalised(X, lam, tau)
    for seed in range(3):
        dictionary, codes = joint_optimum(X, lam, tau, 14, seed)
        fewer, their_codes = wide.fewer_atoms(dictionary, codes, tau)
        assert fewer.atoms.shape[0] < 14  # at most N d = 12 are ever needed
        proof = wide.certify_size(X, lam, tau, fewer, their_codes, tol=1e-3)
        assert proof.status == 0, proof.message()
        np.testing.assert_allclose(proof.value, convex.value, rtol=1e-3)
        alone = wide.certify_size(X, lam, tau, *joint_optimum(X, lam, tau, 1, seed))
        assert alone.refuted
        assert float(alone.value) > float(convex.value) * 1.01


def test_fewer_atoms_keep_the_product_and_never_raise_the_size():
    rng = np.random.default_rng(7)
    for n, d, n_atoms in ((2, 2, 9), (3, 2, 6), (4, 3, 5)):
        atoms, codes = rng.normal(size=(n_atoms, d)), np.maximum(rng.normal(size=(n, n_atoms)), 0)
        fewer, theirs = wide.fewer_atoms(jd.Dictionary(jnp.array(atoms)), jnp.array(codes), 0.5)
        new, Z = np.asarray(fewer.atoms), np.asarray(theirs)
        np.testing.assert_allclose(Z @ new, codes @ atoms, atol=1e-10)
        assert len(new) <= n * d
        assert Z.min() >= 0
        before, after = (
            np.linalg.norm(D, axis=1) @ (C.sum(0) + 0.5 * np.linalg.norm(C, axis=0))
            for D, C in ((atoms, codes), (new, Z))
        )
        assert after <= before * (1 + 1e-12)
    with pytest.raises(ValueError, match="codes are negative"):
        wide.fewer_atoms(jd.Dictionary(jnp.eye(2)), -jnp.ones((3, 2)), 0.5)


def test_closed_forms_have_derivatives():
    slope = jax.grad(lambda z: wide.rank_one_gauge(z, jnp.array([3.0, 4.0]), 1.0))(jnp.array([2.0, 0.0]))
    np.testing.assert_allclose(slope[0], 10.0)
