"""The optimality map: closed forms, zero iff the certificate's stationarity is, the same order, the same implicit derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.certificates.optimality import optimality_map
from jaxdict.certificates.stationarity import stationarity

VARIANTS = [(False, "constrained"), (True, "constrained"), (False, "penalised"), (True, "penalised")]


def random_point(seed=0, signed=False, gauge="constrained", n=12, d=3, k=4):
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(k, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    if gauge == "penalised":
        D *= rng.uniform(0.5, 2, (k, 1))
    Z = rng.normal(size=(n, k))
    Z = Z * (np.abs(Z) > 0.7) if signed else np.maximum(Z, 0)
    problem = jd.Problem(
        lam=0.4,
        signed=signed,
        gauge=gauge,
        metric=rng.uniform(0.5, 2, d),
        weights=rng.uniform(0, 2, n) * (np.arange(n) != 2),
    )
    return (
        problem,
        jd.Dictionary(jnp.asarray(D), jnp.asarray(rng.normal(size=d))),
        jnp.asarray(Z),
        jnp.asarray(rng.normal(size=(n, d))),
    )


@pytest.mark.parametrize(("signed", "gauge"), VARIANTS)
def test_blocks_against_numpy(signed, gauge):
    problem, (D, b), Z, X = random_point(1, signed, gauge)
    found = optimality_map(problem, jd.Dictionary(D, b), Z, X)
    D, b, Z, X, m, w = map(np.asarray, (D, b, Z, X, problem.metric, problem.weights))
    w, lam = w / w.mean(), 0.4
    mr = m * (X - b - Z @ D)
    norms = np.linalg.norm(D, axis=1)
    U, sizes = (D / norms[:, None], Z * norms) if gauge == "penalised" else (D, Z)
    s = mr @ U.T / lam
    if signed:
        moved = sizes / lam + s
        codes = sizes / lam - np.sign(moved) * np.maximum(np.abs(moved) - 1, 0)
    else:
        codes = np.minimum(sizes / lam, 1 - s)
    np.testing.assert_allclose(found.codes, codes * (w > 0)[:, None], atol=1e-12)
    v = (Z * w[:, None]).T @ mr / (lam * (w @ np.abs(Z)))[:, None]
    moved = D + v
    ball = D - moved / np.maximum(1, np.linalg.norm(moved, axis=1, keepdims=True))
    np.testing.assert_allclose(found.atoms, D / norms[:, None] - v if gauge == "penalised" else ball, atol=1e-12)
    np.testing.assert_allclose(found.offset, -(w @ mr) / len(X) / lam, atol=1e-12)


@pytest.fixture(scope="module")
def stationary_point():
    """One atom and the offset by the conditions themselves, taken in turn: `z = (<d, x - b> - lam)_+`, `d ~ E[z (x - b)]`, `E[r] = 0`."""
    jax.config.update("jax_enable_x64", True)  # module fixtures may be set up right after a doctest, which runs without
    X, lam = np.random.default_rng(2).normal(size=(40, 3)) * [3, 1, 0.5], 0.4
    d, b = np.array([1.0, 0.2, 0.1]) / np.sqrt(1.05), X.mean(0)
    for _ in range(3000):
        z = np.maximum((X - b) @ d - lam, 0)
        d = z @ (X - b)
        d /= np.linalg.norm(d)
        b = X.mean(0) - z.mean() * d
    z = np.maximum((X - b) @ d - lam, 0)
    return (
        jd.Problem(lam=lam),
        jd.Dictionary(jnp.asarray(d)[None], jnp.asarray(b)),
        jnp.asarray(z)[:, None],
        jnp.asarray(X),
    )


def worst(defects):
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(defects))


def test_zero_where_the_certificate_is_and_only_there(stationary_point):
    problem, D, Z, X = stationary_point
    told = float(stationarity(problem, D, Z, X).worst)
    assert told < 1e-12
    # The atoms block is at most the certificate's per atom, the codes block entry by entry, the offset is its norm.
    assert worst(optimality_map(problem, D, Z, X)) <= 1e-12
    turned = jnp.roll(D.atoms, 1)
    on, off = jnp.argmax(Z[:, 0]), jnp.argmin(Z[:, 0])
    moved = {
        "atom": (jd.Dictionary(turned, D.offset), Z),
        "offset": (jd.Dictionary(D.atoms, D.offset + 1e-3), Z),
        "code on": (D, Z.at[on, 0].add(1e-3)),
        "code off": (D, Z.at[off, 0].add(1e-3)),
        "negative code": (D, Z.at[off, 0].add(-1e-3)),
        "outside the ball": (jd.Dictionary(1.001 * D.atoms, D.offset), Z),
    }
    for name, point in moved.items():
        assert worst(optimality_map(problem, *point, X)) > 1e-5, name
        assert float(stationarity(problem, *point, X).worst) > 1e-5, name


@pytest.mark.parametrize(("signed", "gauge"), VARIANTS)
def test_blocks_are_bounded_by_the_certificates_and_order_points_alike(signed, gauge):
    """Codes: |min(z / lam, 1 - s)| is at most the certificate's violation; offset: its norm; penalised atoms: its defects.

    The further the data move from those that the codes are best for, the larger both: on the support |1 - s| grows in proportion.
    """
    problem, D, _, X = random_point(3, signed, gauge)
    Z = jd.encode(problem, D, X, tol=1e-13).codes
    noise = jnp.asarray(np.random.default_rng(5).normal(size=X.shape))
    ours, theirs = [], []
    for size in (0.3, 0.1, 0.03, 0.01):
        left, told = optimality_map(problem, D, Z, X + size * noise), stationarity(problem, D, Z, X + size * noise)
        assert float(jnp.max(jnp.abs(left.codes))) <= float(told.codes) * (1 + 1e-12)
        np.testing.assert_allclose(jnp.linalg.norm(left.offset), told.offset, rtol=1e-12)
        if gauge == "penalised":
            live = ~jnp.isnan(told.by_atom)
            np.testing.assert_allclose(jnp.linalg.norm(left.atoms, axis=1)[live], told.by_atom[live], rtol=1e-10)
        else:
            assert not bool(jnp.any(jnp.linalg.norm(left.atoms, axis=1) > told.by_atom * (1 + 1e-12)))
        ours.append(float(jnp.max(jnp.abs(left.codes))))
        theirs.append(float(told.codes))
    assert np.argsort(ours).tolist() == np.argsort(theirs).tolist() == [3, 2, 1, 0]


def test_sparse_codes_dead_atoms_fixed_offset_and_float32():
    problem, D, Z, X = random_point(4)
    Z = Z.at[:, 2].set(0)
    dense = optimality_map(problem, D, Z, X)
    sparse = optimality_map(problem, D, jd.sparse_codes(Z), X)
    for a, b in zip(dense, sparse, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)
    assert float(jnp.max(jnp.abs(dense.atoms[2]))) == 0
    fixed = jd.Problem(lam=0.4, offset=False)
    assert float(jnp.max(jnp.abs(optimality_map(fixed, D, Z, X).offset))) == 0
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (D, Z, X))
    assert all(leaf.dtype == jnp.float32 for leaf in optimality_map(problem, *half))
    gradient = jax.jit(jax.grad(lambda D: sum(jnp.sum(leaf**2) for leaf in optimality_map(problem, D, Z, X))))(D)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in gradient)
