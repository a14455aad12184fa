"""T4: the Schur complement against dense Hessians by autodiff, planted saddles and minima, and their escape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.certificates import curvature as module
from jaxdict.certificates.curvature import curvature
from jaxdict.certificates.lanczos import lanczos_smallest

N, K, D = 7, 4, 3
CASES = {
    "plain": {},
    "no offset": {"offset": False},
    "metric": {"metric": np.array([0.3, 1.0, 4.0])},
    "weights": {"weights": np.array([1.0, 2.0, 0.0, 1.0, 1.0, 1.0, 3.0]), "offset": False},
    "signed": {"signed": True},
}


def point(seed, noise=0.1, **options):
    """A random point: three live atoms, at most three codes a sample, one dead atom."""
    rng = np.random.default_rng(seed)
    problem = jd.Problem(lam=0.3, **options)
    atoms = rng.normal(size=(K, D))
    atoms /= np.linalg.norm(atoms, axis=1)[:, None]
    codes = np.abs(rng.normal(size=(N, K))) * (rng.random((N, K)) < 0.6)
    codes[:, 3] = 0
    if problem.signed:
        codes *= rng.choice([-1.0, 1.0], size=codes.shape)
    offset = rng.normal(size=D) if problem.offset else np.zeros(D)
    X = offset + codes @ atoms + rng.normal(size=(N, D)) * noise
    return problem, jd.Dictionary(jnp.array(atoms), jnp.array(offset)), jnp.array(codes), jnp.array(X)


def dense_hessian(problem, dictionary, codes, X):
    """The Lagrangian's Hessian by `jax.hessian` on the critical subspace: (matrix, basis, dictionary directions, c)."""
    w = np.ones(N) if problem.weights is None else np.asarray(problem.weights) * N / np.sum(problem.weights)
    rates = 0.3 * (w @ np.abs(codes)) / N
    size = K * D + D

    def lagrangian(v):
        atoms = dictionary.atoms + v[: K * D].reshape(K, D)
        moved = jd.Dictionary(atoms, dictionary.offset + v[K * D : size])
        value = jd.objective(problem, moved, codes + v[size:].reshape(N, K), X)
        return value + 0.5 * jnp.sum(rates * jnp.sum(atoms**2, axis=1))

    hessian = np.asarray(jax.hessian(lagrangian)(jnp.zeros(size + N * K)))
    basis, scales = [], []
    top = 1.0 if problem.metric is None else float(problem.metric.max())
    for k in np.flatnonzero(rates > 0):
        for tangent in np.linalg.svd(np.asarray(dictionary.atoms[k])[None])[2][1:]:
            basis.append(np.zeros(size + N * K))
            basis[-1][k * D : (k + 1) * D] = tangent
            scales.append(top * (w @ np.asarray(codes)[:, k] ** 2) / N + rates[k])
    if problem.offset:
        basis.extend(np.eye(size + N * K)[K * D : size])
        scales.extend([top] * D)
    for n, k in np.argwhere(np.asarray(codes) != 0):
        if w[n] > 0:
            basis.append(np.eye(size + N * K)[size + n * K + k])
    basis = np.array(basis).T
    return basis.T @ hessian @ basis, basis, len(scales), np.array(scales)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("noise", [pytest.param(0.01, marks=pytest.mark.slow), 0.5])
def test_eigenvalue_is_that_of_the_dense_schur_complement(case, noise):
    args = point(0, noise, **CASES[case])
    H, basis, split, scales = dense_hessian(*args)
    found = curvature(*args)
    ridge = module.RIDGE if float(found.eigenvalue) < 0 else 0
    own = H[split:, split:] + ridge * np.diag(np.diag(H[split:, split:]))
    schur = H[:split, :split] - H[:split, split:] @ np.linalg.solve(own, H[split:, :split])
    values = np.linalg.eigvalsh(schur / np.sqrt(scales[:, None] * scales))
    assert (float(found.eigenvalue) < 0) == (np.linalg.eigvalsh(H)[0] < 0) == (noise > 0.1)
    np.testing.assert_allclose(found.eigenvalue, values[0], rtol=1e-9, atol=1e-11)
    assert float(found.residual_norm) < 1e-10 * max(1, abs(values[0]))
    # The direction is in the critical subspace and of unit norm; its second derivative is the dense quadratic form.
    direction = np.concatenate(
        [np.ravel(part) for part in (found.direction.atoms, found.direction.offset, found.direction.codes)]
    )
    inside = basis.T @ direction
    np.testing.assert_allclose(basis @ inside, direction, atol=1e-12 * np.abs(direction).max())
    np.testing.assert_allclose(np.linalg.norm(inside[:split]), 1, atol=1e-12)
    np.testing.assert_allclose(found.second_derivative, inside @ H @ inside, rtol=1e-9, atol=1e-11)
    assert (float(found.second_derivative) < 0) == (float(found.eigenvalue) < 0)


def test_lanczos_agrees_with_the_exact_eigenvalue(monkeypatch):
    args = point(1)
    exact = curvature(*args)
    with monkeypatch.context() as patch:
        patch.setattr(module, "EXACT_UNKNOWNS", 0)
        module._curvature.clear_cache()
        found = curvature(*args)
    module._curvature.clear_cache()
    np.testing.assert_allclose(found.eigenvalue, exact.eigenvalue, rtol=1e-8)
    assert float(found.residual_norm) < 1e-5 * max(1, abs(float(exact.eigenvalue)))


def test_lanczos_on_a_known_matrix():
    rng = np.random.default_rng(2)
    matrix = rng.normal(size=(80, 80))
    matrix = matrix + matrix.T
    matrix /= np.abs(np.linalg.eigvalsh(matrix)).max()
    value, vector = lanczos_smallest(lambda v: jnp.array(matrix) @ v, jnp.ones(80), 80, above=4.0)
    smallest = np.linalg.eigvalsh(matrix)[0]
    np.testing.assert_allclose(value, smallest, atol=1e-10)
    assert float(value) >= smallest - 1e-13
    np.testing.assert_allclose(vector @ matrix @ vector, smallest, atol=1e-10)
    # A start in an invariant subspace: no direction outside it is claimed.
    value, _ = lanczos_smallest(lambda v: jnp.array([1.0, -1.0, 0.5]) * v, jnp.array([1.0, 0.0, 1.0]), 3, above=4.0)
    np.testing.assert_allclose(value, 0.5, atol=1e-12)


def split_atom(copies):
    """x = (3, +-1), lam = .1: one atom e_1 with z = 2.9 is stationary; here its code is shared by copies of it."""
    X = jnp.array([[3.0, 1.0], [3.0, -1.0]])
    atoms = jnp.tile(jnp.array([[1.0, 0.0]]), (copies, 1))
    return jd.Problem(lam=0.1, offset=False), jd.Dictionary(atoms), jnp.full((2, copies), 2.9 / copies), X


def test_one_atom_has_the_curvature_computed_by_hand():
    """dD = t e_2: q = z t e_2, p = +-t, A = 1, D m q = 0: S = z^2 - 1 + lam z = 7.7, over c = z^2 + lam z = 8.7."""
    problem, dictionary, codes, X = split_atom(1)
    assert bool(jd.steepest_feasible_direction(problem, dictionary, codes, X).codes.max() < 1e-12)
    found = curvature(problem, dictionary, codes, X)
    np.testing.assert_allclose(found.eigenvalue, (2.9**2 - 1 + 0.29) / (2.9**2 + 0.29), rtol=1e-12)


def test_two_copies_of_an_atom_are_a_saddle_and_the_direction_descends():
    problem, dictionary, codes, X = split_atom(2)
    found = curvature(problem, dictionary, codes, X)
    assert float(found.eigenvalue) < -1
    assert float(found.second_derivative) < 0
    # Walk along it: F falls by about half the second derivative, and the codes stay positive.
    direction, step = found.direction, 1e-3
    moved = dictionary.atoms + step * direction.atoms
    moved = moved / jnp.linalg.norm(moved, axis=1, keepdims=True)
    after = jd.objective(problem, jd.Dictionary(moved), codes + step * direction.codes, X)
    fall = float(jd.objective(problem, dictionary, codes, X) - after)
    np.testing.assert_allclose(fall, -0.5 * step**2 * found.second_derivative, rtol=0.1)
    assert float(jnp.min(codes + step * direction.codes)) > 0


@pytest.mark.slow
def test_no_allowed_direction_is_infinite_curvature():
    """d = 1 has no tangent directions; without an offset nothing is left."""
    X, codes = jnp.array([[2.0], [-2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    pair = jd.Dictionary(jnp.array([[1.0], [-1.0]]))
    assert float(curvature(jd.Problem(lam=1.0, offset=False), pair, codes, X).eigenvalue) == np.inf
    assert float(curvature(jd.Problem(lam=1.0), pair, codes, X).eigenvalue) < 1


@pytest.mark.slow
def test_sparse_codes_gauges_vmap_and_float32_agree():
    problem, dictionary, codes, X = point(3)
    reference = curvature(problem, dictionary, codes, X)
    sparse = curvature(problem, dictionary, jd.sparse_codes(codes), X)
    np.testing.assert_allclose(sparse.eigenvalue, reference.eigenvalue, rtol=1e-9)
    np.testing.assert_allclose(
        jnp.abs(jd.dense_codes(sparse.direction.codes, K)), jnp.abs(reference.direction.codes), atol=1e-7
    )
    norms = jnp.array([1.0, 2.0, 0.5, 3.0])
    scaled = jd.Dictionary(dictionary.atoms * norms[:, None], dictionary.offset)
    other = curvature(jd.Problem(lam=0.3, gauge="penalised"), scaled, codes / norms, X)
    np.testing.assert_allclose(other.eigenvalue, reference.eigenvalue, rtol=1e-9)
    batch = jax.jit(jax.vmap(lambda x: curvature(problem, dictionary, codes, x).eigenvalue))(
        jnp.stack([X, X * jnp.nan])
    )
    np.testing.assert_allclose(batch[0], reference.eigenvalue, rtol=1e-9)
    assert np.isnan(batch[1])
    single = curvature(*jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (problem, dictionary, codes, X)))
    assert single.eigenvalue.dtype == jnp.float32
    np.testing.assert_allclose(single.eigenvalue, reference.eigenvalue, rtol=1e-3, atol=1e-3)


def test_too_few_slots_are_not_passed_over_in_silence():
    assert np.isnan(curvature(*point(4), slots=1).eigenvalue)
